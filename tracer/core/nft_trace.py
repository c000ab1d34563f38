"""
nft's trace messages: NFT_MSG_TRACE of nfnetlink's subsystem 10.

Source: nft_trace_notify() in net/netfilter/nf_tables_trace.c and enum
nft_trace_attributes in include/uapi/linux/netfilter/nf_tables.h. From the kernel where
traces began (4.6) to 6.18 the attributes that name a step stand next to each other:
CHAIN, TABLE, then RULE_HANDLE, VERDICT, POLICY as far as there are such. The batch
reading relies on it for speed only: a message in another order is parsed by itself.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from tracer.core.attributes import Layout, be32, families, fill, sizes, walk, walk_one
from tracer.core.interning import KEY_WORDS, TAG_WORDS, KeySpans
from tracer.core.trace_rows import Refusal
from tracer.core.trace_steps import FAMILIES, TraceStep

if TYPE_CHECKING:
    import numpy.typing as npt

    from tracer.core.attributes import Spots, Walk
    from tracer.core.trace_rows import Fields, TraceRows

__all__ = ["LAYOUT", "MESSAGE_TYPE", "read_key", "read_many", "read_one", "read_step"]

#: NFNL_SUBSYS_NFTABLES (10) and NFT_MSG_TRACE (17).
MESSAGE_TYPE = (10 << 8) | 17

_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_LINK, _NETWORK, _TRANSPORT, _IIF, _OIF, _MARK = 7, 8, 9, 10, 12, 14
_NFPROTO, _POLICY, _CT_ID = 15, 16, 18

#: Wanted attributes and the least size of their values, as nft's own policy has them.
LAYOUT = Layout(
    {
        _TABLE: 0,
        _CHAIN: 0,
        _HANDLE: 8,
        _TYPE: 4,
        _VERDICT: 0,
        _ID: 4,
        _LINK: 0,
        _NETWORK: 0,
        _TRANSPORT: 0,
        _IIF: 4,
        _OIF: 4,
        _MARK: 4,
        _NFPROTO: 4,
        _POLICY: 4,
        _CT_ID: 4,
    }
)

#: enum nft_trace_types.
_KINDS = {1: "policy", 2: "return", 3: "rule"}

#: What names a step, besides the table's family.
_KEY = (_TYPE, _CHAIN, _TABLE, _HANDLE, _VERDICT, _POLICY)

_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_VERDICT_LAYOUT = Layout({_VERDICT_CODE: 4, _VERDICT_CHAIN: 0})

_BE32 = struct.Struct(">I").unpack_from
_SIGNED = struct.Struct(">i").unpack_from
_BE64 = struct.Struct(">Q").unpack_from

#: More than any netfilter family's number; the packet's version decides for such.
_MAX_PF = 255

_EVENT_FIELDS = {"trace_id": _ID, "iif": _IIF, "oif": _OIF, "mark": _MARK, "ct_id": _CT_ID}
_SPAN_FIELDS = {"network": _NETWORK, "transport": _TRANSPORT, "link": _LINK}


def read_many(
    words: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    rows: TraceRows,
    at: npt.NDArray[np.int64] | slice,
) -> KeySpans:
    """
    Fill the columns of nft messages, and say where their keys are.

    *starts* and *lengths* are those of the messages, *at* their rows.
    """
    found = walk(words, starts, lengths, LAYOUT)
    column, spans = found.columns(LAYOUT), rows.spans
    family = families(words, starts)
    fill(rows.events, at, words, {name: column[kind] for name, kind in _EVENT_FIELDS.items()})
    for name, kind in _SPAN_FIELDS.items():
        spans[name][at] = column[kind] + 1
        spans[name + "_size"][at] = np.maximum(sizes(words, column[kind]) - 4, 0)
    proto = be32(words, column[_NFPROTO])
    proto = np.where(column[_NFPROTO] == 0, family, proto)
    spans["pf"][at] = np.minimum(proto, _MAX_PF)
    spans["located"][at] = 1
    rows.numbers[at] = np.where(found.sound, rows.numbers[at], Refusal.MALFORMED)
    return _keys(words, lengths, found, column, family)


def _keys(
    words: npt.NDArray[np.uint32],
    lengths: npt.NDArray[np.int64],
    found: Walk,
    column: dict[int, npt.NDArray[np.int64]],
    family: npt.NDArray[np.uint32],
) -> KeySpans:
    """Find the messages whose step stands in one piece, in the usual order."""
    at = column[_CHAIN]
    end = at + ((sizes(words, at) + 3) >> 2)
    usable = found.sound & (at > 0) & (column[_TYPE] > 0) & (column[_ID] > 0)
    # The last attribute's padding must be the message's own.
    usable &= lengths & 3 == 0
    usable &= column[_TABLE] == end
    for kind in (_TABLE, _HANDLE, _VERDICT, _POLICY):
        place = column[kind]
        usable &= (place == end) | (place == 0)
        end = end + ((sizes(words, place) + 3) >> 2)
    size = end - at
    usable &= size <= KEY_WORDS - TAG_WORDS
    tags = np.empty((TAG_WORDS, at.size), np.uint32)
    tags[0] = (family << np.uint32(8)) | np.where(usable, size, 0).astype(np.uint32)
    tags[1] = be32(words, column[_TYPE])
    return KeySpans(tags, at, size, usable)


def read_one(start: int, message: bytes, found: Spots) -> Fields:
    """
    Read one message's columns.

    *start* is the word index of the message, *found* its attributes by `walk_one`.
    """
    event = [0, 0]
    for kind in _EVENT_FIELDS.values():
        place = found.get(kind)
        event.append(_BE32(message, place[0])[0] if place else 0)
    span = []
    for kind in _SPAN_FIELDS.values():
        begin, end = found.get(kind, (0, 0))
        span += [start + begin // 4 if begin else 1, end - begin]
    place = found.get(_NFPROTO)
    pf = _BE32(message, place[0])[0] if place else message[16]
    return (*event, 0), (*span, min(pf, _MAX_PF), 1)


def read_key(message: bytes, found: Spots) -> tuple[int | bytes, ...]:
    """Return all that `read_step` reads, as something to look up."""
    return (
        message[16],
        *(message[slice(*found[kind])] if kind in found else b"" for kind in _KEY),
        _ID in found,
    )


def read_step(message: bytes, found: Spots) -> TraceStep | Refusal:
    """
    Parse what the message says apart from its packet.

    MALFORMED without table, chain, type or id, a rule without verdict, a policy
    without policy, or a family or type that there is not. A name ends at its first
    zero byte or where the attribute ends; what is not UTF-8 in it is escaped.
    """
    family = FAMILIES.get(message[16])
    kind = _KINDS.get(_BE32(message, found[_TYPE][0])[0]) if _TYPE in found else None
    table, chain = _name(message, found, _TABLE), _name(message, found, _CHAIN)
    decided = _read_verdict(message, found, _POLICY if kind == "policy" else _VERDICT)
    if not (family and kind and table and chain) or _ID not in found or decided is None:
        return Refusal.MALFORMED
    verdict, target = decided
    if verdict is None and kind != "return":
        return Refusal.MALFORMED
    handle = _BE64(message, found[_HANDLE][0])[0] if _HANDLE in found else None
    return TraceStep("nft", family, None, table, chain, kind, None, handle, verdict, target)


def _name(message: bytes, found: Spots, kind: int) -> str:
    begin, end = found.get(kind, (0, 0))
    return message[begin:end].split(b"\0", 1)[0].decode(errors="backslashreplace")


def _read_verdict(message: bytes, found: Spots, kind: int) -> tuple[int | None, str | None] | None:
    """Return code and target, both None where *kind* is absent; None if it is malformed."""
    if kind not in found:
        return None, None
    begin, end = found[kind]
    if kind == _POLICY:
        return _SIGNED(message, begin)[0], None
    inner = walk_one(message[:end], _VERDICT_LAYOUT, begin)
    if inner is None or _VERDICT_CODE not in inner:
        return None
    code = _SIGNED(message, inner[_VERDICT_CODE][0])[0]
    return code, _name(message, inner, _VERDICT_CHAIN) or None

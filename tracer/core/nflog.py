"""
Legacy traces: NFULNL_MSG_PACKET of nfnetlink's subsystem 4, with the prefix of TRACE.

The prefix is all that a legacy trace says about the rule. The group may carry other
packets, logged by rules of somebody else's: they are foreign, not malformed.

Source: __build_packet_message() in net/netfilter/nfnetlink_log.c, enum nfulnl_attr_type
in include/uapi/linux/netfilter/nfnetlink_log.h; the prefix is from trace_packet() in
net/ipv4/netfilter/ip_tables.c: "TRACE: %s:%s:%s:%u ".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from tracer.core.attributes import Layout, be32, families, fill, sizes, walk
from tracer.core.events import LEGACY
from tracer.core.interning import KEY_WORDS, TAG_WORDS, KeySpans
from tracer.core.trace_rows import Refusal
from tracer.core.trace_steps import FAMILIES, HOOKS, TraceStep

if TYPE_CHECKING:
    import numpy.typing as npt

    from tracer.core.attributes import Spots
    from tracer.core.trace_rows import Fields, TraceRows

__all__ = [
    "LAYOUT",
    "MESSAGE_TYPE",
    "read_key",
    "read_many",
    "read_one",
    "read_step",
]

#: NFNL_SUBSYS_ULOG (4) and NFULNL_MSG_PACKET (0).
MESSAGE_TYPE = 4 << 8

_PACKET_HEADER, _MARK, _IIF, _OIF, _PAYLOAD, _PREFIX = 1, 2, 4, 5, 9, 10

#: Wanted attributes and the least size of their values.
LAYOUT = Layout(
    {
        _PACKET_HEADER: 4,
        _MARK: 4,
        _IIF: 4,
        _OIF: 4,
        _PAYLOAD: 0,
        _PREFIX: 0,
    }
)

_EVENT_FIELDS = {"iif": _IIF, "oif": _OIF, "mark": _MARK}

_BE32 = struct.Struct(">I").unpack_from

#: The hook of a message without a packet header: no hook.
_NO_HOOK = 255

#: Sets legacy keys apart from nft's.
_TAG = np.uint32(1 << 31)

_MARKER = b"TRACE: "
_KINDS = {b"rule": "rule", b"return": "return", b"policy": "policy"}

#: Digits of the largest rule number, an unsigned int.
_MAX_DIGITS = 10


def read_many(
    words: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    rows: TraceRows,
    at: npt.NDArray[np.int64] | slice,
) -> KeySpans:
    """
    Fill the columns of NFLOG messages, and say where their keys are.

    *starts* and *lengths* are those of the messages, *at* their rows.
    """
    found = walk(words, starts, lengths, LAYOUT)
    column, events, spans = found.columns(LAYOUT), rows.events, rows.spans
    fill(events, at, words, {name: column[kind] for name, kind in _EVENT_FIELDS.items()})
    events["flags"][at] = LEGACY
    family = families(words, starts)
    spans["network"][at] = column[_PAYLOAD] + 1
    spans["network_size"][at] = np.maximum(sizes(words, column[_PAYLOAD]) - 4, 0)
    spans["pf"][at] = family
    refused = np.where(column[_PREFIX] == 0, Refusal.FOREIGN, rows.numbers[at])
    rows.numbers[at] = np.where(found.sound, refused, Refusal.MALFORMED)

    size = (sizes(words, column[_PREFIX]) + 3) >> 2
    # The last attribute's padding must be the message's own.
    usable = found.sound & (size > 0) & (size <= KEY_WORDS - TAG_WORDS) & (lengths & 3 == 0)
    hook = (be32(words, column[_PACKET_HEADER], _NO_HOOK << 8) >> np.uint32(8)) & np.uint32(0xFF)
    tags = np.zeros((TAG_WORDS, starts.size), np.uint32)
    tags[0] = _TAG | (hook << np.uint32(16)) | (family << np.uint32(8))
    tags[0] |= np.where(usable, size, 0).astype(np.uint32)
    return KeySpans(tags, column[_PREFIX], size, usable)


def read_one(start: int, message: bytes, found: Spots) -> Fields:
    """
    Read one message's columns.

    *start* is the word index of the message, *found* its attributes by `walk_one`.
    """
    event = [0, 0, 0]
    for kind in _EVENT_FIELDS.values():
        place = found.get(kind)
        event.append(_BE32(message, place[0])[0] if place else 0)
    begin, end = found.get(_PAYLOAD, (0, 0))
    network = start + begin // 4 if begin else 1
    return (*event, 0, LEGACY), (network, end - begin, 0, 0, 0, 0, message[16], 0)


def read_key(message: bytes, found: Spots) -> tuple[int | bytes, ...]:
    """Return all that `read_step` reads, as something to look up."""
    prefix = message[slice(*found[_PREFIX])] if _PREFIX in found else b""
    return message[16], _hook(message, found), prefix


def read_step(message: bytes, found: Spots) -> TraceStep | Refusal:
    """
    Parse what the message says apart from its packet.

    FOREIGN without the prefix of TRACE. MALFORMED if that is not followed by table,
    chain, kind and number, or the hook or the family is none. A prefix without its last
    space was cut: then the digits may be some of the number's only, and *number* is None.
    """
    prefix = message[slice(*found[_PREFIX])] if _PREFIX in found else b""
    prefix = prefix.split(b"\0", 1)[0]
    if not prefix.startswith(_MARKER):
        return Refusal.FOREIGN
    family, hook = FAMILIES.get(message[16]), _hook(message, found)
    # A chain's name may hold colons, the table's and what follows the chain's cannot.
    table, _, rest = prefix[len(_MARKER) :].partition(b":")
    chain, kind, digits = [b"", b"", b"", *rest.rsplit(b":", 2)][-3:]
    if not (family and hook < len(HOOKS) and table and chain and kind in _KINDS):
        return Refusal.MALFORMED
    number = digits.removesuffix(b" ")
    if number == digits:
        said = None
    elif number.isdigit() and len(number) <= _MAX_DIGITS:
        said = int(number)
    else:
        return Refusal.MALFORMED
    names = [name.decode(errors="backslashreplace") for name in (table, chain)]
    return TraceStep(
        "legacy", family, HOOKS[hook], names[0], names[1], _KINDS[kind], said, None, None, None
    )


def _hook(message: bytes, found: Spots) -> int:
    return message[found[_PACKET_HEADER][0] + 2] if _PACKET_HEADER in found else _NO_HOOK

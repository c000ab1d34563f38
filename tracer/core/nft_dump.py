"""
Rules and chains of nf_tables as the kernel dumps them, and their counters.

A dump is walked once, attribute by attribute. What was found (whose message it is, where
its counter stands, which words change with every packet) is a layout, and serves for the
next dump too: if that one is as long and, with the changing words left out, has the same
digest, it is laid out equally, because every length lies outside of what is left out.

A rule with several counters counts by its last one, which is next to its verdict.

Source: nf_tables_fill_rule_info(), nf_tables_fill_chain_info() in net/netfilter/
nf_tables_api.c; nft_counter_do_dump(), nft_quota_do_dump(), nft_last_dump().
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tracer.core.attributes import HEADERS_SIZE, Layout, Spots, walk_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

__all__ = ["DumpLayout", "NftRow", "lay_out_chains", "lay_out_rules", "table_handles"]

#: NFNL_SUBSYS_NFTABLES << 8 and NFT_MSG_NEWTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE.
_NEWTABLE, _NEWCHAIN, _NEWRULE = 0xA00, 0xA03, 0xA06
_MESSAGE = struct.Struct("<IHHIIBxH")
_RULE = Layout({1: 1, 2: 1, 3: 8, 4: 0})
_CHAIN = Layout({1: 1, 3: 1, 8: 0})
_TABLE = Layout({1: 1, 4: 8})
_TABLE_NAME, _TABLE_HANDLE = 1, 4
_OF_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_CHAIN_NAME, _CHAIN_COUNTERS = 3, 8
_LIST_ELEMENT, _EXPRESSION_NAME, _EXPRESSION_DATA = 1, 1, 2
_COUNTER = Layout({1: 8, 2: 8})
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_ANY: Final = Layout({})
#: Expressions whose whole dump changes as packets pass.
_CHANGING: Final = frozenset({b"quota", b"last"})
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
#: In a message's header: the flags may say that the dump was interrupted, the port is the
#: asking socket's, and the last half word is the generation's.
_HEADER_WORDS: Final = (1, 3, 4)
_TYPE_OR_FAMILY: Final = np.uint32(0xFFFF)


@dataclass(frozen=True, slots=True)
class NftRow:
    """Whose message it is: *handle* is the rule's, None where it is a chain."""

    family: str
    table: str
    chain: str
    handle: int | None


@dataclass(frozen=True, slots=True, eq=False)
class DumpLayout:
    """
    What is where in a dump.

    Shape: *rows* of n messages, without those that were not wanted; *packets* and *octets*
    `int64 (n,)` are word indexes of the counters' upper halves, 0 where there is none.
    *digest* is the dump's without what changes. *skipped* messages were malformed.
    """

    rows: tuple[NftRow, ...]
    packets: npt.NDArray[np.int64]
    octets: npt.NDArray[np.int64]
    digest: bytes
    skipped: int
    size: int
    heads: npt.NDArray[np.int64]
    changing: npt.NDArray[np.int64]
    kept: npt.NDArray[np.bool_]

    def fits(self, dump: bytes) -> bool:
        """Tell whether *dump* differs from the one that was laid out in counters alone."""
        return len(dump) == self.size and self.digest == _digest(
            dump, self.heads, self.changing, self.kept
        )

    def counters(self, dump: bytes) -> npt.NDArray[np.uint64]:
        """Return packets and bytes of a dump that fits, `(2, n)`; 0 without a counter."""
        words = np.frombuffer(dump, ">u4", count=len(dump) // 4)
        at = np.stack((self.packets, self.octets))
        upper, lower = (words.take(at + more).astype(np.uint64) for more in (0, 1))
        values: npt.NDArray[np.uint64] = ((upper << np.uint64(32)) | lower) * (at != 0)
        return values


def lay_out_rules(dump: bytes, wanted: Callable[[str], bool]) -> DumpLayout:
    """
    Find the rules of a dump and their counters, of tables whose names are *wanted*.

    Shape: *dump* holds whole messages, one after the other, without the dump's end.
    What is malformed is skipped and counted.
    """
    return _lay_out(dump, _NEWRULE, _RULE, wanted, _read_rule)


def lay_out_chains(dump: bytes, wanted: Callable[[str], bool]) -> DumpLayout:
    """Do the same with a dump of chains; base chains can have counters of their policy."""
    return _lay_out(dump, _NEWCHAIN, _CHAIN, wanted, _read_chain)


def table_handles(dump: bytes) -> dict[tuple[str, str], int]:
    """Return the handles of tables by family and name; what is malformed is left out."""
    found = {}
    for at, size, kind, family in _messages(dump):
        message = dump[at : at + size]
        spots = walk_one(message, _TABLE) if kind == _NEWTABLE else None
        if spots is not None and spots.keys() >= {_TABLE_NAME, _TABLE_HANDLE}:
            begin, end = spots[_TABLE_HANDLE]
            key = (_FAMILIES.get(family, str(family)), _text(message, spots[_TABLE_NAME]))
            found[key] = int.from_bytes(message[begin:end], "big")
    return found


@dataclass(slots=True)
class _Found:
    """One message's content; places are bytes of the message."""

    chain: str
    handle: int | None
    packets: int
    octets: int
    changing: list[tuple[int, int]]


def _lay_out(
    dump: bytes,
    wanted_kind: int,
    layout: Layout,
    wanted: Callable[[str], bool],
    read: Callable[[bytes, Spots], _Found | None],
) -> DumpLayout:
    rows: list[NftRow] = []
    packets: list[int] = []
    octets: list[int] = []
    heads: list[int] = []
    changing: list[int] = []
    kept = np.ones(len(dump) // 4, np.bool_)
    skipped = 0
    for at, size, kind, family in _messages(dump):
        message, word = dump[at : at + size], at // 4
        heads.append(word)
        spots = walk_one(message, layout) if kind == wanted_kind else None
        table = _text(message, spots[_OF_TABLE]) if spots and _OF_TABLE in spots else None
        found = read(message, spots) if spots and table is not None else None
        if found is None or table is None:
            skipped += 1
        elif wanted(table):
            rows.append(
                NftRow(_FAMILIES.get(family, str(family)), table, found.chain, found.handle)
            )
            packets.append(found.packets and word + found.packets // 4)
            octets.append(found.octets and word + found.octets // 4)
            for begin, end in found.changing:
                changing.extend(range(word + begin // 4, word + min(end, size) // 4))
            continue
        kept[word : word + (size + 3) // 4] = False
    places = [np.array(one, np.int64) for one in (packets, octets, heads, changing)]
    digest = _digest(dump, places[2], places[3], kept)
    return DumpLayout(
        tuple(rows), places[0], places[1], digest, skipped, len(dump), places[2], places[3], kept
    )


def _messages(dump: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield begin, size, kind and family of each message; a length that lies ends it."""
    at = 0
    while at + HEADERS_SIZE <= len(dump):
        size, kind, _, _, _, family, _ = _MESSAGE.unpack_from(dump, at)
        if size < HEADERS_SIZE or at + size > len(dump):
            return
        yield at, size, kind, family
        at += (size + 3) & ~3


def _text(message: bytes, spot: tuple[int, int]) -> str:
    begin, end = spot
    return message[begin:end].split(b"\0", 1)[0].decode(errors="surrogateescape")


def _read_rule(message: bytes, spots: Spots) -> _Found | None:
    if not spots.keys() >= {_RULE_CHAIN, _RULE_HANDLE}:
        return None
    begin, end = spots[_RULE_HANDLE]
    handle = int.from_bytes(message[begin:end], "big")
    found = _Found(_text(message, spots[_RULE_CHAIN]), handle, 0, 0, [])
    at, end = spots.get(_RULE_EXPRESSIONS, (0, 0))
    while end - at >= 4:  # noqa: PLR2004 - an attribute's header
        size, kind = struct.unpack_from("<HH", message, at)
        if size < 4 or size > end - at:  # noqa: PLR2004
            return None
        if kind & 0x3FFF == _LIST_ELEMENT and not _read_expression(message, at, at + size, found):
            return None
        at += (size + 3) & ~3
    return found


def _read_expression(message: bytes, begin: int, end: int, found: _Found) -> bool:
    """Look at the list element from *begin* to *end*; False if it is malformed."""
    spots = walk_one(message[:end], _ANY, begin + 4)
    if spots is None or not spots.keys() >= {_EXPRESSION_NAME, _EXPRESSION_DATA}:
        return spots is not None
    first, last = spots[_EXPRESSION_NAME]
    name, data = message[first:last].rstrip(b"\0"), spots[_EXPRESSION_DATA]
    if name in _CHANGING:
        found.changing.append((data[0], (data[1] + 3) & ~3))
        return True
    return name != b"counter" or _read_counter(message, data, found)


def _read_counter(message: bytes, data: tuple[int, int], found: _Found) -> bool:
    spots = walk_one(message[: data[1]], _COUNTER, data[0])
    if spots is None or not spots.keys() >= {_COUNTER_BYTES, _COUNTER_PACKETS}:
        return False
    for kind in (_COUNTER_BYTES, _COUNTER_PACKETS):
        begin, _ = spots[kind]
        found.changing.append((begin, begin + 8))
    found.octets, found.packets = spots[_COUNTER_BYTES][0], spots[_COUNTER_PACKETS][0]
    return True


def _read_chain(message: bytes, spots: Spots) -> _Found | None:
    if _CHAIN_NAME not in spots:
        return None
    found = _Found(_text(message, spots[_CHAIN_NAME]), None, 0, 0, [])
    data = spots.get(_CHAIN_COUNTERS)
    return found if data is None or _read_counter(message, data, found) else None


def _digest(
    dump: bytes,
    heads: npt.NDArray[np.int64],
    changing: npt.NDArray[np.int64],
    kept: npt.NDArray[np.bool_],
) -> bytes:
    words = np.frombuffer(dump, "<u4", count=len(dump) // 4).copy()
    flags, port, generation = _HEADER_WORDS
    words[heads + port] = 0
    words[heads + flags] &= _TYPE_OR_FAMILY
    words[heads + generation] &= _TYPE_OR_FAMILY
    words[changing] = 0
    return hashlib.blake2b(words[kept].tobytes(), digest_size=16).digest()

"""
Rules of a legacy table as the kernel hands them to iptables, and their counters.

A table is one block of entries: a base chain begins at its hook's offset and ends with
its policy; a user chain is headed by an entry whose target is ERROR with the chain's name
and ends with a RETURN that nobody wrote; the last entry is an ERROR too. As with nft's
dumps (`tracer.core.nft_dump`), what was found serves for the next reading, if that one
differs in the counters alone.

Source: struct ipt_entry, ipt_getinfo in include/uapi/linux/netfilter_ipv4/ip_tables.h, and
ip6_tables.h; struct xt_entry_target in include/uapi/linux/netfilter/x_tables.h.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

__all__ = ["EntriesLayout", "EntryRow", "lay_out_entries"]

_BASE_CHAINS: Final = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
#: By family: bytes before target_offset, before the counters, and of the whole head.
_ENTRY: Final = {"ip": (88, 96, 112), "ip6": (140, 152, 168)}
_OFFSETS = struct.Struct("<HH")
#: struct xt_entry_target: its size, then a name of 29 bytes and a revision.
_TARGET_NAME: Final = slice(2, 31)
_TARGET_BYTES: Final = 32
_CHAIN_NAME_BYTES: Final = 30


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A rule of *chain*; *number* counts from 1 and is None for the base chain's policy."""

    chain: str
    number: int | None


@dataclass(frozen=True, slots=True, eq=False)
class EntriesLayout:
    """
    What is where in a table's block.

    Shape: *rows* of n entries in the block's order, without what nobody wrote; *at*
    `int64 (n,)` is the index of the packet counter in words of eight bytes, the byte
    counter follows it. *all_at* `(m,)` has those of all entries. *digest* is the block's
    without counters.
    """

    rows: tuple[EntryRow, ...]
    at: npt.NDArray[np.int64]
    all_at: npt.NDArray[np.int64]
    digest: bytes
    size: int

    def fits(self, block: bytes) -> bool:
        """Tell whether *block* differs from the one laid out in counters alone."""
        return len(block) == self.size and self.digest == _digest(block, self.all_at)

    def counters(self, block: bytes) -> npt.NDArray[np.uint64]:
        """Return packets and bytes of a block that fits, `(2, n)`."""
        words = np.frombuffer(block, "<u8", count=len(block) // 8)
        return np.stack((words.take(self.at), words.take(self.at + 1)))


def lay_out_entries(
    block: bytes, family: str, starts: Sequence[int | None], ends: Sequence[int | None]
) -> EntriesLayout:
    """
    Find the rules and policies of *block*.

    Shape: *starts* and *ends* have the offsets of the five hooks' first entries and
    policies, None for a hook that the table is not on. What does not look like an entry
    ends the list: no length is believed that leads out of the block or back.
    """
    bases = {start: _BASE_CHAINS[hook] for hook, start in enumerate(starts) if start is not None}
    policies = {end for end in ends if end is not None}
    rows: list[EntryRow] = []
    at: list[int] = []
    all_at: list[int] = []
    chain, number, is_user = "", 0, False
    for offset, counter, error in _entries(block, family):
        all_at.append(counter // 8)
        if error is not None and offset not in policies:
            if is_user and number:
                rows.pop()  # the chain's implicit RETURN
                at.pop()
            chain, number, is_user = error, 0, True
            continue
        if offset in bases:
            chain, number, is_user = bases[offset], 0, False
        number += 1
        rows.append(EntryRow(chain, None if offset in policies else number))
        at.append(counter // 8)
    every = np.array(all_at, np.int64)
    return EntriesLayout(
        tuple(rows), np.array(at, np.int64), every, _digest(block, every), len(block)
    )


def _entries(block: bytes, family: str) -> Iterator[tuple[int, int, str | None]]:
    """Yield each entry's offset, its counters' offset, and the name where it heads a chain."""
    offsets_at, counter_at, head = _ENTRY[family]
    at = 0
    while at + head + _TARGET_BYTES <= len(block):
        target, size = _OFFSETS.unpack_from(block, at + offsets_at)
        if target < head or size < target + _TARGET_BYTES or at + size > len(block) or size % 8:
            return
        name = block[at + target : at + target + _TARGET_BYTES][_TARGET_NAME]
        error = None
        if name.split(b"\0", 1)[0] == b"ERROR":
            begin = at + target + _TARGET_BYTES
            raw = block[begin : min(begin + _CHAIN_NAME_BYTES, at + size)]
            error = raw.split(b"\0", 1)[0].decode(errors="surrogateescape")
        yield at, at + counter_at, error
        at += size


def _digest(block: bytes, counters: npt.NDArray[np.int64]) -> bytes:
    words = np.frombuffer(block, "<u8", count=len(block) // 8).copy()
    words[counters] = 0
    words[counters + 1] = 0
    return hashlib.blake2b(words.tobytes(), digest_size=16).digest()

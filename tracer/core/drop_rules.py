"""
The rules of a legacy table that can drop, found in the kernel's own copy of it.

A table is one block: entries one after another, a user chain headed by an entry whose
target is ERROR with the chain's name, a base chain starting at its hook's offset and
ending with its policy. Each entry has the address of its per-CPU counters.
Source: struct xt_table_info and ipt_entry, ip6t_entry; include/uapi/linux/netfilter_ipv4/
ip_tables.h and netfilter_ipv6/ip6_tables.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["DroppingRule", "find_dropping_rules"]

_BASE_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
#: By family: bytes before target_offset, before the counters, and before the matches.
_ENTRY = {"ip": (88, 96, 112), "ip6": (140, 152, 168)}
_TARGET_BYTES = 32
_ERROR_NAME_BYTES = 30
_DROP = -1  # -NF_DROP - 1
#: Targets beside DROP that end a packet with NF_DROP, as they always or at times do.
_ENDING_TARGETS = frozenset({"REJECT", "SYNPROXY", "TPROXY", "TARPIT", "DELUDE", "CHAOS"})


@dataclass(frozen=True, slots=True)
class DroppingRule:
    """
    A rule, or with *number* None a policy, whose packets may die of it.

    *counter* is the per-CPU address of its packet counter. *target* is DROP or the name
    of the extension.
    """

    chain: str
    number: int | None
    target: str
    counter: int


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    target: str
    verdict: int
    error: str
    counter: int


def find_dropping_rules(
    blob: bytes,
    family: str,
    starts: Sequence[int | None],
    ends: Sequence[int | None],
    target_name: Callable[[int], str],
) -> list[DroppingRule]:
    """
    List the rules of *blob* that can drop, in the table's order.

    Shape: *starts* and *ends* have the offsets of the five hooks' first entries and
    policies, None for a hook that the table is not on. *target_name* gives the name of
    the target whose struct is at an address, empty for the standard one.
    What does not look like an entry ends the list: no length is believed that leads out
    of the block or back.
    """
    bases = {start: _BASE_CHAINS[hook] for hook, start in enumerate(starts) if start is not None}
    policies = {end for end in ends if end is not None}
    chain, number, found = "", 0, []
    for entry in _entries(blob, family, target_name):
        if entry.offset in bases:
            chain, number = bases[entry.offset], 0
        if entry.target == "ERROR":
            chain, number = entry.error, 0
            continue
        number += 1
        is_drop = not entry.target and entry.verdict == _DROP
        if is_drop or entry.target in _ENDING_TARGETS:
            of_policy = entry.offset in policies
            found.append(
                DroppingRule(
                    chain, None if of_policy else number, entry.target or "DROP", entry.counter
                )
            )
    return found


def _entries(blob: bytes, family: str, target_name: Callable[[int], str]) -> Iterator[_Entry]:
    offsets_at, counter_at, header = _ENTRY[family]
    at = 0
    while at + header + _TARGET_BYTES <= len(blob):
        target_offset, next_offset = struct.unpack_from("<HH", blob, at + offsets_at)
        target_at = at + target_offset
        if target_offset < header or next_offset < target_offset + _TARGET_BYTES:
            return
        if at + next_offset > len(blob):
            return
        name = target_name(struct.unpack_from("<Q", blob, target_at + 8)[0])
        data = blob[target_at + _TARGET_BYTES : at + next_offset]
        verdict = struct.unpack_from("<i", data)[0] if not name and len(data) >= 4 else 0  # noqa: PLR2004
        error = data[:_ERROR_NAME_BYTES].split(b"\0", 1)[0].decode(errors="replace")
        counter = struct.unpack_from("<Q", blob, at + counter_at)[0]
        yield _Entry(at, name, verdict, error, counter)
        at += next_offset

"""
Legacy tables as the kernel holds them: which tables a namespace has, which rules drop.

Only memory is read. The counters' addresses let the program at the drop tell which rule
it was; the order of the rules is that of `iptables-save`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.core.drop_rules import DroppingRule, find_dropping_rules

if TYPE_CHECKING:
    from tracer.sources.bpf_peek import Peek

__all__ = ["OFFSETS", "LegacyTable", "cpu_offsets", "find_tables", "percpu_base", "read_table"]

#: What must be known of the kernel's structures, for bpf.loader.
OFFSETS = (
    *("task_struct.nsproxy", "nsproxy.net_ns", "net.nf", "netns_nf.hooks_ipv4"),
    *("netns_nf.hooks_ipv6", "xt_table.private", "xt_table.valid_hooks", "xt_table.af"),
    *("xt_table.name", "xt_table_info.size", "xt_table_info.hook_entry"),
    *("xt_table_info.underflow", "xt_table_info.entries", "xt_target.name"),
    *("task_struct.files", "files_struct.fdt", "fdtable.fd", "file.private_data"),
    "bpf_array.pptrs",
)
_HOOKS = 5
_NAME_BYTES = 32
_TARGET_NAME_BYTES = 29
#: A table of 100,000 rules has about 20 MB; more is not read at a start.
_BLOB_BYTES_MAX = 64 << 20
_ENTRIES_MAX = 1024  # MAX_HOOK_COUNT in net/netfilter/core.c
_AF = {2: "ip", 10: "ip6"}


@dataclass(frozen=True, slots=True)
class LegacyTable:
    """
    One table as it stood when it was read; *private* is the address of that state.

    *rules* are those that can drop, in the table's order.
    """

    address: int
    private: int
    family: str
    name: str
    rules: tuple[DroppingRule, ...]


def find_tables(peek: Peek, functions: frozenset[int]) -> set[int]:
    """
    Return the addresses of the tables registered in the calling thread's namespace.

    *functions* are those that run a table at a hook: ipt_do_table() and its like.
    """
    net = peek.follow(peek.task(), "task_struct.nsproxy", "nsproxy.net_ns")
    found = set()
    for hooks in ("netns_nf.hooks_ipv4", "netns_nf.hooks_ipv6"):
        offsets = peek.offset("net.nf"), peek.offset(hooks)
        if not net or None in offsets:
            continue
        first = net + sum(offset or 0 for offset in offsets)
        for hook in range(_HOOKS):
            entries = peek.word(first + 8 * hook)
            if entries:
                found |= _tables_at(peek, entries, functions)
    return found


def _tables_at(peek: Peek, entries: int, functions: frozenset[int]) -> set[int]:
    count = min(peek.word(entries) & 0xFFFF, _ENTRIES_MAX)
    raw = peek.read(entries + 8, 16 * count) or b""
    pairs = struct.iter_unpack("<QQ", raw)
    return {private for function, private in pairs if function in functions and private}


def read_table(peek: Peek, address: int) -> LegacyTable | None:
    """Read the table at *address*; None where it is not readable as one."""
    private = peek.follow(address, "xt_table.private")
    family = _AF.get((peek.read(peek.at(address, "xt_table.af"), 1) or b"\0")[0])
    if not private or family is None:
        return None
    name = peek.text(peek.at(address, "xt_table.name"), _NAME_BYTES)
    size = peek.word(peek.at(private, "xt_table_info.size")) & 0xFFFFFFFF
    if size > _BLOB_BYTES_MAX:
        return None
    blob = peek.read(peek.at(private, "xt_table_info.entries"), size)
    valid = peek.word(peek.at(address, "xt_table.valid_hooks")) & 0xFFFFFFFF
    if blob is None:
        return None
    starts = _hook_offsets(peek, peek.at(private, "xt_table_info.hook_entry"), valid)
    ends = _hook_offsets(peek, peek.at(private, "xt_table_info.underflow"), valid)
    names: dict[int, str] = {}

    def target_name(target: int) -> str:
        if target not in names:
            names[target] = peek.text(peek.at(target, "xt_target.name"), _TARGET_NAME_BYTES)
        return names[target]

    rules = find_dropping_rules(blob, family, starts, ends, target_name)
    return LegacyTable(address, private, family, name, tuple(rules))


def _hook_offsets(peek: Peek, address: int, valid: int) -> list[int | None]:
    raw = peek.read(address, 4 * _HOOKS) or bytes(4 * _HOOKS)
    values = struct.unpack(f"<{_HOOKS}I", raw)
    return [value if valid >> hook & 1 else None for hook, value in enumerate(values)]


def percpu_base(peek: Peek, map_fd: int) -> int:
    """
    Return what the address of an array map's per-CPU value must lose to be an offset.

    *map_fd* is a per-CPU array of this process, whose first element it is about. 0 where
    the kernel's structures are not known.
    """
    table = peek.follow(peek.task(), "task_struct.files", "files_struct.fdt", "fdtable.fd")
    file = peek.word(table + 8 * map_fd) if table else 0
    bpf_map = peek.follow(file, "file.private_data")
    return peek.follow(bpf_map, "bpf_array.pptrs") if bpf_map else 0


def cpu_offsets(peek: Peek, base: int) -> dict[int, int]:
    """Return each CPU's offset of per-CPU addresses, for the CPUs this process may use."""
    allowed = os.sched_getaffinity(0)
    offsets = {}
    try:
        for cpu in allowed:
            # The thread's own affinity: the program runs where its caller does.
            os.sched_setaffinity(0, {cpu})
            offsets[cpu] = (peek.scratch() - base) & ((1 << 64) - 1)
    finally:
        os.sched_setaffinity(0, allowed)
    return offsets

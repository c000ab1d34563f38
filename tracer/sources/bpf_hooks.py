"""What stands at a namespace's hooks, out of the kernel's memory, and which of it can drop."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.core.droppers import Entry, can_drop
from tracer.core.drops import hook_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.core.ruleset import Ruleset, Table
    from tracer.sources.bpf_peek import Peek

__all__ = ["FAMILIES", "OFFSETS", "Hooks", "read_hooks"]

#: What must be known of the kernel's structures, beside bpf_rules.OFFSETS.
OFFSETS = (*("nf_hook_ops.priority", "nft_chain.name", "nft_chain.table", "nft_table.name"),)
#: NFPROTO of each family, its word, and where a namespace has its hooks.
FAMILIES = {2: ("ip", "netns_nf.hooks_ipv4"), 10: ("ip6", "netns_nf.hooks_ipv6")}
_HOOKS = 5
_ENTRIES_MAX = 1024  # MAX_HOOK_COUNT in net/netfilter/core.c
_NAME_BYTES = 32
_NFT_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}


@dataclass(frozen=True, slots=True)
class Hooks:
    """
    The hooks of one family: entries that can drop, and the priorities of all at each hook.

    *state* changes when an entry comes or goes.
    """

    droppers: tuple[Entry, ...]
    priorities: Mapping[int, tuple[int, ...]]
    state: tuple[int, ...]


def read_hooks(peek: Peek, family: int, legacy: frozenset[int], rules: Ruleset) -> Hooks:
    """
    Read the hooks of the calling thread's namespace.

    *family* is NFPROTO, *legacy* the functions that run legacy tables, *rules* those of
    the namespace.
    """
    word, member = FAMILIES[family]
    net = peek.follow(peek.task(), "task_struct.nsproxy", "nsproxy.net_ns")
    first = peek.at(net, "net.nf") + (peek.offset(member) or 0)
    droppers, state = [], []
    priorities = {}
    for hook in range(_HOOKS):
        block = peek.word(first + 8 * hook)
        state.append(block)
        entries = _entries(peek, block)
        priorities[hook] = tuple(priority for _, _, priority in entries)
        for function, private, priority in entries:
            if function in legacy:
                name = peek.text(peek.at(private, "xt_table.name"), _NAME_BYTES)
                table = rules.tables.get(("legacy", word, name))
                chain = (hook_name(hook, family) or "").upper()
                is_nft = False
            else:
                table, chain = _nft_chain(peek, private, rules)
                is_nft = True
            if table is not None and can_drop(table, chain):
                droppers.append(Entry(hook, priority, function, private, is_nft))
    return Hooks(tuple(droppers), priorities, tuple(state))


def _entries(peek: Peek, block: int) -> list[tuple[int, int, int]]:
    """Return function, private pointer and priority of each: struct nf_hook_entries."""
    if not block:
        return []
    count = min(peek.word(block) & 0xFFFF, _ENTRIES_MAX)
    raw = peek.read(block + 8, 24 * count) or b""
    pairs = struct.iter_unpack("<QQ", raw[: 16 * count])
    # Behind the entries stand pointers to their nf_hook_ops, in the same order.
    ops = struct.iter_unpack("<Q", raw[16 * count :])
    found = []
    for (function, private), (one,) in zip(pairs, ops, strict=False):
        word = peek.word(peek.at(one, "nf_hook_ops.priority")) & 0xFFFFFFFF
        found.append((function, private, word - ((word & 1 << 31) << 1)))
    return found


def _nft_chain(peek: Peek, private: int, rules: Ruleset) -> tuple[Table | None, str]:
    """Return the table and the name of the chain at *private*, None where it is no chain."""
    table = peek.follow(private, "nft_chain.table") if private else 0
    if not table:
        return None, ""
    family = (peek.read(peek.at(table, "nft_table.family"), 1) or b"\0")[0] & 0x3F
    name = peek.text(peek.follow(table, "nft_table.name"), _NAME_BYTES)
    chain = peek.text(peek.follow(private, "nft_chain.name"), _NAME_BYTES)
    key = ("nft", _NFT_FAMILIES.get(family, ""), name)
    return rules.tables.get(key), chain

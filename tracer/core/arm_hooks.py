"""Where our chains must stand so that they come before, or behind, everybody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.core.ruleset import Chain, Ruleset, Table

__all__ = [
    "FIRST_CHAINS",
    "LAST_CHAINS",
    "LOWEST",
    "OWN_PREFIX",
    "find_ingress",
    "find_places",
    "first_priority",
    "has_hooks",
    "has_nat",
    "priority_behind",
]

#: Tables of ours, in this process or another, are not looked at: two followers that each
#: went in front of the other would never come to rest.
OWN_PREFIX = "nftrace_"

#: Chains of our tables at a packet's first hook: those that pick packets (a packet that
#: is traced already shows an event there) and the one that switches tracing on. And the
#: beginning of the names of those that a packet passes when all else is behind it; both
#: go on with the hook's name.
FIRST_CHAINS = ("first_", "armed")
LAST_CHAINS = "last_"

#: The lowest priority there is (an int in struct nf_hook_ops).
LOWEST = -(2**31)

#: In front of raw (-300), behind the reassembly of fragments (-400), whose ports are
#: readable only when it is done.
_FIRST = -350


def _tables(ruleset: Ruleset, families: tuple[str, ...]) -> Iterator[Table]:
    for (_, family, name), table in ruleset.tables.items():
        if family in families and not name.startswith(OWN_PREFIX):
            yield table


def _chains(ruleset: Ruleset, families: tuple[str, ...], hook: str) -> Iterator[Chain]:
    for table in _tables(ruleset, families):
        for chain in table.chains.values():
            if chain.hook == hook and chain.priority is not None:
                yield chain


def first_priority(ruleset: Ruleset, families: tuple[str, ...], hook: str) -> int:
    """Return a priority in front of every foreign base chain at *hook*, if there is one."""
    lowest = min((c.priority or 0 for c in _chains(ruleset, families, hook)), default=0)
    return _FIRST if lowest > _FIRST else max(LOWEST, lowest - 1)


def priority_behind(ruleset: Ruleset, families: tuple[str, ...], hook: str, *, least: int) -> int:
    """Return a priority behind every foreign nat chain at *hook*, and not below *least*."""
    highest = max(
        (c.priority or 0 for c in _chains(ruleset, families, hook) if c.type == "nat"),
        default=least - 1,
    )
    return max(least, highest + 1)


def has_nat(ruleset: Ruleset, families: tuple[str, ...]) -> bool:
    """
    Tell whether connections are tracked already because somebody translates addresses.

    A `ct` expression of ours would switch tracking on where it is off.
    """
    return any(
        chain.type == "nat" or (table.engine == "legacy" and table.name == "nat")
        for table in _tables(ruleset, families)
        for chain in table.chains.values()
        if chain.hook is not None
    )


def has_hooks(ruleset: Ruleset, family: str) -> bool:
    """Tell whether *family* has base chains of others."""
    return any(
        chain.hook is not None
        for table in _tables(ruleset, (family,))
        for chain in table.chains.values()
    )


def find_places(ruleset: Ruleset) -> frozenset[tuple[object, ...]]:
    """
    Return all that arming depends on in *ruleset*: base chains, and rules that translate.

    Two rulesets with the same are armed alike.
    """
    found: set[tuple[object, ...]] = set()
    for (engine, family, name), table in ruleset.tables.items():
        if name.startswith(OWN_PREFIX):
            continue
        hooked = [chain for chain in table.chains.values() if chain.hook is not None]
        for chain in hooked:
            found.add((engine, family, chain.hook, chain.priority, chain.type, chain.devices))
        if any(chain.type == "nat" for chain in hooked) or (engine, name) == ("legacy", "nat"):
            found.add((engine, family, name, *_list_rules(table)))
    return frozenset(found)


def _list_rules(table: Table) -> Iterator[tuple[str, ...]]:
    for chain in table.chains.values():
        yield (chain.name, *(rule.text for rule in chain.rules))


def find_ingress(ruleset: Ruleset, devices: tuple[str, ...]) -> dict[str, int]:
    """Map those of *devices* that have ingress chains to a priority in front of them."""
    lowest: dict[str, int] = {}
    for chain in _chains(ruleset, ("netdev", "inet"), "ingress"):
        for device in chain.devices:
            if device in devices:
                found = lowest.get(device, 0)
                lowest[device] = min(found, chain.priority or 0)
    return {
        device: _FIRST if priority > _FIRST else max(LOWEST, priority - 1)
        for device, priority in sorted(lowest.items())
    }

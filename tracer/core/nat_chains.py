"""The nat chains of one IP version as a graph: who jumps where, and what is translated."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from tracer.core.nat_headers import Headers, hull, narrow, reduce
from tracer.core.nat_iptables import NAT_TARGETS, read_iptables_rule
from tracer.core.nat_nft import find_effects, read_nft_rule
from tracer.core.nat_rules import HOOKS, Branch, Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tracer.core.nat_nft_values import Json
    from tracer.core.nat_sets import IpSets
    from tracer.core.ruleset import Ruleset, Table

__all__ = ["NatChains", "Site", "read_nat_chains"]

#: So many different ways into one chain are told apart; more are widened into one, which
#: then holds more packets than the rules mean. kube-proxy has a handful for each chain.
_MAX_WAYS = 4096

_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}


@dataclass
class Site:
    """
    One thing that one rule does, and where the rule stands.

    *number* counts from 1 in its chain. The rule is read when it is asked for: of tens of
    thousands of rules a filter concerns few.
    """

    chain: str
    number: int
    read: Callable[[], list[Branch]]

    @cached_property
    def branches(self) -> list[Branch]:
        """What the rule does here, each with the packets that it does it to."""
        return self.read()


@dataclass
class NatChains:
    """
    The chains of one nat table that packets of one IP version can reach.

    *hooks* maps base chains to their hook; *callers* a chain to the sites that jump to
    it; *translations* are the sites that translate, or that do what cannot be read.
    *is_unread*: of this table nothing is known but that it exists.
    """

    family: str
    name: str
    version: int
    hooks: dict[str, str] = field(default_factory=dict)
    callers: dict[str, list[Site]] = field(default_factory=lambda: defaultdict(list))
    translations: list[Site] = field(default_factory=list)
    is_unread: bool = False
    _ways: dict[tuple[str, Side], list[Headers]] = field(default_factory=dict)

    def find_ways(self, chain: str, side: Side) -> list[Headers]:
        """
        Return the headers that packets can have in *chain*, by what led them there.

        Empty where no base chain that translates *side* leads there.
        """
        known = self._ways.get((chain, side))
        if known is not None:
            return known
        # A chain is in its own way only where rules loop, which the kernel refuses.
        self._ways[chain, side] = []
        if chain in self.hooks:
            ways = [Headers(self.version)] if self.hooks[chain] in HOOKS[side] else []
        else:
            ways = []
            for site in self.callers.get(chain, ()):
                matched = [branch.headers for branch in site.branches]
                ways += narrow(matched, self.find_ways(site.chain, side))
        ways = reduce(ways)
        self._ways[chain, side] = [hull(ways)] if len(ways) > _MAX_WAYS else ways
        return self._ways[chain, side]

    def name_site(self, site: Site) -> str:
        """Return where *site* is, in an operator's words."""
        return f"table {self.family} {self.name} chain {site.chain} rule {site.number}"


def read_nat_chains(
    ruleset: Ruleset,
    nft_objects: Sequence[Mapping[str, Json]],
    version: int,
    ip_sets: IpSets | None = None,
) -> list[NatChains]:
    """
    Return the nat tables that translate packets of IP *version*.

    Tables in iptables' language come from *ruleset*, with the *ip_sets* that their rules
    name; native ones from *nft_objects*: the lists under `nftables` in what `nft -j list
    table` prints, joined.
    """
    iptables, native = [], set()
    for (_, family, name), table in ruleset.tables.items():
        if version not in _FAMILIES.get(family, ()) or not _has_nat(table):
            continue
        if table.form == "iptables":
            iptables.append(_read_iptables_table(table, version, ip_sets or {}))
        else:
            native.add((family, name))
    return [*iptables, *_read_nft_tables(nft_objects, native, version)]


def _has_nat(table: Table) -> bool:
    return any(chain.type == "nat" for chain in table.chains.values()) or (
        table.engine == "legacy" and table.name == "nat"
    )


def _read_iptables_table(table: Table, version: int, sets: IpSets) -> NatChains:
    chains = NatChains(table.family, table.name, version)
    for chain in table.chains.values():
        if chain.hook is not None:
            chains.hooks[chain.name] = chain.hook
        for rule in chain.rules:
            if rule.target is not None and rule.target in table.chains:
                sites = chains.callers[rule.target]
            elif _may_translate(rule.text):
                sites = chains.translations
            else:
                continue
            read = partial(read_iptables_rule, rule.text, version, sets)
            sites.append(Site(chain.name, rule.number, read))
    return chains


def _may_translate(text: str) -> bool:
    _, _, target = text.rpartition(" -j ")
    return target.partition(" ")[0] in NAT_TARGETS


def _read_nft_tables(
    objects: Sequence[Mapping[str, Json]], wanted: set[tuple[str, str]], version: int
) -> list[NatChains]:
    tables = {key: NatChains(*key, version, is_unread=True) for key in sorted(wanted)}
    sets: dict[tuple[str, str], dict[str, Sequence[Json] | None]] = defaultdict(dict)
    numbers: dict[tuple[str, str, str], int] = defaultdict(int)
    # Maps may be listed behind the rules that use them.
    for kind, key, body in _walk(objects, wanted):
        if kind in ("set", "map"):
            sets[key][str(body.get("name"))] = _read_elements(body)
    for kind, key, body in _walk(objects, wanted):
        tables[key].is_unread = False
        if kind == "chain" and body.get("hook") is not None:
            tables[key].hooks[str(body.get("name"))] = str(body.get("hook"))
        elif kind == "rule":
            chain = str(body.get("chain"))
            numbers[*key, chain] += 1
            found = body.get("expr")
            expressions = found if isinstance(found, list) else []
            read = partial(read_nft_rule, expressions, version, sets[key])
            _add_rule(tables[key], chain, numbers[*key, chain], find_effects(expressions), read)
    return list(tables.values())


def _walk(
    objects: Sequence[Mapping[str, Json]], wanted: set[tuple[str, str]]
) -> Iterable[tuple[str, tuple[str, str], Mapping[str, Json]]]:
    for entry in objects:
        for kind, body in entry.items():
            if isinstance(body, dict):
                key = (str(body.get("family")), str(body.get("table")))
                if key in wanted:
                    yield kind, key, body


def _read_elements(body: Mapping[str, Json]) -> Sequence[Json] | None:
    flags, elements = body.get("flags"), body.get("elem")
    if isinstance(flags, list) and ("dynamic" in flags or "timeout" in flags):
        return None
    return elements if isinstance(elements, list) else ()


def _add_rule(
    table: NatChains,
    chain: str,
    number: int,
    effects: set[str | None] | None,
    read: Callable[[], list[Branch]],
) -> None:
    if effects is None:
        # Only reading it tells where it leads: a map of verdicts, or what is printed as text.
        branches = read()
        effects = {branch.jump for branch in branches}
        read = partial(list, branches)
    for jump in effects:
        sites = table.translations if jump is None else table.callers[jump]
        sites.append(Site(chain, number, partial(_choose, read, jump)))


def _choose(read: Callable[[], list[Branch]], jump: str | None) -> list[Branch]:
    return [branch for branch in read() if branch.jump == jump]

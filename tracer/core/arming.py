"""
From a filter and the ruleset to the nft rules that trace just the wanted packets.

The rules stand at each packet's first hook, in front of everybody else's: what they pick
is told whole. Which headers to pick there is `nat_map`'s answer where NAT can be read
from the rules; where it cannot, `arm_learning`'s chains catch the first packet later and
learn from it. Nothing here decides about a packet: every verdict is accept in a chain of
our own.

One table for each family, not inet: a `ct` expression switches connection tracking on for
its table's families, so there is one only where somebody's NAT needs it already. A
traced packet shows one event of ours in the first hook's chain, and one in each chain
behind conntrack.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.core.arm_hooks import (
    LOWEST,
    find_ingress,
    first_priority,
    has_hooks,
    has_nat,
    priority_behind,
)
from tracer.core.arm_learning import (
    Learning,
    list_flow_lookups,
    render_flow_sets,
    render_learning,
)
from tracer.core.matches import (
    MAX_RULES,
    View,
    Wanting,
    quote_device,
    render_lookup,
    render_matches,
    render_set,
    split_wanted,
)
from tracer.core.nat_chains import read_nat_chains
from tracer.core.nat_headers import read_filter
from tracer.core.nat_map import (
    MAX_MAPPED,
    LocalAddresses,
    Mapped,
    headers_behind,
    map_filter,
)
from tracer.core.nat_rules import Side

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracer.core.filters import Filter
    from tracer.core.nat_headers import Headers
    from tracer.core.nat_sets import IpSets
    from tracer.core.ruleset import Ruleset

__all__ = ["ArmingPlan", "LocalAddresses", "plan_arming"]

_KEYWORDS = {4: "ip", 6: "ip6"}
#: ICMP exists in one IP version only.
_PROTOCOL_VERSION = {1: 4, 58: 6}
#: With more headers behind NAT than this, those that others share are not asked for: they
#: would cost as much time again, and be a part of what is watched then anyway.
_MAX_SHARING = 64
#: So many rules are named in the notes; more are counted.
_MAX_NAMED = 8
#: Least priorities behind the translation of each side (NF_IP_PRI_NAT_DST -100, _SRC 100),
#: for the source behind whatever else usually stands there.
_LEAST_BEHIND = {"prerouting": -99, "output": -99, "postrouting": 300, "input": 300}


@dataclass(frozen=True, slots=True)
class ArmingPlan:
    """
    What to load to arm a filter, and what cannot be had.

    *script* is nft commands for one transaction; it makes *tables*, each a (family,
    name), with the flag owner, so that they end with the context that loads them.
    *over_limit_counters* are (family, table, counter): together how many matching
    packets were not traced because of the rate limit; empty where there is none.
    *called* are the headers that followed packets have at any hook, the filter's first, and
    *shared* those that others' packets have as well; both empty unless asked for.
    *notes* are sentences for the user.
    """

    table: str
    script: str
    tables: tuple[tuple[str, str], ...]
    over_limit_counters: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]
    called: tuple[Headers, ...] = ()
    shared: tuple[Headers, ...] = ()


@dataclass(frozen=True, slots=True)
class _Request:
    """What every table of one plan has in common."""

    table: str
    ruleset: Ruleset
    both: bool
    rate: int | None


def plan_arming(  # noqa: PLR0913  # each is one thing that only the caller knows
    wanted: Filter,
    ruleset: Ruleset,
    nat_json: Mapping[tuple[str, str], str],
    addresses: LocalAddresses,
    *,
    table: str,
    both: bool,
    rate: int | None,
    devices: tuple[str, ...],
    ip_sets: IpSets | None = None,
    with_ends: bool = False,
) -> ArmingPlan:
    """
    Plan how to trace the packets that meet *wanted* at any hook, from their first hook on.

    Shape: *nat_json* maps (family, name) of native nat tables to what `nft -j list table`
    prints, as `RulesetRead` has it; *devices* are the names of the devices that exist;
    *ip_sets* has the sets that iptables' NAT rules match on, by name;
    *table* begins with `nftrace_`. *both*: the replies too. Units: *rate* is
    packets a second for each table, None for all. *with_ends*: say
    what packets are called behind NAT, too. Errors: none; what cannot be had is in
    the notes.

    More packets are traced than are meant where a rule matches on what is not known at
    the first hook; the words about outgoing devices, tables and verdicts are not looked at.
    """
    request = _Request(table, ruleset, both, rate)
    scripts, tables, notes = [], [], {}
    mapped: dict[int, list[Headers]] = {}
    called: list[Headers] = []
    shared: list[Headers] = []
    nft_objects = [each for text in nat_json.values() for each in _read_objects(text)]
    for version in _list_versions(wanted):
        filters = _list_filters(wanted, version, both=both)
        if not filters:
            continue
        chains = read_nat_chains(ruleset, nft_objects, version, ip_sets)
        found = [map_filter(box, chains, addresses) for box in filters]
        mapped[version] = [box for each in found for box in each.boxes]
        if with_ends:
            called += [*filters, *mapped[version]]
            for box in filters:
                behind = headers_behind(box, chains, addresses)
                called += behind
                if len(behind) <= _MAX_SHARING:
                    shared += headers_behind(box, chains, addresses, shared=True)
        wanting = split_wanted(mapped[version])
        notes.update(
            dict.fromkeys(_describe(found[0], wanting, is_cut=any(each.is_cut for each in found)))
        )
        scripts.append(_render_ip_table(request, version, filters, wanting))
        tables.append((_KEYWORDS[version], table))
    for family, script in (
        ("bridge", _render_bridge(request, mapped)),
        ("netdev", _render_ingress(request, mapped, devices)),
    ):
        if script:
            scripts.append(script)
            tables.append((family, table))
    notes.update(dict.fromkeys(_describe_sets(ip_sets or {})))
    notes.update(dict.fromkeys(_describe_hooks(request, [family for family, _ in tables])))
    return ArmingPlan(
        table,
        "".join(scripts),
        tuple(tables),
        () if rate is None else tuple((*each, "over_limit") for each in tables),
        tuple(notes),
        tuple(called),
        tuple(shared),
    )


def _read_objects(text: str) -> list[Mapping[str, object]]:
    # A table of which nothing can be read is told of in the notes.
    try:
        found = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _list_versions(wanted: Filter) -> tuple[int, ...]:
    named = wanted.family or _PROTOCOL_VERSION.get(wanted.proto or 0)
    return (4, 6) if named is None else (named,)


def _list_filters(wanted: Filter, version: int, *, both: bool) -> tuple[Headers, ...]:
    filters = (wanted, wanted.reversed) if both else (wanted,)
    boxes = (read_filter(each, version) for each in filters)
    return tuple(dict.fromkeys(box for box in boxes if not box.is_empty))


def _render_ip_table(
    request: _Request, version: int, filters: tuple[Headers, ...], wanting: Wanting
) -> str:
    family = _KEYWORDS[version]
    families = (family, "inet")
    lookups: list[str] = []
    parts = [*_render_pace(request), *_render_sets(wanting, version)]
    learning = _make_learning(request, version, filters, wanting)
    if learning is not None:
        parts.append(render_flow_sets(learning))
        lookups = list_flow_lookups(learning)
    parts.append(_render_armed(request))
    matches = [*_list_matches(wanting, View.packet(version)), *lookups]
    for hook in ("prerouting", "output"):
        priority = first_priority(request.ruleset, families, hook)
        parts.append(_render_first(f"first_{hook}", f"hook {hook}", priority, matches))
    if learning is not None:
        parts.append(render_learning(learning))
    return _table(family, request.table, parts)


def _make_learning(
    request: _Request, version: int, filters: tuple[Headers, ...], wanting: Wanting
) -> Learning | None:
    """Return what the chains behind conntrack need, or None where nothing is translated."""
    families = (_KEYWORDS[version], "inet")
    if not has_nat(request.ruleset, families):
        return None
    behind = {
        hook: priority_behind(request.ruleset, families, hook, least=least)
        for hook, least in _LEAST_BEHIND.items()
    }
    return Learning(
        version,
        filters,
        lambda view: _list_matches(wanting, view),
        behind,
        request.both,
        request.rate is not None,
    )


def _table(family: str, name: str, parts: Sequence[str]) -> str:
    return f"table {family} {name} {{\n flags owner;\n{''.join(parts)}}}\n"


def _render_pace(request: _Request) -> Iterator[str]:
    if request.rate is not None:
        burst = f"{request.rate}/second burst {request.rate} packets"
        yield f" limit pace {{ rate {burst} }}\n counter over_limit {{ packets 0 bytes 0 }}\n"


def _render_armed(request: _Request) -> str:
    # Rules that go here leave no event, as tracing is not on yet; and there is one limit
    # for them all.
    if request.rate is None:
        return " chain armed {\n  meta nftrace set 1 accept\n }\n"
    paced = 'limit name "pace" meta nftrace set 1 accept'
    return f' chain armed {{\n  {paced}\n  counter name "over_limit"\n }}\n'


def _set_name(version: int, index: int) -> str:
    return f"wanted{version}_{index}"


def _render_sets(wanting: Wanting, version: int) -> Iterator[str]:
    for index, (names, elements) in enumerate(wanting.sets.items()):
        yield render_set(_set_name(version, index), names, elements, version)


def _list_matches(wanting: Wanting, view: View) -> list[str]:
    lookups = [
        render_lookup(_set_name(view.version, index), names, view)
        for index, names in enumerate(wanting.sets)
    ]
    return [*lookups, *(render_matches(box, view) for box in wanting.boxes)]


def _render_first(name: str, hook: str, priority: int, matches: Sequence[str]) -> str:
    rules = "".join(f"  {match} goto armed\n" for match in matches)
    head = f"  type filter {hook} priority {priority}; policy accept;\n"
    return f" chain {name} {{\n{head}{rules} }}\n"


def _render_bridge(request: _Request, mapped: Mapping[int, Sequence[Headers]]) -> str | None:
    """Render the bridge family's table, where the device that a frame comes in by is a port."""
    if not mapped or not has_hooks(request.ruleset, "bridge"):
        return None
    sets, matches = _render_frames(mapped, "ether type")
    parts = [*_render_pace(request), *sets, _render_armed(request)]
    for hook in ("prerouting", "output"):
        priority = first_priority(request.ruleset, ("bridge",), hook)
        parts.append(_render_first(f"first_{hook}", f"hook {hook}", priority, matches))
    return _table("bridge", request.table, parts)


def _render_ingress(
    request: _Request, mapped: Mapping[int, Sequence[Headers]], devices: tuple[str, ...]
) -> str | None:
    """Render chains in front of everybody's at the ingress of the devices that have any."""
    found = find_ingress(request.ruleset, devices) if mapped else {}
    sets, matches = _render_frames(mapped, "meta protocol")
    parts = [*_render_pace(request), *sets, _render_armed(request)]
    for index, (device, priority) in enumerate(found.items()):
        name = quote_device(device)
        if name is not None:
            hook = f"hook ingress device {name}"
            parts.append(_render_first(f"first_{index}", hook, priority, matches))
    return _table("netdev", request.table, parts) if found else None


def _render_frames(
    mapped: Mapping[int, Sequence[Headers]], guard: str
) -> tuple[list[str], list[str]]:
    """
    Render sets and matches for hooks that see all protocols.

    Devices are left out: here it is the lowest device (a bridge's port, not the bridge;
    not the VLAN) that a packet comes in by, and the filter names the highest.
    """
    sets: list[str] = []
    matches: list[str] = []
    for version, boxes in mapped.items():
        wanting = split_wanted(box.without_devices() for box in boxes)
        sets += _render_sets(wanting, version)
        view = View.packet(version, f"{guard} {_KEYWORDS[version]}")
        matches += _list_matches(wanting, view)
    return sets, matches


def _describe(found: Mapped, wanting: Wanting, *, is_cut: bool) -> Iterator[str]:
    """
    Say, in the user's words, what the map of NAT does not hold.

    *found* is the filter's own; what its replies lack, conntrack knows.
    """
    outcomes = {
        Side.DST: "the first packet of each connection is traced from prerouting -99 on",
        Side.SRC: "the first packet of each connection is not traced",
    }
    for side, outcome in outcomes.items():
        unreadable = {name for where, name in found.unreadable if where is side}
        wide = {name for where, name in found.wide if where is side}
        yield from _name_sites(unreadable, f"cannot be mapped back: {outcome}")
        yield from _name_sites(wide, f"without address and port: {outcome}")
    if is_cut or wanting.is_cut:
        yield (
            f"the filter meets more than {MAX_MAPPED} translated addresses or {MAX_RULES} ranges"
            " of them: for the others the first packet of each connection is traced late"
        )


def _name_sites(sites: set[str], outcome: str) -> Iterator[str]:
    for site in sorted(sites)[:_MAX_NAMED]:
        yield f"NAT in {site} {outcome}"
    if len(sites) > _MAX_NAMED:
        yield f"NAT in {len(sites) - _MAX_NAMED} more rules {outcome}"


def _describe_sets(ip_sets: IpSets) -> Iterator[str]:
    for name in [name for name, found in ip_sets.items() if found.members is None][:_MAX_NAMED]:
        yield (
            f"the ipset {name} is too large to be read, or of an unknown kind: what NAT rules"
            " pick by it is not known"
        )


def _describe_hooks(request: _Request, families: Sequence[str]) -> Iterator[str]:
    for family in families:
        for hook in ("prerouting", "output"):
            seen = (family, "inet") if family in ("ip", "ip6") else (family,)
            if first_priority(request.ruleset, seen, hook) == LOWEST:
                yield (
                    f"a chain of family {family} at {hook} has the lowest priority there is:"
                    " its own rules may come before tracing begins"
                )

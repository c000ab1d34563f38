"""
What happened, out of what was recorded: a pure function from evidence to a timeline.

Drops of one rule are one killer, whatever numbers and handles it had in the versions of its
table. For each killer: when it began and ended, which rule it was as it stood then, the
change that explains it, and whether it is over.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from tracer.core.journey import Verdict
from tracer.core.timeline_causes import Suspect, find_causes, find_fix
from tracer.core.timeline_events import Killer, Marked, State, Timeline
from tracer.core.timeline_versions import Versions, with_unseen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.core.ruleset import Rule, Table
    from tracer.core.timeline_events import DropGroup, Evidence, FlowDrops, Place
    from tracer.core.timeline_versions import TableKey

__all__ = ["Case", "build_timeline", "collect_drops"]

#: Drops are met by a rule that came so much later at most: its change was told late.
_LATE_NS: Final = 3_000_000_000
#: A change that left the rule where it is ended it within this, or so many usual pauses.
_FIX_NS: Final = 600_000_000_000
#: Without a change that ended it, it is quiet after so long, or so many usual pauses.
_QUIET_NS: Final = 60_000_000_000
_PAUSES: Final = 10
#: Changes of rules that are compared to say what they changed; one of 20,000 rules takes 0.1 s.
_DIFFED: Final = 100
#: The kernel's reason where netfilter freed the packet.
_BY_NETFILTER: Final = "NETFILTER_DROP"
_KILLS: Final = (Verdict.DROP, Verdict.REJECT)

_Key = tuple[object, ...]


@dataclass(slots=True)
class Case:
    """One killer while it is being put together."""

    place: Place
    chain: str
    rule: Rule | None
    groups: list[DropGroup] = field(default_factory=list)
    places: set[Place] = field(default_factory=set)
    inferred: int = 0


def build_timeline(evidence: Evidence) -> Timeline:
    """Return what happened, the worst killer first."""
    evidence = replace(evidence, changes=with_unseen(evidence.changes))
    versions = Versions(evidence.changes, evidence.read)
    cases = collect_drops(evidence.groups, versions)
    told = [_tell(case, evidence, versions) for case in cases]
    told.sort(key=lambda one: (one.is_expected, -one.packets, one.first_ns))
    return Timeline(
        evidence.since_ns,
        evidence.until_ns,
        evidence.width_ns,
        evidence.seen_until_ns,
        tuple(told),
        _mark(evidence, versions),
        tuple(evidence.survivors),
        tuple(evidence.losses),
        evidence.is_cut,
    )


def collect_drops(groups: Iterable[DropGroup], versions: Versions) -> list[Case]:
    """Return what killed, each rule once, with its drops."""
    return _infer(_collect(groups, versions), versions)


def _mark(evidence: Evidence, versions: Versions) -> tuple[Marked, ...]:
    """Return the changes in the window, the last ones with what they changed of rules."""
    window = range(evidence.since_ns, evidence.until_ns + 1)
    there = [o for o in evidence.changes if o.action != "stands" and o.time_ns in window]
    marked = [Marked(change) for change in there[:-_DIFFED]]
    for change in there[-_DIFFED:]:
        diff = versions.diff(change) if change.what == "ruleset" else None
        marked.append(Marked(change, diff))
    return tuple(marked)


def _collect(groups: Iterable[DropGroup], versions: Versions) -> dict[_Key, Case]:
    """Put together what one rule did under several numbers and handles."""
    cases: dict[_Key, Case] = {}
    for group in sorted(groups, key=lambda one: one.first_ns):
        place = group.place
        chain, rule = _resolve(group, versions)
        which: object = (place.rule, place.handle) if rule is None else rule.text
        # A rule may kill for several reasons, as DROP and REJECT have one each.
        reason = "" if place.kind in {"rule", "policy"} else place.reason
        key = (*_table_of(place), place.kind, place.hook, reason, chain, which)
        case = cases.setdefault(key, Case(place, chain, rule))
        case.groups.append(group)
        case.places.add(place)
    return cases


def _table_of(place: Place) -> TableKey:
    return place.netns, place.engine, place.family, place.table


def _resolve(group: DropGroup, versions: Versions) -> tuple[str, Rule | None]:
    """Return the chain and the rule that a group of drops died by, as it stood then."""
    place = group.place
    key = _table_of(place)
    known = versions.of(key)
    at = versions.index_at(key, group.first_ns)
    # The version in force; then those that were told late; then the one before.
    late = [i for i, one in enumerate(known) if at < i and _is_late(one.change.time_ns, group)]
    for index in [at, *late, at - 1]:
        if not 0 <= index < len(known):
            continue
        name = known[index].name
        if place.kind == "policy":
            return place.chain, None
        if place.handle:
            found = versions.find_by_handle(name, place.handle)
            if found is not None:
                return found
        elif place.rule:
            rule = versions.find_rule(name, place.chain, number=place.rule, handle=0)
            if rule is not None and rule.verdict in {*_KILLS, None}:
                return place.chain, rule
    return place.chain, None


def _is_late(time_ns: int, group: DropGroup) -> bool:
    return time_ns <= max(group.first_ns + _LATE_NS, group.last_ns)


def _infer(cases: dict[_Key, Case], versions: Versions) -> list[Case]:
    """
    Give drops of which only the table is known to the one rule of it that is known to kill.

    That is the one that killed others of what was asked for, or the only one that could, or
    that came with the change just before. Of
    drops of which not even that is known, it is the only one that killed in the namespace.
    """
    told = list(cases.values())
    for case in list(told):
        is_placed = bool(case.place.engine)
        if case.place.kind != "table" and (is_placed or case.place.reason != _BY_NETFILTER):
            continue
        mates = [o for o in told if _is_mate(case.place, o.place)]
        if len(mates) != 1 and is_placed:
            _guess(case, versions)
            mates = [o for o in mates if case.rule and _of_rule(o) == _of_rule(case)]
        if len(mates) == 1:
            mate = mates[0]
            mate.groups += case.groups
            mate.places |= case.places
            mate.inferred += sum(group.packets for group in case.groups)
            told.remove(case)
    return told


def _of_rule(case: Case) -> tuple[str, str | None]:
    return case.chain, None if case.rule is None else case.rule.text


def _is_mate(place: Place, other: Place) -> bool:
    if not other.table or other.kind not in {"rule", "policy"}:
        return False
    if not place.engine:
        return place.netns == other.netns
    return _table_of(place) == _table_of(other) and place.hook == other.hook


def _guess(case: Case, versions: Versions) -> None:
    key = _table_of(case.place)
    first_ns = min(group.first_ns for group in case.groups)
    known, at = versions.of(key), versions.index_at(key, first_ns)
    late = [
        i for i, one in enumerate(known) if i > at and _is_late(one.change.time_ns, case.groups[0])
    ]
    for index in [at, *late]:
        if not 0 <= index < len(known):
            continue
        kills = _killing(versions.table(known[index].name))
        if len(kills) > 1 and index:
            # Unnamed are drops of a table that has just come: by what came with it.
            before = _killing(versions.table(known[index - 1].name))
            old = {(chain, rule.text) for chain, rule in before}
            kills = [one for one in kills if (one[0], one[1].text) not in old]
        if len(kills) == 1:
            case.chain, case.rule = kills[0]
            case.inferred = sum(group.packets for group in case.groups)
            return


def _killing(table: Table) -> list[tuple[str, Rule]]:
    return [(o.name, r) for o in table.chains.values() for r in o.rules if r.verdict in _KILLS]


def _tell(case: Case, evidence: Evidence, versions: Versions) -> Killer:
    groups = case.groups
    first_ns = min(group.first_ns for group in groups)
    last_ns = max(group.last_ns for group in groups)
    packets = sum(group.packets for group in groups)
    suspect = Suspect(case.place, case.chain, None if case.rule is None else case.rule.text)
    causes = find_causes(suspect, first_ns, evidence.changes, versions)
    pause_ns = _PAUSES * ((last_ns - first_ns) // max(1, packets - 1))
    within_ns = max(_FIX_NS, pause_ns)
    fix = find_fix(suspect, last_ns, within_ns, evidence.changes, versions)
    table = _table_then(case, first_ns, versions)
    flows = sorted(
        (flow for flow in evidence.flows if flow.place in case.places),
        key=lambda one: (-one.packets, one.first_ns),
    )
    return Killer(
        place=case.place,
        chain=case.chain,
        rule=case.rule,
        base=_base_chain(table, case),
        before=_rules_before(table, case),
        packets=packets,
        syns=sum(group.syns for group in groups),
        first_ns=first_ns,
        last_ns=last_ns,
        series=_series(groups, evidence),
        flows=_merge_flows(flows),
        clients=len({flow.src for flow in flows}),
        has_more_clients=evidence.is_cut,
        inferred=case.inferred,
        cause=causes[0] if causes else None,
        others=tuple(causes[1:]),
        stood=_is_known(case, versions) and not any(one.brought for one in causes),
        state=_state(evidence.seen_until_ns - last_ns, pause_ns, is_fixed=fix is not None),
        fix=fix,
        expected=sum(group.expected for group in groups),
    )


def _is_known(case: Case, versions: Versions) -> bool:
    """Tell whether the log has the rule or the policy that killed."""
    is_policy = case.place.kind == "policy"
    return case.rule is not None or (is_policy and bool(versions.of(_table_of(case.place))))


def _table_then(case: Case, first_ns: int, versions: Versions) -> Table | None:
    """Return the table as it stood with the rule in it."""
    key = _table_of(case.place)
    known, at = versions.of(key), versions.index_at(key, first_ns)
    indexes = [index for index in range(max(at, 0), len(known)) if index <= at + 1]
    tables = [versions.table(known[index].name) for index in indexes]
    with_chain = [one for one in tables if case.chain in one.chains]
    if case.rule is not None:
        for table in with_chain:
            if any(rule.text == case.rule.text for rule in table.chains[case.chain].rules):
                return table
    return with_chain[0] if with_chain else None


def _base_chain(table: Table | None, case: Case) -> str:
    if table is None:
        return case.chain if case.place.engine == "nft" else case.place.hook.upper()
    if table.chains[case.chain].hook is not None:
        return case.chain
    hooked = [o.name for o in table.chains.values() if o.hook == case.place.hook]
    return hooked[0] if len(hooked) == 1 else ""


def _rules_before(table: Table | None, case: Case) -> tuple[Rule, ...]:
    if table is None or case.rule is None:
        return ()
    rules = table.chains[case.chain].rules
    texts = [rule.text for rule in rules]
    return rules[: texts.index(case.rule.text)] if case.rule.text in texts else ()


def _series(groups: Iterable[DropGroup], evidence: Evidence) -> tuple[int, ...]:
    buckets = (evidence.until_ns - evidence.since_ns) // evidence.width_ns + 1
    counted: Counter[int] = Counter()
    for group in groups:
        counted.update(group.series)
    return tuple(counted[bucket] for bucket in range(buckets))


def _merge_flows(flows: Iterable[FlowDrops]) -> tuple[FlowDrops, ...]:
    """Add up what one flow lost at several numbers of one rule."""
    merged: dict[_Key, FlowDrops] = {}
    for flow in flows:
        key = flow.src, flow.dst, flow.dport, flow.proto
        known = merged.get(key)
        if known is None:
            merged[key] = flow
            continue
        merged[key] = type(flow)(
            known.place,
            *key,
            known.packets + flow.packets,
            min(known.first_ns, flow.first_ns),
            max(known.last_ns, flow.last_ns),
        )
    return tuple(sorted(merged.values(), key=lambda one: (-one.packets, one.first_ns)))


def _state(silent_ns: int, pause_ns: int, *, is_fixed: bool) -> str:
    if is_fixed:
        return State.OVER
    return State.QUIET if silent_ns > max(_QUIET_NS, pause_ns) else State.GOING_ON

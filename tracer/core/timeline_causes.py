"""
Which change explains why something died, and which one ended it.

A change is weighed first by what it has to do with the rule that kills, and only then by how
near in time it is: the change that the rule came with is named before another that happened
just before the first drop, because a rule kills nothing until the first packet comes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tracer.core.journey import Verdict
from tracer.core.timeline_events import Cause
from tracer.core.timeline_rules import TableDiff
from tracer.core.timeline_versions import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracer.core.log_rows import Change
    from tracer.core.ruleset import Table
    from tracer.core.timeline_events import Place
    from tracer.core.timeline_versions import TableKey, Versions

__all__ = ["Suspect", "find_causes", "find_fix"]

#: What a change is worth if it happened just then, by what it has to do with the rule.
_BROUGHT, _TO_CHAIN, _OF_TABLE, _OF_SET, _OF_REASON = 1.0, 0.7, 0.3, 0.6, 0.8
_OF_NAT, _OF_OTHER_RULES, _OF_NETWORK, _ELSEWHERE = 0.2, 0.12, 0.15, 0.1
#: From here on a change is near enough to the rule to be called what ended it.
_ENDS: Final = 0.5
#: Half as near in time when it is so far away.
_HALF_NS: Final = 300 * 1_000_000_000
#: A change that is found by comparison can be told later than it acted; one that was
#: announced by whoever made it, as much later as its reader had to wait for a processor.
_SLACK_NS: Final = 1_500_000_000
_READ_NS: Final = 200_000_000
_CAUSES_MAX: Final = 6
#: Changes before a drop that are weighed; older ones explain little.
_WEIGHED_MAX: Final = 5000

_ROUTING: Final = frozenset(
    {"IP_INNOROUTES", "IP_OUTNOROUTES", "IP_INADDRERRORS", "IP_LOCAL_SOURCE", "IP_INVALID_DEST"}
)
_REASONS: Final = {
    "sysctl": frozenset({"IP_RPFILTER", "IP_INADDRERRORS", "IP_FORWARDING_DISABLED"}),
    "route": _ROUTING | {"IP_RPFILTER"},
    "rule": _ROUTING | {"IP_RPFILTER"},
    "address": _ROUTING | {"OTHERHOST", "IP_RPFILTER"},
    "link": _ROUTING | {"DEV_READY", "FULL_RING", "NOMEM"},
    "neighbour": frozenset({"NEIGH_FAILED", "NEIGH_QUEUEFULL", "NEIGH_DEAD", "NEIGH_CREATEFAIL"}),
}


@dataclass(frozen=True, slots=True)
class Suspect:
    """The rule that kills: its *place* with the chain known, and its *text* if it is a rule."""

    place: Place
    chain: str
    text: str | None

    @property
    def key(self) -> TableKey:
        """Which table it is in."""
        return self.place.netns, self.place.engine, self.place.family, self.place.table


class _Bond(NamedTuple):
    """What a change has to do with the suspect: *worth* from 0 to 1, and in words."""

    worth: float
    why: str
    brought: bool = False
    diff: TableDiff = TableDiff()


def find_causes(
    suspect: Suspect, first_ns: int, changes: Sequence[Change], versions: Versions
) -> list[Cause]:
    """Return the changes that may have begun it, the best one first."""
    near = [one for one in changes if one.time_ns <= first_ns + _slack(one)][-_WEIGHED_MAX:]
    found = []
    for change in near:
        bond = _bond(suspect, change, versions, begins=True)
        if bond is not None:
            away_ns = max(0, first_ns - change.time_ns)
            found.append(_cause(change, bond, away_ns))
    found.sort(key=lambda one: (one.brought, one.fit, one.change.time_ns), reverse=True)
    # One that brought it is enough: an earlier one was undone in between.
    later = [one for one in found if not one.brought]
    return [*_latest(one for one in found if one.brought), *later][:_CAUSES_MAX]


def _latest(causes: Iterable[Cause]) -> list[Cause]:
    found = sorted(causes, key=lambda one: one.change.time_ns)
    return found[-1:]


def find_fix(
    suspect: Suspect, last_ns: int, within_ns: int, changes: Sequence[Change], versions: Versions
) -> Cause | None:
    """
    Return the change behind the last drop that took the rule out of the way, if one did.

    One that left the rule where it is must have come at most *within_ns* after that drop: what
    changed long after the last one did not end it.
    """
    found = []
    for change in changes:
        away_ns = change.time_ns - last_ns
        if away_ns < -_slack(change):
            continue
        bond = _bond(suspect, change, versions, begins=False)
        if bond is None or bond.worth < _ENDS:
            continue
        if bond.brought or away_ns <= within_ns:
            found.append(_cause(change, bond, max(0, away_ns)))
    if _stands(suspect, versions):
        # It went and came again, as with a reload in two steps: that ended nothing.
        found = [one for one in found if not one.brought]
    if not found:
        return None
    # What took the rule itself away, else what came first.
    return max(found, key=lambda one: (one.brought, -one.change.time_ns))


def _stands(suspect: Suspect, versions: Versions) -> bool:
    """Tell whether the rule is in the last version of its table, the policy as it kills."""
    known = versions.of(suspect.key)
    chain = versions.table(known[-1].name).chains.get(suspect.chain) if known else None
    if chain is None:
        return False
    if suspect.text is None:
        return chain.policy in {Verdict.DROP, Verdict.REJECT}
    return any(rule.text == suspect.text for rule in chain.rules)


def _cause(change: Change, bond: _Bond, away_ns: int) -> Cause:
    near = _HALF_NS / (_HALF_NS + away_ns)
    return Cause(
        change, round(bond.worth * (0.5 + 0.5 * near), 4), bond.why, bond.brought, bond.diff
    )


def _slack(change: Change) -> int:
    """Return for how long a change may have been there before it was told."""
    return _READ_NS if change.pid else _SLACK_NS


def _bond(suspect: Suspect, change: Change, versions: Versions, *, begins: bool) -> _Bond | None:
    if change.action == "stands" or change.what in {"clock", "watch"}:
        return None
    if change.what == "ruleset":
        bond = _rules_bond(suspect, change, versions, begins=begins)
    elif change.what == "set":
        bond = _set_bond(suspect, change)
    else:
        bond = _network_bond(suspect, change)
    if bond is None or change.netns in {suspect.place.netns, ""}:
        return bond
    # What happens on the way there matters, but less than what happens there.
    return _Bond(bond.worth * _ELSEWHERE, f"in {change.netns}: {bond.why}", diff=bond.diff)


def _rules_bond(
    suspect: Suspect, change: Change, versions: Versions, *, begins: bool
) -> _Bond | None:
    diff = versions.diff(change)
    if not diff:
        return None
    if key_of(change) != suspect.key:
        _, _, _, table = key_of(change) or ("", "", "", "")
        nat = table == "nat" or any(re.search(r"[DS]NAT|dnat|snat", o.text) for o in diff.lines)
        worth = _OF_NAT if nat else _OF_OTHER_RULES
        return _Bond(worth, "translates packets" if nat else "other rules", diff=diff)
    if _moves(suspect, diff, "+" if begins else "-"):
        return _Bond(1.0, "the rule came with it" if begins else "the rule went", True, diff)  # noqa: FBT003 - a tuple's member
    if _moves(suspect, diff, "-" if begins else "+"):
        return _Bond(_OF_TABLE, "the rule went with it" if begins else "the rule came", diff=diff)
    return _near_bond(suspect, diff, versions.table(change.after if begins else change.before))


def _near_bond(suspect: Suspect, diff: TableDiff, table: Table) -> _Bond:
    """Weigh a change of the table that the rule is in, but not of the rule."""
    chain = suspect.chain
    if chain in diff.chains:
        return _Bond(_TO_CHAIN, f"changed chain {chain}", diff=diff)
    if any(_leads_to(line.text, chain) for line in diff.lines):
        return _Bond(_TO_CHAIN, f"changed what leads to chain {chain}", diff=diff)
    if diff.chains & _callers(table, chain):
        return _Bond(_TO_CHAIN * 0.8, f"changed a chain that leads to {chain}", diff=diff)
    return _Bond(_OF_TABLE, "changed the same table", diff=diff)


def _moves(suspect: Suspect, diff: TableDiff, sign: str) -> bool:
    """Tell whether the rule, or the policy, came (+) or went (-) with a change."""
    if suspect.text is None:
        before, after = diff.policies.get(suspect.chain, ("accept", "accept"))
        kills = after if sign == "+" else before
        other = before if sign == "+" else after
        return kills in {"drop", "reject"} and other not in {"drop", "reject"}
    lines = [o for o in diff.lines if (o.chain, o.text) == (suspect.chain, suspect.text)]
    came = sum(1 if one.sign == "+" else -1 for one in lines)
    return came > 0 if sign == "+" else came < 0


def _leads_to(text: str, chain: str) -> bool:
    return re.search(rf"(?:-j|-g|jump|goto) {re.escape(chain)}(?:\s|$)", text) is not None


def _callers(table: Table, chain: str) -> frozenset[str]:
    """Return the chains of a table from which a packet comes to *chain*."""
    found: set[str] = set()
    asked = [chain]
    while asked:
        wanted = asked.pop()
        for one in table.chains.values():
            if one.name not in found and any(rule.target == wanted for rule in one.rules):
                found.add(one.name)
                asked.append(one.name)
    return frozenset(found)


def _set_bond(suspect: Suspect, change: Change) -> _Bond | None:
    *_, name = change.subject.split(" ")
    if suspect.text is not None and re.search(rf"@{re.escape(name)}(?:\s|$)", suspect.text):
        return _Bond(_OF_SET, f"changed what is in the set {name}, which the rule matches")
    return _Bond(_OF_OTHER_RULES / 2, "changed what is in a set")


def _network_bond(suspect: Suspect, change: Change) -> _Bond | None:
    reason = suspect.place.reason
    if reason in _REASONS.get(change.what, frozenset()):
        return _Bond(_OF_REASON, f"packets died for {reason}")
    if change.what == "conntrack":
        is_hook = suspect.place.kind == "hook"
        return _Bond(_OF_REASON if is_hook else _OF_NETWORK / 2, "connections were not tracked")
    return _Bond(_OF_NETWORK, "the network changed")

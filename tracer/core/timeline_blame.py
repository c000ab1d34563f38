"""Of each rule that stands, or stood last: who brought it, when, and what it dropped since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.core.timeline import collect_drops
from tracer.core.timeline_versions import Versions, with_unseen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tracer.core.log_rows import Change
    from tracer.core.ruleset import Rule
    from tracer.core.timeline_events import Evidence
    from tracer.core.timeline_rules import TableDiff
    from tracer.core.timeline_versions import TableKey

__all__ = ["Blame", "find_blame"]

_Dropped = dict[tuple["TableKey", str, str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Blame:
    """
    One rule and its story.

    *brought* is the change that it came with, None where it stood when the log begins, and
    *since_ns* when that was. *was* are the rules that went from its chain with that change.
    *packets* were dropped by it in the window, the last one at *last_ns* (0 for none).
    """

    key: TableKey
    chain: str
    rule: Rule
    brought: Change | None
    since_ns: int
    was: tuple[str, ...]
    packets: int
    last_ns: int


def find_blame(
    evidence: Evidence, table: str, chain: str | None = None, rule: int | None = None
) -> list[Blame]:
    """
    Return the story of each rule of *table*, of its *chain*, or of that chain's *rule*.

    *table* is a name, or family and name. Of a table that is gone the last version is told.
    """
    versions = Versions(with_unseen(evidence.changes), evidence.read)
    dropped: _Dropped = {}
    for case in collect_drops(evidence.groups, versions):
        if case.rule is not None:
            place = case.place
            key = (place.netns, place.engine, place.family, place.table)
            packets = sum(group.packets for group in case.groups)
            last_ns = max(group.last_ns for group in case.groups)
            known = dropped.get((key, case.chain, case.rule.text), (0, 0))
            dropped[key, case.chain, case.rule.text] = (
                known[0] + packets,
                max(known[1], last_ns),
            )
    wanted = table.split()
    found = []
    for key in versions.keys:
        if [key[2], key[3]][-len(wanted) :] == wanted:
            found += list(_of_table(key, versions, dropped, chain, rule))
    return found


def _of_table(
    key: TableKey,
    versions: Versions,
    dropped: Mapping[tuple[TableKey, str, str], tuple[int, int]],
    chain: str | None,
    number: int | None,
) -> Iterator[Blame]:
    known = versions.of(key)
    standing = next((one for one in reversed(known) if one.name), None)
    if standing is None:
        return
    changes = [one.change for one in known if one.change.action != "stands"]
    diffs = [(change, versions.diff(change)) for change in reversed(changes)]
    for name, held in versions.table(standing.name).chains.items():
        if chain not in {None, name}:
            continue
        for rule in held.rules:
            if number not in {None, rule.number}:
                continue
            brought, was = _find_change(name, rule.text, diffs)
            packets, last_ns = dropped.get((key, name, rule.text), (0, 0))
            since_ns = (brought or known[0].change).time_ns
            yield Blame(key, name, rule, brought, since_ns, was, packets, last_ns)


def _find_change(
    chain: str, text: str, diffs: list[tuple[Change, TableDiff]]
) -> tuple[Change | None, tuple[str, ...]]:
    """Return the last change that brought the rule, and what went from its chain with it."""
    for change, diff in diffs:
        here = [line for line in diff.lines if line.chain == chain]
        if any(line.sign == "+" and line.text == text for line in here):
            came = {line.text for line in here if line.sign == "+"}
            return change, tuple(o.text for o in here if o.sign == "-" and o.text not in came)
    return None, ()

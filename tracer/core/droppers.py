"""
Which base chains can drop a packet at all, and the fewest marks that tell them apart.

A mark notes which table a packet goes into. A note of a packet that had the same address
before must never be taken for this one's, so that a hook's first table needs a mark as
much as the others; where one table alone can drop, none is needed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tracer.core.ruleset import Rule, Ruleset, Table

__all__ = ["Entry", "Mark", "can_drop", "has_foreign_droppers", "plan_marks"]

_ENDING = frozenset({Verdict.DROP, Verdict.REJECT})
_AT_DEVICES = frozenset({"ingress", "egress"})
#: Targets that drop at times, of whatever verdict their text is.
_AT_TIMES = re.compile(r"-j (?:SYNPROXY|TPROXY|TARPIT|DELUDE|CHAOS)\b|\bsynproxy\b|\btproxy\b")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry at a *hook* of a family that can drop: its function and private pointer."""

    hook: int
    priority: int
    function: int
    private: int
    is_nft: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """
    The note *ordinal* at a hook means *entry*; with *priority* None no link is needed.

    *doubtful*: another entry may have dropped as well.
    """

    ordinal: int
    priority: int | None
    entry: Entry
    doubtful: bool


def can_drop(table: Table, chain: str) -> bool:
    """Tell whether a packet that enters *chain* of *table* can be dropped there."""
    waiting, seen = [chain], {chain}
    while waiting:
        found = table.chains.get(waiting.pop())
        if found is None:
            continue
        if found.policy is Verdict.DROP or any(_ends(rule) for rule in found.rules):
            return True
        targets = {rule.target for rule in found.rules if rule.target is not None} - seen
        seen |= targets
        waiting += targets
    return False


def has_foreign_droppers(rules: Ruleset) -> bool:
    """
    Tell whether nft drops packets where no mark can be: on bridges, at devices, in nat chains.

    A packet that dies there may have been noted at one of IP's hooks before. The nat chains
    of a hook are one entry there, which is not a chain's.
    """
    return any(
        can_drop(table, chain.name)
        for table in rules.tables.values()
        if table.engine == "nft"
        for chain in table.chains.values()
        if chain.hook is not None
        and (chain.hook in _AT_DEVICES or chain.type == "nat" or table.family == "bridge")
    )


def _ends(rule: Rule) -> bool:
    # Of a verdict map only the elements tell, and they change.
    is_open = rule.verdict is None
    return is_open or rule.verdict in _ENDING or _AT_TIMES.search(rule.text) is not None


def plan_marks(
    droppers: Iterable[Entry], priorities: Mapping[int, Collection[int]], marks_max: int
) -> list[Mark]:
    """
    Return the marks for one family of one namespace.

    *droppers* are the entries of all its hooks that can drop, *priorities* those of all
    entries of each hook, whichever they are. Beyond *marks_max* a hook's tables share
    their last mark.
    """
    by_hook: defaultdict[int, list[Entry]] = defaultdict(list)
    listed = list(droppers)
    for entry in listed:
        by_hook[entry.hook].append(entry)
    if len(listed) == 1:
        return [Mark(0, None, listed[0], doubtful=False)]
    marks = []
    for hook, entries in by_hook.items():
        groups = list(_groups(entries, set(priorities[hook])).items())
        for ordinal, (priority, alike) in enumerate(groups[:marks_max]):
            is_last = ordinal == marks_max - 1 and len(groups) > marks_max
            marks += _group(ordinal, priority, alike, is_last=is_last)
    return marks


def _groups(entries: Iterable[Entry], taken: Collection[int]) -> dict[int, list[Entry]]:
    """
    Map the priorities at which links are to stand to the entries behind each.

    No link may have an entry's priority, so that entries of one priority, and those next
    to each other, have one link. Source: nf_hook_entries_grow() in net/netfilter/core.c.
    """
    groups: dict[int, list[Entry]] = {}
    for entry in sorted(entries, key=lambda one: one.priority):
        at = entry.priority - 1
        while at in taken:
            at -= 1
        groups.setdefault(at, []).append(entry)
    return groups


def _group(ordinal: int, priority: int, entries: list[Entry], *, is_last: bool) -> list[Mark]:
    """Tell a legacy table and an nft chain of one priority apart: they free elsewhere."""
    marks = []
    for is_nft in (False, True):
        alike = [entry for entry in entries if entry.is_nft is is_nft]
        if alike:
            doubtful = is_last or len(alike) > 1
            marks.append(Mark(ordinal, priority, alike[0], doubtful=doubtful))
    return marks

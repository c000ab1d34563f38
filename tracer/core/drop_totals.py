"""
Totals of drops, by labels, out of counts by kind that can begin anew or lose their rule.

What a kind of drop counted since the last time is added where it belongs now: under its
place and reason, and, where the kernel keeps no counter of the rule or the policy that
dropped, to that rule. So a total never falls, whatever becomes of the rule later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tracer.core.expected import DropFeatures, Expected
from tracer.core.rule_counts import TableKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracer.core.drops import DropCount
    from tracer.core.rule_counts import RuleCounts
    from tracer.core.rule_ids import CountedRule

__all__ = ["KINDS_MAX", "OTHER", "DropLabels", "DropTotals"]

#: Label sets; the table names among them are chosen by whoever may write rules.
KINDS_MAX: Final = 4_096
#: What stands for all that is not told apart.
OTHER: Final = "other"


class DropLabels(NamedTuple):
    """What drops are told apart by; what is not known is empty."""

    netns: str
    engine: str
    family: str
    hook: str
    table: str
    reason: str
    expected: bool


class DropTotals:
    """The drops of all watched namespaces."""

    def __init__(self, kinds_max: int = KINDS_MAX) -> None:
        """Begin with nothing; beyond *kinds_max* label sets they are counted together."""
        self._held: set[DropCount] = set()
        self.totals: dict[DropLabels, list[int]] = {}
        self.folded = 0
        self.unresolved: dict[str, int] = {}
        self._kinds_max = kinds_max
        self._last: dict[DropCount, tuple[int, int]] = {}

    def update(
        self,
        rows: Iterable[DropCount],
        names: Mapping[int, str],
        rules: RuleCounts,
        expected: Expected,
    ) -> None:
        """
        Add what *rows* have more than the last time.

        A drop by a rule that is not known waits for the next time: rules and drops are
        not read at one moment. If the rule is not known then either it is gone.

        *names* are the watched namespaces' by inode: others are left out. *rules* are up
        to date.
        """
        last, held = self._last, self._held
        self._last, self._held = {}, set()
        for row in rows:
            kind = row.kind_only
            packets, octets = last.get(kind, (0, 0))
            self._last[kind] = row.packets, row.octets
            if row.packets < packets or row.octets < octets:
                packets = octets = 0
            name = names.get(row.netns)
            if name is None or row.packets == packets:
                continue
            place = _Place(row, name, rules)
            if place.is_gone and kind not in held:
                self._held.add(kind)
                self._last[kind] = packets, octets
                continue
            self._add(place, (row.packets - packets, row.octets - octets), rules, expected)

    def keep_only(self, names: Iterable[str]) -> None:
        """End the totals of namespaces that are not among *names*."""
        kept = {*names, OTHER}
        for labels in [labels for labels in self.totals if labels.netns not in kept]:
            del self.totals[labels]
        for name in self.unresolved.keys() - kept:
            del self.unresolved[name]

    def add(self, labels: DropLabels, packets: int, octets: int) -> None:
        """Add to the total of *labels*, or to that of all the others where there are too many."""
        total = self.totals.get(labels)
        if total is None:
            if len(self.totals) >= self._kinds_max:
                self.folded += packets
                labels = DropLabels(OTHER, "", "", "", "", OTHER, expected=False)
            total = self.totals.setdefault(labels, [0, 0])
        total[0] += packets
        total[1] += octets

    def _add(
        self, place: _Place, new: tuple[int, int], rules: RuleCounts, expected: Expected
    ) -> None:
        if place.is_gone:
            self.unresolved[place.name] = self.unresolved.get(place.name, 0) + new[0]
        elif place.at is not None and place.has_no_counter:
            rules.attribute(place.key, place.at, *new)
        self.add(place.labels(expected), *new)


class _Place:
    """Where a kind of drop belongs, by the rules as they are known now."""

    def __init__(self, row: DropCount, name: str, rules: RuleCounts) -> None:
        self.name = name
        self.key = TableKey(name, row.engine or "", row.family or "", row.table or "")
        self.at: int | None = None
        self.rule: CountedRule | None = None
        self.has_no_counter = False
        self._row = row
        is_named = row.kind == "policy" or row.rule is not None or row.handle is not None
        table = rules.tables.get(self.key)
        if is_named and table is not None:
            self.at = table.find(row.chain or "", row.rule, row.handle)
        if table is not None and self.at is not None:
            self.rule = table.rules[self.at]
            counts_drops = self.rule.is_dropping or self.rule.is_policy
            self.has_no_counter = not (counts_drops and table.counted[self.at])
        self.is_gone = is_named and row.table is not None and self.at is None

    def labels(self, expected: Expected) -> DropLabels:
        """Return what the drops are told apart by."""
        row, rule = self._row, self.rule
        chain, text, comment = row.chain, None, None
        if rule is not None:
            chain, text, comment = rule.chain, rule.text or "policy", rule.comment or None
        of_table = row.engine, row.family, row.table
        features = DropFeatures(self.name, *of_table, chain, text, comment, row.reason)
        return DropLabels(
            *(self.name, self.key.engine, self.key.family, row.hook or "", self.key.table),
            row.reason,
            expected.fits(features),
        )

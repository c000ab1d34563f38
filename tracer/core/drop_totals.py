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

        *names* are the watched namespaces' by inode: others are left out. *rules* are up
        to date.
        """
        last = self._last
        self._last = {}
        for row in rows:
            kind = row.kind_only
            packets, octets = last.get(kind, (0, 0))
            self._last[kind] = row.packets, row.octets
            if row.packets < packets or row.octets < octets:
                packets = octets = 0
            name = names.get(row.netns)
            if name is not None and row.packets > packets:
                self._add(row, name, (row.packets - packets, row.octets - octets), rules, expected)

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
        self,
        row: DropCount,
        name: str,
        new: tuple[int, int],
        rules: RuleCounts,
        expected: Expected,
    ) -> None:
        text, chain, comment = None, row.chain, None
        key = TableKey(name, row.engine or "", row.family or "", row.table or "")
        table = rules.tables.get(key)
        is_named = row.kind == "policy" or row.rule is not None or row.handle is not None
        if is_named and row.table is not None:
            at = None if table is None else table.find(row.chain or "", row.rule, row.handle)
            if table is not None and at is not None:
                rule = table.rules[at]
                text, chain = rule.text or "policy", rule.chain
                comment = rule.comment or None
                if not table.counted[at] or (not rule.is_dropping and not rule.is_policy):
                    rules.attribute(key, at, *new)
            else:
                self.unresolved[name] = self.unresolved.get(name, 0) + new[0]
        of_table = row.engine, row.family, row.table
        features = DropFeatures(name, *of_table, chain, text, comment, row.reason)
        labels = DropLabels(
            name,
            row.engine or "",
            row.family or "",
            row.hook or "",
            row.table or "",
            row.reason,
            expected.fits(features),
        )
        self.add(labels, *new)

"""Exemplars: which journey shows how a packet that a counter counted has died."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporters.prometheus_text import Mark
from tracer.core.rule_counts import TableKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.core.drop_totals import DropLabels
    from tracer.core.health import Exemplar
    from tracer.core.rule_counts import TableTotals

__all__ = ["Marks"]


class Marks:
    """The newest exemplar of each rule, and of each kind of drop."""

    def __init__(self, exemplars: Iterable[Exemplar]) -> None:
        """Sort them by what they can be found by."""
        self._of_table: dict[TableKey, list[Exemplar]] = {}
        self._of_kind: dict[tuple[str, ...], Mark] = {}
        for one in sorted(exemplars, key=lambda one: one.time_s):
            place = (one.netns, one.engine or "", one.family or "")
            kind = (*place, one.hook or "", one.table or "", one.reason or "")
            self._of_kind[kind] = Mark(one.journey_id, one.time_s)
            if one.table is not None:
                self._of_table.setdefault(TableKey(*place, one.table), []).append(one)

    def of_table(self, key: TableKey, table: TableTotals) -> dict[int, Mark]:
        """Return the exemplars of a table's rules, by column."""
        found: dict[int, Mark] = {}
        for one in self._of_table.get(key, ()):
            at = table.find(one.chain or "", one.rule, one.handle)
            if at is not None:
                found[at] = Mark(one.journey_id, one.time_s)
        return found

    def of_kind(self, labels: DropLabels) -> Mark | None:
        """
        Return the exemplar of a kind of drop; None where there is none.

        A journey that does not know the kernel's reason is one of its place's.
        """
        place = labels[:5]
        return self._of_kind.get((*place, labels.reason)) or self._of_kind.get((*place, ""))

"""Kinds of drop that are over, in bounded memory: the oldest are told less exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.core.drops import DropCount, merge_counts

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DropLedger"]

#: A kind takes about 500 bytes: 4 MB.
_ROWS_MAX = 8192


class DropLedger:
    """
    Rows that no more is counted in, added up.

    Beyond *rows_max* first rules and chains are forgotten, then everything but the reason:
    packets stay counted. *coarse* says how many packets are told less exactly.
    """

    def __init__(self, rows_max: int = _ROWS_MAX) -> None:
        """Begin with nothing."""
        self.rows: list[DropCount] = []
        self.coarse = 0
        self._rows_max = rows_max

    def add(self, rows: Iterable[DropCount]) -> None:
        """Take *rows*."""
        self.rows = merge_counts([*self.rows, *rows])
        for coarsen in (_to_table, _to_reason):
            if len(self.rows) > self._rows_max:
                # The half with most packets keeps its names.
                kept, rest = self.rows[: self._rows_max // 2], self.rows[self._rows_max // 2 :]
                self.coarse += sum(row.packets for row in rest if coarsen(row) != row)
                self.rows = merge_counts([*kept, *map(coarsen, rest)])


def _to_table(row: DropCount) -> DropCount:
    return DropCount(
        row.netns,
        row.reason,
        row.packets,
        row.octets,
        kind="table" if row.table else row.kind,
        hook=row.hook,
        engine=row.engine,
        family=row.family,
        table=row.table,
    )


def _to_reason(row: DropCount) -> DropCount:
    return DropCount(0, row.reason, row.packets, row.octets)

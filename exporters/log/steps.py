"""
One time for a log whose wall clock was set: all is told by the clock as it was last set.

A row's `time_ns` is by the clock of its moment, and its ordinal says between which steps of
that clock it was written. What was written before a step is moved by it, so that times grow
with ordinals again: an hour set back does not put the end before the beginning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exporters.log.select import Selection

__all__ = ["Steps"]

#: Steps that are told apart, the last ones; what is older is moved by all of these.
_STEPS_MAX: Final = 512


class Steps:
    """The steps of a log's clock; without any, nothing is moved."""

    def __init__(self, rows: Iterable[tuple[int, str, str]] = ()) -> None:
        """Take `(ordinal, before, after)` of the changes of the clock, in their order."""
        # A row that is not the writer's says nothing.
        steps = [
            (ordinal, int(after) - int(before))
            for ordinal, before, after in rows
            if before.isdecimal() and after.isdecimal()
        ]
        #: Ordinals of the steps, and how much rows before each are moved; rows behind: by 0.
        self._until: list[tuple[int, int]] = []
        moved = 0
        for ordinal, step_ns in reversed(steps[-_STEPS_MAX:]):
            moved += step_ns
            self._until.insert(0, (ordinal, moved))

    def __bool__(self) -> bool:
        """Whether there was any."""
        return bool(self._until)

    def sql(self) -> str:
        """Return an expression for the time of a row."""
        return f"time_ns + {_moved(self._until)}" if self else "time_ns"

    def as_written(self, selection: Selection) -> Selection:
        """Return a selection that every row may have been written under which is chosen."""
        by = [0, *(moved for _, moved in self._until)]
        since, until = selection.since_ns, selection.until_ns
        return replace(
            selection,
            since_ns=None if since is None else since - max(by),
            until_ns=None if until is None else until - min(by),
        )


def _moved(until: Sequence[tuple[int, int]]) -> str:
    """Return an expression for how much a row is moved, a tree: rows pay for its depth."""
    if not until:
        return "0"
    half = len(until) // 2
    ordinal, moved = until[half]
    rest = _moved(until[half + 1 :])
    if not half:
        return f"CASE WHEN ordinal < {ordinal} THEN {moved} ELSE {rest} END"
    return (
        f"CASE WHEN ordinal < {until[half - 1][0]} THEN {_moved(until[:half])} "
        f"WHEN ordinal < {ordinal} THEN {moved} ELSE {rest} END"
    )

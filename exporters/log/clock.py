"""
The two clocks that a log is kept by, and the steps of the one against the other.

Rows come with times that others read from the wall clock, some moments ago: where it was set
in between, they are moved to how it is now.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from tracer.core.log_rows import Columns

__all__ = ["STEP_NS", "Clock", "StepWatch", "SystemClock"]

#: NTP slews by at most 0.5 ms a second; what jumps further was set.
STEP_NS: Final = 500_000_000
#: Rows that were seen before a step come so much later at most.
_LATE_NS: Final = 10_000_000_000


class Clock(Protocol):
    """Tells both times, in nanoseconds."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, UTC; may be set forward and back."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some moment; only grows."""


class SystemClock:
    """The machine's own clocks."""

    def wall_ns(self) -> int:
        """Return CLOCK_REALTIME."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic_ns()


class StepWatch:
    """Notices when the wall clock was set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_ns = clock.wall_ns() - clock.monotonic_ns()
        self._step_ns = 0
        self._late_until_ns = 0

    def look(self) -> int:
        """Return by how much the clock was set since the last look, 0 for not."""
        now_ns = self._clock.monotonic_ns()
        offset_ns = self._clock.wall_ns() - now_ns
        step_ns, self._offset_ns = offset_ns - self._offset_ns, offset_ns
        if abs(step_ns) < STEP_NS:
            return 0
        self._step_ns, self._late_until_ns = step_ns, now_ns + _LATE_NS
        return step_ns

    def moved(self, columns: Columns) -> Columns:
        """Return rows by the clock as it is: those whose time is the old clock's are moved."""
        now_ns = self._clock.monotonic_ns()
        if now_ns >= self._late_until_ns or "time_ns" not in columns:
            return columns
        given: Any = columns["time_ns"]
        try:
            times = np.asarray(given, np.int64)
        except (ValueError, TypeError, OverflowError):
            # No times: whoever encodes them says so.
            return columns
        new_ns = self._offset_ns + now_ns
        is_old = np.abs(times - new_ns) > np.abs(times - (new_ns - self._step_ns))
        moved = times + is_old * self._step_ns
        return {**columns, "time_ns": moved if times.ndim else int(moved)}

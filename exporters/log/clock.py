"""The two clocks that a log is kept by, and the steps of the one against the other."""

from __future__ import annotations

import time
from typing import Final, Protocol

__all__ = ["Clock", "StepWatch", "SystemClock"]

#: NTP slews by at most 0.5 ms a second; what jumps further was set.
STEP_NS: Final = 500_000_000


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

    def look(self) -> int:
        """Return by how much the clock was set since the last look, 0 for not."""
        offset_ns = self._clock.wall_ns() - self._clock.monotonic_ns()
        step_ns, self._offset_ns = offset_ns - self._offset_ns, offset_ns
        return step_ns if abs(step_ns) >= STEP_NS else 0

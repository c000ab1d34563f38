"""The time that proving by known drops may take."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from tracer.errors import KernelUnsupportedError

if TYPE_CHECKING:
    import threading

__all__ = ["WAIT_FACTOR", "Deadline", "LateError"]

#: On a busy machine it takes so many times as long by the clock as by the processor.
WAIT_FACTOR = 3.0


class LateError(KernelUnsupportedError):
    """Known drops took too long: nothing is known of the kernel by it, and later it may do."""


class Deadline:
    """
    A limit from now for all that is done in a range, which the calling thread does.

    *limit_s* is seconds of the processor's time, the thread's own and that of the tools it
    runs; by the clock it may be *factor* times as much. It is over at once when
    *given_up* is set.
    """

    def __init__(
        self,
        limit_s: float,
        factor: float = WAIT_FACTOR,
        given_up: threading.Event | None = None,
    ) -> None:
        """Begin to count."""
        self._given_up = given_up
        self._limit_s = limit_s
        self._wait_s = limit_s * factor
        self._used_s = -_used_s()
        self._end_s = time.monotonic() + self._wait_s

    def left_s(self) -> float:
        """Return the seconds by the clock that are left; LateError where none are."""
        left_s = self._end_s - time.monotonic()
        if self._given_up is not None and self._given_up.is_set():
            raise self.over()
        if left_s <= 0 or self._used_s + _used_s() >= self._limit_s:
            raise self.over()
        return left_s

    def over(self) -> LateError:
        """Return what is to be raised when time has run out."""
        taken = f"{self._limit_s:g} s of a processor or {self._wait_s:g} s by the clock"
        msg = f"known drops took longer than {taken}: the machine is too busy"
        return LateError(msg, "try again, or give it longer with --calibrate S")


def _used_s() -> float:
    # The tools are waited for, and count from then on; others' that end meanwhile, too.
    times = os.times()
    return time.thread_time() + times.children_user + times.children_system

"""The time that proving by known drops may take."""

from __future__ import annotations

import time

from tracer.errors import KernelUnsupportedError

__all__ = ["Deadline"]


class Deadline:
    """A limit in seconds from now for all that is done in a range."""

    def __init__(self, limit_s: float) -> None:
        """Begin to count."""
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Return the seconds that are left; KernelUnsupportedError where none are."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise self.over()
        return left_s

    def over(self) -> KernelUnsupportedError:
        """Return what is to be raised when time has run out."""
        msg = f"known drops took longer than {self._limit_s:g} s: the machine is too busy"
        return KernelUnsupportedError(msg, "try again, or give it longer with --calibrate S")

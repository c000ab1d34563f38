"""What may be spent: so much a second, saved up for a while, and never more."""

from __future__ import annotations

__all__ = ["Bucket"]


class Bucket:
    """
    A token bucket: *rate* a second flow in, up to *burst*; it begins full.

    It has no clock of its own: times are monotonic seconds, and one that goes back adds
    nothing. The unit is the caller's: packets, seconds of a CPU, flows.
    """

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._filled_s = now_s

    def level(self, now_s: float) -> float:
        """Return what could be spent now; negative where more was spent than there was."""
        passed = now_s - self._filled_s
        if passed > 0:
            self._level = min(self._burst, self._level + passed * self._rate)
            self._filled_s = now_s
        return self._level

    def take(self, amount: float, now_s: float) -> bool:
        """Spend *amount* if there is so much, else nothing; tell which."""
        if self.level(now_s) < amount:
            return False
        self._level -= amount
        return True

    def spend(self, amount: float, now_s: float) -> None:
        """Spend *amount* that is gone already, into the red where it must be."""
        self.level(now_s)
        self._level -= amount

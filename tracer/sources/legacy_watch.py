"""
Looking after one namespace's legacy tables, which announce no change.

Their fingerprint is taken every few milliseconds, more seldom where that takes long; where
there are no tables, they are looked for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracer.sources.legacy_tables import LegacyFingerprint
from tracer.sources.netns import entered

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.sources.netns import Netns

__all__ = ["LegacyWatch"]

_POLL_NS = 10_000_000  # a fingerprint is this old at most, unless the tables are large
_SHARE = 20  # …when taking it may cost a twentieth of the time
_APPEAR_NS = 50_000_000  # where there are no tables, they are looked for so often


class LegacyWatch:
    """
    The tables of *namespace* as they were last read: *known*.

    *hear* is told the families of tables that have come into being since, sorted.
    *looked_ns* is when the last look began, by the monotonic clock.
    """

    def __init__(
        self,
        namespace: Netns,
        known: LegacyFingerprint,
        hear: Callable[[list[str]], None] | None,
    ) -> None:
        self.known = known
        self.looked_ns = 0
        self._namespace = namespace
        self._hear = hear
        self._families = {family for family, _ in known.tables}
        self._wait_ns = _POLL_NS if self._families else _APPEAR_NS

    def is_due(self, now_ns: int) -> bool:
        """Tell whether the last look is too old."""
        return now_ns - self.looked_ns >= self._wait_ns

    def look(self) -> bool:
        """
        Tell whether the tables are others than *known*, which stays what it is.

        Errors: KernelRefusedError if the kernel does not let us read.
        """
        # What came before the look began was passed by the rules that it finds.
        self.looked_ns = time.monotonic_ns()
        with entered(self._namespace):
            current = LegacyFingerprint.take(self.known)
        cost_ns = time.monotonic_ns() - self.looked_ns
        self._wait_ns = max(_POLL_NS if current.tables else _APPEAR_NS, cost_ns * _SHARE)
        fresh = {family for family, _ in current.tables} - self._families
        if fresh and self._hear is not None:
            self._families |= fresh
            self._hear(sorted(fresh))
        return current.changed_since(self.known)

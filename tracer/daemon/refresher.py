"""
Reads the rules' counters when rules have changed, so that no counter overtakes its past.

A ruleset that is loaded anew counts from nothing. Between two scrapes it may come beyond
what was told of it last, and then nobody could see that it began anew.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Refresher"]

#: Between two readings, so that a tool which changes rules all the time costs little.
_PAUSE_S: Final = 0.5
#: … and as many times as long as the last one took: a tenth of a core at most.
_PAUSE_SHARE: Final = 9


class Refresher:
    """Calls *refresh* in a thread of its own, some time after each `wanted`."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh
        self._wanted = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refresher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def want(self) -> None:
        """Have it called; returns at once."""
        self._wanted.set()

    def stop(self) -> None:
        """End, when a call that goes on is over; harmless when repeated."""
        self._over.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            if self._over.is_set():
                return
            self._wanted.clear()
            started_s = time.monotonic()
            self._refresh()
            took_s = time.monotonic() - started_s
            self._over.wait(max(_PAUSE_S, _PAUSE_SHARE * took_s))

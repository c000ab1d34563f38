"""
Proving rungs again, in the background, where there was no time for it at the start.

A second copy of the programs is loaded for it, so that those that count go on counting;
it ends with the attempt. The namespaces in which known drops are made are told, so that
the drops are not taken for anybody's.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

from tracer.errors import NftraceError
from tracer.sources.bpf_kinds import KindTable
from tracer.sources.bpf_ladder import Ladder
from tracer.sources.bpf_peek import Peek

if TYPE_CHECKING:
    from collections.abc import Callable

    from bpf.loader import Loaded

__all__ = ["LATER", "Retry"]

#: The first attempt, and the longest pause: each failure doubles it. One takes a second of
#: a processor, which a machine that is always busy has for us once an hour.
FIRST_S, LONGEST_S = 30.0, 3600.0
#: Said from the start on.
LATER = "no rung could be proved in time: it is tried again after half a minute, then more seldom"
#: Nobody waits: by the clock so many times what the processor may work on it.
_FACTOR = 24.0


class Retry:
    """
    Attempts with pauses between, until one has not failed for lack of time.

    `poll()` again and again. *ranges* are the inodes of the namespaces with known drops;
    none of them is another namespace's until the poll after the one that ended the attempt.
    *pause_s* is the pause that is on, or the one before the last attempt.
    """

    def __init__(self, load: Callable[[], Loaded], limit_s: float) -> None:
        """Begin the first pause; an attempt loads by *load* and may take *limit_s*."""
        self.ranges: dict[int, int] = {}
        self._load = load
        self.limit_s = limit_s
        self.pause_s = FIRST_S
        self._due_s = time.monotonic() + FIRST_S
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._found: Ladder | None = None

    def hurry(self) -> None:
        """End the pause."""
        self._due_s = 0.0

    def poll(self) -> Ladder | None:
        """
        Return the ladder that an attempt climbed, once; it is closed, and what it found stands.

        None while there is none. A ladder on its lowest rung says that no other holds.
        """
        if self._thread is None:
            self._forget_ranges()
            if time.monotonic() >= self._due_s:
                self._thread = threading.Thread(target=self._attempt, name="calibrate")
                self._thread.start()
            return None
        if self._thread.is_alive():
            return None
        self._thread.join()
        self._thread = None
        found, self._found = self._found, None
        if found is None or found.is_late:
            self.pause_s = min(2 * self.pause_s, LONGEST_S)
            self._due_s = time.monotonic() + self.pause_s
            return None
        self._due_s = float("inf")
        return found

    @property
    def is_under_way(self) -> bool:
        """Tell whether known drops may be made at this moment."""
        return self._thread is not None

    def _attempt(self) -> None:
        try:
            loaded = self._load()
        except (NftraceError, OSError):
            # It loaded once: what is short now, memory or processes, may be there later.
            return
        with closing(loaded):
            KindTable(loaded.maps).fill()
            ladder = Ladder(loaded, Peek(loaded), (), self._hold, self._given_up)
            with closing(ladder):
                ladder.climb(None, self.limit_s, _FACTOR)
            self._found = ladder

    def _hold(self, inode: int) -> None:
        # Its inode is not given to another namespace while there is a descriptor of it.
        flags = os.O_RDONLY | os.O_CLOEXEC
        self.ranges[inode] = os.open("/proc/thread-self/ns/net", flags)

    def _forget_ranges(self) -> None:
        while self.ranges:
            os.close(self.ranges.popitem()[1])

    def close(self) -> None:
        """End an attempt that is under way, and wait for that."""
        self._given_up.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._forget_ranges()

"""
The wheel of the daemon: drops in, names and numbers out, all year.

One thread turns it and owns every kernel handle; others ask for numbers and take the lock
for that. At rest it is woken by the first drop and by changes of rules; while drops come
it turns ten times a second, and while flows wait for their names faster. What goes wrong
in a namespace or with a client is said, counted and passed over.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tracer.core.drops import Rung
from tracer.daemon.change_log import ChangeLog
from tracer.daemon.namespaces import NamespaceWatch
from tracer.daemon.naming import Namer
from tracer.errors import NftraceError
from tracer.sources.drops import NETNS_MAX, DropSource, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from tracer.core.drops import DropCount
    from tracer.core.health import Exemplar
    from tracer.daemon.event_log import EventLog
    from tracer.daemon.messages import Messages
    from tracer.daemon.naming_counts import NamingCounts
    from tracer.daemon.settings import Settings
    from tracer.sources.changes import ChangeLosses
    from tracer.sources.drops import DropLosses
    from tracer.sources.netns import Netns

__all__ = ["Watch", "WatchState"]

#: Between two turns. The ring holds a tenth of a second of a million drops a second.
_TURN_S = 0.1
#: … while nothing dies, as the first drop ends the wait: a wake costs far more than a turn.
_REST_S = 0.5
#: A wheel that has not turned for so long sees nothing.
_STUCK_S = 10.0
#: … while flows wait: their traces are read, and NFLOG's socket must not fill.
_BUSY_TURN_S = 0.02
#: The tables of kinds and of legacy rules are looked after this often, if anything died.
_TABLES_S = 1.0
#: One drop in so many is recorded at the least.
_SAMPLE_MAX = 4096


class WatchState(NamedTuple):
    """
    How the watch does at one moment; *busy_s* seconds of CPU went into *turns* turns.

    *is_watching*: drops are counted, and what is counted is read.
    """

    losses: DropLosses
    rung: Rung
    namespaces: list[Netns]
    naming: NamingCounts
    waiting: int
    traced: int
    turns: int
    busy_s: float
    recorded: int
    is_watching: bool
    change_losses: ChangeLosses | None


class Watch:
    """
    The daemon's sources, and what is made of what they tell.

    `open()`, then `turn()` again and again by one thread; `state()` and `drops()` by any.
    """

    def __init__(self, settings: Settings, messages: Messages) -> None:
        self._settings = settings
        self._messages = messages
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._namespaces = _watch_namespaces(settings)
        self._source: DropSource | None = None
        self._event_log: EventLog | None = None
        self._changes: ChangeLog | None = None
        self._pool = ThreadPoolExecutor(4, "ruleset")
        self._namer = self._new_namer()
        self.on_new_rules: Callable[[], None] = lambda: None
        self._turns = 0
        self._busy_s = 0.0
        self._recorded = 0
        self._sample = 1
        self._second = (0.0, 0)
        self._tables_due_s = 0.0
        self._died = False
        self._rests = False
        self._turned_s = time.monotonic()
        self._trouble: str | None = None
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._waker, selectors.EVENT_READ)

    @property
    def _log(self) -> Any:  # noqa: ANN401 - structlog's
        return self._messages.log

    def open(self) -> None:
        """
        Find the namespaces, load and prove the programs; counting begins.

        Errors: KernelUnsupportedError, KernelRefusedError; nothing is left open then.
        """
        self._follow_namespaces(time.monotonic())
        word = self._settings.watch.rung
        known = self._namespaces.known.values()
        source = DropSource(known, None if word == "auto" else Rung(word))
        source.open()
        source.set_mode(Mode.RECORD)
        self._source = source
        self._record_watched()
        if self._namespaces.fileno() >= 0:
            self._selector.register(self._namespaces, selectors.EVENT_READ)
        missing = {rung.value: why for rung, why in source.why.items()}
        self._log.info("drops_watched", rung=source.rung.value, namespaces=len(known), **missing)

    def wake_on(self, fileobj: Any) -> None:  # noqa: ANN401 - anything with a descriptor
        """End the wait of a turn when *fileobj* can be read."""
        self._selector.register(fileobj, selectors.EVENT_READ)

    def pause(self) -> None:
        """Detach the programs, so that a drop costs nothing; what was counted stays."""
        with self._lock:
            if self._source is not None:
                self._source.pause()

    def resume(self) -> None:
        """Attach them again; harmless when attached."""
        with self._lock:
            if self._source is not None:
                self._source.resume()

    def turn(self) -> None:
        """Wait until there may be something to do, and do it."""
        wait_s = _BUSY_TURN_S if self._namer.traced else _REST_S if self._rests else _TURN_S
        self._selector.select(min(wait_s, self._namespaces.due_in(time.monotonic()) + 1e-3))
        started_s = time.thread_time()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._waker)
        with self._lock:
            now_s = time.monotonic()
            try:
                self._follow_namespaces(now_s)
                if self._source is not None:
                    self._do(self._source, now_s)
            except (NftraceError, OSError) as exc:
                self._trouble = str(exc)
                self._log.warning("turn_refused", why=self._trouble)
            else:
                self._trouble = None
            self._turned_s = now_s
            self._turns += 1
            self._busy_s += time.thread_time() - started_s

    def _wake(self) -> None:
        """End the wait of a turn; any thread may."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._waker, 1)

    def _do(self, source: DropSource, now_s: float) -> None:
        read = self._take_drops(source, now_s)
        if self._event_log is not None:
            self._event_log.note_losses(source.losses, now_s)
        watched = self._namespaces.known.values()
        if self._changes is not None and self._changes.turn(watched, now_s, self._log):
            # The first drop by a rule that is new shall have its name.
            self._died, self._tables_due_s = True, now_s
            self._namer.expect_other_rules(now_s)
            self.on_new_rules()
        self._namer.turn(now_s)
        self._pace(read, now_s)
        if self._died and now_s >= self._tables_due_s:
            # Legacy tables that are new, or were replaced, are read for the drops to come.
            source.counts()
            self._tables_due_s, self._died = now_s + _TABLES_S, False
        self._rest(source, read == 0 and not self._died)

    def _rest(self, source: DropSource, rests: bool) -> None:  # noqa: FBT001 - the new state
        """Have the next drop end the wait, or not: while they come they are read together."""
        if rests and not self._rests:
            self._selector.register(source, selectors.EVENT_READ)
        elif self._rests and not rests:
            self._selector.unregister(source)
        self._rests = rests

    def _take_drops(self, source: DropSource, now_s: float) -> int:
        """Read the records, hand on those that are looked at, and return how many there were."""
        records = source.read()
        read = len(records)
        if read and "all" not in self._settings.watch.namespaces:
            # What others lose is not looked at any further.
            records = records[np.isin(records["key"]["netns"], list(self._namespaces.known))]
        if len(records):
            self._died = True
            self._recorded += len(records)
            self._hand_on(source, records, now_s)
        return read

    def _hand_on(self, source: DropSource, records: npt.NDArray[np.void], now_s: float) -> None:
        is_traced, known = self._settings.trace.enabled, self._namespaces.known
        if not is_traced and self._event_log is None:
            return
        kinds, indexes = source.kinds_of(records)
        if is_traced:
            self._namer.offer(kinds, indexes, records, known, source.rung, now_s)
        if self._event_log is not None:
            self._event_log.append_drops(kinds, indexes, records, known, now_s)

    def keep_events(self, event_log: EventLog | None) -> None:
        """
        Watch for changes, too; write all into *event_log*, if there is one.

        The caller closes the log after the watch.
        """
        with self._lock:
            self._event_log = event_log
            if event_log is None:
                self._changes = ChangeLog(None, self._wake)
            else:
                self._changes = ChangeLog(event_log.writer, self._wake, event_log.meant.note)
                self._namer.tell = event_log.append_journeys

    def give_way(self, *, is_followed: bool) -> None:
        """Trace nothing while *is_followed*: legacy tables' events have one listener."""
        if is_followed == self._namer.yields:
            return
        with self._lock:
            self._namer.yields = is_followed
            if not is_followed:
                self._namer.stand_by(self._namespaces.known.values(), time.monotonic())

    def _follow_namespaces(self, now_s: float) -> None:
        changes = self._namespaces.poll(now_s)
        if changes.added or changes.removed:
            self._record_watched()
        self._namer.forget(changes.removed)
        if self._event_log is not None:
            self._event_log.forget(changes.removed)
        self._namer.stand_by(changes.added, now_s)
        for what, listed in (("added", changes.added), ("removed", changes.removed)):
            for one in listed:
                self._log.debug(f"namespace_{what}", netns=one.name, inode=one.inode)
        if changes.added and self._namespaces.unwatched:
            self._log.warning("namespaces_unwatched", number=self._namespaces.unwatched)
        for word in self._namespaces.absent if changes.added or changes.removed else ():
            self._log.warning("namespace_absent", netns=word)

    def _record_watched(self) -> None:
        """Have recorded what is looked at alone: a flood elsewhere takes no room then."""
        known = self._namespaces.known
        every = "all" in self._settings.watch.namespaces or len(known) > NETNS_MAX
        if self._source is not None:
            self._source.record_only(None if every else known)

    def _pace(self, records: int, now_s: float) -> None:
        """Record every drop, or under a flood one in so many that reading stays cheap."""
        since_s, count = self._second
        count += records * self._sample
        if now_s - since_s < 1:
            self._second = since_s, count
            return
        passed_s = now_s - since_s
        self._second = now_s, 0
        wanted, most = 1, self._settings.trace.records_per_second
        while wanted < _SAMPLE_MAX and count / passed_s / wanted > most:
            wanted *= 2
        if wanted != self._sample and self._source is not None:
            self._sample = wanted
            self._source.set_mode(Mode.RECORD if wanted == 1 else Mode.SAMPLE, wanted)
            self._log.warning("drops_sampled", one_in=wanted)

    def state(self) -> WatchState:
        """Return how the watch does; any thread may ask."""
        with self._lock:
            source = self._opened()
            return WatchState(
                source.losses(),
                source.rung,
                list(self._namespaces.known.values()),
                self._namer.counts,
                self._namer.waiting,
                self._namer.traced,
                self._turns,
                self._busy_s,
                self._recorded,
                self._is_watching(source),
                None if self._changes is None else self._changes.losses,
            )

    def _is_watching(self, source: DropSource) -> bool:
        turns = time.monotonic() - self._turned_s < _STUCK_S
        return turns and self._trouble is None and source.is_attached

    def drops(self) -> list[DropCount]:
        """Return every kind of drop in the namespaces watched, rules named where known."""
        with self._lock:
            rows = [row for row in self._opened().counts() if self._is_watched(row)]
            return self._namer.name(rows)

    def _opened(self) -> DropSource:
        if self._source is None:
            msg = "the watch is not open"
            raise ValueError(msg)
        return self._source

    def namespaces(self) -> list[Netns]:
        """Return the namespaces that are watched now; any thread may ask."""
        return list(self._namespaces.known.values())

    def exemplars(self) -> list[Exemplar]:
        """Return the last packet that was traced to each rule; any thread may ask."""
        with self._lock:
            return list(self._namer.exemplars.values())

    def _is_watched(self, row: DropCount) -> bool:
        return row.netns in self._namespaces.known or "all" in self._settings.watch.namespaces

    def apply(self, settings: Settings, messages: Messages) -> None:
        """Go on by *settings*; what was counted stays."""
        with self._lock:
            self._messages = messages
            before, self._settings = self._settings, settings
            if settings.trace != before.trace:
                self._namer.close()
                counts = self._namer.counts
                self._namer = self._new_namer()
                self._namer.counts = counts
                self._namer.stand_by(self._namespaces.known.values(), time.monotonic())
            if settings.watch != before.watch:
                if self._namespaces.fileno() >= 0:
                    self._selector.unregister(self._namespaces)
                known = self._namespaces.known
                self._namespaces.close()
                self._namespaces = _watch_namespaces(settings)
                self._namespaces.known = known
                self._record_watched()
                if self._namespaces.fileno() >= 0:
                    self._selector.register(self._namespaces, selectors.EVENT_READ)

    def _new_namer(self) -> Namer:
        namer = Namer(self._settings.trace, self._pool, self._log, time.monotonic())
        namer.wake = self._wake
        if self._event_log is not None:
            namer.tell = self._event_log.append_journeys
        return namer

    def close(self) -> list[str]:
        """Undo all; return a line for each thing that could not be put back."""
        with self._lock:
            self._namer.close()
            self._pool.shutdown()
            if self._changes is not None:
                self._changes.close()
            if self._source is not None:
                self._source.close()
                self._source = None
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._namespaces)
            self._namespaces.close()
            self._selector.close()
            waker, self._waker = self._waker, -1
            if waker >= 0:
                os.close(waker)
            return self._namer.resisted


def _watch_namespaces(settings: Settings) -> NamespaceWatch:
    return NamespaceWatch(settings.watch.namespaces, settings.watch.scan_s)

"""
One namespace under trace: from its socket to journeys.

The order of things matters. Rules are read before they are needed for arming; the socket
listens before the rules that cause events are loaded; on the way out the rules go first,
then what is still queued is read, then the logger's setting is put back.

Each event is read by the ruleset that was in force. nft announces changes on the trace
socket itself, so the place in the stream is known: what comes behind an announcement waits
until the new rules have been read. It comes a moment after the change: a rule that nobody
knows, where the generation has moved, is taken for the announcement. Where rules had
changed again by the time they were read, which the generations tell, there are some that
nobody read: what passed them is named only where those before and behind agree (a reload
gives the old handles to new rules). Legacy tables announce nothing: their fingerprint is
taken every few milliseconds, events wait for it, and those that came while a change was made
are named only where the old and the new rules agree.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tracer.core.announcements import find_generation, is_ruleset_change
from tracer.core.assemble import Assembler
from tracer.core.decode import TraceDecoder
from tracer.core.events import EVENT, LEGACY, PACKET, TraceBatch
from tracer.core.paths import PathBook
from tracer.core.step_book import StepBook
from tracer.errors import NftraceError
from tracer.sources.legacy_watch import LegacyWatch
from tracer.sources.netns import Netns, entered
from tracer.sources.netns_names import NamespaceNames
from tracer.sources.ruleset import RulesetRead, read_generation, read_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future, ThreadPoolExecutor

    from tracer.core.assemble import Journeys
    from tracer.core.paths import Path
    from tracer.core.ruleset import Ruleset
    from tracer.sources.trace_socket import Received, TraceSocket

__all__ = ["NamespaceTrace", "Told"]

#: Former versions of the ruleset that events on their way may still need.
_EARLIER = 8

#: Events that wait for a ruleset to be read. Beyond it they are read by the old one, with
#: the rules that it does not know left without text.
MAX_WAITING_EVENTS = 1_000_000

#: Different reasons why a ruleset could not be read that are kept for the summary.
_ERRORS_KEPT = 16

#: Later than every generation (32 bits): no reading that was asked for earlier reaches it.
_UNKNOWN = 1 << 32

_SHOWN = 64  # bytes of a malformed message: all its headers and its first attributes
_DRAINED = 256  # batches, a million messages: more than the socket's buffer holds

_NOTHING = TraceBatch(np.zeros(0, EVENT), np.zeros(0, PACKET))


@dataclass(frozen=True, slots=True)
class Told:
    """Journeys that ended, and each one's path, in order."""

    trace: NamespaceTrace
    journeys: Journeys
    paths: list[Path]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """
    A decoded batch; *by* is the number of the ruleset version it must be read by.

    *received_ns* is the wall clock, *taken_ns* the monotonic one. *lost* and *hole_lost*
    are `Received`'s; of the batches of one read the first alone has *lost*.
    """

    batch: TraceBatch
    received_ns: int
    taken_ns: int
    doubtful: bool
    lost: int
    hole_lost: int
    by: int
    legacy: bool


class NamespaceTrace:
    """
    The trace of one namespace, from its socket on.

    *read* is the ruleset as it was when *socket* began to listen. *hear* is told the
    families of legacy tables that have come into being since; *look* is given the ruleset
    in force again and again.
    """

    def __init__(  # noqa: PLR0913 - one trace's parts
        self,
        socket: TraceSocket,
        read: RulesetRead,
        pool: ThreadPoolExecutor,
        *,
        hear: Callable[[list[str]], None] | None = None,
        look: Callable[[Ruleset], None] | None = None,
        waiting_limit: int = MAX_WAITING_EVENTS,
    ) -> None:
        self.namespace: Netns = socket.namespace
        self.socket = socket
        self.events = 0
        self.readings = 0  # how often the rules were read again
        self.errors: list[str] = []
        self._pool = pool
        self._read = read
        self._decoder = TraceDecoder()
        self._assembler = Assembler()
        self._earlier: deque[Ruleset] = deque(maxlen=_EARLIER)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_events = 0
        self._waiting_limit = waiting_limit
        self._hurried = 0  # events read by the rules before theirs
        self._wanted = 0  # the version that newly received events belong to
        self._version = 0  # the version in hand
        # nft's, of the version in hand and of those to come, once they are announced
        self._generations: dict[int, int] = {0: _UNKNOWN}
        self._judged = 0  # steps that are no news of a change any more
        self._unannounced = 0  # the last version that was met before it was announced
        self._reading: Future[RulesetRead] | None = None
        self._reading_for = 0
        self._legacy = LegacyWatch(self.namespace, read.legacy, hear)
        self._look = look
        self._names = NamespaceNames(self.namespace)
        self._use(StepBook(self._decoder.table, read.ruleset))

    @property
    def malformed(self) -> int:
        """Messages that were not what they claimed to be, and were passed over."""
        return self._decoder.malformed + self._decoder.table.overflowed + self.socket.truncated

    @property
    def evicted(self) -> int:
        """Journeys let go unfinished because too many were open."""
        return self._assembler.evicted

    @property
    def ruleset(self) -> Ruleset:
        """The ruleset in hand."""
        return self._book.ruleset

    def receive(self) -> tuple[list[Told], int]:
        """Read one batch from the socket; return what ended and how many messages came."""
        count = self._receive()
        return self.advance(), count or 0

    def _receive(self) -> int | None:
        received = self.socket.receive()
        if received is None:
            return None
        count = len(received.starts)
        self.events += count - len(received.announced)
        self._take(received)
        return count

    def advance(self) -> list[Told]:
        """Do what does not need a message: finished readings, the legacy poll, the quiet."""
        taken_ns = time.monotonic_ns()
        if self._reading is None and self._legacy.is_due(taken_ns):
            self._look_at_legacy()
        told = self._collect_reading()
        if self._look is not None:
            self._look(self._read.ruleset)
        while self._waiting and self._is_ready(self._waiting[0]):
            told += self._assemble_next()
        # Where we came late ourselves, what is missing may lie in the socket still.
        if not self._waiting and self.socket.is_empty():
            now_ns = time.time_ns()
            told += self._tell(self._assembler.add(_NOTHING, self._book, now_ns, taken_ns=taken_ns))
        return told

    def find_told_ns(self, now_ns: int) -> int:
        """Return up to when, at most *now_ns* (monotonic), all that was received is told."""
        return min(now_ns, self._waiting[0].taken_ns) if self._waiting else now_ns

    def finish(self) -> list[Told]:
        """Return what is still open; the socket has been read to its end."""
        self._look_at_legacy()
        told = []
        while self._reading is not None:
            told += self._install(self._reading)
        while self._waiting:
            told += self._assemble_next()
        if self._hurried:
            self._note(f"{self._hurried} events were read by rules that may not be theirs")
        if self._decoder.last_malformed is not None:
            self._note(f"not a trace message: {self._decoder.last_malformed[:_SHOWN].hex()}")
        return told + self._tell(self._assembler.flush(self._book))

    def device(self, index: int) -> str | None:
        """Return the name of the device with this index, `#N` once it is gone, None for 0."""
        return self._names.device(index)

    def _take(self, received: Received) -> None:
        start, goes_on = 0, False
        traced = np.ones(len(received.starts), np.bool_)
        traced[received.announced] = False
        for index in received.announced.tolist():
            datagram = _datagram(received, index)
            generation = find_generation(datagram)
            if generation is not None:
                self._generations.setdefault(self._wanted, generation)
            # A large transaction is announced in several datagrams and closed by its generation.
            if is_ruleset_change(datagram) and self._wanted in self._generations:
                rows = start + np.flatnonzero(traced[start:index])
                self._queue(received, rows, goes_on=goes_on)
                start, goes_on = index, True
                if self._wanted in self._generations:
                    self._expect_version()
        self._queue(received, start + np.flatnonzero(traced[start:]), goes_on=goes_on)
        if received.lost:
            # The announcement may be among what was lost, or its end.
            self._generations.setdefault(self._wanted, _UNKNOWN)
            if self._has_changed():
                self._expect_version(_UNKNOWN)

    def _queue(self, received: Received, rows: npt.NDArray[np.int64], *, goes_on: bool) -> None:
        batch = self._decoder.decode(received.words, received.starts[rows], received.lengths[rows])
        at = self._find_unannounced(batch)
        if at:
            self._wait(received, TraceBatch(batch.events[:at], batch.packets), goes_on=goes_on)
            batch, goes_on = TraceBatch(batch.events[at:], batch.packets), True
        if at is not None:
            self._expect_version()
            self._unannounced = self._wanted
        self._wait(received, batch, goes_on=goes_on)

    def _wait(self, received: Received, batch: TraceBatch, *, goes_on: bool) -> None:
        if not len(batch.events) and not received.doubtful:
            return
        legacy = bool((batch.events["flags"] & LEGACY).any())
        self._waiting.append(
            _Waiting(
                batch,
                received.received_ns,
                time.monotonic_ns(),
                received.doubtful,
                0 if goes_on else received.lost,
                received.hole_lost,
                self._wanted,
                legacy,
            )
        )
        self._waiting_events += len(batch.events)

    def _find_unannounced(self, batch: TraceBatch) -> int | None:
        """Return where in *batch* rules begin to be met whose announcement is yet to come."""
        before, known = self._judged, len(self._decoder.table)
        # While a version is read, or the rest of its announcement is to come, we know no better.
        is_settled = self._wanted == self._version and self._wanted in self._generations
        if before == known or not is_settled:
            return None
        self._judged = known
        self._book.refresh()
        unknown = np.flatnonzero(self._book.is_unknown[before:]) + before
        rows = np.flatnonzero(np.isin(batch.events["step"], unknown))
        return int(rows[0]) if len(rows) and self._has_changed() else None

    def _is_ready(self, one: _Waiting) -> bool:
        if self._waiting_events > self._waiting_limit:
            if one.by > self._version:
                self._hurried += len(one.batch.events)
            return True
        if one.by > self._version:
            return False
        # A legacy event is told when a fingerprint that is younger found no change.
        return not one.legacy or (one.taken_ns < self._legacy.looked_ns and self._reading is None)

    def _assemble_next(self) -> list[Told]:
        one = self._waiting.popleft()
        self._waiting_events -= len(one.batch.events)
        journeys = self._assembler.add(
            one.batch,
            self._book,
            one.received_ns,
            taken_ns=one.taken_ns,
            doubtful=one.doubtful,
            lost=one.lost,
            hole_lost=one.hole_lost,
        )
        return self._tell(journeys)

    def _tell(self, journeys: Journeys) -> list[Told]:
        if not len(journeys):
            return []
        return [Told(self, journeys, self._paths.read(journeys))]

    # --- the ruleset in force ------------------------------------------------------------

    def _expect_version(self, generation: int | None = None) -> None:
        """Let what comes wait for other rules; *generation* is None where it is to be announced."""
        self._wanted += 1
        if generation is not None:
            self._generations[self._wanted] = generation
        self._request()

    def _request(self) -> None:
        if self._reading is None:
            self._reading_for = self._wanted
            self.readings += 1
            self._reading = self._pool.submit(_read_in, self.namespace)

    def _has_changed(self) -> bool:
        """Tell whether the rules in force may be others than those that were read last."""
        with entered(self.namespace):
            return read_generation() != self._read.generation

    def _collect_reading(self) -> list[Told]:
        if self._reading is None or not self._reading.done():
            return []
        told = self._install(self._reading)
        if self._version < self._wanted:
            self._request()
        return told

    def _install(self, reading: Future[RulesetRead]) -> list[Told]:
        """Put a newly read ruleset in force, and tell what belongs to the one before."""
        self._reading = None
        try:
            read = reading.result()
        except NftraceError as exc:
            # The old rules stand, and what they do not know stays without a name.
            self._note(str(exc))
            self._version = self._reading_for
            self._close_unannounced(_UNKNOWN)
            return []
        before, version = self._read.ruleset, self._reading_for
        told = []
        changed = read.legacy.changed_since(self._legacy.known)
        self._drain()
        self._close_unannounced(read.generation)
        seen = self._find_version(version, read.generation) if read.exact else version
        unsure = max(version if changed else version - 1, seen - 1)
        if not read.exact and self._wanted > version:
            # It is of no one moment: of what came until now nobody knows the rules.
            unsure = self._wanted
        if changed:
            told += self._assemble_between(before, version - 1, read.ruleset)
        self._earlier.appendleft(before)
        self._read = read
        self._legacy.known = read.legacy
        self._version = seen
        if unsure >= version:
            told += self._assemble_between(read.ruleset, unsure, before)
            # What is open would be told by the new rules alone; nothing of it is in the
            # socket still, so only a packet on its way this very moment is cut in two.
            told += self._tell(self._assembler.flush(self._book))
        self._use(StepBook(self._decoder.table, read.ruleset, tuple(self._earlier)))
        return told

    def _close_unannounced(self, generation: int | None) -> None:
        """Have what is announced from now on be another version than one that was read early."""
        if self._unannounced == self._reading_for:
            self._generations.setdefault(self._unannounced, generation or _UNKNOWN)

    def _find_version(self, found: int, generation: int | None) -> int:
        """Return the version that a reading for *found* is of: maybe a later one."""
        known = self._generations
        while generation is not None and known.get(found + 1, _UNKNOWN) <= generation:
            found += 1
        self._generations = {v: made for v, made in known.items() if v >= found}
        return found

    def _drain(self) -> None:
        # What lies in the socket may be older than the change that was found.
        for _ in range(_DRAINED):
            if self._receive() is None:
                return

    def _assemble_between(self, ruleset: Ruleset, version: int, rival: Ruleset) -> list[Told]:
        """Tell what came until changed rules were read, by what both versions say."""
        self._use(StepBook(self._decoder.table, ruleset, tuple(self._earlier), rival))
        told = []
        while self._waiting and self._waiting[0].by <= version:
            told += self._assemble_next()
        return told

    def _note(self, sentence: str) -> None:
        note = f"netns {self.namespace.name}: {sentence}"
        if note not in self.errors and len(self.errors) < _ERRORS_KEPT:
            self.errors.append(note)

    def _use(self, book: StepBook) -> None:
        self._book = book
        self._paths = PathBook(book, self._names.has_listener)

    def _look_at_legacy(self) -> None:
        if self._legacy.look():
            self._expect_version(_UNKNOWN)


def _read_in(namespace: Netns) -> RulesetRead:
    with entered(namespace):
        return read_ruleset(with_nat=False)


def _datagram(received: Received, index: int) -> bytes:
    start, length = int(received.starts[index]), int(received.lengths[index])
    return received.words[start : start + (length + 3) // 4].tobytes()[:length]

"""
Which events are one packet's: the assembler of journeys.

Nothing an event carries is a packet's identity. An nft trace id is a hash of where the
packet lies in memory, and the next packet lies there; a legacy event has only headers, and
NAT changes them on the way. So identity is argued from order, one namespace at a time,
where the kernel's order is known:

1. nft events with one trace id are cut where a journey must have begun: the event before
   ended its packet; or the event carries headers (it is a base chain's first) and stands
   at an earlier hook or priority than the last such one, or in the same chain again, or
   has another fingerprint (`tracer.core.fingerprint`: what NAT leaves alone). Where a
   bridge hands a packet up to ip its id changes: the two parts are joined by fingerprint.
2. A legacy event joins the latest nft journey with its fingerprint: our arming rule lets
   each traced packet begin with an nft event. Where no nft journey has the fingerprint,
   legacy events are cut among themselves by the same argument.
3. Packets that cannot be told apart by fingerprint (retransmissions by a sender that sets
   no IP id, a load of equal datagrams) follow each other, or, on several CPUs, overlap.
   Where one begins before the former was seen to end, rule 2 would guess: these few are
   taken one by one (`tracer.core.overlaps`), and a legacy event goes to a journey with its
   addresses whose walk it continues. Equal packets that overlap may change places; no step
   is ever given to a packet of other headers.

`tracer.core.identity` holds the three rules; here is what is kept from batch to batch.

An event that is one journey's is never another's. A journey ends when an event ended the
packet, when its trace id begins anew, when it passed our mark behind its last hook, or
when it was silent for a while. At most `MAX_OPEN_EVENTS` events wait for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tracer.core.events import EVENT, LEGACY, NO_PACKET, PACKET
from tracer.core.identity import assign

if TYPE_CHECKING:
    from tracer.core.events import TraceBatch
    from tracer.core.step_book import StepBook

__all__ = ["MAX_OPEN_EVENTS", "QUIET_NS", "STALL_NS", "Assembler", "Journeys"]

#: Events of journeys that have not ended yet. 200,000 events are 30 MB with their headers,
#: twenty thousand packets on their way through one host; more are let go unfinished.
MAX_OPEN_EVENTS = 200_000

#: A journey without an event for this long, behind its last hook, has ended: a packet
#: passes all of netfilter within microseconds.
QUIET_NS = 200_000_000

#: Before its last hook a packet may have been stopped with its processor, which a virtual
#: machine may do without for this long. Where many packets are open, waiting costs more
#: than a journey in two parts.
STALL_NS = 1_000_000_000
_MANY_OPEN = 50_000

#: A journey whose last verdict was a queue waits for a program in user space.
QUEUE_QUIET_NS = 2_000_000_000

#: Tails of packets that were on their way when a hole ended arrive within this.
_TAIL_NS = 50_000_000


class _Rows(NamedTuple):
    """Events with what their batch says of them, column by column."""

    events: npt.NDArray[np.void]
    received: npt.NDArray[np.int64]
    taken: npt.NDArray[np.int64]
    lost: npt.NDArray[np.int64]
    doubtful: npt.NDArray[np.bool_]

    def take(self, index: npt.NDArray[np.generic]) -> _Rows:
        return _Rows(*(column[index] for column in self))


@dataclass(frozen=True, slots=True)
class Journeys:
    """
    Journeys that ended, as columns, in the order in which they began.

    *events* is `EVENT (n,)`, each journey's events together and in the kernel's order;
    journey i has rows `bounds[i]` to `bounds[i + 1]`. *packets* is `PACKET (k,)`.
    The others have a row for each journey: *started_ns* by the wall clock of reading,
    *lost* the messages lost while it was open, *complete* whether none can have been its
    own, *whole* whether it was traced from its first hook on.
    """

    events: npt.NDArray[np.void]
    packets: npt.NDArray[np.void]
    bounds: npt.NDArray[np.int64]
    started_ns: npt.NDArray[np.int64]
    lost: npt.NDArray[np.int64]
    complete: npt.NDArray[np.bool_]
    whole: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.bounds) - 1


class Assembler:
    """
    One namespace's open journeys.

    *evicted* counts the journeys that were let go unfinished because too many were open.
    """

    def __init__(self) -> None:
        self.evicted = 0
        self._rows = _no_rows()
        self._packets = np.zeros(0, PACKET)
        self._hole_ns: int | None = None
        self._hole_lost = 0

    @property
    def open_events(self) -> int:
        """How many events wait for their journeys' ends."""
        return len(self._rows.events)

    def add(  # noqa: PLR0913 - what a read says of itself
        self,
        batch: TraceBatch,
        book: StepBook,
        received_ns: int,
        *,
        taken_ns: int | None = None,
        doubtful: bool = False,
        lost: int = 0,
        hole_lost: int = 0,
    ) -> Journeys:
        """
        Take in a batch and return the journeys that ended.

        Shape: *batch* follows the batches before it in the kernel's order. *doubtful*
        and *hole_lost* are `tracer.sources.trace_socket.Received`'s; *lost* is what was lost
        since the batch before. *received_ns* is the wall clock's, which journeys are told
        by; *taken_ns* a clock's that nobody sets, by which silence is measured, and the
        same as *received_ns* where it is left out. An empty batch lets quiet journeys end.
        """
        book.refresh()
        times = (received_ns, received_ns if taken_ns is None else taken_ns)
        rows = self._join(batch, times, doubtful=doubtful, lost=lost, hole_lost=hole_lost)
        if not len(rows.events):
            return self._finish(rows, np.zeros(0, np.int64), np.zeros(0, np.bool_), book)
        owner = assign(rows.events, self._packets, book)
        order = np.argsort(owner, kind="stable")
        rows, owner = rows.take(order), owner[order]
        ended = self._find_ended(rows, owner, order, book, times[1])
        return self._finish(rows, owner, ended, book, order)

    def flush(self, book: StepBook) -> Journeys:
        """Return all that is open, as far as it got."""
        book.refresh()
        rows = self._rows
        if not len(rows.events):
            return self._finish(rows, np.zeros(0, np.int64), np.zeros(0, np.bool_), book)
        owner = assign(rows.events, self._packets, book)
        order = np.argsort(owner, kind="stable")
        ended = np.ones(int(owner.max()) + 1, np.bool_)
        return self._finish(rows.take(order), owner[order], ended, book, order)

    def _join(
        self,
        batch: TraceBatch,
        times: tuple[int, int],
        *,
        doubtful: bool,
        lost: int,
        hole_lost: int,
    ) -> _Rows:
        """Put the batch's rows behind the open ones."""
        received_ns, taken_ns = times
        if doubtful:
            self._hole_ns, self._hole_lost = taken_ns, hole_lost
        old, count = self._rows, len(batch.events)
        if len(old.events) and (doubtful or lost):
            old = old._replace(lost=old.lost + lost, doubtful=old.doubtful | doubtful)
        events = batch.events
        if len(self._packets) and count:
            events = events.copy()
            carried = events["packet"] != NO_PACKET
            events["packet"][carried] += len(self._packets)
        if len(batch.packets):
            self._packets = np.concatenate([self._packets, batch.packets])
        fresh = _Rows(
            events,
            np.full(count, received_ns, np.int64),
            np.full(count, taken_ns, np.int64),
            np.full(count, hole_lost, np.int64),
            np.full(count, doubtful, np.bool_),
        )
        if not len(old.events):
            return fresh
        return _Rows(*(np.concatenate(pair) for pair in zip(old, fresh, strict=True)))

    def _find_ended(
        self,
        rows: _Rows,
        owner: npt.NDArray[np.int64],
        order: npt.NDArray[np.int64],
        book: StepBook,
        now_ns: int,
    ) -> npt.NDArray[np.bool_]:
        """Tell for each journey whether it is over."""
        last = np.append(np.flatnonzero(owner[1:] != owner[:-1]), len(owner) - 1)
        final = rows.events[last]
        steps = final["step"]
        ended: npt.NDArray[np.bool_] = book.is_final[steps] | book.is_last[steps]
        quiet = _find_patience(rows.events, owner, steps, book)
        ended |= now_ns - rows.taken[last] > quiet
        ended |= _is_superseded(rows.events, owner, order)
        waiting = ~ended[owner]
        excess = int(waiting.sum()) - MAX_OPEN_EVENTS
        if excess > 0:
            # Journeys are numbered in the order in which they began: the oldest go.
            sizes = np.bincount(owner[waiting], minlength=len(last))
            go = ~ended & (np.cumsum(sizes) - sizes < excess)
            self.evicted += int(go.sum())
            ended |= go
            rows.doubtful[go[owner]] = True
        return ended

    def _finish(
        self,
        rows: _Rows,
        owner: npt.NDArray[np.int64],
        ended: npt.NDArray[np.bool_],
        book: StepBook,
        order: npt.NDArray[np.int64] | None = None,
    ) -> Journeys:
        done = ended[owner] if len(owner) else np.zeros(0, np.bool_)
        finished = rows.take(done)
        journeys = self._columns(finished, owner[done], book)
        keep = ~done
        kept = rows.take(keep)
        if order is not None and len(kept.events):
            kept = kept.take(np.argsort(order[keep], kind="stable"))
        self._rows, self._packets = _compacted(kept, self._packets)
        return journeys

    def _columns(self, rows: _Rows, owner: npt.NDArray[np.int64], book: StepBook) -> Journeys:
        count = len(owner)
        starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1])) if count else owner
        bounds = np.append(starts, count).astype(np.int64)
        if not count:
            nothing = np.zeros(0, np.bool_)
            empty = np.zeros(0, np.int64)
            return Journeys(rows.events, self._packets, bounds[-1:], empty, empty, nothing, nothing)
        whole = _is_whole(rows.events, starts, book)
        doubtful = np.logical_or.reduceat(rows.doubtful, starts)
        tail = np.zeros(len(starts), np.bool_)
        if self._hole_ns is not None:
            tail = ~whole & (rows.taken[starts] - self._hole_ns < _TAIL_NS)
        lost = np.maximum.reduceat(rows.lost, starts)
        lost = np.where(tail & (lost == 0), self._hole_lost, lost)
        return Journeys(
            rows.events,
            self._packets,
            bounds,
            rows.received[starts],
            lost,
            ~(doubtful | tail),
            whole,
        )


def _no_rows() -> _Rows:
    times = np.zeros(0, np.int64)
    return _Rows(np.zeros(0, EVENT), times, times, times, np.zeros(0, np.bool_))


def _find_patience(
    events: npt.NDArray[np.void],
    owner: npt.NDArray[np.int64],
    last_steps: npt.NDArray[np.int32],
    book: StepBook,
) -> npt.NDArray[np.int64]:
    """Return how long each journey may be silent, in nanoseconds."""
    starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
    is_late = np.logical_or.reduceat(book.is_late[events["step"]], starts)
    is_impatient = is_late | (len(events) > _MANY_OPEN)
    quiet = np.where(is_impatient, QUIET_NS, STALL_NS)
    return np.where(book.is_queue[last_steps], QUEUE_QUIET_NS, quiet)


def _compacted(rows: _Rows, packets: npt.NDArray[np.void]) -> tuple[_Rows, npt.NDArray[np.void]]:
    """Drop the headers that no kept event points at."""
    if not len(rows.events):
        return _no_rows(), np.zeros(0, PACKET)
    events = rows.events.copy()
    carried = events["packet"] != NO_PACKET
    used, index = np.unique(events["packet"][carried], return_inverse=True)
    events["packet"][carried] = index
    return rows._replace(events=events), packets[used]


def _is_whole(
    events: npt.NDArray[np.void], starts: npt.NDArray[np.int64], book: StepBook
) -> npt.NDArray[np.bool_]:
    # A packet that somebody else traces from an earlier place on is whole as well: the
    # first chain of ours stands before all others at its hook.
    whole: npt.NDArray[np.bool_] = book.is_first[events["step"][starts]]
    return whole


def _is_superseded(
    events: npt.NDArray[np.void], owner: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Tell which journeys' trace ids were used again by a later journey."""
    nft = np.flatnonzero((events["flags"] & LEGACY) == 0)
    nft = nft[np.argsort(order[nft], kind="stable")]
    latest: npt.NDArray[np.bool_] = np.zeros(int(owner[-1]) + 1, np.bool_)
    # The last journey of each id, and those with no nft event, are not superseded.
    _, back = np.unique(events["trace_id"][nft][::-1], return_index=True)
    latest[owner[nft][::-1][back]] = True
    has_nft = np.zeros(len(latest), np.bool_)
    has_nft[owner[nft]] = True
    superseded: npt.NDArray[np.bool_] = has_nft & ~latest
    return superseded

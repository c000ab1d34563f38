"""
Packets that look alike and overlap: taken apart one event at a time.

The slow half of `tracer.core.identity`, for the few events that its columns cannot
decide: those of packets with one fingerprint of which one begins before the former was
seen to end.

An nft event has its journey by its trace id. A legacy event can be of any packet that has
its addresses and whose walk it continues. Of several it is given to the one furthest on
its way, for packets that go the same way its only place; of equals to the one whose next
nft event comes soonest, or whose trace id is used again soonest, since it must have this
event before; else to the oldest. This fails only where equal packets overlap in a chain
that is called twice at one hook: which call an event is of, it does not say.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tracer.core.events import LEGACY, NO_PACKET
from tracer.core.legacy_walk import LegacyWalk

if TYPE_CHECKING:
    from tracer.core.step_book import StepBook

__all__ = ["MAX_ALIKE", "take_apart"]

#: Packets of one fingerprint that are on their way at once: each is on a processor of its
#: own, or in a queue. The oldest takes no more legacy events when there are more.
MAX_ALIKE = 256

_NEVER = 1 << 62

_SOURCE_HOOKS = ("postrouting", "input")

# Addresses and ports: what two packets of one fingerprint can differ in.
_Endpoints = tuple[bytes, bytes, int, int]


@dataclass(slots=True)
class _Open:
    """
    A journey while its events are collected.

    *until* is the position at which its trace id begins anew; *coming* are those of its
    nft events that are still ahead.
    """

    number: int
    until: int
    coming: deque[int]
    endpoints: _Endpoints | None = None
    rank: int = -_NEVER
    taken: int = 0
    walk: LegacyWalk = field(default_factory=LegacyWalk)

    @property
    def merit(self) -> tuple[int, int, int]:
        """Its claim to an event that it could take, the greatest first."""
        return (self.taken, -(self.coming[0] if self.coming else self.until), -self.number)


def take_apart(  # noqa: PLR0913, PLR0917 - the columns of one table
    events: npt.NDArray[np.void],
    packets: npt.NDArray[np.void],
    owner: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    until: npt.NDArray[np.int64],
    book: StepBook,
) -> npt.NDArray[np.int64]:
    """
    Give each event of one fingerprint its journey's number.

    Shape: *events*, *owner* and *position* in the kernel's order: an nft event's *owner*
    is its journey, a legacy event's -1; *position* is its place among all events. *until*
    has for each nft journey the position at which its trace id begins anew. Journeys of
    legacy events alone are numbered from the length of *until* on.
    """
    apart = _Apart(events, packets, owner, position, until, book)
    return np.array([apart.place(index) for index in range(len(events))], np.int64)


class _Apart:
    def __init__(  # noqa: PLR0913, PLR0917 - the columns of one table
        self,
        events: npt.NDArray[np.void],
        packets: npt.NDArray[np.void],
        owner: npt.NDArray[np.int64],
        position: npt.NDArray[np.int64],
        until: npt.NDArray[np.int64],
        book: StepBook,
    ) -> None:
        self._events = events
        self._packets = packets
        self._owner = owner.tolist()
        self._position = position.tolist()
        self._until = until
        self._book = book
        self._fresh = len(until)
        self._open: dict[int, _Open] = {}
        self._coming: dict[int, deque[int]] = {}
        for number, where in zip(self._owner, self._position, strict=True):
            self._coming.setdefault(number, deque()).append(where)

    def place(self, index: int) -> int:
        """Return the journey of the event at *index*; call in order."""
        event = self._events[index]
        step = int(event["step"])
        rank = int(self._book.rank[step])
        endpoints = self._endpoints_of(event)
        if event["flags"] & LEGACY:
            journey = self._find(index, rank, endpoints) or self._begin(self._fresh, _NEVER)
            journey.walk.take(self._book.resolve(step))
        else:
            number = self._owner[index]
            journey = self._open.get(number) or self._begin(number, int(self._until[number]))
            journey.coming.popleft()
        journey.taken += 1
        if endpoints is not None:
            journey.endpoints = endpoints
            # A bridge's place says nothing about that in ip's tables.
            if not self._book.is_bridge[step]:
                journey.rank = max(journey.rank, rank)
        if self._book.is_final[step] or self._book.is_last[step]:
            del self._open[journey.number]
        return journey.number

    def _begin(self, number: int, until: int) -> _Open:
        self._fresh = max(self._fresh, number + 1)
        journey = _Open(number, until, self._coming.get(number, deque()))
        self._open[number] = journey
        if len(self._open) > MAX_ALIKE:
            del self._open[next(iter(self._open))]
        return journey

    def _find(self, index: int, rank: int, endpoints: _Endpoints | None) -> _Open | None:
        """Return the journey that the legacy event at *index* continues."""
        now = self._position[index]
        for journey in [one for one in self._open.values() if one.until <= now]:
            del self._open[journey.number]
        step = self._book.resolve(int(self._events[index]["step"]))
        able = (
            (_nearness(one.endpoints, endpoints, step.hook), one.merit, one)
            for one in self._open.values()
            if rank >= one.rank and one.walk.allows(step)
        )
        best = max(able, key=lambda one: one[:2], default=None)
        return best[2] if best is not None and best[0] else None

    def _endpoints_of(self, event: np.void) -> _Endpoints | None:
        if event["packet"] == NO_PACKET:
            return None
        packet = self._packets[event["packet"]]
        return (
            packet["src"].tobytes(),
            packet["dst"].tobytes(),
            int(packet["sport"]),
            int(packet["dport"]),
        )


def _nearness(one: _Endpoints | None, other: _Endpoints | None, hook: str | None) -> int:
    """
    Tell how well a journey's endpoints fit an event's; 0 is not at all.

    NAT changes one end at a time, often its address alone; the source only at *hook*
    postrouting and input.
    """
    if one is None or other is None:
        return int(one is other)
    equal = [mine == its for mine, its in zip(one, other, strict=True)]
    src, dst, sport, dport = equal
    if src and sport:
        return 2 + sum(equal)
    return sum(equal) if dst and dport and hook in _SOURCE_HOOKS else 0

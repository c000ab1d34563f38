"""
Packets that look alike and overlap: taken apart one event at a time.

The slow half of `tracer.core.assemble`, for the few events that its columns cannot
decide: those of packets with one fingerprint of which one begins before the former was
seen to end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tracer.core.events import LEGACY, NO_PACKET

if TYPE_CHECKING:
    from tracer.core.step_book import StepBook

__all__ = ["take_apart"]

# Addresses and ports: what two packets of one fingerprint can differ in.
_Endpoints = tuple[bytes, bytes, int, int]


@dataclass(slots=True)
class _Open:
    """A journey while its events are collected."""

    number: int
    trace_id: int | None
    endpoints: _Endpoints | None
    rank: int
    steps: set[int] = field(default_factory=set)


def take_apart(
    events: npt.NDArray[np.void], packets: npt.NDArray[np.void], book: StepBook
) -> npt.NDArray[np.int64]:
    """
    Give each event of one fingerprint its journey's number, counted from 0.

    Shape: *events* in the kernel's order. An nft event goes by its trace id; a legacy
    event to the first journey that has its addresses and ports, stands no later than
    it, and has not taken this very step; failing that, to one whose source or
    destination alone is the same, as NAT leaves it; failing that, it begins its own.
    """
    apart = _Apart(packets, book)
    return np.array([apart.place(event) for event in events], np.int64)


class _Apart:
    def __init__(self, packets: npt.NDArray[np.void], book: StepBook) -> None:
        self._packets = packets
        self._book = book
        self._open: list[_Open] = []
        self._count = 0

    def place(self, event: np.void) -> int:
        step = int(event["step"])
        rank = int(self._book.rank[step])
        endpoints = self._endpoints_of(event)
        if event["flags"] & LEGACY:
            journey = self._find_legacy(step, rank, endpoints)
        else:
            journey = self._find_nft(int(event["trace_id"]), rank, headed=endpoints is not None)
        if journey is None:
            trace_id = None if event["flags"] & LEGACY else int(event["trace_id"])
            journey = self._begin(trace_id)
        journey.steps.add(step)
        journey.endpoints = endpoints or journey.endpoints
        if endpoints is not None:
            journey.rank = max(journey.rank, rank)
        if self._book.is_final[step] or self._book.is_last[step]:
            self._open.remove(journey)
        return journey.number

    def _begin(self, trace_id: int | None) -> _Open:
        journey = _Open(self._count, trace_id, None, -(1 << 62))
        self._count += 1
        self._open.append(journey)
        return journey

    def _find_nft(self, trace_id: int, rank: int, *, headed: bool) -> _Open | None:
        for journey in self._open:
            if journey.trace_id == trace_id:
                if headed and rank <= journey.rank:
                    self._open.remove(journey)
                    return None
                return journey
        return None

    def _find_legacy(self, step: int, rank: int, endpoints: _Endpoints | None) -> _Open | None:
        able = [
            journey for journey in self._open if rank >= journey.rank and step not in journey.steps
        ]
        for alike in (_same, _half_same):
            for journey in able:
                if alike(journey.endpoints, endpoints):
                    return journey
        return None

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


def _same(one: _Endpoints | None, other: _Endpoints | None) -> bool:
    return one == other


def _half_same(one: _Endpoints | None, other: _Endpoints | None) -> bool:
    if one is None or other is None:
        return False
    return (one[0], one[2]) == (other[0], other[2]) or (one[1], one[3]) == (other[1], other[3])

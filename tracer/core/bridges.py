"""
Frames of bridges: where rule 1 of `tracer.core.assemble` needs more than columns.

Two things are different with a bridge. With br_netfilter bridge and ip take turns, so that
each has an order of its own and there is none between them. And a frame that a bridge
hands up to ip has another trace id from there on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tracer.core.step_book import BEHIND_PREROUTING

if TYPE_CHECKING:
    from tracer.core.step_book import StepBook

__all__ = ["Parts", "join_handed_up", "start_in_turn"]


def start_in_turn(
    start: npt.NDArray[np.bool_],
    placed: npt.NDArray[np.int64],
    step: npt.NDArray[np.uint32],
    book: StepBook,
) -> None:
    """
    Add to *start* where a packet stands at an earlier place than before, or at the same again.

    Shape: *start* and *step* are of nft events sorted by trace id, *placed* the indexes of
    those that stand somewhere in the kernel's order. Bridge and ip have each their own.
    """
    number = np.cumsum(start).tolist()
    columns = (book.rank, book.chain, book.is_bridge, book.is_first)
    rows = zip(*(column[step[placed]].tolist() for column in columns), strict=True)
    journey, places = 0, dict[bool, tuple[int, int]]()
    for index, (rank, chain, is_bridge, is_first) in zip(placed.tolist(), rows, strict=True):
        if number[index] != journey:
            journey = number[index]
            places.clear()
            start[index] |= is_first
        former = places.get(is_bridge)
        if former is not None and (rank < former[0] or (rank, chain) == former):
            start[index] = True
            places.clear()
        places[is_bridge] = rank, chain


class Parts(NamedTuple):
    """
    The journeys of rule 1, a row each.

    *first* and *last* are positions, *low* the first step's rank and *high* the highest.
    *is_frame*: a bridge that may yet hand it up to ip has it; *is_handed*: it begins in ip,
    not with a packet of this host's own.
    """

    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    fingerprint: npt.NDArray[np.uint64]
    is_frame: npt.NDArray[np.bool_]
    is_handed: npt.NDArray[np.bool_]

    @classmethod
    def find(
        cls,
        events: npt.NDArray[np.void],
        fingerprint: npt.NDArray[np.uint64],
        nft: npt.NDArray[np.int64],
        start: npt.NDArray[np.bool_],
        book: StepBook,
    ) -> Parts:
        """
        Describe the journeys that *start* says.

        Shape: *nft* are the positions of the nft events sorted by trace id, *start* tells
        which of these begin a journey; *events* and *fingerprint* are of all events.
        """
        begin = np.flatnonzero(start)
        end = np.append(begin[1:], len(nft)) - 1
        step = events["step"][nft]
        rank, is_bridge = book.rank[step], book.is_bridge[step]
        high = np.maximum.reduceat(rank, begin)
        is_frame = np.logical_or.reduceat(is_bridge, begin) & (high < BEHIND_PREROUTING)
        is_frame &= ~book.is_final[step[end]]
        is_handed = ~is_bridge[begin] & (events["iif"][nft[begin]] != 0)
        columns = (rank[begin], high, fingerprint[nft[begin]], is_frame, is_handed)
        return cls(nft[begin], nft[end], *columns)


def join_handed_up(parts: Parts, until: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """
    Return each journey's number where what a bridge and ip saw of one packet is one.

    The trace id is another in ip: the device is a part of it, nft_trace_init() in
    net/netfilter/nf_tables_trace.c. Of equal frames the latest is the one.
    """
    found = np.arange(len(until))
    waiting: dict[int, list[int]] = {}
    for number in np.argsort(parts.first, kind="stable").tolist():
        frames = waiting.setdefault(int(parts.fingerprint[number]), [])
        if parts.is_frame[number]:
            frames.append(number)
        elif parts.is_handed[number]:
            fits = [
                frame
                for frame in frames
                if parts.last[frame] < parts.first[number]
                and parts.high[frame] <= parts.low[number]
            ]
            if fits:
                frames.remove(fits[-1])
                found[number] = fits[-1]
                until[fits[-1]] = until[number]
    return found

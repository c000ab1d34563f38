"""
Which events are one packet's: rules 1 to 3 of `tracer.core.assemble`, over columns.

Nothing here remembers: the events of all open journeys go in, each event's journey comes
out, and what an earlier call said of the same events is not asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tracer.core.bridges import Parts, join_handed_up, start_in_turn
from tracer.core.events import LEGACY, NO_PACKET
from tracer.core.overlaps import take_apart
from tracer.core.step_book import NO_RANK

if TYPE_CHECKING:
    from tracer.core.step_book import StepBook

__all__ = ["assign"]

#: Behind every position: a trace id that is not used again.
_NEVER = 1 << 62


def assign(
    events: npt.NDArray[np.void], packets: npt.NDArray[np.void], book: StepBook
) -> npt.NDArray[np.int64]:
    """
    Give each event its journey's number.

    Shape: *events* `EVENT (n,)` in the kernel's order, at least one; the result `(n,)`
    numbers the journeys in the order in which they began.
    """
    legacy = (events["flags"] & LEGACY) != 0
    owner = np.full(len(events), -1, np.int64)
    until = np.zeros(0, np.int64)
    fingerprint = _fingerprints(events, packets)
    nft = np.flatnonzero(~legacy)
    if len(nft):
        nft = nft[np.argsort(events["trace_id"][nft], kind="stable")]
        start = _find_starts(events[nft], fingerprint[nft], book)
        owner[nft] = np.cumsum(start) - 1
        until = _find_until(nft[start], events["trace_id"][nft[start]])
        # NAT never changes it; but events without headers have none.
        fingerprint[nft] = fingerprint[nft[start]][owner[nft]]
        if book.is_bridge[events["step"]].any():
            parts = Parts.find(events, fingerprint, nft, start, book)
            owner[nft] = join_handed_up(parts, until)[owner[nft]]
    if len(nft) < len(events):
        owner = _join_legacy(_sort(events, packets, fingerprint, owner, until, book))
    return _numbered_by_start(owner)


def _fingerprints(
    events: npt.NDArray[np.void], packets: npt.NDArray[np.void]
) -> npt.NDArray[np.uint64]:
    carried = events["packet"] != NO_PACKET
    found = np.zeros(len(events), np.uint64)
    found[carried] = packets["fingerprint"][events["packet"][carried]]
    return found


# --- rule 1: nft events, sorted by trace id --------------------------------------------------


def _find_starts(
    events: npt.NDArray[np.void], fingerprint: npt.NDArray[np.uint64], book: StepBook
) -> npt.NDArray[np.bool_]:
    """Tell where journeys begin among nft events sorted by trace id."""
    step, trace_id = events["step"], events["trace_id"]
    start = np.ones(len(events), np.bool_)
    start[1:] = trace_id[1:] != trace_id[:-1]
    start[1:] |= book.is_final[step[:-1]] | book.is_last[step[:-1]]
    headed = np.flatnonzero(events["packet"] != NO_PACKET)
    now, before = headed[1:], headed[:-1]
    start[now] |= (trace_id[now] == trace_id[before]) & (fingerprint[now] != fingerprint[before])
    # Chains of ours behind the first stand beside the ruleset's order, not in it.
    placed = headed[book.is_placed[step[headed]]]
    if book.is_bridge[step[placed]].any():
        start_in_turn(start, placed, step, book)
        return start
    now, before = placed[1:], placed[:-1]
    rank, chain, number = book.rank[step], book.chain[step], np.cumsum(start)
    again = (rank[now] == rank[before]) & (chain[now] == chain[before])
    turned_back = (rank[now] < rank[before]) | again
    # Where the journey has had no place yet: a packet whose beginning was lost, and another.
    first = book.is_first[step[placed]]
    start[placed[:1]] |= first[:1]
    start[now] |= np.where(number[now] == number[before], turned_back, first[1:])
    return start


def _find_until(
    first: npt.NDArray[np.int64], trace_id: npt.NDArray[np.uint32]
) -> npt.NDArray[np.int64]:
    """Return for each nft journey the position at which its trace id begins anew."""
    until = np.full(len(first), _NEVER, np.int64)
    until[:-1] = np.where(trace_id[1:] == trace_id[:-1], first[1:], _NEVER)
    return until


# --- rules 2 and 3: all events, sorted by fingerprint ----------------------------------------


class _Alike(NamedTuple):
    """
    Events sorted by fingerprint, those of one in the kernel's order.

    *position* is the place in that order, *owner* an nft event's journey and -1 for legacy;
    *until* belongs to the nft journeys. *is_first*: the first of its fingerprint.
    *is_behind_end*: the event before ended its packet, or the trace id of the nft journey
    before was used again since: whatever comes is another packet's.
    """

    events: npt.NDArray[np.void]
    packets: npt.NDArray[np.void]
    book: StepBook
    position: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]
    until: npt.NDArray[np.int64]
    is_first: npt.NDArray[np.bool_]
    is_behind_end: npt.NDArray[np.bool_]


def _sort(  # noqa: PLR0913, PLR0917 - the columns of one table
    events: npt.NDArray[np.void],
    packets: npt.NDArray[np.void],
    fingerprint: npt.NDArray[np.uint64],
    owner: npt.NDArray[np.int64],
    until: npt.NDArray[np.int64],
    book: StepBook,
) -> _Alike:
    position = np.argsort(fingerprint, kind="stable")
    key, owner, step = fingerprint[position], owner[position], events["step"][position]
    is_first = np.ones(len(key), np.bool_)
    is_first[1:] = key[1:] != key[:-1]
    is_behind_end = np.zeros(len(key), np.bool_)
    is_behind_end[1:] = (book.is_final[step] | book.is_last[step])[:-1]
    if len(until):
        # Where it was used again before the event before, that one is another's already.
        leader = _latest(owner >= 0)[:-1]
        over = np.where(leader >= 0, until[owner[leader]], _NEVER)
        is_behind_end[1:] |= (over <= position[1:]) & (over > position[:-1])
    return _Alike(events, packets, book, position, owner, until, is_first, is_behind_end)


def _join_legacy(alike: _Alike) -> npt.NDArray[np.int64]:
    """Return all events' journeys in the kernel's order."""
    legacy = alike.owner < 0
    alone = _find_alone(alike, legacy)
    owner = alike.owner.copy()
    owner[alone] = len(alike.until) + np.arange(int(alone.sum()))
    owner = np.where(legacy, owner[_latest(~legacy | alone)], owner)
    result = np.empty(len(owner), np.int64)
    result[alike.position] = owner
    _take_apart_overlaps(alike, legacy, alone, result)
    return result


def _find_alone(alike: _Alike, legacy: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell which legacy events begin a journey: no nft event did."""
    step = alike.events["step"][alike.position]
    rank = alike.book.rank[step]
    # A bridge's place says nothing about that in ip's tables.
    ranked = _latest((rank != NO_RANK) & ~alike.book.is_bridge[step])[:-1]
    earlier = np.zeros(len(rank), np.bool_)
    earlier[1:] = (ranked >= _latest(alike.is_first)[:-1]) & (rank[1:] < rank[ranked])
    return legacy & (alike.is_first | alike.is_behind_end | earlier)


def _take_apart_overlaps(
    alike: _Alike,
    legacy: npt.NDArray[np.bool_],
    alone: npt.NDArray[np.bool_],
    result: npt.NDArray[np.int64],
) -> None:
    """Replace what *result* says of packets of which one begins before the former's end."""
    begins = alone.copy()
    numbers, first = np.unique(alike.owner, return_index=True)
    begins[first[numbers >= 0]] = True
    group = np.cumsum(alike.is_first) - 1
    overlaps = np.bincount(group, weights=begins & ~alike.is_first & ~alike.is_behind_end) > 0
    overlaps &= np.bincount(group, weights=legacy) > 0
    edges = np.append(np.flatnonzero(alike.is_first), len(group))
    for one in np.flatnonzero(overlaps):
        rows = slice(edges[one], edges[one + 1])
        position, owner = alike.position[rows], alike.owner[rows]
        found = take_apart(
            alike.events[position], alike.packets, owner, position, alike.until, alike.book
        )
        # Numbers of journeys of legacy events alone are free from here on.
        found[found >= len(alike.until)] += int(result.max()) + 1
        result[position] = found


def _latest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return for each place the last one up to it where *mask* holds, -1 where none does."""
    return np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))


def _numbered_by_start(owner: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    _, first, inverse = np.unique(owner, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    return number[inverse]

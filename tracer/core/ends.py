"""
What became of a packet after its last rule: the ends that the kernel told, by packet.

The kernel's events about one packet in one namespace have one fingerprint. Equal packets
have equal ones, so the events of a fingerprint are cut into passes: a pass begins where
the packet is received (again by another device, if a bridge hands it up: still the same
pass), and for packets made here where something happens for the second time. Journeys
that ask for one fingerprint get its passes in order; those that came in by a device get
passes that began by being received, so that a packet sent through lo keeps its two apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.core.drop_events import SkbEventKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = ["ANSWER", "ASKED", "KEEP_NS", "MAX_END_EVENTS", "EndBook"]

#: Events that no journey has asked for yet: two for each journey that can wait, 2 MB. With
#: more, asking takes longer than packets take to come.
MAX_END_EVENTS = 65_536

#: Events that nobody asks for in this time belong to no journey that is told.
KEEP_NS = 2_000_000_000

#: A pass is over when nothing has been added to it for so long: what sends, delivers or
#: drops a packet does it within microseconds of the event before.
_SETTLED_NS = 3_000_000

#: A journey's start is when its trace was read, this much later than it was at most…
_LAG_NS = 1_000_000_000
#: …and never earlier, but for the two clocks that were compared.
_AHEAD_NS = 5_000_000

#: Reasons that end what is left of a packet that was already sent or delivered.
_WEAK = frozenset({"NOT_DROPPED_YET", "CONSUMED", "NOT_SPECIFIED", "QUEUE_PURGE"})

#: A journey's question. *is_local*: it came in by no device. *oif* is the device that it
#: was last seen leaving by, 0 for none. *is_due*: it cannot wait any longer.
ASKED = np.dtype(
    [
        ("fingerprint", "<u8"),
        ("started_ns", "<i8"),
        ("netns", "<u4"),
        ("oif", "<u4"),
        ("is_local", "?"),
        ("is_due", "?"),
    ]
)

#: *kind* is a `SkbEventKind`, 0 where no end was seen; *reason* a drop's, by number.
#: *start_ns* is when the packet was received, 0 where that was not seen; *end_ns* when it
#: ended. Only where *is_settled* the answer stands, and the events are used up.
ANSWER = np.dtype(
    [
        ("start_ns", "<i8"),
        ("end_ns", "<i8"),
        ("reason", "<u4"),
        ("ifindex", "<u4"),
        ("kind", "u1"),
        ("is_settled", "?"),
    ]
)

_ROW = np.dtype(
    [
        ("key", "<u8"),
        ("time_ns", "<i8"),
        ("ifindex", "<u4"),
        ("reason", "<u4"),
        ("kind", "u1"),
    ]
)
_PASS = np.dtype(
    [
        ("key", "<u8"),
        ("first_ns", "<i8"),
        ("last_ns", "<i8"),
        ("start", "<i8"),
        ("end", "<i8"),
    ]
)
# Odd numbers with no pattern: netns and the kind of pass are mixed into the fingerprint.
_NETNS = np.uint64(0x9E37_79B9_7F4A_7C15)
_LOCAL = np.uint64(0xD6E8_FEB8_6659_FD93)


class EndBook:
    """Events by packet, until they are asked for."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        """Take the kernel's drop *reasons* by number."""
        self._weak = np.array([n for n, name in reasons.items() if name in _WEAK], np.uint32)
        self._rows = np.zeros(0, _ROW)
        self._fresh: list[npt.NDArray[np.void]] = []
        self._owner = np.zeros(0, np.int64)
        self._passes = np.zeros(0, _PASS)

    def __len__(self) -> int:
        """Return how many events are held."""
        return len(self._rows) + sum(map(len, self._fresh))

    def add(self, events: npt.NDArray[np.void], now_ns: int) -> bool:
        """
        Take in events, `SKB_EVENT (n,)`; return False where they are too many to go on.

        Those that are too old at *now_ns* are let go first.
        """
        if not len(events):
            return True
        rows = np.zeros(len(events), _ROW)
        rows["key"] = _key(events)
        for name in ("time_ns", "ifindex", "reason", "kind"):
            rows[name] = events[name]
        self._fresh.append(rows)
        if len(self) > MAX_END_EVENTS:
            self._merge(now_ns)
        return len(self) <= MAX_END_EVENTS

    def clear(self) -> None:
        """Forget all events."""
        self._fresh.clear()
        self._hold(self._rows[:0])

    def _merge(self, now_ns: int) -> None:
        """Sort what was added since into the book."""
        joined = np.concatenate([self._rows, *self._fresh])
        kept = joined["time_ns"] >= now_ns - KEEP_NS
        if not self._fresh and kept.all():
            return
        self._fresh.clear()
        joined = joined[kept]
        self._hold(joined[np.lexsort((joined["time_ns"], joined["key"]))])

    def find(self, asked: npt.NDArray[np.void], now_ns: int) -> npt.NDArray[np.void]:
        """
        Answer each journey's question.

        Shape: *asked* is `ASKED (n,)`, journeys of one packet in the order in which they
        began; the result `ANSWER (n,)`. All events before *now_ns* have been added.
        """
        answers = np.zeros(len(asked), ANSWER)
        answers["is_settled"] = asked["is_due"]
        self._merge(now_ns)
        found = self._match(asked)
        rows = np.flatnonzero(found >= 0)
        if not len(rows):
            return answers
        passes = self._passes[found[rows]]
        end = self._choose_ends(found[rows], asked["oif"][rows])
        ended = end >= 0
        first, last = self._rows[passes["start"]], self._rows[np.maximum(end, 0)]
        received = first["kind"] == SkbEventKind.RECEIVED
        for name, value in (
            ("start_ns", np.where(received, first["time_ns"], 0)),
            ("end_ns", np.where(ended, last["time_ns"], 0)),
            ("reason", np.where(ended, last["reason"], 0)),
            ("ifindex", np.where(ended, last["ifindex"], 0)),
            ("kind", np.where(ended, last["kind"], 0)),
        ):
            answers[name][rows] = value
        over = ended & (passes["last_ns"] <= now_ns - _SETTLED_NS)
        answers["is_settled"][rows] |= over
        self._use_up(found[rows[answers["is_settled"][rows]]])
        return answers

    def _hold(self, rows: npt.NDArray[np.void]) -> None:
        """Keep *rows*, sorted by key and time, and cut them into passes."""
        self._rows = rows
        count = len(rows)
        starts = _find_passes(rows)
        stops = np.append(starts[1:], count).astype(np.int64)
        self._owner = np.repeat(np.arange(len(starts)), stops - starts)
        passes = np.zeros(len(starts), _PASS)
        if count:
            passes["start"] = starts
            passes["first_ns"] = rows["time_ns"][starts]
            passes["last_ns"] = rows["time_ns"][stops - 1]
            local = rows["kind"][starts] != SkbEventKind.RECEIVED
            passes["key"] = rows["key"][starts] ^ np.where(local, _LOCAL, np.uint64(0))
            passes["end"] = self._last_ends(starts)
        self._passes = passes

    def _last_ends(self, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row that ended each pass, -1 for none."""
        kind, count = self._rows["kind"], len(self._rows)
        dropped = kind == SkbEventKind.DROPPED
        weak = dropped & np.isin(self._rows["reason"], self._weak)
        strong = (dropped & ~weak) | np.isin(kind, (SkbEventKind.SENT, SkbEventKind.DELIVERED))
        place = np.arange(count)
        score = np.where(strong, place + count, np.where(weak, place, -1))
        best: npt.NDArray[np.int64] = np.maximum.reduceat(score, starts)
        return np.where(best >= count, best - count, best)

    def _choose_ends(
        self, found: npt.NDArray[np.int64], oif: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.int64]:
        """Of several devices that sent the packet, prefer the one of its path."""
        wanted = np.zeros(len(self._passes), np.uint32)
        wanted[found] = oif
        end = self._passes["end"][found]
        sent = self._rows["kind"] == SkbEventKind.SENT
        meant = sent & (self._rows["ifindex"] == wanted[self._owner]) & (wanted[self._owner] > 0)
        place = np.where(meant, np.arange(len(meant)), -1)
        preferred = np.maximum.reduceat(place, self._passes["start"])[found]
        is_sent = sent[np.maximum(end, 0)] & (end >= 0)
        return np.where(is_sent & (preferred >= 0), preferred, end)

    def _match(self, asked: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """Give each question its pass, -1 for none."""
        key = _key(asked)
        local = np.where(asked["is_local"], _LOCAL, np.uint64(0))
        free = np.ones(len(self._passes), np.bool_)
        found = self._pair(key ^ local, asked, free)
        # What came in unseen (armed too late, called otherwise before NAT) or was traced
        # from its last hook only has a pass of the other kind: when nothing better came.
        rest = np.flatnonzero((found < 0) & asked["is_due"])
        if len(rest):
            free[found[found >= 0]] = False
            found[rest] = self._pair(key[rest] ^ local[rest] ^ _LOCAL, asked[rest], free)
        return found

    def _pair(
        self,
        key: npt.NDArray[np.uint64],
        asked: npt.NDArray[np.void],
        free: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.int64]:
        """Pair the n-th question for a key with its n-th free pass that is not too old."""
        order = np.argsort(key, kind="stable")
        sorted_key, started = key[order], asked["started_ns"][order]
        passes = self._passes
        place = np.searchsorted(sorted_key, passes["key"])
        place = np.minimum(place, len(order) - 1)
        timely = passes["last_ns"] >= started[place] - _LAG_NS
        able = np.flatnonzero(free & timely & (sorted_key[place] == passes["key"]))
        able = able[np.lexsort((passes["first_ns"][able], passes["key"][able]))]
        pass_key = passes["key"][able]
        rank = np.arange(len(order)) - np.searchsorted(sorted_key, sorted_key)
        at = np.searchsorted(pass_key, sorted_key) + rank
        has = at < len(able)
        at = at[has]
        rows = np.flatnonzero(has)
        fits = pass_key[at] == sorted_key[rows]
        fits &= passes["first_ns"][able[at]] <= started[rows] + _AHEAD_NS
        found = np.full(len(order), -1, np.int64)
        found[order[rows[fits]]] = able[at[fits]]
        return found

    def _use_up(self, passes: npt.NDArray[np.int64]) -> None:
        if len(passes):
            gone = np.zeros(len(self._passes), np.bool_)
            gone[passes] = True
            self._hold(self._rows[~gone[self._owner]])


def _key(rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    key: npt.NDArray[np.uint64] = rows["fingerprint"] ^ (rows["netns"].astype(np.uint64) * _NETNS)
    return key


def _find_passes(rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Return where passes begin among rows sorted by key and time."""
    if not len(rows):
        return np.zeros(0, np.int64)
    kind, ifindex = rows["kind"], rows["ifindex"]
    same = np.append(False, rows["key"][1:] == rows["key"][:-1])
    received = kind == SkbEventKind.RECEIVED
    handed_up = np.append(False, received[1:] & received[:-1] & (ifindex[1:] != ifindex[:-1]))
    begin = ~same | (received & ~handed_up)
    # A packet that was made here and dropped is gone: what follows is another one's. One
    # that was received may have lost a copy only.
    is_seen = received[np.flatnonzero(begin)][np.cumsum(begin) - 1]
    begin[1:] |= (kind[:-1] == SkbEventKind.DROPPED) & ~is_seen[1:]
    group = np.cumsum(begin) - 1
    times = _count_again(group, kind, ifindex)
    level = np.maximum.accumulate(times + group * (len(rows) + 1))
    return np.flatnonzero(np.append(True, level[1:] != level[:-1]))


def _count_again(
    group: npt.NDArray[np.int64], kind: npt.NDArray[np.uint8], ifindex: npt.NDArray[np.uint32]
) -> npt.NDArray[np.int64]:
    """Count how often each row's kind and device were in its group before; drops not at all."""
    order = np.lexsort((ifindex, kind, group))
    columns = (group[order], kind[order], ifindex[order])
    differs = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    place = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.append(True, differs), place, 0))
    times = np.zeros(len(order), np.int64)
    times[order] = place - first
    return np.where(kind == SkbEventKind.DROPPED, 0, times)

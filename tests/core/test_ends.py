"""What became of packets, out of the kernel's events about them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.drop_events import SKB_EVENT, SkbEventKind
from tracer.core.end_filters import make_filters
from tracer.core.ends import ANSWER, ASKED, KEEP_NS, MAX_END_EVENTS, EndBook
from tracer.core.nat_headers import Headers

if TYPE_CHECKING:
    from tracer.core.filters import Filter

NOW_NS = 1_795_454_534_000_000_000
LATER_NS = NOW_NS + 10_000_000
UNSPECIFIED, NO_SOCKET, BY_RULE = 2, 3, 12
REASONS = {UNSPECIFIED: "NOT_SPECIFIED", NO_SOCKET: "NO_SOCKET", BY_RULE: "NETFILTER_DROP"}
R, S, D, X = SkbEventKind


@dataclass(frozen=True)
class Event:
    """One event; *at* is microseconds."""

    kind: SkbEventKind
    ifindex: int = 1
    reason: int = 0
    fingerprint: int = 7
    netns: int = 1


def _events(*events: Event, start_ns: int = NOW_NS) -> np.ndarray:
    rows = np.zeros(len(events), SKB_EVENT)
    for index, event in enumerate(events):
        for name in ("kind", "ifindex", "reason", "fingerprint", "netns"):
            rows[name][index] = getattr(event, name)
        rows["time_ns"][index] = start_ns + index * 1000
    return rows


def _book(*events: Event) -> EndBook:
    book = EndBook(REASONS)
    assert book.add(_events(*events), NOW_NS)
    return book


def _asked(  # noqa: PLR0913 - a question's columns
    count: int = 1,
    *,
    local: bool = False,
    oif: int = 0,
    due: bool = False,
    fingerprint: int = 7,
    netns: int = 1,
) -> np.ndarray:
    rows = np.zeros(count, ASKED)
    rows["fingerprint"], rows["netns"], rows["oif"] = fingerprint, netns, oif
    rows["is_local"], rows["is_due"] = local, due
    rows["started_ns"] = NOW_NS + 1_000_000
    return rows


def _told(answers: np.ndarray) -> list[tuple[int, int, int]]:
    assert ANSWER == answers.dtype
    return [(int(row["kind"]), int(row["ifindex"]), int(row["reason"])) for row in answers]


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([Event(R), Event(S, 2)], (S, 2, 0)),
        ([Event(R), Event(D)], (D, 1, 0)),
        ([Event(R), Event(X, 1, BY_RULE)], (X, 1, BY_RULE)),
        ([Event(R), Event(D), Event(X, 1, NO_SOCKET)], (X, 1, NO_SOCKET)),
        ([Event(R), Event(D), Event(X, 1, UNSPECIFIED)], (D, 1, 0)),
        ([Event(R), Event(X, 1, UNSPECIFIED)], (X, 1, UNSPECIFIED)),
        ([Event(R), Event(X, 1, NO_SOCKET), Event(S, 2)], (S, 2, 0)),
        ([Event(R, 1), Event(R, 9), Event(S, 2), Event(S, 3)], (S, 3, 0)),
    ],
)
def test_the_last_that_tells_is_the_end(events: list[Event], end: tuple[int, int, int]) -> None:
    """What befell a packet last ends it, but for the freeing of what was sent or delivered."""
    assert [end] == _told(_book(*events).find(_asked(), LATER_NS))


def test_the_device_of_the_path_is_preferred() -> None:
    """Of several devices that sent a packet the one its journey left by is told."""
    events = (Event(R), Event(S, 2), Event(S, 3), Event(S, 4))

    assert [(S, 3, 0)] == _told(_book(*events).find(_asked(oif=3), LATER_NS))
    assert [(S, 4, 0)] == _told(_book(*events).find(_asked(oif=5), LATER_NS))


def test_the_time_between_is_the_kernels() -> None:
    """A received packet has a start and an end; one that was made here has no start."""
    received = _book(Event(R), Event(S, 2)).find(_asked(), LATER_NS)
    made = _book(Event(S, 2)).find(_asked(local=True), LATER_NS)

    assert [(NOW_NS, NOW_NS + 1000)] == received[["start_ns", "end_ns"]].tolist()
    assert [(0, NOW_NS)] == made[["start_ns", "end_ns"]].tolist()


def test_an_answer_stands_when_nothing_can_follow() -> None:
    """An end that was just told may be overridden; what cannot wait is answered as it is."""
    book = _book(Event(R), Event(D))

    assert [False] == book.find(_asked(), NOW_NS + 2_000)["is_settled"].tolist()
    assert [True] == book.find(_asked(due=True), NOW_NS + 2_000)["is_settled"].tolist()
    assert [True] == book.find(_asked(due=True), NOW_NS + 2_000)["is_settled"].tolist()
    assert not len(book)


def test_a_packet_through_lo_keeps_its_two_ways_apart() -> None:
    """Sent by lo and delivered: the way out has no device it came in by, the way in has."""
    book = _book(Event(S), Event(R), Event(D))
    asked = np.concatenate([_asked(), _asked(local=True)])

    assert [(D, 1, 0), (S, 1, 0)] == _told(book.find(asked, LATER_NS))


def test_what_came_in_unseen_is_found_when_nothing_better_comes() -> None:
    """A packet that was received under another name has its end all the same, later."""
    book = _book(Event(S, 2))

    assert [(0, 0, 0)] == _told(book.find(_asked(), LATER_NS))
    assert [(S, 2, 0)] == _told(book.find(_asked(due=True), LATER_NS))


def test_another_namespace_and_another_packet_are_others() -> None:
    """Neither the same fingerprint elsewhere nor another one here answers."""
    book = _book(Event(R, netns=2), Event(S, netns=2), Event(R, fingerprint=8))

    assert [(0, 0, 0)] == _told(book.find(_asked(due=True), LATER_NS))


def test_too_old_and_too_new_events_answer_nothing() -> None:
    """An event long before the journey, or after it began, is another packet's."""
    book = EndBook(REASONS)
    book.add(_events(Event(R), Event(S), start_ns=NOW_NS - KEEP_NS // 2 - 10_000_000), NOW_NS)
    book.add(_events(Event(R), Event(S), start_ns=NOW_NS + 50_000_000), NOW_NS)

    assert [(0, 0, 0)] == _told(book.find(_asked(due=True), NOW_NS + 100_000_000))


def test_events_that_nobody_asks_for_are_let_go() -> None:
    """Older ones go by time; more than the book holds are refused."""
    book = _book(Event(R), Event(S))
    book.find(_asked(fingerprint=9), NOW_NS + KEEP_NS + 1_000_000_000)
    many = np.zeros(MAX_END_EVENTS + 1, SKB_EVENT)
    many["time_ns"] = NOW_NS

    assert not len(book)
    assert not book.add(many, NOW_NS)
    book.clear()
    assert not len(book)


_WAYS = {
    "sent": ([Event(R), Event(S, 2)], (S, 2, 0)),
    "delivered": ([Event(R), Event(D)], (D, 1, 0)),
    "no socket": ([Event(R), Event(D), Event(X, 1, NO_SOCKET)], (X, 1, NO_SOCKET)),
    "by a rule": ([Event(R), Event(X, 1, BY_RULE)], (X, 1, BY_RULE)),
    "two devices": ([Event(R), Event(S, 2), Event(S, 3)], (S, 3, 0)),
    "made here": ([Event(S, 2)], (S, 2, 0)),
    "dropped here": ([Event(X, 0, BY_RULE)], (X, 0, BY_RULE)),
}


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from(sorted(_WAYS))), max_size=24),
    st.randoms(use_true_random=False),
    st.integers(1, 5),
)
def test_equal_packets_are_answered_in_their_order(
    packets: list[tuple[int, str]], random: object, parts: int
) -> None:
    """
    However different packets' events interleave and are handed over, each journey gets its own.

    Of equal ones all came in, all left from here, or all were dropped here.
    """
    queues: dict[int, list[Event]] = {}
    expected: dict[int, list[tuple[bool, tuple[int, int, int]]]] = {}
    for fingerprint, way in packets:
        events, end = _WAYS[way]
        mine = queues.setdefault(fingerprint, [])
        mine += [Event(e.kind, e.ifindex, e.reason, fingerprint) for e in events]
        expected.setdefault(fingerprint, []).append((events[0].kind is not R, end))
    # What a received packet may yet do, an equal one that was made here may do as well.
    mixed = {
        key for key, ways in expected.items() if len({local and end[0] for local, end in ways}) > 1
    }
    told: list[Event] = []
    while waiting := [key for key in queues if queues[key]]:
        told.append(queues[random.choice(waiting)].pop(0))  # type: ignore[attr-defined]
    book = EndBook(REASONS)
    rows = _events(*told)
    for part in np.array_split(rows, parts):
        book.add(part, NOW_NS)
    for key in sorted(set(expected) - mixed):
        ways = expected[key]
        asked = np.concatenate([_asked(local=local, fingerprint=key) for local, _ in ways])

        assert [end for _, end in ways] == _told(book.find(asked, LATER_NS))
    if not mixed:
        assert not len(book)


def _box(src: tuple[int, int] | None, dst: tuple[int, int] | None, dport: int | None) -> Headers:
    return Headers(
        4,
        None if src is None else (src,),
        None if dst is None else (dst,),
        None,
        None if dport is None else ((dport, dport),),
    )


_RANGES = st.none() | st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)).map(
    lambda pair: (min(pair), max(pair))
)


@given(
    st.lists(st.builds(_box, _RANGES, _RANGES, st.none() | st.integers(0, 65_535)), max_size=40),
    st.data(),
)
def test_filters_hold_all_that_their_boxes_hold(boxes: list[Headers], data: st.DataObject) -> None:
    """Whatever is in a box meets one of at most sixteen filters, unless that was said."""
    made = make_filters(boxes, 16)

    assert len(made.filters) <= 16
    if boxes and not made.is_cut:
        box = data.draw(st.sampled_from(boxes))
        src, dst = (
            data.draw(st.integers(*(limit[0] if limit else (0, 2**32 - 1))))
            for limit in (box.src, box.dst)
        )
        port = box.dport[0][0] if box.dport else data.draw(st.integers(0, 65_535))
        assert any(_meets(one, src, dst, port) for one in made.filters)


def _meets(one: Filter, src: int, dst: int, dport: int) -> bool:
    pairs = ((one.src, src), (one.dst, dst))
    within = all(net is None or ipaddress.IPv4Address(value) in net for net, value in pairs)
    return within and one.dport in {None, dport}

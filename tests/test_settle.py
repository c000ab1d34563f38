"""Rows that wait for their ends: in order, not for long, not too many, and none lost."""

from __future__ import annotations

import numpy as np

from tracer.core.drop_events import SKB_EVENT, SkbEventKind
from tracer.core.ends import MAX_END_EVENTS
from tracer.core.events import PACKET
from tracer.core.journey import Ending, EndingKind
from tracer.core.paths import NOT_OBSERVED, Path
from tracer.pipeline import Chosen
from tracer.settle import MAX_RATE, WAIT_NS, Settler

NOW_NS = 1_795_454_534_000_000_000
LATER_NS = NOW_NS + 10_000_000
INODE = 4_026_531_840
UNKNOWN = Path((), Ending(EndingKind.UNKNOWN, hook="forward", reason=NOT_OBSERVED), 1, 2)
BY_RULE = Path((), Ending(EndingKind.DROPPED, hook="input", table="filter", rule=3), 1, 0)
QUEUED = Path((), Ending(EndingKind.QUEUED, hook="input"), 1, 0)


class Source:
    """Events that a test hands out, and what it was told to do."""

    def __init__(self) -> None:
        self.reasons = {12: "NETFILTER_DROP"}
        self.ready: list[np.ndarray] = []
        self.calls: list[str] = []
        self.can_narrow = False

    def tell(self, fingerprint: int, *kinds: SkbEventKind, reason: int = 0) -> None:
        """Let *kinds* befall a packet, a microsecond apart, by device 2."""
        rows = np.zeros(len(kinds), SKB_EVENT)
        rows["kind"], rows["fingerprint"], rows["netns"] = kinds, fingerprint, INODE
        rows["reason"], rows["ifindex"] = reason, 2
        rows["time_ns"] = NOW_NS + np.arange(len(kinds)) * 1000
        self.ready.append(rows)

    def read(self) -> np.ndarray:
        """Return what is ready."""
        told, self.ready = self.ready, []
        return np.concatenate([np.zeros(0, SKB_EVENT), *told])

    def narrow(self) -> bool:
        """Say what the test wants said."""
        self.calls.append("narrow")
        return self.can_narrow

    def pause(self) -> None:
        """Note it."""
        self.calls.append("pause")

    def resume(self) -> None:
        """Note it."""
        self.calls.append("resume")


def _rows(*paths: Path, start_ns: int = NOW_NS) -> Chosen:
    """Return a row for each path, with fingerprints from 1 on."""
    count = len(paths)
    packets = np.zeros(count, PACKET)
    packets["fingerprint"] = np.arange(1, count + 1)
    flags = np.ones(count, np.bool_)
    zeros = np.zeros(count, np.int64)
    return Chosen(packets, list(paths), np.full(count, start_ns), zeros, flags, flags)


def _add(settler: Settler[str], *paths: Path, start_ns: int = NOW_NS) -> None:
    settler.add("trace", INODE, lambda index: f"eth{index}", _rows(*paths, start_ns=start_ns))


def _taken(settler: Settler[str], now_ns: int) -> list[Chosen]:
    return [chosen for _, chosen in settler.take(now_ns)]


def test_rows_get_their_ends_and_their_times() -> None:
    """Each row of a batch has its own end; a rule's drop keeps its rule, a queue stays one."""
    source = Source()
    settler = Settler[str](source)
    received, sent, dropped = SkbEventKind.RECEIVED, SkbEventKind.SENT, SkbEventKind.DROPPED
    source.tell(1, received, sent)
    source.tell(2, received, dropped, reason=12)
    source.tell(3, received, SkbEventKind.DELIVERED)
    source.tell(4, received, dropped, reason=99)
    _add(settler, UNKNOWN, BY_RULE, QUEUED, UNKNOWN)
    (chosen,) = _taken(settler, LATER_NS)

    assert [
        Ending(EndingKind.SENT, hook="postrouting", device="eth2"),
        Ending(EndingKind.DROPPED, hook="input", table="filter", rule=3, reason="NETFILTER_DROP"),
        QUEUED.ending,
        Ending(EndingKind.DROPPED, hook="forward", reason="reason 99"),
    ] == [path.ending for path in chosen.paths]
    assert chosen.lasted_us is not None
    assert [1, 1, 1, 1] == chosen.lasted_us.tolist()
    assert ["kernel"] * 4 == [path.clock for path in chosen.paths]


def test_one_end_of_one_path_is_one_object() -> None:
    """Sinks that remember what they made of a path find it again."""
    source = Source()
    settler = Settler[str](source)
    for fingerprint in range(1, 14):
        source.tell(fingerprint, SkbEventKind.RECEIVED, SkbEventKind.SENT)
    _add(settler, *[UNKNOWN] * 13)
    (chosen,) = _taken(settler, LATER_NS)

    assert 1 == len(set(chosen.paths))


def test_nothing_waits_longer_than_it_may() -> None:
    """A row without an end holds those behind it back, until its time is over."""
    source = Source()
    settler = Settler[str](source)
    _add(settler, UNKNOWN)
    _add(settler, UNKNOWN, UNKNOWN)
    source.tell(2, SkbEventKind.RECEIVED, SkbEventKind.SENT)

    assert [] == _taken(settler, NOW_NS + WAIT_NS)
    assert 3 == settler.waiting
    assert [1, 2] == [len(chosen) for chosen in _taken(settler, NOW_NS + WAIT_NS + 1)]
    assert (0, 2) == (settler.waiting, settler.unseen)


def test_too_many_journeys_pause_it_and_each_is_counted() -> None:
    """Beyond the rate rows pass at once; when there are fewer, ends are looked for again."""
    source = Source()
    settler = Settler[str](source)
    _taken(settler, NOW_NS)
    _add(settler, *[UNKNOWN] * MAX_RATE)

    assert [MAX_RATE] == [len(chosen) for chosen in _taken(settler, NOW_NS + 1000)]
    assert (["pause"], MAX_RATE) == (source.calls, settler.unseen)
    _taken(settler, NOW_NS + 2_000_000_000)
    assert ["pause", "resume"] == source.calls


def test_events_of_others_are_given_up_first() -> None:
    """Where only events are too many, what mostly tells of other packets goes; then all."""
    source = Source()
    settler = Settler[str](source)
    source.can_narrow = True
    _taken(settler, NOW_NS)
    source.ready.append(np.zeros(MAX_END_EVENTS - 1, SKB_EVENT))
    _taken(settler, NOW_NS + 1000)
    first = list(source.calls)
    source.can_narrow = False
    source.ready.append(np.zeros(MAX_END_EVENTS + 1, SKB_EVENT))
    _taken(settler, NOW_NS + 2000)

    assert ["narrow"] == first
    assert ["narrow", "narrow", "pause"] == source.calls


def test_a_clock_that_is_set_back_holds_no_row() -> None:
    """A row whose time lies ahead of now is told without its end instead of waiting for it."""
    settler = Settler[str](Source())
    _add(settler, UNKNOWN)
    (chosen,) = _taken(settler, NOW_NS - 3_600_000_000_000)

    assert [UNKNOWN.ending] == [path.ending for path in chosen.paths]

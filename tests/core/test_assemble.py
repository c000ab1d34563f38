"""Which events are one packet's, whatever the order in which several packets' events come."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.trace_kernel import (
    LOCAL,
    OWN,
    ROUTED,
    RULESETS,
    Header,
    Kernel,
    Mixed,
    Said,
    batch_of,
    cut,
    interleave,
    journeys_of,
)
from tracer.core.assemble import (
    MAX_OPEN_EVENTS,
    QUEUE_QUIET_NS,
    QUIET_NS,
    STALL_NS,
    Assembler,
)
from tracer.core.events import EVENT, LEGACY, NO_PACKET, PACKET, TraceBatch
from tracer.core.identity import assign
from tracer.core.overlaps import take_apart
from tracer.core.step_book import StepBook
from tracer.core.trace_steps import StepTable, TraceStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.assemble import Journeys

NOW_NS = 1_795_454_534_000_000_000
ENGINES = pytest.mark.parametrize("engine", sorted(RULESETS))
SEEDS = st.integers(0, 2**32)
NOTHING = TraceBatch(np.zeros(0, EVENT), np.zeros(0, PACKET))
NEVER = 1 << 62


def _assemble(kernel: Kernel, batches: Sequence[TraceBatch]) -> list[tuple[int, ...]]:
    assembler, book = Assembler(), StepBook(kernel.table, kernel.ruleset)
    found = [assembler.add(batch, book, NOW_NS) for batch in batches]
    found.append(assembler.flush(book))

    assert assembler.open_events == 0
    assert assembler.evicted == 0
    return sorted(journeys_of(found))


def _traffic(
    engine: str, seed: int, count: int, *, alike: int = 0, armed: bool = True
) -> tuple[Kernel, Mixed]:
    """Mix *count* packets, each on its own way; with *alike*, of so many fingerprints."""
    random = Random(seed)  # noqa: S311 - the same again for the same seed
    kernel = Kernel(
        RULESETS[engine], learns=armed and random.random() < 0.5, marks_end=random.random() < 0.8
    )
    packets = []
    for number in range(count):
        share = random.randrange(alike) if alike else number
        header = Header(1000 + share, src=0x0100000A + (number << 16), sport=4000 + number)
        packets.append(
            kernel.walk(
                header,
                lambda _: random.random() < 0.6,
                hooks=random.choice((ROUTED, ROUTED, LOCAL)),
                is_new=random.random() < 0.5,
                armed=armed,
            )
        )
    return kernel, interleave(packets, random, alive=random.choice((1, 2, 3, 7)))


@ENGINES
@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, count=st.integers(1, 23))
def test_interleaved_packets_are_told_apart(engine: str, seed: int, count: int) -> None:
    """Any mixture of packets' events gives each packet its own events, in order, and no others."""
    kernel, mixed = _traffic(engine, seed, count)

    assert sorted(mixed.journeys) == _assemble(kernel, [mixed.batch])


@ENGINES
@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, count=st.integers(1, 13), cuts=st.lists(st.integers(0, 200), max_size=9))
def test_cuts_do_not_matter(engine: str, seed: int, count: int, cuts: list[int]) -> None:
    """However the stream is cut into batches, also in a packet, also empty: the same journeys."""
    kernel, mixed = _traffic(engine, seed, count)
    size = len(mixed.batch.events)
    batches = cut(mixed.batch, [min(place, size) for place in cuts])

    assert sorted(mixed.journeys) == _assemble(kernel, batches)


@ENGINES
@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, count=st.integers(2, 13), alike=st.integers(1, 3))
def test_addresses_tell_alike_packets_apart(engine: str, seed: int, count: int, alike: int) -> None:
    """Packets of one fingerprint that overlap are told apart by their sources."""
    kernel, mixed = _traffic(engine, seed, count, alike=alike)

    assert sorted(mixed.journeys) == _assemble(kernel, [mixed.batch])


@pytest.mark.parametrize("engine", ["nft", "legacy"])
@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, count=st.integers(1, 13))
def test_packets_that_another_traces_are_told_apart(engine: str, seed: int, count: int) -> None:
    """Events of one engine alone, without any of ours, are told apart as well."""
    kernel, mixed = _traffic(engine, seed, count, armed=False)

    assert sorted(mixed.journeys) == _assemble(kernel, [mixed.batch])


@ENGINES
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, alive=st.integers(1, 5), is_new=st.booleans(), cuts=st.booleans())
def test_equal_packets_change_places_at_most(
    engine: str, seed: int, alive: int, *, is_new: bool, cuts: bool
) -> None:
    """Of packets that nothing tells apart, each gets one whole way, in order."""
    random = Random(seed)  # noqa: S311 - the same again for the same seed
    # Two calls of one chain cannot be told apart either.
    matches = dict.fromkeys(("-A PREROUTING -d -j TWICE", "-A PREROUTING -e -g AWAY"), False)
    kernel = Kernel(RULESETS[engine], learns=True)

    def walk() -> list[Said]:
        return kernel.walk(
            Header(7),
            lambda rule: matches.setdefault(rule.text, random.random() < 0.6),
            is_new=is_new,
        )

    mixed = interleave([walk() for _ in range(11)], random, alive=alive)
    step = mixed.batch.events["step"]
    size = len(step)
    places = [random.randrange(size) for _ in range(3)] if cuts and alive == 1 else []
    found = _assemble(kernel, cut(mixed.batch, places))

    expected = Counter(tuple(step[np.array(each) - 1].tolist()) for each in mixed.journeys)
    assert expected == Counter(tuple(step[np.array(each) - 1].tolist()) for each in found)


@ENGINES
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, count=st.integers(1, 13))
def test_slow_way_agrees_with_the_fast_one(engine: str, seed: int, count: int) -> None:
    """What the columns decide, the one-by-one way decides the same."""
    kernel, mixed = _traffic(engine, seed, count)
    book = StepBook(kernel.table, kernel.ruleset)
    book.refresh()
    events, packets = mixed.batch.events, mixed.batch.packets
    fast = assign(events, packets, book)
    legacy = (events["flags"] & LEGACY) != 0
    until = np.full(int(fast.max()) + 1, NEVER)
    for number in range(int(fast.max()) + 1):
        rows = np.flatnonzero(fast == number)
        owner = np.where(legacy, -1, fast)[rows]
        slow = take_apart(events[rows], packets, owner, rows, until, book)

        assert 1 == len(set(slow.tolist()))


@ENGINES
@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, count=st.integers(3, 17), where=st.tuples(*[st.integers(0, 400)] * 3))
def test_a_hole_spoils_only_what_was_open(
    engine: str, seed: int, count: int, where: tuple[int, int, int]
) -> None:
    """A journey that says complete lacks nothing, and one that no hole met says complete."""
    kernel, mixed = _traffic(engine, seed, count)
    size = len(mixed.batch.events)
    start, end, later = sorted(min(place, size) for place in where)
    before, hole, around, after = cut(mixed.batch, [start, end, later])
    lost = len(hole.events)
    assembler, book = Assembler(), StepBook(kernel.table, kernel.ruleset)
    told = [
        assembler.add(before, book, NOW_NS),
        assembler.add(around, book, NOW_NS, doubtful=lost > 0, lost=lost),
        assembler.add(after, book, NOW_NS),
        assembler.flush(book),
    ]
    complete = {
        journey
        for each in told
        for journey, is_complete in zip(journeys_of([each]), each.complete.tolist(), strict=True)
        if is_complete
    }
    ended = book.is_final | book.is_last
    steps = mixed.batch.events["step"]
    unmet = {
        journey
        for journey in mixed.journeys
        if journey[0] > later
        or (journey[-1] <= start and ended[steps[journey[-1] - 1]])
        or not lost
    }

    assert unmet <= complete <= set(mixed.journeys)


# --- one thing at a time ---------------------------------------------------------------------


def _said(table: StepTable, *words: object, legacy: bool = False, header: bool = True) -> Said:
    """Make an event of (table, chain, kind, handle or number, verdict)."""
    name, chain, kind, number, verdict = words
    nft = (None, number, verdict) if not legacy else (number, None, None)
    hook = ("postrouting" if chain == "POSTROUTING" else "prerouting") if legacy else None
    step = TraceStep(
        "legacy" if legacy else "nft", "ip", hook, str(name), str(chain), str(kind), *nft, None
    )  # type: ignore[arg-type]
    number = table.find_or_add(step)
    assert number is not None
    return Said(number, Header(5) if header else None, legacy, 0, 2, 0)


def _armed(table: StepTable) -> Said:
    return _said(table, OWN, "armed", "rule", 3, 1)


def _lone(*rows: tuple[Said, int], table: StepTable) -> tuple[Assembler, StepBook, TraceBatch]:
    return Assembler(), StepBook(table, RULESETS["mixed"]), batch_of(rows)


def _complete(journeys: Journeys) -> list[bool]:
    return journeys.complete.tolist()


def test_nothing_comes_of_nothing() -> None:
    """Empty batches, before and after others, and an empty flush tell nothing."""
    table = StepTable()
    assembler, book, batch = _lone((_armed(table), 1), table=table)

    assert 0 == len(assembler.flush(book))
    assert 0 == len(assembler.add(NOTHING, book, NOW_NS))
    assert 0 == len(assembler.add(batch, book, NOW_NS))
    assert 0 == len(assembler.add(NOTHING, book, NOW_NS))
    assert [(1,)] == journeys_of([assembler.flush(book)])


@pytest.mark.parametrize(("verdict", "quiet"), [(1, STALL_NS), (3, QUEUE_QUIET_NS)])
def test_silence_ends_a_journey(verdict: int, quiet: int) -> None:
    """A silent journey ends when its processor cannot be what stopped it, a queued one later."""
    table = StepTable()
    said = _said(table, "one", "fwd", "rule", 11, verdict)
    assembler, book, batch = _lone((_armed(table), 1), (said, 1), table=table)

    assert 0 == len(assembler.add(batch, book, NOW_NS))
    assert 0 == len(assembler.add(NOTHING, book, NOW_NS + quiet))
    told = assembler.add(NOTHING, book, NOW_NS + quiet + 1)
    assert [(1, 2)] == journeys_of([told])
    assert [True] == _complete(told)
    assert [NOW_NS] == told.started_ns.tolist()


def test_silence_at_the_last_hook_is_short() -> None:
    """Behind all rules of the last hook nothing is waited for but the rest of the hook."""
    table = StepTable()
    said = _said(table, "mangle", "POSTROUTING", "policy", 2, None, legacy=True)
    assembler, book, batch = _lone((_armed(table), 1), (said, 0), table=table)

    assert 0 == len(assembler.add(batch, book, NOW_NS))
    assert 0 == len(assembler.add(NOTHING, book, NOW_NS + QUIET_NS))
    assert [(1, 2)] == journeys_of([assembler.add(NOTHING, book, NOW_NS + QUIET_NS + 1)])


def test_silence_is_not_measured_by_the_wall_clock() -> None:
    """A wall clock that is set, back or ahead, ends no journey earlier or later."""
    table = StepTable()
    said = _said(table, "one", "fwd", "rule", 11, 1)
    assembler, book, batch = _lone((_armed(table), 1), (said, 1), table=table)
    hour_ns = 3_600_000_000_000

    assert 0 == len(assembler.add(batch, book, NOW_NS, taken_ns=1))
    assert 0 == len(assembler.add(NOTHING, book, NOW_NS + hour_ns, taken_ns=1 + STALL_NS))
    told = assembler.add(NOTHING, book, NOW_NS - hour_ns, taken_ns=2 + STALL_NS)
    assert [(1, 2)] == journeys_of([told])
    assert [NOW_NS] == told.started_ns.tolist()


def test_a_processor_that_stands_still_splits_no_journey() -> None:
    """A packet that is stopped before its last hook, for up to a second, is told whole."""
    table = StepTable()
    rule = _said(table, "one", "fwd", "rule", 11, 1, header=False)
    drop = _said(table, "one", "fwd", "rule", 12, 0)
    assembler, book, first = _lone((_armed(table), 1), (rule, 1), table=table)

    assert 0 == len(assembler.add(first, book, NOW_NS))
    assert 0 == len(assembler.add(NOTHING, book, NOW_NS + STALL_NS))
    told = assembler.add(batch_of([(drop, 1)]), book, NOW_NS + STALL_NS)
    assert [3] == np.diff(told.bounds).tolist()
    assert [True] == _complete(told) == told.whole.tolist()


def test_the_last_chain_ends_a_journey_at_once() -> None:
    """Our mark behind the last hook, and a drop, end a journey without waiting."""
    table = StepTable()
    last = _said(table, OWN, "last_postrouting", "rule", 9, 1)
    drop = _said(table, "one", "fwd", "rule", 12, 0)
    rows = [(_armed(table), 1), (last, 1), (_armed(table), 2), (drop, 2)]
    assembler, book, batch = _lone(*rows, table=table)

    assert [(1, 2), (3, 4)] == journeys_of([assembler.add(batch, book, NOW_NS)])


def test_chains_of_equal_priority_are_one_packets() -> None:
    """A second base chain with the same hook and priority does not begin a journey."""
    table = StepTable()
    fwd = [_said(table, name, "fwd", "policy", None, 1) for name in ("one", "two")]
    rows = [(_armed(table), 1), (fwd[0], 1), (fwd[1], 1), (fwd[1], 1)]
    assembler, book, batch = _lone(*rows, table=table)

    # The same chain once more is another packet.
    assert [(1, 2, 3)] == journeys_of([assembler.add(batch, book, NOW_NS)])
    assert [(4,)] == journeys_of([assembler.flush(book)])


def test_headers_are_not_needed() -> None:
    """Events without headers belong to their trace id, legacy ones to each other."""
    table = StepTable()
    nft = [_said(table, "one", "fwd", "rule", handle, 1, header=False) for handle in (11, 12)]
    legacy = [
        _said(table, "mangle", "PREROUTING", "rule", number, None, legacy=True, header=False)
        for number in (2, 3)
    ]
    assembler, book, batch = _lone(
        (nft[0], 1), (legacy[0], 0), (nft[1], 1), (legacy[1], 0), table=table
    )
    assembler.add(batch, book, NOW_NS)
    told = journeys_of([assembler.flush(book)])

    assert [1, 2, 3, 4] == sorted(event for journey in told for event in journey)
    assert any({1, 3} <= set(journey) for journey in told)


def test_unknown_chains_are_kept_with_their_packet() -> None:
    """Events of tables and chains that no ruleset holds stay with their packet."""
    table = StepTable()
    odd = [
        _said(table, "gone", "away", "rule", 11, 77),
        _said(table, "mangle", "NOWHERE", "return", 99, None, legacy=True),
        _said(table, "gone", "CHAIN", "rule", 2, None, legacy=True),
    ]
    rows = [(_armed(table), 1), *((said, 1) for said in odd)]
    assembler, book, batch = _lone(*rows, table=table)
    assembler.add(batch, book, NOW_NS)

    assert [(1, 2, 3, 4)] == journeys_of([assembler.flush(book)])


def test_unnamed_rules_do_not_part_overlapping_packets() -> None:
    """Where a rule cannot be named, whatever follows in its table is taken for its packet's."""
    table = StepTable()
    unknown = _said(table, "mangle", "PREROUTING", "rule", 99, None, legacy=True)
    inner = _said(table, "mangle", "DEEP", "return", 2, None, legacy=True)
    later = _said(table, "nat", "PREROUTING", "rule", 1, None, legacy=True)
    rows = [(_armed(table), 1), (_armed(table), 2), (unknown, 0), (inner, 0), (later, 0)]
    assembler, book, batch = _lone(*rows, table=table)
    assembler.add(batch, book, NOW_NS)

    assert [(1, 3, 4, 5), (2,)] == journeys_of([assembler.flush(book)])


def test_an_id_used_again_ends_its_journey_for_legacy_too() -> None:
    """A legacy event behind the reuse of its fingerprint's trace id is another packet's."""
    table = StepTable()
    other = Said(_armed(table).step, Header(6), legacy=False, mark=0, iif=2, oif=0)
    late = _said(table, "raw", "PREROUTING", "rule", 1, None, legacy=True)
    policy = _said(table, "raw", "PREROUTING", "policy", 2, None, legacy=True)
    rows = [(_armed(table), 1), (other, 1), (late, 0), (policy, 0)]
    assembler, book, batch = _lone(*rows, table=table)
    told = [assembler.add(batch, book, NOW_NS), assembler.flush(book)]

    assert [(1,), (2,), (3, 4)] == journeys_of(told)


def test_too_many_open_events_let_the_oldest_go() -> None:
    """Beyond the limit the oldest journeys are told, counted, and not called complete."""
    table = StepTable()
    step = _armed(table).step
    count = MAX_OPEN_EVENTS + 7
    events = np.zeros(count, EVENT)
    events["step"], events["packet"] = step, NO_PACKET
    events["trace_id"] = events["ct_id"] = np.arange(1, count + 1)
    assembler, book = Assembler(), StepBook(table, RULESETS["nft"])
    told = assembler.add(TraceBatch(events, np.zeros(0, PACKET)), book, NOW_NS)

    assert [(number,) for number in range(1, 8)] == journeys_of([told])
    assert [False] * 7 == _complete(told)
    assert 7 == assembler.evicted
    assert assembler.open_events == MAX_OPEN_EVENTS


def test_loss_is_counted_while_a_journey_is_open() -> None:
    """A journey's loss is that of the batches it was open at."""
    table = StepTable()
    fwd = _said(table, "one", "fwd", "rule", 11, 1)
    drop = _said(table, "one", "fwd", "rule", 12, 0, header=False)
    assembler, book, first = _lone((_armed(table), 1), table=table)
    assembler.add(first, book, NOW_NS)
    assembler.add(batch_of([(fwd, 1)]), book, NOW_NS, doubtful=True, lost=3)
    assembler.add(batch_of([(_armed(table), 2)]), book, NOW_NS)
    told = assembler.add(batch_of([(drop, 1)]), book, NOW_NS, doubtful=True, lost=2)

    assert [5] == told.lost.tolist()
    assert [False] == _complete(told)
    assert [True] == told.whole.tolist()


def test_a_tail_soon_behind_a_hole_is_not_complete() -> None:
    """What begins late is complete only when no hole was shortly before."""
    table = StepTable()
    drop = _said(table, "one", "fwd", "rule", 12, 0)
    assembler, book, batch = _lone((drop, 1), table=table)
    assembler.add(NOTHING, book, NOW_NS, doubtful=True, lost=1)
    soon = assembler.add(batch, book, NOW_NS + 49_999_999)
    late = assembler.add(batch, book, NOW_NS + 50_000_000)

    assert [False] == _complete(soon)
    assert [True] == _complete(late)
    assert [False] == late.whole.tolist()

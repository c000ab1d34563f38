"""Journeys told as paths."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracer.core.paths
from tests.core.trace_kernel import (
    LOCAL,
    OWN,
    ROUTED,
    RULESETS,
    Header,
    Kernel,
    Said,
    batch_of,
    interleave,
    make_chain,
    make_ruleset,
)
from tracer.core.assemble import Assembler, Journeys
from tracer.core.journey import Ending, EndingKind, Verdict
from tracer.core.paths import PathBook
from tracer.core.step_book import StepBook
from tracer.core.trace_steps import StepTable, TraceStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.paths import Path
    from tracer.core.ruleset import Ruleset

_RULES = (("queue", Verdict.QUEUE), ("x", Verdict.CONTINUE))
QUEUES = make_ruleset(("nft", "t", [make_chain("c", *_RULES, hook="forward", priority=0)]))
QUEUE_7 = 7 << 16 | 3


def _nobody(_: int) -> bool:
    return False


def _journeys(
    table: StepTable, ruleset: Ruleset, said: Sequence[Said]
) -> tuple[StepBook, Journeys]:
    assembler, book = Assembler(), StepBook(table, ruleset)
    first = assembler.add(batch_of([(one, 1) for one in said]), book, 1)
    return book, first if len(first) else assembler.flush(book)


def _alone(journeys: Journeys, index: int) -> Journeys:
    rows = slice(journeys.bounds[index], journeys.bounds[index + 1])
    columns = [
        getattr(journeys, name)[index : index + 1]
        for name in ("started_ns", "lost", "complete", "whole")
    ]
    bounds = np.array([0, rows.stop - rows.start])
    return Journeys(journeys.events[rows], journeys.packets, bounds, *columns)


@pytest.mark.parametrize("engine", sorted(RULESETS))
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_many_are_told_as_each_alone(engine: str, seed: int) -> None:
    """A batch gives each journey the path that it has when it is told alone, by a new book."""
    random = Random(seed)  # noqa: S311 - the same again for the same seed
    kernel = Kernel(RULESETS[engine])
    packets = [
        kernel.walk(
            Header(1000 + number),
            lambda _: random.random() < 0.4,
            hooks=random.choice((ROUTED, LOCAL)),
            is_new=random.random() < 0.5,
        )
        for number in range(13)
    ]
    mixed = interleave(packets, random)
    assembler, book = Assembler(), StepBook(kernel.table, kernel.ruleset)
    first = assembler.add(mixed.batch, book, 1)
    paths = PathBook(book, _nobody)
    for journeys in (first, assembler.flush(book)):
        for index, path in enumerate(paths.read(journeys)):
            [alone] = PathBook(book, _nobody).read(_alone(journeys, index))

            assert (alone.steps, alone.ending) == (path.steps, path.ending)
            assert (alone.iif, alone.oif) == (path.iif, path.oif)


def _event(table: StepTable, chain: str, handle: int | None, verdict: int, **words: str) -> Said:
    name = words.get("place", "t")
    kind = words.get("kind", "rule")
    number = table.find_or_add(
        TraceStep("nft", "ip", None, name, chain, kind, None, handle, verdict, None)
    )
    assert number is not None
    return Said(number, Header(5), legacy=False, mark=0, iif=2, oif=3)


def _path(*said: Said, table: StepTable, listens: bool = False) -> Path:
    book, journeys = _journeys(table, QUEUES, said)
    [path] = PathBook(book, lambda number: listens and number == 7).read(journeys)
    return path


def test_a_path_is_one_object() -> None:
    """Packets that go one way have the same path, also with the same changes."""
    kernel = Kernel(RULESETS["nft"])
    packets = [kernel.walk(Header(number), lambda _: True, hooks=LOCAL) for number in range(3)]
    book = StepBook(kernel.table, kernel.ruleset)
    rows = [(said, number) for number, each in enumerate(packets) for said in each]
    journeys = Assembler().add(batch_of(rows), book, 1)
    paths = PathBook(book, _nobody)
    told = [*paths.read(journeys), *paths.read(journeys)]

    assert 6 == len(told)
    assert 1 == len({id(path) for path in told})


def test_no_journeys_have_no_paths() -> None:
    """Nothing is told of nothing."""
    book = StepBook(StepTable(), QUEUES)

    assert [] == PathBook(book, _nobody).read(Assembler().flush(book))


@pytest.mark.parametrize(
    ("code", "listens", "kind", "reason"),
    [
        (QUEUE_7, True, EndingKind.QUEUED, None),
        (QUEUE_7, False, EndingKind.DROPPED, "QUEUE_NO_LISTENER"),
        (QUEUE_7 | 0x8000, False, EndingKind.QUEUED, None),
        (5 << 16 | 3, True, EndingKind.DROPPED, "QUEUE_NO_LISTENER"),
        (0, False, EndingKind.DROPPED, None),
        (2, False, EndingKind.UNKNOWN, "stolen"),
        (1, False, EndingKind.UNKNOWN, "not observed"),
    ],
)
def test_the_last_step_is_the_end(
    code: int, kind: EndingKind, reason: str | None, *, listens: bool
) -> None:
    """A packet ends in a rule's drop, a queue with or without a listener, or where nobody saw."""
    table = StepTable()
    path = _path(_event(table, "c", 11, code), table=table, listens=listens)

    assert (kind, reason, "forward") == (path.ending.kind, path.ending.reason, path.ending.hook)
    assert (path.ending.rule == 1) == (kind is not EndingKind.UNKNOWN)


def test_a_queue_that_let_go_is_no_end() -> None:
    """A packet that came back from its queue ended elsewhere."""
    table = StepTable()
    said = [_event(table, "c", 11, QUEUE_7), _event(table, "last_input", 3, 1, place=OWN)]

    assert EndingKind.UNKNOWN is _path(*said, table=table).ending.kind


def test_nothing_shown_has_no_end() -> None:
    """A packet that no rule of others met was seen, and no more."""
    table = StepTable()
    said = [_event(table, "armed", 3, 1, place=OWN), _event(table, "last_input", 3, 1, place=OWN)]
    path = _path(*said, table=table)

    assert () == path.steps
    assert Ending(EndingKind.UNKNOWN, hook="input", reason="not observed") == path.ending


def test_how_far_a_packet_came_is_its_own() -> None:
    """Of two packets with the same shown steps, one that was seen behind all says so alone."""
    table = StepTable()
    step = _event(table, "c", 12, -1)
    last = _event(table, "last_postrouting", 3, 1, place=OWN)
    book, assembler = StepBook(table, QUEUES), Assembler()
    found = [assembler.add(batch_of([(step, 1), (last, 1), (step, 2)]), book, 1)]
    found.append(assembler.flush(book))
    paths = PathBook(book, _nobody)

    assert ["postrouting", "forward"] == [
        path.ending.hook for journeys in found for path in paths.read(journeys)
    ]


def test_an_unknown_place_has_no_hook() -> None:
    """Where no step's hook is known, the ending has none."""
    table = StepTable()
    path = _path(_event(table, "nowhere", 5, 1, place="gone"), table=table)

    assert path.ending.hook is None
    assert [None] == [step.hook for step in path.steps]


def test_user_chains_have_the_hook_they_were_reached_by() -> None:
    """A step in a user chain stands at the hook of the base chain before it."""
    kernel = Kernel(RULESETS["nft"])
    book, journeys = _journeys(
        kernel.table, kernel.ruleset, kernel.walk(Header(1), lambda rule: rule.number == 1)
    )
    [path] = PathBook(book, _nobody).read(journeys)

    assert {("inner", "prerouting")} == {
        (step.chain, step.hook) for step in path.steps if step.chain == "inner"
    }
    assert (2, 3) == (path.iif, path.oif)


def test_the_book_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full book is emptied and goes on."""
    monkeypatch.setattr(tracer.core.paths, "MAX_PATHS", 2)
    table = StepTable()
    said = [_event(table, "c", 11 + number % 2, code) for number, code in enumerate((0, 0, 2))]
    book = StepBook(table, QUEUES)
    rows = [(one, number) for number, one in enumerate(said)]
    journeys = Assembler().add(batch_of(rows), book, 1)
    paths = PathBook(book, _nobody)

    assert [path.steps for path in paths.read(journeys)] == [
        path.steps for path in paths.read(journeys)
    ]

"""Which events are one packet's, whatever the order in which several packets' events come."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.trace_kernel import (
    LOCAL,
    ROUTED,
    RULESETS,
    Header,
    Kernel,
    Mixed,
    cut,
    interleave,
    journeys_of,
)
from tracer.core.assemble import Assembler
from tracer.core.step_book import StepBook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.events import TraceBatch

NOW_NS = 1_795_454_534_000_000_000
ENGINES = pytest.mark.parametrize("engine", sorted(RULESETS))
SEEDS = st.integers(0, 2**32)


def _assemble(kernel: Kernel, batches: Sequence[TraceBatch]) -> list[tuple[int, ...]]:
    assembler, book = Assembler(), StepBook(kernel.table, kernel.ruleset)
    found = [assembler.add(batch, book, NOW_NS) for batch in batches]
    found.append(assembler.flush(book))

    assert assembler.open_events == 0
    assert assembler.evicted == 0
    return sorted(journeys_of(found))


def _traffic(engine: str, seed: int, count: int, *, alike: int = 0) -> tuple[Kernel, Mixed]:
    """Mix *count* packets, each on its own way; *alike* of them share fingerprints."""
    random = Random(seed)
    kernel = Kernel(RULESETS[engine], learns=random.random() < 0.5, marks_end=random.random() < 0.8)
    packets = []
    for number in range(count):
        share = random.randrange(alike) if alike else number
        header = Header(1000 + share, src=0x0100000A + (number << 16), sport=4000 + number)
        packets.append(
            kernel.walk(
                header,
                lambda: random.random() < 0.6,
                hooks=random.choice((ROUTED, ROUTED, LOCAL)),
                is_new=random.random() < 0.5,
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

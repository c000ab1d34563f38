"""The ring reader on fabricated rings: every kind of record, at every place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.ring import RingCursor

if TYPE_CHECKING:
    from random import Random

_SIZE = 1 << 12
_RECORD = np.dtype([("number", "<u4"), ("fill", "u1", (9,))])
_BUSY, _DISCARD = 1 << 31, 1 << 30


class Ring:
    """A ring in plain memory, filled the way the kernel fills one."""

    def __init__(self, start: int = 0) -> None:
        """Begin empty at *start*, as after that many bytes."""
        self.data = np.zeros(2 * _SIZE, np.uint8)
        self.producer = self.consumer = start

    def load_producer(self) -> int:
        """Return how far the writer is."""
        return self.producer

    def load_consumer(self) -> int:
        """Return how far the reader is."""
        return self.consumer

    def store_consumer(self, position: int) -> None:
        """Move the reader on, never back and never past the writer."""
        assert self.consumer <= position <= self.producer
        self.consumer = position

    def put(self, payload: bytes, flags: int = 0) -> int | None:
        """Append a record; return its position, None where there is no room."""
        step = 8 + (len(payload) + 7 & ~7)
        if self.producer + step - self.consumer > _SIZE:
            return None
        self._write(self.producer, (len(payload) | flags).to_bytes(4, "little"))
        self._write(self.producer + 8, payload)
        self.producer += step
        return self.producer - step

    def commit(self, position: int, length: int) -> None:
        """Rewrite the length word of the record at *position*."""
        self._write(position, length.to_bytes(4, "little"))

    def _write(self, position: int, content: bytes) -> None:
        for index, byte in enumerate(content):
            at = (position + index) % _SIZE
            self.data[at] = self.data[at + _SIZE] = byte


def _record(number: int) -> bytes:
    return number.to_bytes(4, "little") + bytes(9)


def _cursor(ring: Ring) -> RingCursor:
    return RingCursor(ring.data, ring, _RECORD)


def test_an_empty_ring_gives_an_empty_array() -> None:
    """Nothing written, nothing read, and the type is the record's."""
    got = _cursor(Ring()).read()

    assert (0, _RECORD) == (len(got), got.dtype)


@settings(deadline=None)  # the machine may be busy
@given(
    start=st.integers(0, 3 * _SIZE).map(lambda n: n & ~7),
    kinds=st.lists(st.sampled_from(["good", "discarded", "odd", "empty"]), max_size=400),
    chunk=st.integers(1, 50),
)
def test_every_record_comes_once_in_order(start: int, kinds: list[str], chunk: int) -> None:
    """Good records come whole and in order around the end; the rest is counted."""
    ring = Ring(start)
    cursor = _cursor(ring)
    got: list[int] = []
    for number, kind in enumerate(kinds):
        payload = {"odd": bytes(77), "empty": b""}.get(kind, _record(number))
        while ring.put(payload, _DISCARD if kind == "discarded" else 0) is None:
            got += cursor.read(chunk)["number"].tolist()
    while len(more := cursor.read(chunk)):
        got += more["number"].tolist()

    assert [n for n, kind in enumerate(kinds) if kind == "good"] == got
    assert (len(got), kinds.count("discarded"), kinds.count("odd") + kinds.count("empty")) == (
        cursor.totals.records,
        cursor.totals.discarded,
        cursor.totals.odd,
    )
    assert ring.consumer == ring.producer


@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_busy_record_holds_back_those_behind_it(before: int) -> None:
    """What is being written stops the reader; committed, all come in order."""
    ring = Ring()
    cursor = _cursor(ring)
    for number in range(before):
        ring.put(_record(number))
    busy = ring.put(_record(before), _BUSY)
    ring.put(_record(before + 1))

    first = cursor.read()["number"].tolist()
    assert busy is not None
    ring.commit(busy, len(_record(0)))
    second = cursor.read()["number"].tolist()

    assert list(range(before)) == first
    assert [before, before + 1] == second


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 1 << 32), st.integers(0, _SIZE // 8), st.floats(0, 1))
def test_any_bytes_are_survived(seed: int, words: int, zeros: float) -> None:
    """Random bytes neither raise nor move the reader past the writer."""
    ring = Ring()
    noise = np.random.default_rng(seed)
    half = noise.integers(0, 256, _SIZE) * (noise.random(_SIZE) > zeros)
    ring.data[:] = np.tile(half, 2)
    ring.producer = words * 8
    cursor = _cursor(ring)
    for _ in range(words + 1):
        cursor.read()

    assert ring.consumer <= ring.producer


def test_a_lying_length_ends_at_the_writer() -> None:
    """A record that claims more than was written is passed over up to there only."""
    ring = Ring()
    position = ring.put(bytes(40))
    assert position is not None
    ring.commit(position, 1 << 29)
    cursor = _cursor(ring)
    cursor.read()

    assert (ring.producer, 1) == (ring.consumer, cursor.totals.odd)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.sampled_from(["good", "discarded", "odd"]), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_records_come_in_order_whichever_is_committed_first(
    kinds: list[str], random: Random
) -> None:
    """Reserved in order by many CPUs and committed in any, none is lost, doubled or early."""
    ring = Ring()
    cursor = _cursor(ring)
    reserved = []
    for number, kind in enumerate(kinds):
        payload = bytes(77) if kind == "odd" else _record(number)
        position = ring.put(payload, _BUSY)
        if position is None:
            kinds = kinds[:number]
            break
        reserved.append((position, len(payload) | (_DISCARD if kind == "discarded" else 0)))
    committed = set()
    got: list[int] = []
    for at in random.sample(range(len(reserved)), len(reserved)):
        ring.commit(*reserved[at])
        committed.add(at)
        got += cursor.read()["number"].tolist()
        # Up to the first that is not committed, and no further.
        ready = next((n for n in range(len(kinds)) if n not in committed), len(kinds))
        assert [n for n in range(ready) if kinds[n] == "good"] == got

    assert ring.consumer == ring.producer

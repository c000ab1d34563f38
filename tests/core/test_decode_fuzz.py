"""Whatever a message says, both readings agree, nothing raises, and neighbours are unharmed."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.trace_messages import (
    RECORDINGS,
    decode,
    ipv6,
    nflog_message,
    nft_message,
    recorded,
    udp,
)
from tracer.core.decode import TraceDecoder

ONE_BY_ONE = 1 << 40


def distinct(messages: list[bytes]) -> list[bytes]:
    """Keep one message of each size: the recordings repeat themselves."""
    return list({len(each): each for each in messages}.values())


SAMPLES = [each for name in RECORDINGS for each in distinct(recorded(name))]
SAMPLES += [
    nft_message(verdict=-3, target=b"there\0", link=bytes(14), network=ipv6(udp(1, 2, b"abc"))),
    nflog_message(payload=ipv6(bytes([17, 0, 1, 4, 0, 0, 0, 0]) + udp(1, 2, b"abc"), 60)),
    nflog_message(prefix=b"mine\0", global_sequence=3),
]


def outcome(messages: list[bytes], plain_below: int, gap: bytes = b"") -> dict[str, Any]:
    """Return everything that decoding leaves behind."""
    decoder = TraceDecoder(plain_below=plain_below)
    batch = decode(decoder, messages, gap)
    return {
        "events": batch.events.tobytes(),
        "packets": batch.packets.tobytes(),
        "steps": decoder.table.steps,
        "malformed": decoder.malformed,
        "last": decoder.last_malformed,
        "foreign": decoder.foreign,
    }


def check(messages: list[bytes]) -> None:
    """Demand one outcome of both readings, whatever lies between the messages."""
    expected = outcome(messages, 0)
    assert expected == outcome(messages, ONE_BY_ONE)
    assert expected == outcome(messages, 0, b"\xff" * 8)
    assert expected == outcome(messages, ONE_BY_ONE, struct.pack("<HH", 8, 14) * 3)


def test_a_message_cut_at_every_offset_reads_nothing_behind_its_end() -> None:
    """A message cut anywhere gives the same by both readings, whatever follows it."""
    for whole in SAMPLES:
        check([whole[:end] for end in range(len(whole))])


def test_every_length_may_lie() -> None:
    """Whatever an attribute's or a nest's size says, both readings agree."""
    lies = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 20, 21, 24, 255, 1024, 0x7FFF, 0xFFFF)
    for whole in SAMPLES:
        lying = []
        for at in range(20, len(whole), 4):
            for lie in lies:
                message = bytearray(whole)
                struct.pack_into("<H", message, at, lie)
                lying.append(bytes(message))
        assert outcome(lying, 0) == outcome(lying, ONE_BY_ONE)
        expected = outcome(lying, 0)
        assert expected == outcome(lying, 0, b"\xff" * 4)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a message with some of its words replaced, and perhaps cut or continued."""
    message = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(4, max(4, len(message) // 2 - 1))) * 2
        value = draw(st.one_of(st.integers(0, 40), st.integers(0, 0xFFFF)))
        if at + 2 <= len(message):
            struct.pack_into("<H", message, at, value)
    end = draw(st.one_of(st.just(len(message)), st.integers(0, len(message))))
    return bytes(message[:end]) + draw(st.binary(max_size=9))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(mutated(), st.sampled_from(SAMPLES), st.binary(max_size=64)), max_size=9))
def test_mixed_batches_decode_alike(messages: list[bytes]) -> None:
    """Sound, bent and random messages in one batch give one outcome by both readings."""
    check(messages)


@settings(max_examples=100, deadline=None)
@given(st.lists(mutated(), max_size=5), st.data())
def test_a_bad_message_does_not_spoil_its_neighbours(bad: list[bytes], data: st.DataObject) -> None:
    """Sound messages decode to the same rows whatever stands between them."""
    good = data.draw(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=5))
    mixed = [(message, True) for message in good] + [(message, False) for message in bad]
    mixed = data.draw(st.permutations(mixed))
    sound = [message for message, is_good in mixed if is_good]
    alone, among = TraceDecoder(plain_below=0), TraceDecoder(plain_below=0)
    expected = rows(alone, sound)

    decoded = rows(among, [message for message, _ in mixed])

    places = iter(decoded)
    assert all(row in places for row in expected)


def rows(decoder: TraceDecoder, messages: list[bytes]) -> list[tuple[Any, ...]]:
    """Return a batch's events with their steps and headers written out."""
    batch = decode(decoder, messages)
    return [
        (
            decoder.table.steps[event["step"]],
            b"" if event["packet"] < 0 else batch.packets[event["packet"]].tobytes(),
            *event.tolist()[2:],
        )
        for event in batch.events
    ]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.lists(st.tuples(st.integers(-9, 200), st.integers(-9, 900))))
def test_random_starts_and_lengths_never_raise(noise: bytes, spots: list[tuple[int, int]]) -> None:
    """Even a caller that points nowhere gets counted messages, the same by both readings."""
    words = np.frombuffer(noise[: len(noise) // 4 * 4], "<u4")
    starts = np.array([start for start, _ in spots], np.int64)
    lengths = np.array([length for _, length in spots], np.int64)
    decoders = TraceDecoder(plain_below=0), TraceDecoder(plain_below=ONE_BY_ONE)

    batches = [decoder.decode(words, starts, lengths) for decoder in decoders]

    assert batches[0].events.tobytes() == batches[1].events.tobytes()
    assert decoders[0].malformed == decoders[1].malformed
    assert decoders[0].last_malformed == decoders[1].last_malformed

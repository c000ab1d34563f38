"""Trace messages become events, packets and steps."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from tests.core.trace_messages import (
    RECORDINGS,
    be32,
    decode,
    ipv4,
    lay_out,
    message,
    nflog_message,
    nft_message,
    parse,
    recorded,
    udp,
)
from tracer.core.decode import PLAIN_BELOW, TraceDecoder, message_types
from tracer.core.events import LEGACY, NO_PACKET
from tracer.core.trace_steps import TraceStep

IN_STEP = 0
ONE_BY_ONE = 1 << 40
READINGS = pytest.mark.parametrize("plain_below", [IN_STEP, ONE_BY_ONE])

NFT_STEP = TraceStep("nft", "ip", None, "filter", "INPUT", "rule", None, 7, 1, None)
LEGACY_STEP = TraceStep("legacy", "ip", "input", "filter", "INPUT", "rule", 7, None, None, None)

KINDS = {1: "policy", 2: "return", 3: "rule"}
FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


def text(value: bytes) -> str:
    """Return a zero-terminated string of a recording."""
    return value.rstrip(b"\0").decode()


def number(found: dict[int, bytes], kind: int) -> int:
    """Return an attribute's number, 0 if it is absent."""
    return int.from_bytes(found.get(kind, b""), "big")


def expected_nft(whole: bytes) -> tuple[TraceStep, list[int], bytes, bytes]:
    """Read one nft message the plain way."""
    found = parse(whole)
    handle = int.from_bytes(found[3], "big") if 3 in found else None
    verdict, target = None, None
    if 5 in found:
        verdict = struct.unpack_from(">i", found[5], 4)[0]
        target = text(found[5][12:]) or None
    if 16 in found:
        verdict = number(found, 16)
    step = TraceStep(
        "nft", FAMILIES[whole[16]], None, text(found[1]), text(found[2]),
        KINDS[number(found, 4)], None, handle, verdict, target,
    )  # fmt: skip
    columns = [number(found, kind) for kind in (6, 10, 12, 14, 18)]
    return step, [*columns, 0], found.get(8, b""), found.get(9, b"")


def expected_nflog(whole: bytes) -> tuple[TraceStep, list[int], bytes, bytes]:
    """Read one legacy trace the plain way; transport headers without extension headers only."""
    found = parse(whole)
    table, rest = text(found[10]).removeprefix("TRACE: ").split(":", 1)
    chain, kind, position = rest.rstrip(" ").rsplit(":", 2)
    step = TraceStep(
        "legacy", FAMILIES[whole[16]], HOOKS[found[1][2]], table, chain, kind, int(position),
        None, None, None,
    )  # fmt: skip
    payload = found[9]
    size = (payload[0] & 15) * 4 if payload[0] >> 4 == 4 else 40
    columns = [0, number(found, 4), number(found, 5), number(found, 2), 0, LEGACY]
    return step, columns, payload[:size][:40], payload[size : size + 20]


def is_later_fragment(network: bytes) -> bool:
    """Tell a fragment that has no transport header (IPv4)."""
    return network[0] >> 4 == 4 and bool(struct.unpack_from(">H", network, 6)[0] & 0x1FFF)


def has_extensions(network: bytes) -> bool:
    """Tell IPv6 with extension headers."""
    return network[0] >> 4 == 6 and network[6] in {0, 43, 44, 60}


@READINGS
@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_decodes_to_what_a_plain_parser_reads(name: str, plain_below: int) -> None:
    """Every field of every recorded message is what a plain second reading finds."""
    messages = recorded(name)
    decoder = TraceDecoder(plain_below=plain_below)

    batch = decode(decoder, messages)

    assert len(messages) == len(batch.events)
    for event, whole in zip(batch.events, messages, strict=True):
        read = expected_nft if whole[5] == 10 else expected_nflog
        step, columns, network, transport = read(whole)
        assert step == decoder.table.steps[event["step"]]
        assert columns == [int(event[n]) for n in event.dtype.names[2:]]
        if not network:
            assert NO_PACKET == event["packet"]
            continue
        packet = batch.packets[event["packet"]]
        if has_extensions(network) and read is expected_nflog:
            transport = bytes(packet["raw"][40:])[: packet["transport_length"]]
        if is_later_fragment(network):
            transport = b""
        expected = network.ljust(40, b"\0") + transport.ljust(20, b"\0")
        assert expected == packet["raw"].tobytes()
        assert (len(network), len(transport)) == (
            packet["network_length"],
            packet["transport_length"],
        )
    assert (0, 0) == (decoder.malformed, decoder.foreign)


@pytest.mark.parametrize("size", [1, 7, PLAIN_BELOW - 1, PLAIN_BELOW, 1000])
@pytest.mark.parametrize("name", RECORDINGS)
def test_batches_of_any_size_decode_alike(name: str, size: int) -> None:
    """How a stream is cut into batches changes neither rows nor the numbers of steps."""
    messages = recorded(name)
    whole, cut = TraceDecoder(plain_below=IN_STEP), TraceDecoder()

    expected = decode(whole, messages)
    pieces = [decode(cut, messages[at : at + size]) for at in range(0, len(messages), size)]

    assert expected.packets.tobytes() == b"".join(piece.packets.tobytes() for piece in pieces)
    names = [name for name in expected.events.dtype.names if name != "packet"]
    for name_ in names:
        joined = np.concatenate([piece.events[name_] for piece in pieces])
        assert expected.events[name_].tolist() == joined.tolist()
    assert whole.table.steps == cut.table.steps


def one(plain_below: int, *messages: bytes, **options: int) -> tuple[TraceDecoder, Any]:
    """Decode messages with a new decoder."""
    decoder = TraceDecoder(plain_below=plain_below, **options)
    return decoder, decode(decoder, messages)


Expected = TraceStep | tuple[Any, ...]

NFT_STEPS = [
    ({}, NFT_STEP),
    ({"verdict": -1, "handle": None}, ("rule", None, -1, None)),
    ({"verdict": -3, "target": b"A:b c\0"}, ("rule", 7, -3, "A:b c")),
    ({"verdict": -4, "target": b"\0"}, ("rule", 7, -4, None)),
    ({"verdict": -4}, ("rule", 7, -4, None)),
    ({"verdict": 0x8001_0003}, ("rule", 7, 0x8001_0003 - (1 << 32), None)),
    ({"type": 2, "handle": None, "verdict": None}, ("return", None, None, None)),
    ({"type": 1, "handle": None, "verdict": None, "policy": 0}, ("policy", None, 0, None)),
]


@READINGS
@pytest.mark.parametrize(("given", "expected"), NFT_STEPS)
def test_an_nft_message_names_its_step(
    given: dict[str, Any], expected: Expected, plain_below: int
) -> None:
    """Kind, handle, verdict and target are those of the message."""
    decoder, _ = one(plain_below, nft_message(**given))

    step = expected
    if not isinstance(expected, TraceStep):
        kind, handle, verdict, target = expected
        step = TraceStep(
            "nft", "ip", None, "filter", "INPUT", kind, None, handle, verdict, target
        )  # fmt: skip
    assert [step] == decoder.table.steps


NFT_MALFORMED = [
    {"family": 99},
    {"type": 0},
    {"type": 4},
    {"type": None},
    {"id": None},
    {"chain": None},
    {"table": None},
    {"chain": b"\0"},
    {"table": b""},
    {"verdict": None},
    {"type": 1, "policy": None},
]


@READINGS
@pytest.mark.parametrize("given", NFT_MALFORMED)
def test_an_nft_message_without_a_step_is_malformed(
    given: dict[str, Any], plain_below: int
) -> None:
    """What names no step is counted, kept for the log, and makes no event."""
    bad = nft_message(**given)

    decoder, batch = one(plain_below, bad, nft_message())

    assert (1, bad) == (decoder.malformed, decoder.last_malformed)
    assert [NFT_STEP] == decoder.table.steps
    assert [0] == batch.events["step"].tolist()


@READINGS
def test_a_malformed_verdict_makes_the_message_malformed(plain_below: int) -> None:
    """A nested attribute that runs past its nest, or a nest without a code, is malformed."""
    for nest in (struct.pack("<HHI", 12, 1, 0), struct.pack("<HHI", 6, 1, 0), bytes(4), b""):
        bad = message((10 << 8) | 17, 2, [
            (4, be32(3)), (6, be32(1)), (2, b"c\0"), (1, b"t\0"), (5, nest),
        ])  # fmt: skip

        decoder, batch = one(plain_below, bad, bad)

        assert (2, 0) == (decoder.malformed, len(batch.events))


@READINGS
def test_the_order_of_attributes_does_not_matter(plain_below: int) -> None:
    """The same step in two orders, or with an attribute twice, has one number."""
    attributes = [
        (1, b"filter\0"), (4, be32(3)), (14, be32(5)), (5, nft_verdict(1)),
        (3, struct.pack(">Q", 7)), (2, b"INPUT\0"), (6, be32(9)),
    ]  # fmt: skip
    turned = message((10 << 8) | 17, 2, attributes)
    twice = message((10 << 8) | 17, 2, [(6, be32(1)), (2, b"other\0"), *attributes])

    decoder, batch = one(plain_below, turned, nft_message(), twice)

    assert [NFT_STEP] == decoder.table.steps
    assert [0, 0, 0] == batch.events["step"].tolist()
    assert [9, 99, 9] == batch.events["trace_id"].tolist()
    assert [5, 0, 5] == batch.events["mark"].tolist()


def nft_verdict(code: int) -> bytes:
    """Return the nest that NFTA_TRACE_VERDICT holds."""
    return struct.pack("<HH", 8, 1) + be32(code)


@READINGS
def test_names_that_are_not_utf_8_are_escaped(plain_below: int) -> None:
    """A name keeps its bytes readable, and one without a zero byte ends with its attribute."""
    decoder, _ = one(plain_below, nft_message(chain=b"\xffa\xc3\xa9", table=b"t\0rest"))

    assert ("\\xffa\u00e9", "t") == (decoder.table.steps[0].chain, decoder.table.steps[0].table)


PREFIXES = [
    (b"TRACE: filter:INPUT:rule:7 \0", ("filter", "INPUT", "rule", 7)),
    (b"TRACE: raw:a:rule:b:return:4294967295 ", ("raw", "a:rule:b", "return", 4294967295)),
    (b"TRACE: nat:P O:policy:2 \0", ("nat", "P O", "policy", 2)),
    (b"TRACE: nat:x\xff:policy:2 \0", ("nat", "x\\xff", "policy", 2)),
    (b"TRACE: nat:cut:rule:12\0", ("nat", "cut", "rule", None)),
    (b"TRACE: nat:cut:rule:\0", ("nat", "cut", "rule", None)),
]


@READINGS
@pytest.mark.parametrize(("prefix", "expected"), PREFIXES)
def test_a_prefix_is_read_from_both_ends(
    prefix: bytes, expected: Expected, plain_below: int
) -> None:
    """Chains may hold colons; a number that may have been cut is not told."""
    decoder, _ = one(plain_below, nflog_message(prefix=prefix, family=10, hook=4))

    table, chain, kind, position = expected
    assert decoder.table.steps == [
        TraceStep("legacy", "ip6", "postrouting", table, chain, kind, position, None, None, None)
    ]


LEGACY_MALFORMED = [
    {"family": 0},
    {"hook": 5},
    {"hook": None},
    {"prefix": b"TRACE: "},
    {"prefix": b"TRACE: filter:INPUT:rul\0"},
    {"prefix": b"TRACE: filter:INPUT:rule:x \0"},
    {"prefix": b"TRACE: filter:INPUT:rule: \0"},
    {"prefix": b"TRACE: filter:INPUT:rule:12345678901 \0"},
    {"prefix": b"TRACE: :INPUT:rule:1 \0"},
    {"prefix": b"TRACE: filter::rule:1 \0"},
]


@READINGS
@pytest.mark.parametrize("given", LEGACY_MALFORMED)
def test_a_trace_prefix_that_names_no_rule_is_malformed(
    given: dict[str, Any], plain_below: int
) -> None:
    """What begins as a trace and is none is counted and makes no event."""
    bad = nflog_message(**given)

    decoder, batch = one(plain_below, nflog_message(), bad, bad, nflog_message())

    assert (2, 0, bad) == (decoder.malformed, decoder.foreign, decoder.last_malformed)
    assert ([LEGACY_STEP], [0, 0]) == (decoder.table.steps, batch.events["step"].tolist())


@READINGS
def test_packets_logged_by_others_are_foreign(plain_below: int) -> None:
    """An NFLOG packet without the prefix of TRACE is passed over, and is no fault."""
    others = [nflog_message(prefix=prefix) for prefix in (None, b"", b"\0", b"TRACE:x\0", b"my\0")]

    decoder, batch = one(plain_below, *others, nflog_message())

    assert (5, 0, 1) == (decoder.foreign, decoder.malformed, len(batch.events))


@READINGS
def test_other_messages_are_ignored(plain_below: int) -> None:
    """Errors, ends of dumps and ruleset notifications are neither events nor faults."""
    others = [message(kind, 2, []) for kind in (2, 3, (10 << 8) | 16, (4 << 8) | 1)]

    decoder, batch = one(plain_below, *others, nft_message(), *others)

    assert (0, 0, 1) == (decoder.malformed, decoder.foreign, len(batch.events))


@READINGS
def test_an_empty_batch_is_empty(plain_below: int) -> None:
    """No messages make no rows."""
    decoder, batch = one(plain_below)

    assert (0, 0, 0) == (len(batch.events), len(batch.packets), decoder.malformed)


@READINGS
def test_what_does_not_lie_in_the_buffer_is_malformed(plain_below: int) -> None:
    """Starts and lengths outside the buffer, or too short for a header, read nothing."""
    words, starts, lengths = lay_out([nft_message()])
    far = 1 << 62
    starts = np.array([-1, words.size, far, -far, 0, 0, 0, 0, 0, 0, 1], np.int64)
    lengths = np.array([40, 40, 40, 40, far, 0, -5, 15, 19, lengths[0], lengths[0]], np.int64)
    decoder = TraceDecoder(plain_below=plain_below)

    batch = decoder.decode(words, starts, lengths)

    assert (10, 1) == (decoder.malformed, len(batch.events))
    assert [NFT_STEP] == decoder.table.steps


@READINGS
def test_a_malformed_message_is_kept_to_256_bytes(plain_below: int) -> None:
    """The latest malformed message is kept for the log, its beginning only."""
    bad = nft_message(chain=None, table=b"t" * 999)

    decoder, _ = one(plain_below, nft_message(type=None), bad)

    assert bad[:256] == decoder.last_malformed


@READINGS
def test_events_of_steps_beyond_the_limit_are_counted(plain_below: int) -> None:
    """A full table drops the events of new steps, and goes on with those that it knows."""
    messages = [nft_message(handle=handle) for handle in (1, 2, 3, 3, 1, 4)]

    decoder, batch = one(plain_below, *messages, max_steps=2)

    assert ([0, 1, 0], 3, 2) == (
        batch.events["step"].tolist(),
        decoder.table.overflowed,
        len(decoder.table),
    )


@READINGS
def test_steps_are_numbered_as_they_occur(plain_below: int) -> None:
    """Nft and legacy steps share one table, in the order of the messages."""
    long = nft_message(chain=b"c" * 255 + b"\0")

    decoder, batch = one(
        plain_below, nft_message(), long, nflog_message(), nft_message(handle=8), nft_message()
    )

    assert [0, 1, 2, 3, 0] == batch.events["step"].tolist()
    assert (NFT_STEP, LEGACY_STEP) == (decoder.table.steps[0], decoder.table.steps[2])


@pytest.mark.parametrize(
    "change",
    [{"family": 10}, {"type": 2}, {"chain": b"INPUX\0"}, {"table": b"filtes\0"}, {"handle": 8},
     {"verdict": 0}, {"verdict": -3, "target": b"a\0"}, {"handle": None}, {"policy": 1}],
)  # fmt: skip
@READINGS
def test_each_part_of_a_step_tells_steps_apart(change: dict[str, Any], plain_below: int) -> None:
    """Two messages that differ in one part have two keys; only a part that is not read is none."""
    decoder, batch = one(plain_below, *[nft_message(), nft_message(**change)] * 3)

    number_ = 0 if "policy" in change else 1
    assert [0, number_] * 3 == batch.events["step"].tolist()
    assert number_ + 1 == len(decoder.table)


@READINGS
def test_hook_and_family_tell_legacy_steps_apart(plain_below: int) -> None:
    """The same prefix at another hook or of another family is another step."""
    changes: list[dict[str, int]] = [{}, {"hook": 0}, {"family": 10}, {}]

    _, batch = one(plain_below, *[nflog_message(**change) for change in changes])

    assert [0, 1, 2, 0] == batch.events["step"].tolist()


@READINGS
def test_columns_are_in_host_order(plain_below: int) -> None:
    """Devices, mark, trace id and connection are the message's numbers."""
    payload = ipv4(udp(1, 2, b"x"))
    _, batch = one(
        plain_below,
        nft_message(id=0x01020304, iif=5, oif=6, mark=7, ct_id=0x0A0B0C0D),
        nflog_message(iif=8, oif=9, mark=10, payload=payload),
        nft_message(),
    )

    assert [(0, -1, 0x01020304, 5, 6, 7, 0x0A0B0C0D, 0), (1, 0, 0, 8, 9, 10, 0, LEGACY),
            (2 - 2, -1, 99, 0, 0, 0, 0, 0)] == batch.events.tolist()  # fmt: skip


def test_types_are_told_without_decoding() -> None:
    """Each message's type is read; a start outside the buffer has none."""
    words, starts, _ = lay_out([nft_message(), nflog_message()])
    starts = np.array([*starts, -1, words.size - 1, words.size], np.int64)

    assert [(10 << 8) | 17, 4 << 8, 0, 0, 0] == message_types(words, starts).tolist()

"""Linux 6.1, 6.12 and 6.18 say the same in their own ways: one ruleset, the same packets."""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.core.trace_messages import FIXTURES, decode, parse, recorded
from tracer.core.assemble import Assembler
from tracer.core.decode import TraceDecoder
from tracer.core.iptables import parse_iptables_save
from tracer.core.nft_text import parse_nft
from tracer.core.packet_text import packet_value
from tracer.core.paths import PathBook
from tracer.core.ruleset import Ruleset
from tracer.core.step_book import StepBook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.paths import Path

NAMES = ["linux-6.1", "linux-6.12", "linux-6.18"]
KERNELS = pytest.mark.parametrize("name", NAMES)

# include/uapi/linux/netfilter/nf_tables.h: enum nft_trace_types, enum nft_verdicts.
RETURN, RULE = 2, 3
NFT_CONTINUE, NFT_RETURN = -1, -5
NFTABLES = 10

#: A step in short: engine, table, chain, rule number, verdict, changes.
Short = tuple[str, str, str, int | None, str, dict[str, tuple[object, object]]]
#: A journey in short: destination port, kind of ending, steps.
Told = tuple[int, str, list[Short]]


def _step(engine: str, place: str, rule: int | None, verdict: str, **changes: object) -> Short:
    table, chain = place.split(" ")
    return (engine, table, chain, rule, verdict, changes)


def _pre(*steps: Short) -> list[Short]:
    """Return steps in the table lab's pre, which then ends by its policy."""
    return [*steps, _step("nft", "lab pre", None, "accept")]


def _mangle(*steps: Short) -> list[Short]:
    return [*steps, _step("legacy", "mangle PREROUTING", None, "accept")]


_UNTRANSLATED = [_step("nft", "xlat pre", None, "accept")]
_INPUT = [
    _step("legacy", "mangle INPUT", None, "accept"),
    _step("legacy", "filter INPUT", None, "accept"),
]
_LAST = _step("nft", "lab inp", 3, "jump")
_POLICY = _step("nft", "lab inp", None, "drop")
_FALLS_OFF = _pre(
    _step("nft", "lab pre", 1, "jump"),
    _step("nft", "lab falls_off", 2, "continue"),
    _step("nft", "lab pre", 2, "jump"),
)
_AWAY = _pre(
    _step("nft", "lab pre", 3, "goto"), _step("nft", "lab away", 1, "continue", mark=(0, 7))
)
_COLON = _mangle(
    _step("legacy", "mangle PREROUTING", 1, "jump"),
    _step("legacy", "mangle FW:colon", 2, "continue", mark=(0, 5)),
)
_DNAT = _step("nft", "xlat pre", 1, "accept", dst=("10.9.1.2", "10.9.2.2"), dport=(7010, 22))
_ACCEPTED = _step("nft", "lab inp", 1, "accept")

# Chains that fall off their end (falls_off, nothing_here, away, FW:colon, last) have no step
# for it, and a connection's second packet passes no nat chain.
EXPECTED = [
    (7001, "unknown", [*_FALLS_OFF, *_mangle(), *_UNTRANSLATED, *_INPUT, _ACCEPTED]),
    (7001, "unknown", [*_FALLS_OFF, *_mangle(), *_INPUT, _ACCEPTED]),
    (7002, "dropped", [*_AWAY, *_mangle(), *_UNTRANSLATED, *_INPUT, _LAST, _POLICY]),
    (
        7003,
        "unknown",
        [
            *(*_pre(), *_COLON, *_UNTRANSLATED, *_INPUT, _LAST),
            _step("nft", "lab last", 3, "accept"),
        ],
    ),
    (
        7004,
        "dropped",
        [
            *(*_pre(), *_mangle(), *_UNTRANSLATED, *_INPUT, _LAST),
            _step("nft", "lab last", 1, "drop"),
        ],
    ),
    (
        7006,
        "dropped",
        [
            *(*_pre(), *_mangle(), *_UNTRANSLATED, *_INPUT, _LAST),
            _step("nft", "lab last", 2, "return"),
            _POLICY,
        ],
    ),
    (
        7005,
        "rejected",
        [*_pre(), *_mangle(), *_UNTRANSLATED, *_INPUT, _step("nft", "lab inp", 2, "reject")],
    ),
    (
        7010,
        "dropped",
        [
            *(*_pre(), *_mangle(), _DNAT),
            _step("legacy", "mangle FORWARD", None, "accept"),
            _step("legacy", "filter FORWARD", 1, "jump"),
            _step("legacy", "filter SSH", 2, "drop"),
        ],
    ),
]


def read_ruleset(legacy: str, native: str) -> Ruleset:
    """Return the router's rules as iptables-legacy-save and nft listed them."""
    tables = [*parse_iptables_save(legacy, "legacy", "ip"), *parse_nft(native)]
    return Ruleset({(table.engine, table.family, table.name): table for table in tables})


def _short(path: Path) -> list[Short]:
    return [
        (s.engine, s.table, s.chain, s.rule, s.verdict.value, dict(s.changes)) for s in path.steps
    ]


def tell(messages: Sequence[bytes], ruleset: Ruleset, size: int) -> list[Told]:
    """Assemble a recording in batches of *size* messages, sorted as EXPECTED is."""
    decoder, assembler = TraceDecoder(), Assembler()
    book = StepBook(decoder.table, ruleset)
    paths, told = PathBook(book, lambda _queue: False), []
    batches = [decode(decoder, messages[at : at + size]) for at in range(0, len(messages), size)]
    parts = [assembler.add(batch, book, 1) for batch in batches]
    for part in (*parts, assembler.flush(book)):
        for index, path in enumerate(paths.read(part)):
            first = part.events[part.bounds[index]]
            port = packet_value(part.packets[first["packet"]]).dport
            told.append((port, path.ending.kind.value, _short(path)))
        assert part.whole.all()
        assert part.complete.all()
    assert (0, 0, 0) == (decoder.malformed, decoder.foreign, assembler.evicted)
    return sorted(told, key=lambda one: [port for port, *_ in EXPECTED].index(one[0]))


@pytest.mark.parametrize("size", [1, 7, 1000])
@KERNELS
def test_the_same_packets_have_the_same_journeys(name: str, size: int) -> None:
    """Every step, change and ending is the same whichever kernel tells it, however it is cut."""
    lists = [
        (FIXTURES / f"{name}.{kind}.txt").read_text("utf-8") for kind in ("legacy", "nft-list")
    ]

    told = tell(recorded(name), read_ruleset(*lists), size)

    assert EXPECTED == told


def _ends(name: str) -> Counter[tuple[int, bool, int]]:
    """Count the ends of the table lab's chains and its explicit returns, as the kernel put them."""
    found: Counter[tuple[int, bool, int]] = Counter()
    for message in recorded(name):
        said = parse(message)
        if message[5] == NFTABLES and said[1] == b"lab\0" and 5 in said:
            kind, has_handle = said[4][3], 3 in said
            (code,) = struct.unpack_from(">i", said[5], 4)
            if not has_handle or code == NFT_RETURN:
                found[kind, has_handle, code] += 1
    return found


@pytest.mark.parametrize(
    ("name", "kind"), [("linux-6.1", RETURN), ("linux-6.12", RULE), ("linux-6.18", RULE)]
)
def test_the_recordings_have_their_kernels_shapes(name: str, kind: int) -> None:
    """Before 6.7 a chain's end and an explicit return are of type return, then of type rule."""
    implicit, explicit = (kind, False, NFT_CONTINUE), (kind, True, NFT_RETURN)

    # 2 falls_off, 2 nothing_here, 1 away, 1 last, and before a policy 7 pre and 2 inp.
    assert {implicit: 15, explicit: 1} == _ends(name)

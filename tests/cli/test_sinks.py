"""Sinks write rows as they would write each row's journey."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracer.cli.sinks
from exporters.json_lines import render_journey
from exporters.pcapng import PcapngWriter
from tests.core.trace_kernel import Header, packet_rows
from tests.journeys import START_NS, article
from tracer.cli.render_compact import render_compact
from tracer.cli.sinks import CompactSink, JsonSink, Names, PcapSink, SummarySink, TextSink
from tracer.cli.theme import ASCII, UNICODE, Symbols, make_console
from tracer.core.events import PACKET
from tracer.core.journey import Ending, EndingKind
from tracer.core.paths import Path
from tracer.core.summary import Summary, SummaryBuilder
from tracer.pipeline import JOIN_NS, Chosen, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.core.journey import Journey

ON_VR1, ON_VR2 = article()
WAYS = [Path(one.steps, one.ending, 2, 3) for one in (ON_VR1, ON_VR2)]
WAYS.append(Path((), Ending(EndingKind.UNKNOWN, hook="input", reason="not observed"), 2, 0))
NAMES = Names("router", "5eed")
#: TCP, UDP, ICMP of both versions, those with ports, and what has none.
PROTOS = st.sampled_from([6, 17, 1, 58, 132, 33, 136, 47, 0, 255])
FLAGS = st.lists(st.booleans(), min_size=7, max_size=7)


@dataclass(frozen=True)
class _Named:
    name: str = "vr1"


@dataclass(frozen=True)
class _Trace:
    """What a sink asks of a namespace's trace."""

    namespace: _Named = field(default_factory=_Named)

    def device(self, index: int) -> str | None:
        return f"eth{index}" if index else None


TRACE = _Trace()


@st.composite
def _packets(draw: st.DrawFn) -> np.ndarray:
    count = draw(st.integers(1, 5))
    rows = np.frombuffer(
        draw(st.binary(min_size=count * PACKET.itemsize, max_size=count * PACKET.itemsize)), PACKET
    ).copy()
    for row in rows:
        row["family"] = draw(st.sampled_from([4, 4, 6, 6, 0]))
        row["proto"] = draw(PROTOS)
        row["transport_length"] = draw(st.integers(0, 20))
        row["network_length"] = draw(st.integers(0, 40))
        row["icmp"] &= 0xFFFFFFFFFFFF
        if row["family"] == 4:
            row["src"][1:] = row["dst"][1:] = 0
    return rows


@st.composite
def _rows(draw: st.DrawFn) -> Chosen:
    packets = draw(_packets())
    count = len(packets)

    def column(values: st.SearchStrategy[object]) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=count, max_size=count)))

    return Chosen(
        packets,
        draw(st.lists(st.sampled_from(WAYS), min_size=count, max_size=count)),
        column(st.sampled_from([START_NS, START_NS + 1_000, START_NS + 999_999_999])),
        column(st.integers(0, 5)),
        column(st.booleans()),
        column(st.booleans()),
        column(st.integers(-1, 3)) if draw(st.booleans()) else None,
    )


def _journeys(chosen: Chosen, first_id: int) -> list[Journey]:
    return list(NAMES.journeys(TRACE, chosen, first_id))  # type: ignore[arg-type]


def _plain(count: int = 3, *, way: int = 0, fingerprint: int = 7) -> Chosen:
    headers = [Header(fingerprint + number, sport=number) for number in range(count)]
    yes = np.ones(count, np.bool_)
    zero = np.zeros(count, np.int64)
    return Chosen(packet_rows(headers), [WAYS[way]] * count, zero + START_NS, zero, yes, yes)


@settings(deadline=None)
@given(_rows(), st.integers(1, 2**32))
def test_json_rows_are_their_journeys_lines(chosen: Chosen, first_id: int) -> None:
    """Of any packet, the line made from columns is the one made from the value, and is JSON."""
    out = io.StringIO()
    JsonSink(out, NAMES).show(TRACE, chosen, first_id)  # type: ignore[arg-type]
    lines = out.getvalue().splitlines()

    assert [render_journey(one) for one in _journeys(chosen, first_id)] == lines
    assert all(json.loads(line)["schema"] == "nftrace.journey/1" for line in lines)


@settings(deadline=None)
@given(chosen=_rows(), color=st.booleans(), symbols=st.sampled_from([UNICODE, ASCII]))
def test_compact_rows_are_their_journeys_lines(
    *, chosen: Chosen, color: bool, symbols: Symbols
) -> None:
    """The same for the compact form, with and without colour, in either set of signs."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="utf-8" if symbols is UNICODE else "ascii")
    console = make_console("always" if color else "never", file=out)
    CompactSink(console, NAMES).show(TRACE, chosen, 1)  # type: ignore[arg-type]
    out.flush()

    expected = [render_compact(one, color=color, symbols=symbols) for one in _journeys(chosen, 1)]
    assert expected == raw.getvalue().decode().splitlines()


@pytest.mark.parametrize("make", [
    lambda out: JsonSink(out, NAMES),
    lambda out: CompactSink(make_console("never", file=out), NAMES),
])  # fmt: skip
def test_full_memories_of_paths_begin_anew(
    make: Callable[[io.StringIO], JsonSink | CompactSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more paths than are remembered the lines are the same."""
    wide, narrow = io.StringIO(), io.StringIO()
    rows = replace(_plain(4), paths=[WAYS[0], WAYS[1], WAYS[2], WAYS[0]])
    make(wide).show(TRACE, rows, 1)  # type: ignore[arg-type]
    monkeypatch.setattr(tracer.cli.sinks, "_TEMPLATES", 1)
    make(narrow).show(TRACE, rows, 1)  # type: ignore[arg-type]

    assert 4 == len(wide.getvalue().splitlines())
    assert wide.getvalue() == narrow.getvalue()


def test_no_rows_write_nothing() -> None:
    """A batch of which the filter means nothing leaves no empty line."""
    out = io.StringIO()
    sinks = (JsonSink(out, NAMES), CompactSink(make_console("never", file=out), NAMES))
    for sink in sinks:
        sink.show(TRACE, _plain(0), 1)  # type: ignore[arg-type]
        sink.idle(None)

    assert "" == out.getvalue()


def test_the_summary_is_the_last_line() -> None:
    """JSON ends by its summary's object, the compact form by an empty line and sentences."""
    out, text = io.StringIO(), io.StringIO()
    JsonSink(out, NAMES).finish(Summary(packets=3))
    CompactSink(make_console("never", file=text), NAMES).finish(Summary(packets=3))

    assert 3 == json.loads(out.getvalue())["packets"]
    assert text.getvalue().startswith("\n3 packets")


def test_captures_hold_the_headers() -> None:
    """A capture has each row's network and transport header, and its line as comment."""
    out = io.BytesIO()
    rows = _plain(2)
    rows.packets["raw"][:, :20] = 0x45
    rows.packets["raw"][:, 40:48] = 0x99
    sink = PcapSink(PcapngWriter(out), NAMES)
    sink.show(TRACE, rows, 1)  # type: ignore[arg-type]
    sink.idle(None)
    sink.finish(Summary())

    assert 2 == out.getvalue().count(b"\x45" * 20 + b"\x99" * 8)
    # As it was, and as it is after NAT.
    assert [2, 2] == [out.getvalue().count(b"10.0.0.1:%d " % port) for port in (0, 1)]


# --- packets over several namespaces -----------------------------------------------------------


class _Printer:
    """Notes what it is given to print."""

    def __init__(self) -> None:
        self.packets: list[list[str]] = []
        self.summaries: list[Summary] = []

    def show(self, packet: Sequence[Journey]) -> None:
        self.packets.append([one.netns for one in packet])

    def finish(self, summary: Summary) -> None:
        self.summaries.append(summary)


def _text(*, several: bool) -> tuple[_Printer, TextSink]:
    printer = _Printer()
    return printer, TextSink(printer, NAMES, several=several)  # type: ignore[arg-type]


def test_text_joins_over_namespaces() -> None:
    """A packet is printed once, with its journeys, when nothing more came of it."""
    printer, sink = _text(several=True)
    for name in ("vr1", "vr2"):
        sink.show(_Trace(_Named(name)), _plain(1), 1)  # type: ignore[arg-type]
    sink.idle(Progress(START_NS, START_NS))
    sink.idle(Progress(START_NS + JOIN_NS - 1, START_NS + JOIN_NS - 1))
    waiting = list(printer.packets)
    sink.idle(None)
    sink.finish(Summary())

    assert [] == waiting
    assert [["vr1", "vr2"]] == printer.packets
    assert [Summary()] == printer.summaries


def test_text_of_one_namespace_waits_for_nothing() -> None:
    """With one namespace each row is printed at once, alike ones as well."""
    printer, sink = _text(several=False)
    sink.show(TRACE, _plain(3), 1)  # type: ignore[arg-type]

    assert [["vr1"]] * 3 == printer.packets


def _counted(builder: SummaryBuilder) -> list[tuple[str, EndingKind, int]]:
    return [(one.netns, one.ending.kind, one.count) for one in builder.build().endings]


def test_packets_are_counted_where_they_end() -> None:
    """Of a packet through two namespaces the last one's ending counts, alone."""
    builder = SummaryBuilder()
    sink = SummarySink(builder, NAMES, several=True)
    sink.show(_Trace(_Named("vr1")), _plain(3), 1)  # type: ignore[arg-type]
    later = _plain(2, way=1)
    later.packets["ttl"] -= 1
    sink.show(_Trace(_Named("vr2")), later, 4)  # type: ignore[arg-type]
    again = _plain(1)
    sink.show(_Trace(_Named("vr1")), again, 6)  # type: ignore[arg-type]
    before = sink.packets
    sink.idle(None)
    sink.finish(Summary())

    assert 1 == before
    assert 4 == sink.packets
    assert {("vr2", EndingKind.DROPPED, 2), ("vr1", EndingKind.SENT, 2)} == set(_counted(builder))


def test_one_namespace_counts_in_bulk() -> None:
    """Rows of one namespace are counted by path, their flaws as well."""
    builder = SummaryBuilder()
    sink = SummarySink(builder, NAMES, several=False)
    rows = replace(
        _plain(3), complete=np.array([True, False, False]), whole=np.array([True, True, False])
    )
    sink.show(TRACE, rows, 1)  # type: ignore[arg-type]
    summary = builder.build()

    assert 3 == sink.packets
    assert (3, 3, 2, 1) == (
        summary.packets, summary.journeys, summary.incomplete, summary.began_late
    )  # fmt: skip


def test_what_goes_out_by_lo_is_counted_when_it_came_in() -> None:
    """A journey out by lo is no packet's end; one dropped on its way there is."""
    builder = SummaryBuilder()
    sink = SummarySink(builder, NAMES, several=False)
    dropped = Path(ON_VR2.steps, ON_VR2.ending, 0, 1)
    gone = Path((), Ending(EndingKind.UNKNOWN, hook="postrouting"), 0, 1)
    sink.show(TRACE, replace(_plain(3), paths=[gone, dropped, WAYS[2]]), 1)  # type: ignore[arg-type]

    assert 2 == sink.packets
    assert 2 == builder.build().packets
    assert 3 == builder.build().journeys

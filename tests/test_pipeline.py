"""From journeys to sinks: choosing rows, naming them, joining packets over namespaces."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.trace_kernel import (
    LOCAL,
    OWN,
    RULESETS,
    Header,
    Kernel,
    Said,
    batch_of,
    packet_rows,
)
from tests.journeys import START_NS, article
from tracer.core.assemble import Assembler
from tracer.core.filters import Filter
from tracer.core.journey import Ending, EndingKind, Packet
from tracer.core.paths import Path, PathBook
from tracer.core.step_book import StepBook
from tracer.core.trace_steps import TraceStep
from tracer.pipeline import (
    ENDED_NS,
    JOIN_NS,
    MAX_JOINING,
    Chosen,
    Joiner,
    Progress,
    choose,
    make_journey,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracer.core.journey import Journey

DEVICES = {2: "eth2", 3: "eth3"}
ROUTED_DST = "10.9.9.9/32"


def _net(word: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(word)


def _choose(
    kernel: Kernel, packets: Sequence[Sequence[Said]], wanted: Filter, *, both: bool = False
) -> Chosen:
    rows = [(said, number) for number, each in enumerate(packets) for said in each]
    assembler, book = Assembler(), StepBook(kernel.table, kernel.ruleset)
    journeys = assembler.add(batch_of(rows), book, START_NS)
    paths = PathBook(book, lambda _: False).read(journeys)

    assert len(journeys) == len(packets)
    return choose(journeys, paths, wanted, both=both, device=DEVICES.get)


def _three() -> tuple[Kernel, list[list[Said]]]:
    """Return a translated and routed packet, a local one, and one that is dropped."""
    kernel = Kernel(RULESETS["legacy"])
    return kernel, [
        kernel.walk(Header(1, sport=1), lambda rule: rule.text.endswith(("DNAT", "-n -j ACCEPT"))),
        kernel.walk(Header(2, sport=2), lambda _: False, hooks=LOCAL),
        kernel.walk(Header(3, sport=3), lambda _: False),
    ]


@pytest.mark.parametrize(
    ("wanted", "both", "sports"),
    [
        (Filter(), False, [1, 2, 3]),
        (Filter(dst=_net("10.0.0.2/32")), False, [1, 2, 3]),
        (Filter(dst=_net(ROUTED_DST)), False, [1]),
        (Filter(dst=_net(ROUTED_DST), dport=22), False, [1]),
        (Filter(src=_net(ROUTED_DST)), False, []),
        (Filter(src=_net(ROUTED_DST)), True, [1]),
        (Filter(sport=2), False, [2]),
        (Filter(in_device="eth2"), False, [1, 2, 3]),
        (Filter(out_device="eth3"), False, [1, 3]),
        (Filter(in_device="eth3"), False, []),
        (Filter(verdict="drop"), False, [3]),
        (Filter(table="filter", verdict="accept"), False, [1, 2]),
        (Filter(hook="input", sport=1), False, []),
    ],
)
def test_the_filter_chooses_journeys(wanted: Filter, sports: list[int], *, both: bool) -> None:
    """A journey is meant when any of its headers is, and its devices and one step are."""
    chosen = _choose(*_three(), wanted, both=both)

    assert sports == chosen.packets["sport"].tolist()
    assert len(sports) == len(chosen)


def test_rows_have_the_first_headers() -> None:
    """A row's packet is as first seen, before NAT, whatever the filter names."""
    chosen = _choose(*_three(), Filter(dst=_net(ROUTED_DST)))

    assert [80] == chosen.packets["dport"].tolist()


def test_our_mark_alone_is_no_journey() -> None:
    """A packet of which only our last chain told is left out; one seen from the first on is not."""
    kernel = Kernel(RULESETS["nft"])
    marks = []
    for chain in ("last_input", "armed"):
        step = TraceStep("nft", "ip", None, OWN, chain, "rule", None, 3, 1, None)
        number = kernel.table.find_or_add(step)
        assert number is not None
        marks.append(Said(number, Header(5), legacy=False, mark=0, iif=2, oif=0))
    last, armed = marks

    assert 0 == len(_choose(kernel, [[last]], Filter()))
    assert 1 == len(_choose(kernel, [[armed, last]], Filter()))


def test_without_headers_there_is_no_row() -> None:
    """A journey whose packet nobody saw cannot be told."""
    kernel, packets = _three()
    blind = replace(packets[2][-1], header=None)

    assert 0 == len(_choose(kernel, [[blind]], Filter()))


def _chosen(*sports: int, lasted_us: list[int] | None = None) -> Chosen:
    count = len(sports)
    path = Path((), Ending(EndingKind.UNKNOWN), 2, 0, "kernel")
    return Chosen(
        packet_rows(Header(255, sport=sport) for sport in sports),
        [path] * count,
        np.arange(count) + START_NS,
        np.arange(count),
        np.arange(count) % 2 == 0,
        np.arange(count) % 2 == 1,
        None if lasted_us is None else np.array(lasted_us),
    )


def test_the_head_is_the_first_rows() -> None:
    """The first rows keep every column, and more than there are is all."""
    chosen = _chosen(5, 7, 9, lasted_us=[1, 2, 3])

    assert [5, 7] == chosen.head(2).packets["sport"].tolist()
    lasted = chosen.head(2).lasted_us
    assert lasted is not None
    assert [1, 2] == lasted.tolist()
    assert 3 == len(chosen.head(99))
    assert _chosen(5, 7).head(1).lasted_us is None


@pytest.mark.parametrize(("count", "rows"), [(0, 0), (1, 2), (2, 3), (3, 5), (9, 5)])
def test_packets_are_counted_where_they_end(count: int, rows: int) -> None:
    """What leaves by lo comes in again: its first journey is told and not counted."""
    out = Path((), Ending(EndingKind.SENT), 0, 1)
    dropped = Path((), Ending(EndingKind.DROPPED), 1, 0)
    chosen = replace(_chosen(1, 1, 2, 3, 3), paths=[out, dropped, dropped, out, dropped])

    assert rows == len(chosen.first_packets(count))


@pytest.mark.parametrize(
    ("lasted", "duration"), [(None, [None, None]), ([-1, 250], [None, 250]), ([0, -1], [0, None])]
)
def test_a_row_becomes_a_journey(lasted: list[int] | None, duration: list[int | None]) -> None:
    """Each column is its row's; a time that was not observed is none."""
    chosen = _chosen(5, 7, lasted_us=lasted)
    made = [
        make_journey(chosen, row, journey_id=f"id{row}", host="r", netns="vr1", device=DEVICES.get)
        for row in (0, 1)
    ]

    assert ["id0", "id1"] == [one.id for one in made]
    assert ["00000000000000ff"] * 2 == [one.fingerprint for one in made]
    assert [START_NS, START_NS + 1] == [one.start_ns for one in made]
    assert [0, 1] == [one.lost for one in made]
    assert [(True, False), (False, True)] == [(one.complete, one.whole) for one in made]
    assert duration == [one.duration_us for one in made]
    assert [("r", "vr1", "eth2", None, "kernel")] * 2 == [
        (one.host, one.netns, one.in_device, one.out_device, one.clock) for one in made
    ]
    assert [Packet(
        family="ipv4", proto="udp", src="10.0.0.1", dst="10.0.0.2", sport=sport, dport=80,
        length=60, ttl=64, ip_id=0,
    ) for sport in (5, 7)] == [one.packet for one in made]  # fmt: skip


# --- joining ---------------------------------------------------------------------------------


def _ids(packets: Iterable[list[Journey]]) -> list[list[str]]:
    return [[one.id for one in packet] for packet in packets]


def _add(joiner: Joiner, *journeys: Journey) -> list[list[str]]:
    return _ids([packet for one in journeys for packet in joiner.add(one)])


def _take(joiner: Joiner, now_ns: int, told_ns: int | None = None) -> list[list[str]]:
    """Take at *now_ns* after the start, with all told until then or until *told_ns*."""
    told_ns = now_ns if told_ns is None else told_ns
    return _ids(joiner.take(Progress(START_NS + now_ns, START_NS + told_ns)))


def test_one_namespace_waits_for_nothing() -> None:
    """Without other namespaces each journey is a packet at once."""
    first, _ = article()
    joiner = Joiner(hold=False)

    assert [[first.id]] == _add(joiner, first)
    assert [] == _ids(joiner.take())


def test_a_packet_is_in_the_order_of_its_way() -> None:
    """Journeys of one fingerprint are joined, the one with the higher TTL first."""
    first, second = article()
    joiner = Joiner(hold=True)

    assert [] == _add(joiner, second, first)
    assert [[first.id, second.id]] == _ids(joiner.take())
    assert [] == _ids(joiner.take())


def test_equal_hops_are_in_the_order_of_time() -> None:
    """Where no router was between, the earlier comes first."""
    first, second = article()
    early = replace(second, packet=first.packet, start_ns=first.start_ns - 1)
    joiner = Joiner(hold=True)
    _add(joiner, first, early)

    assert [[early.id, first.id]] == _ids(joiner.take())


def test_a_packet_waits_for_the_next_namespace() -> None:
    """A packet is over when nothing came of it for the time, counted from its last journey."""
    first, _ = article()
    second = replace(first, netns="next", id="second")
    joiner = Joiner(hold=True)
    _add(joiner, first)

    assert [] == _take(joiner, 0)
    assert [] == _add(joiner, second)
    assert [] == _take(joiner, JOIN_NS)
    assert [] == _take(joiner, 2 * JOIN_NS - 1)
    assert [[first.id, second.id]] == _take(joiner, 2 * JOIN_NS)


def test_a_packet_that_ended_waits_less() -> None:
    """Behind a packet's death nothing comes but what was before it and came later to us."""
    first, second = article()
    joiner = Joiner(hold=True)
    _add(joiner, first, second)

    assert [] == _take(joiner, 0)
    assert [] == _take(joiner, ENDED_NS - 1)
    assert [[first.id, second.id]] == _take(joiner, ENDED_NS)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_is_not_told_yet_is_waited_for(order: tuple[int, int]) -> None:
    """While one namespace's events wait for its rules, the others' journeys wait for them."""
    here, there = (article()[index] for index in order)
    joiner = Joiner(hold=True)
    _add(joiner, here)

    assert [] == _take(joiner, 0, told_ns=0)
    assert [] == _take(joiner, 5 * JOIN_NS, told_ns=1)
    assert [] == _add(joiner, there)
    assert [] == _take(joiner, 5 * JOIN_NS + 1, told_ns=2)
    assert [[one.id for one in article()]] == _take(joiner, 6 * JOIN_NS + 1)


def test_our_own_stall_is_no_silence() -> None:
    """What comes after we were held up for long is new then, and waits its time from then on."""
    first, second = article()
    joiner = Joiner(hold=True)
    _take(joiner, 0)
    _add(joiner, second)

    assert [] == _take(joiner, 9 * JOIN_NS)
    assert [] == _add(joiner, first)
    assert [[first.id, second.id]] == _ids(joiner.take())


def test_the_same_namespace_again_is_another_packet() -> None:
    """A retransmission that looks the same ends the packet before it."""
    first, second = article()
    again = replace(first, id="again")
    joiner = Joiner(hold=True)

    assert [[first.id, second.id]] == _add(joiner, first, second, again)
    assert [["again"]] == _ids(joiner.take())


@pytest.mark.parametrize("hold", [False, True])
def test_what_goes_out_by_lo_comes_in_again(*, hold: bool) -> None:
    """A packet to lo is joined with its way in, once; the next that looks alike is another."""
    out = replace(article()[0], in_device=None, out_device="lo", id="out")
    back = replace(article()[0], in_device="lo", out_device=None, id="in")
    joiner = Joiner(hold=hold)

    assert [["out", "in"]] == _add(joiner, out, back, out)
    assert [["out"]] == _ids(joiner.take())


def test_the_oldest_goes_when_too_many_wait() -> None:
    """Beyond the bound the packet that was first seen first is told."""
    first, _ = article()
    joiner = Joiner(hold=True)
    waiting = [
        replace(first, fingerprint=str(number), id=str(number)) for number in range(MAX_JOINING)
    ]

    assert [] == _add(joiner, *waiting)
    assert [["0"]] == _add(joiner, replace(first, fingerprint="new"))
    assert MAX_JOINING == len(list(joiner.take()))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 400)), max_size=40))
def test_no_journey_is_lost_or_doubled(added: list[tuple[int, int, int]]) -> None:
    """Whatever comes in whatever order, each journey leaves once, in packets of one fingerprint."""
    first, _ = article()
    joiner = Joiner(hold=True)
    told: list[list[Journey]] = []
    now_ns = START_NS
    for number, (fingerprint, netns, later_ms) in enumerate(added):
        now_ns += later_ms * 1_000_000
        journey = replace(first, id=str(number), fingerprint=str(fingerprint), netns=str(netns))
        told += joiner.take(Progress(now_ns, now_ns))
        told += joiner.add(journey)
    told += joiner.take()

    assert sorted(range(len(added))) == sorted(int(one.id) for packet in told for one in packet)
    assert all(len({one.fingerprint for one in packet}) == 1 for packet in told)
    assert all(len({one.netns for one in packet}) == len(packet) for packet in told)

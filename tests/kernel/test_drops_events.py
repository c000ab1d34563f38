"""What befalls followed packets, as the kernel's programs tell it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.core.drop_events import SkbEventKind
from tracer.core.filters import Filter
from tracer.sources.bpf_events import SkbEvents
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

_TO_B = "10.1.0.2"
_TO_B6 = "fd01::2"


@pytest.fixture
def cable(netns: Callable[..., str]) -> Iterator[SkbEvents]:
    """Lay a cable from a to b, and open the events of both, armed with nothing."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", ("10.1.0.1/24", "fd01::1/64"), "b", "b0", (f"{_TO_B}/24", f"{_TO_B6}/64"))
    events = SkbEvents([find_namespace("a"), find_namespace("b")])
    events.open()
    with contextlib.closing(events):
        yield events


def _told(events: SkbEvents, count: int) -> npt.NDArray[np.void]:
    """Wait for *count* events; no more may follow them."""
    nets.wait_until(lambda: events.loss().told >= count, what=f"event {count}")
    rows = events.read()
    assert count == len(rows)
    return rows


def _ways(rows: npt.NDArray[np.void]) -> set[tuple[str, ...]]:
    """Tell what befell each packet, in order, by its fingerprint."""
    ways: dict[int, list[str]] = {}
    for row in rows:
        name = SkbEventKind(int(row["kind"])).name.lower()
        ways.setdefault(int(row["fingerprint"]), []).append(name)
    return {tuple(way) for way in ways.values()}


@pytest.mark.parametrize("to", [_TO_B, _TO_B6])
def test_a_delivered_packet_is_told_from_end_to_end(cable: SkbEvents, to: str) -> None:
    """Sent, received and delivered, each once for each packet, in that order."""
    cable.arm([Filter(dst=ipaddress.ip_network(to), dport=7001)])
    with nets.udp_listener("b", 7001, "::" if ":" in to else "0.0.0.0"):  # noqa: S104
        for number in range(13):
            nets.send_udp("a", to, 7001, payload=number.to_bytes(2, "big"))
        rows = _told(cable, 39)

    assert {("sent", "received", "delivered")} == _ways(rows)
    assert {find_namespace("a").inode, find_namespace("b").inode} == set(rows["netns"].tolist())


def test_a_drop_has_its_reason_and_its_namespace(cable: SkbEvents) -> None:
    """A closed port and a rule end packets with the kernel's own words, in b."""
    cable.arm([Filter(dst=ipaddress.ip_network(_TO_B), dport=port) for port in (7002, 7003)])
    nets.load_rules("b", "legacy", "*filter\n-A INPUT -p udp --dport 7003 -j DROP\nCOMMIT\n")
    nets.send_udp("a", _TO_B, 7002, 7)
    nets.send_udp("a", _TO_B, 7003, 11)
    rows = _told(cable, 7 * 4 + 11 * 3)
    drops = rows[rows["kind"] == SkbEventKind.DROPPED]
    ended = [
        (int(row["packet"]["dport"]), cable.reasons[int(row["reason"])], int(row["netns"]))
        for row in drops
    ]

    inode = find_namespace("b").inode
    assert {(7002, "NO_SOCKET", inode): 7, (7003, "NETFILTER_DROP", inode): 11} == {
        end: ended.count(end) for end in ended
    }


def test_what_nobody_follows_is_not_told(cable: SkbEvents) -> None:
    """Neither before arming, nor of another port, protocol, address or family."""
    nets.send_udp("a", _TO_B, 7004, 5)
    cable.arm([Filter(dst=ipaddress.ip_network(_TO_B), dport=7004, proto=socket.IPPROTO_TCP)])
    nets.send_udp("a", _TO_B, 7004, 5)
    nets.send_tcp_syn("a", _TO_B, 7005)
    nets.send_tcp_syn("a", _TO_B6, 7004)
    nets.send_tcp_syn("a", _TO_B, 7004)

    assert {6} == set(_told(cable, 4)["packet"]["proto"].tolist())


def test_prefixes_are_matched_bit_by_bit(cable: SkbEvents) -> None:
    """A /31 that holds the address matches, its neighbour does not."""
    cable.arm([Filter(dst=ipaddress.ip_network("10.1.0.0/31"), proto=socket.IPPROTO_UDP)])
    nets.send_udp("a", _TO_B, 7006)
    cable.arm([Filter(dst=ipaddress.ip_network("10.1.0.2/31"))])
    nets.send_udp("a", _TO_B, 7007)

    assert {7007} == set(_told(cable, 4)["packet"]["dport"].tolist())


def test_namespaces_that_nobody_follows_are_silent(netns: Callable[..., str]) -> None:
    """Of a way through two namespaces only the followed one's part is told."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{_TO_B}/24")
    with contextlib.closing(SkbEvents([find_namespace("b")])) as events:
        events.open()
        events.arm([Filter(dst=ipaddress.ip_network(_TO_B), dport=7008)])
        nets.send_udp("a", _TO_B, 7008, 7)
        rows = _told(events, 7 * 3)

    assert {find_namespace("b").inode} == set(rows["netns"].tolist())


def test_times_are_the_kernels_and_grow(cable: SkbEvents) -> None:
    """Every event lies between the clock's readings around it, in order."""
    cable.arm([Filter(dport=7009)])
    before = time.time_ns()
    nets.send_udp("a", _TO_B, 7009, 3)
    times = _told(cable, 12)["time_ns"]
    after = time.time_ns()

    # The clocks are read one after the other: a millisecond is allowed for it.
    assert before - 1_000_000 < times[0] <= times[-1] < after + 1_000_000
    assert (times[1:] >= times[:-1]).all()


def test_nothing_is_left_attached(cable: SkbEvents) -> None:
    """After close() nothing is told any more, and closing again does no harm."""
    cable.close()
    cable.close()
    with pytest.raises(ValueError, match="not open"):
        cable.read()


_OPEN = """
from tracer.sources.bpf_events import SkbEvents
events = SkbEvents([])
events.open()
print(repr(events.unseen))
"""


def test_delivery_is_seen_without_the_kernels_symbols() -> None:
    """Who may not read their addresses, nor hide them from the compiler, sees it all the same."""
    within = ("setpriv", "--bounding-set=-syslog,-sys_admin")
    done = nets.run(*within, sys.executable, "-c", _OPEN)

    assert ("''\n", "") == (done.stdout, done.stderr)

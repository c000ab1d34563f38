"""What an operator meets: each cause of a drop in plain words, packet by packet."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from bpf.btf import Btf
from bpf.layout import Mode
from tests.kernel import nets
from tracer.cli.drop_watch import Choice, DropWatch
from tracer.cli.run import Interrupts
from tracer.core.filters import Filter
from tracer.sources.drops import DropSource
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TO_B, _TO_C, _NOBODY = "10.1.0.2", "10.2.0.2", "10.2.0.99"
# include/uapi/linux/if_ether.h, if_packet.h
_ETH_ALL, _SOL_PACKET, _PACKET_VNET_HDR = 3, 263, 15
_WORDS = {"once": True, "interval": 0.1, "timeout": None, "output": "json"}


@pytest.fixture
def source(netns: Callable[..., str]) -> Iterator[DropSource]:
    """Lay a cable from a to b, which routes to c, and record drops."""
    netns("a")
    netns("b", forward=True)
    netns("c")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{_TO_B}/24")
    nets.veth("b", "b1", "10.2.0.1/24", "c", "c0", f"{_TO_C}/24")
    nets.route("a", "default", "via", _TO_B)
    source = DropSource([find_namespace("b")])
    source.open()
    with contextlib.closing(source):
        source.set_mode(Mode.RECORD)
        yield source


def _told(source: DropSource, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what the command says of b's drops so far."""
    choice = Choice(Filter(), frozenset({find_namespace("b").inode}), None, "total")
    with Interrupts() as interrupts:
        DropWatch(source, choice, _WORDS).run(interrupts, Console())
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _send_udp_raw(count: int, *, ttl: int, checksum: int) -> None:
    """Send from a to c with a TTL and a UDP checksum of our own."""
    udp = struct.pack("!4H", 4000, 7001, 12, checksum) + b"abcd"
    with nets.in_netns("a"), socket.socket(socket.AF_INET, socket.SOCK_RAW, 17) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        for _ in range(count):
            sock.sendto(udp, (_TO_B if ttl > 1 else _TO_C, 0))


def _wire() -> socket.socket:
    """Return what sees and sends frames on a's device, its own among them."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_ALL))
    # With the kernel's header in front: checksums are not yet in what it sends.
    wire.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    wire.bind(("a0", _ETH_ALL))
    return wire


def _frame(wire: socket.socket, ending: bytes) -> bytes:
    """Return the first frame that *wire* sees with *ending*."""
    wire.settimeout(10)
    while not (frame := wire.recv(2048)).endswith(ending):
        pass
    return frame


def _rp_filter() -> None:
    nets.sysctl("b", {"net/ipv4/conf/b0/rp_filter": 1})
    nets.ip_batch("a", ["address add 10.99.0.1/32 dev a0"])
    nets.send_udp("a", _TO_B, 7004, 13, src="10.99.0.1")


def _no_free_port() -> None:
    rules = "*nat\n-A POSTROUTING -p udp -j MASQUERADE --to-ports 5000\nCOMMIT\n"
    nets.load_rules("b", "legacy", rules)
    with nets.udp_listener("c", 7005):
        nets.send_udp("a", _TO_C, 7005, 1, sport=4001)
        for sport in range(4002, 4013):
            nets.send_udp("a", _TO_C, 7005, 1, sport=sport)


_CAUSES: dict[str, tuple[Callable[[], object], int, str, str]] = {
    "rp_filter": (_rp_filter, 13, "reverse path filter", "ip route get 10.99.0.1"),
    "route": (
        lambda: nets.send_udp("a", "10.77.0.1", 7004, 17),
        17,
        "no route to the destination",
        "ip route get 10.77.0.1 from 10.1.0.1",
    ),
    "udp port": (
        lambda: nets.send_udp("a", _TO_B, 7003, 19),
        19,
        "nobody listens on the port",
        "ss -lntup",
    ),
    "tcp port": (
        lambda: nets.send_tcp_syn("a", _TO_B, 7003, 23),
        23,
        "nobody listens on the port",
        "ss -lntup",
    ),
    "ttl": (
        lambda: _send_udp_raw(29, ttl=1, checksum=0),
        29,
        "no TTL left",
        f"tracepath -n {_TO_C}",
    ),
    "checksum": (
        lambda: _send_udp_raw(31, ttl=64, checksum=0x1234),
        31,
        "bad UDP checksum",
        "ethtool -K",
    ),
    "nat": (_no_free_port, 11, "connection tracking: another connection", "conntrack -S"),
}


@pytest.mark.parametrize("cause", _CAUSES)
def test_a_cause_has_its_words(
    source: DropSource, capsys: pytest.CaptureFixture[str], cause: str
) -> None:
    """Every packet that died of it is in one row, which says why and what to look at next."""
    make, packets, what, look_at = _CAUSES[cause]
    make()
    rows = _told(source, capsys)
    (row,) = [row for row in rows if row["what"].startswith(what)]

    assert packets == row["packets"]
    assert look_at in row["look_at"]
    assert 1.0 == row["top_share"] or cause == "nat"


def test_a_silent_next_hop_is_named(source: DropSource, capsys: pytest.CaptureFixture[str]) -> None:
    """Packets that waited for an address nobody has say that the next hop does not answer."""
    quick = {"mcast_solicit": 1, "ucast_solicit": 1, "retrans_time_ms": 50}
    nets.sysctl("b", {f"net/ipv4/neigh/b1/{name}": value for name, value in quick.items()})
    nets.send_udp("a", _NOBODY, 7006, 37)

    def failed() -> int:
        rows = source.counts()
        return sum(row.packets for row in rows if row.reason.startswith("NEIGH_"))

    nets.wait_until(lambda: failed() >= 37, 10, "the neighbour's failure")
    rows = [row for row in _told(source, capsys) if row["reason"].startswith("NEIGH_")]

    assert 37 == sum(row["packets"] for row in rows)
    assert "the next hop does not answer ARP or ND" in {row["what"] for row in rows}
    assert {"ip neigh show; is the next hop up, and on this wire?"} == {
        row["look_at"] for row in rows
    }


def test_what_came_as_far_as_a_socket_has_its_namespace(
    source: DropSource, capsys: pytest.CaptureFixture[str]
) -> None:
    """A segment that came before is dropped when the packet has left its device behind."""
    arguments = Btf().tracepoint_arguments("kfree_skb")
    if arguments < 4:
        pytest.skip(f"kfree_skb tells no socket: it has {arguments} arguments by BTF")
    with nets.in_netns("b"):
        server = socket.create_server((_TO_B, 7010))
    with nets.in_netns("a"), _wire() as wire:
        client = socket.create_connection((_TO_B, 7010))
        client.sendall(b"nftrace" * 3)
        segment = _frame(wire, b"nftrace" * 3)
        with server, client, server.accept()[0] as accepted:
            assert b"nftrace" * 3 == accepted.recv(100)
            for _ in range(13):
                wire.send(segment)
            rows = [row for row in _told(source, capsys) if row["reason"].startswith("TCP_OLD")]

    assert [("b", 13)] == [(row["netns"], row["packets"]) for row in rows]

"""The test network's own promises: what is sent is what arrives, to the packet."""

from __future__ import annotations

import select
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets, probes

if TYPE_CHECKING:
    from collections.abc import Callable

_ETH_P_ALL = 3
#: More frames than this in a row are no test's.
_CHATTER = 100

_ACCOUNT = {
    "legacy": "*raw\n-A PREROUTING -p {proto} -j ACCEPT\nCOMMIT\n",
    "nft": "*raw\n-A PREROUTING -p {proto} -j ACCEPT\nCOMMIT\n",
    "nftables": (
        "table ip raw {{\nchain PREROUTING {{\ntype filter hook prerouting priority raw;\n"
        "meta l4proto {proto} counter accept\n}}\n}}\n"
    ),
}


@pytest.fixture
def wire(netns: Callable[..., str]) -> tuple[str, str]:
    """Two hosts with a cable: a is 10.9.0.1, b is 10.9.0.2."""
    a, b = netns("a"), netns("b")
    nets.veth(a, "eth0", ("10.9.0.1/24", "fd09::1/64"), b, "eth0", ("10.9.0.2/24", "fd09::2/64"))
    return a, b


@pytest.mark.parametrize("backend", nets.BACKENDS)
def test_each_sender_sends_exactly_what_was_asked(wire: tuple[str, str], backend: str) -> None:
    """As many packets arrive as were sent, by the rules' own counters."""
    a, b = wire
    for proto, send in (
        ("udp", lambda: nets.send_udp(a, "10.9.0.2", 53, 17)),
        ("tcp", lambda: nets.send_tcp_syn(a, "10.9.0.2", 22, 13)),
        ("icmp", lambda: nets.send_echo(a, "10.9.0.2", 11)),
    ):
        if backend == "nftables":
            nets.ip_netns_exec(b, "nft", "flush", "ruleset")
        nets.load_rules(b, backend, _ACCOUNT[backend].format(proto=proto))
        send()

        expected = {"udp": 17, "tcp": 13, "icmp": 11}[proto]
        assert [expected] == nets.rule_counters(b, backend, "raw", "PREROUTING")


@pytest.mark.parametrize("network", ["10.9.0.{}/24", "fd09::{}/64"])
def test_a_cable_is_silent(netns: Callable[..., str], network: str) -> None:
    """On a cable goes what a test sends and no more: no ARP, no solicitations, no reports."""
    a, b = netns("a"), netns("b")
    nets.veth(a, "eth0", network.format(1), b, "eth0", network.format(2))
    address = network.format(2).partition("/")[0]
    if ":" in address:
        # IPv6 reports a group when it joins it, at once and never again.
        nets.wait_until(lambda: _count_reports(a) and _count_reports(b), what="the first reports")
    with nets.in_netns(b):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    with tap, nets.udp_listener(b, 53, address):
        # What was joined within some ticks goes into one report more.
        _read_until_silent(tap, 0.3)
        nets.send_udp(a, address, 53, 5, sport=4000)
        frames = _read_until_silent(tap, 1.3)

    assert [b"\x86\xdd" if ":" in address else b"\x08\x00"] * 5 == [f[12:14] for f in frames]
    assert [(4000).to_bytes(2, "big") + (53).to_bytes(2, "big")] * 5 == [
        frame[54:58] if ":" in address else frame[34:38] for frame in frames
    ]


def _count_reports(ns: str) -> int:
    text = nets.ip_netns_exec(ns, "cat", "/proc/net/snmp6").stdout
    return next(int(line.split()[1]) for line in text.splitlines() if "OutMLDv2Reports" in line)


def _read_until_silent(tap: socket.socket, silence_s: float) -> list[bytes]:
    frames = []
    while select.select([tap], [], [], silence_s)[0]:
        frames.append(tap.recv(2048))
        assert len(frames) < _CHATTER, frames
    return frames


def test_a_flood_sends_its_count_from_each_port(wire: tuple[str, str]) -> None:
    """A burst of a prime number of packets arrives whole, each number once."""
    a, b = wire
    with nets.udp_listener(b, 9000) as sock:
        sock.setsockopt(1, 33, 8 << 20)  # SO_RCVBUFFORCE
        done = nets.flood(a, "10.9.0.2", 9000, 1009, sport=40000, ports=7)
        seen = [sock.recvfrom(2048) for _ in range(1009)]

    assert done.sent == 1009
    numbers = sorted(int.from_bytes(data[:8], "big") for data, _ in seen)
    assert list(range(1009)) == numbers
    assert {(int.from_bytes(d[:8], "big") % 7) + 40000 == peer[1] for d, peer in seen} == {True}


def test_a_flood_keeps_to_its_rate(wire: tuple[str, str]) -> None:
    """At 5,000 packets a second, 997 packets take about a fifth of a second."""
    a, _ = wire

    done = nets.flood(a, "10.9.0.2", 9, 997, rate=5000)

    assert done.elapsed_ns > 0.9 * 997 / 5000 * 1e9


def test_the_machine_sees_no_namespace_of_ours(
    netns: Callable[..., str], private_machine: nets.Outside
) -> None:
    """A namespace made in a test is not under the /run/netns that pytest left."""
    netns("unseen")

    assert Path("/run/netns/unseen").exists()
    assert not Path(f"/proc/self/fd/{private_machine.run_fd}/netns/unseen").exists()
    assert private_machine.net != str(Path("/proc/self/ns/net").readlink())


@pytest.mark.parametrize("capability", sorted(probes.PROBES))
def test_a_probe_answers_and_leaves_nothing(capability: str) -> None:
    """Every probe answers yes or a reason, and its table, link or set is gone after."""
    missing = probes.find_missing(capability)

    assert missing is None or missing.strip()
    assert nets.run("nft", "list", "tables").stdout.count("probe") == 0
    assert "probe" not in nets.run("ip", "-br", "link").stdout

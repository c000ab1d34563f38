"""Drops at devices, on bridges, of ARP and in nat chains are placed rightly or not at all."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.core.drops import Rung
from tracer.sources.drops import DropSource
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.core.drops import DropCount

_TO_C, _TO_R = "10.1.0.2", "10.1.0.3"
_BRIDGE = """table bridge br {
  chain forw { type filter hook forward priority 0; udp dport 7202 drop; }
  chain inp { type filter hook input priority 0; udp dport 7203 drop; }
}
table netdev nd {
  chain ing { type filter hook ingress device "r0" priority 0; udp dport 7205 drop; }
}
table inet ii {
  chain ing { type filter hook ingress device "r0" priority 10; udp dport 7207 drop; }
}
"""
_HOST = """table arp ar {
  chain inp { type filter hook input priority 0; arp saddr ip 10.1.0.77 drop; }
}
table ip nn {
  chain track { type filter hook prerouting priority -150; ct state invalid accept; }
  chain pre { type nat hook prerouting priority -100; udp dport 7208 drop; }
  chain strict { type filter hook input priority 20; udp dport 7209 drop; }
}
"""


@pytest.fixture
def bridged(netns: Callable[..., str]) -> None:
    """Lay cables from a and c to r, which is a bridge between them."""
    for need in ("bridge", "nft_bridge", "nft_ingress"):
        nets.require(need)
    for name in ("a", "r", "c"):
        netns(name)
    for name, port in (("a", "r0"), ("c", "r1")):
        nets.run(*f"ip -n {name} link add {name}0 type veth peer name {port} netns r".split())
        nets.ip_batch(name, [f"link set {name}0 up"])
    nets.ip_batch(
        "r",
        [
            "link add br0 type bridge",
            *(f"link set {port} master br0" for port in ("r0", "r1")),
            *(f"link set {link} up" for link in ("r0", "r1", "br0")),
            f"address add {_TO_R}/24 dev br0",
        ],
    )
    # A port forwards when the kernel has noticed its carrier, and drops until then.
    nets.wait_until(lambda: _states() == ["forwarding"] * 2, what="forwarding ports")
    nets.ip_batch("a", ["address add 10.1.0.1/24 dev a0"])
    nets.ip_batch("c", [f"address add {_TO_C}/24 dev c0"])
    nets.load_rules("r", "nftables", _BRIDGE)
    nets.load_rules("c", "nftables", _HOST)


def _states() -> list[str]:
    """Return the states of the bridge's ports."""
    shown = nets.ip_netns_exec("r", "ip", "-d", "-j", "link", "show", "master", "br0").stdout
    return [link["linkinfo"]["info_slave_data"]["state"] for link in json.loads(shown)]


def _send_arp(count: int) -> None:
    """Ask for c's address in the name of one that its rules drop."""
    mac = bytes.fromhex("020000000001")
    sender, target = socket.inet_aton("10.1.0.77"), socket.inet_aton(_TO_C)
    question = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, mac, sender, bytes(6), target)
    with nets.in_netns("a"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("a0", 0))
        for _ in range(count):
            sock.send(b"\xff" * 6 + mac + b"\x08\x06" + question)


def _placed(rung: Rung) -> tuple[dict[tuple[str | None, ...], int], set[bool], int]:
    """Send to every dropper; return what had a place, whether that was sure, and the rest."""
    inodes = {find_namespace(name).inode for name in ("r", "c")}
    with contextlib.closing(DropSource([find_namespace("c")], rung, 240.0)) as source:
        source.open()
        for port, count in ((7202, 3), (7205, 7), (7207, 11), (7208, 13), (7209, 17)):
            nets.send_udp("a", _TO_C, port, count)
        nets.send_udp("a", _TO_R, 7203, 5)
        _send_arp(19)

        def dropped() -> list[DropCount]:
            return [row for row in source.counts() if row.netns in inodes and row.kind == "rule"]

        # What is answered by ARP first waits for the answer.
        nets.wait_until(lambda: sum(row.packets for row in dropped()) >= 75, what="75 drops")
        rows = dropped()
    placed = {(r.hook, r.family, r.table, r.chain): r.packets for r in rows if r.table}
    sure = {row.certain for row in rows if row.table}
    return placed, sure, sum(row.packets for row in rows if row.table is None)


@pytest.mark.usefixtures("bridged")
def test_saved_registers_place_them_or_claim_nothing() -> None:
    """All but a nat chain's drops have their place; those have none, and are counted."""
    expected = {
        ("forward", "bridge", "br", "forw"): 3,
        ("input", "bridge", "br", "inp"): 5,
        ("ingress", "netdev", "nd", "ing"): 7,
        ("ingress", "inet", "ii", "ing"): 11,
        ("input", "ip", "nn", "strict"): 17,
        ("input", "arp", "ar", "inp"): 19,
    }
    assert (expected, {True}, 13) == _placed(Rung.RULE)


@pytest.mark.usefixtures("bridged")
def test_links_are_not_sure_beside_chains_without_a_mark() -> None:
    """A chain's place is marked as doubtful where another dropped that no link is before."""
    nets.require("bpf_netfilter")
    placed, sure, others = _placed(Rung.LINKS)

    # The nat chain's drops came by no mark: they are given to the one chain that has one.
    assert {("input", "ip", "nn", "strict"): 13 + 17} == placed
    assert {False} == sure
    assert 3 + 5 + 7 + 11 + 19 == others

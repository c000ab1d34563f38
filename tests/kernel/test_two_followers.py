"""Two who listen at once: each has its own packets, or is told who is in the way."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow

if TYPE_CHECKING:
    from collections.abc import Callable

NFT = """
table ip mine { chain in { type filter hook input priority 0; policy accept;
 udp dport 7001 drop
 udp dport 7002 drop
}; }
"""
LEGACY = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp --dport 7001 -j DROP\nCOMMIT\n"


@pytest.fixture
def cable(netns: Callable[..., str]) -> None:
    """Lay a cable from a to b."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")


@pytest.mark.usefixtures("cable")
def test_two_in_one_nft_namespace_see_each_its_own() -> None:
    """The packets that the other one traces are not shown, and nothing of its tables."""
    nets.load_rules("b", "nftables", NFT)
    with follow("b", "--dport", "7001") as one, follow("b", "--dport", "7002") as other:
        nets.send_udp("a", "10.1.0.2", 7001, 11)
        nets.send_udp("a", "10.1.0.2", 7002, 13)
        first, second = one.finish(11), other.finish(13)

    assert {(("mine", "in", 1, "drop"),): 11} == dict(first.ways())
    assert {(("mine", "in", 2, "drop"),): 13} == dict(second.ways())


@pytest.mark.usefixtures("cable")
def test_the_second_in_a_legacy_namespace_is_told_who_holds_it() -> None:
    """NFLOG group 0 takes one listener: the refusal names its process, and the first goes on."""
    nets.load_rules("b", "legacy", LEGACY)
    with follow("b", "--dport", "7001") as run:
        refused = nets.nftrace("b", "follow", "--dport", "7001")
        nets.send_udp("a", "10.1.0.2", 7001, 7)
        told = run.finish(7)

    assert 3 == refused.returncode
    assert 1 == refused.stderr.count("\n")
    assert "NFLOG group 0 is held by" in refused.stderr
    assert f"(pid {run.process.pid})" in refused.stderr
    assert {(("filter", "INPUT", 1, "drop"),): 7} == dict(told.ways())


@pytest.mark.usefixtures("cable")
def test_two_in_two_legacy_namespaces_do_not_meet() -> None:
    """The group and the logger are the namespace's own."""
    for ns in ("a", "b"):
        nets.load_rules(ns, "legacy", LEGACY)
    with follow("a", "--dport", "7001") as one, follow("b", "--dport", "7001") as other:
        nets.send_udp("a", "10.1.0.2", 7001, 5)
        here, there = one.finish(5), other.finish(5)

    assert {(("filter", "OUTPUT", None, "accept"),): 5} == dict(here.ways())
    assert {(("filter", "INPUT", 1, "drop"),): 5} == dict(there.ways())


@pytest.mark.usefixtures("cable")
def test_a_foreign_holder_of_the_group_is_named() -> None:
    """Whoever holds NFLOG group 0, the refusal has its name and pid, and nothing changed."""
    nets.load_rules("b", "legacy", LEGACY)
    holder = _HOLDER.format(bind=_bind_request())
    with nets.spawn("b", "python3", "-c", holder) as process:
        assert process.stdout is not None
        assert "held" == process.stdout.readline().strip()
        refused = nets.nftrace("b", "follow", "--dport", "7001")

    assert 3 == refused.returncode
    assert f"python3 (pid {process.pid})" in refused.stderr
    assert "nftrace_" not in nets.ip_netns_exec("b", "nft", "list", "tables").stdout


_HOLDER = """
import signal, socket
held = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
held.bind((0, 0))
held.send({bind!r})
held.recv(4096)
print("held", flush=True)
signal.pause()
"""


def _bind_request() -> bytes:
    """NFULNL_MSG_CONFIG with NFULA_CFG_CMD bind, for group 0."""
    body = struct.pack(">BBH", socket.AF_UNSPEC, 0, 0) + struct.pack("=HHB3x", 5, 1, 1)
    return struct.pack("=IHHII", 16 + len(body), (4 << 8) | 1, 5, 1, 0) + body

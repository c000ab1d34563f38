"""Rules that come while a follow runs: chains, tables and translations that nobody had."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 7
ACCEPTING = """
table ip mine { chain in { type filter hook input priority 0; policy accept;
 udp dport 7001 counter
}; }
"""
LEGACY = "*mangle\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp --dport 7001 -j DROP\nCOMMIT\n"
WAY = (("mangle", "PREROUTING", None, "accept"), ("mangle", "INPUT", 1, "drop"))


@pytest.fixture
def cable(netns: Callable[..., str]) -> None:
    """Lay a cable from a to b, where a chain lets everything in."""
    netns("a")
    netns("b", forward=True)
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.load_rules("b", "nftables", ACCEPTING)


def _logger() -> str:
    with nets.in_netns("b"):
        return Path("/proc/sys/net/netfilter/nf_log/2").read_text().strip()


def _own_tables() -> str:
    return nets.ip_netns_exec("b", "nft", "list", "tables").stdout


def _own_rules() -> str:
    return nets.ip_netns_exec("b", "nft", "list", "ruleset").stdout


@pytest.mark.usefixtures("cable")
def test_legacy_tables_that_come_later_are_followed() -> None:
    """A legacy table is listened to from when it is there, its rules are named, all is put back."""
    nets.require("legacy_tables")
    before = _logger()
    with follow("b", "--dport", "7001") as run:
        nets.load_rules("b", "legacy", LEGACY)
        nets.wait_until(lambda: _logger() == "nfnetlink_log", 10, "the logger being switched")
        nets.send_udp("a", "10.1.0.2", 7001, COUNT)
        told = run.finish(COUNT)

    assert {WAY: COUNT} == dict(told.ways())
    assert {("dropped", "-A INPUT -p udp -m udp --dport 7001 -j DROP"): COUNT} == told.endings()
    (note,) = told.summary["notes"]
    assert "legacy tables came into being" in note
    assert before == _logger()


@pytest.mark.usefixtures("cable")
def test_the_other_familys_tables_that_come_later_are_followed() -> None:
    """Where IPv6 tables were there, those of IPv4 that come later are switched on as well."""
    nets.require("legacy_tables")
    nets.load_rules("b", "legacy6", "*filter\nCOMMIT\n")
    with follow("b", "--dport", "7001") as run:
        nets.load_rules("b", "legacy", LEGACY)
        nets.wait_until(lambda: _logger() == "nfnetlink_log", 10, "the logger being switched")
        nets.send_udp("a", "10.1.0.2", 7001, COUNT)
        told = run.finish(COUNT)

    assert {WAY: COUNT} == dict(told.ways())


@pytest.mark.usefixtures("cable")
def test_who_holds_the_group_is_said_of_later_tables() -> None:
    """Where another has NFLOG group 0, later legacy tables are not followed, which is said."""
    nets.require("legacy_tables")
    before = _logger()
    with nets.in_netns("b"):
        holder = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    with holder:
        holder.bind((0, 0))
        body = struct.pack(">BBH", socket.AF_UNSPEC, 0, 0) + struct.pack("=HHB3x", 5, 1, 1)
        holder.send(struct.pack("=IHHII", 16 + len(body), (4 << 8) | 1, 5, 1, 0) + body)
        assert (0,) == struct.unpack_from("=i", holder.recv(4096), 16)
        with follow("b", "--dport", "7001", "--count", str(2 * COUNT)) as run:
            nets.send_udp("a", "10.1.0.2", 7001, COUNT)
            nets.wait_until(lambda: run.count_lines() == COUNT, 10, "the first packets")
            nets.load_rules("b", "legacy", LEGACY.replace("DROP", "ACCEPT"))
            nets.send_udp("a", "10.1.0.2", 7001, COUNT)
            told = run.finish(2 * COUNT)

    assert {("mine", "in", 1, "continue")} == {way[0] for way in told.ways()}
    (note,) = told.summary["notes"]
    assert "NFLOG group 0 is held by" in note
    assert before == _logger()


INGRESS = """
table netdev gate { chain first { type filter hook ingress device "b0" priority 0; policy accept;
 udp dport 7001 drop
}; }
"""


@pytest.mark.usefixtures("cable")
def test_an_ingress_chain_that_comes_later_is_followed() -> None:
    """Where a device gets an ingress chain, packets are traced from there on."""
    nets.require("nft_ingress")
    with follow("b", "--dport", "7001") as run:
        nets.load_rules("b", "nftables", INGRESS)
        nets.wait_until(
            lambda: f"table netdev nftrace_follow_{run.process.pid}" in _own_tables(), 10, "arming"
        )
        nets.send_udp("a", "10.1.0.2", 7001, COUNT)
        told = run.finish(COUNT)

    assert {(("gate", "first", 1, "drop"),): COUNT} == dict(told.ways())
    assert {True} == {one["whole"] for one in told.journeys}
    assert "nftrace_" not in _own_tables()


NAT = """
table ip nat2 { chain pre { type nat hook prerouting priority -100;
 ip daddr 10.1.0.2 udp dport 77 dnat to 10.1.0.2:7001
}; }
"""


@pytest.mark.usefixtures("cable")
@pytest.mark.parametrize("rate", ["0", "1000"])
def test_a_translation_that_comes_later_is_mapped_back(rate: str) -> None:
    """Rules that translate to what is followed are armed for when they come, limit or not."""
    with follow("b", "--dst", "10.1.0.2", "--dport", "7001", "--rate", rate) as run:
        nets.load_rules("b", "nftables", NAT)
        nets.wait_until(lambda: "10.1.0.2 . 77" in _spaced(_own_rules()), 10, "arming")
        nets.send_udp("a", "10.1.0.2", 77, COUNT)
        told = run.finish(COUNT)

    assert [True] * COUNT == [one["whole"] for one in told.journeys]
    assert {77} == {one["packet"]["dport"] for one in told.journeys}
    assert 0 == told.summary["over_limit"]


def _spaced(text: str) -> str:
    return " ".join(text.replace(" . 17 . ", " . ").replace(" . udp . ", " . ").split())

"""Follow's words: which namespaces, which journeys, how told, and when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNT = 7
NOISE = 5
_CLIENT, _ROUTER, _SERVER = "client", "router", "server"
_RULES = """table inet f {
 chain kill {
  udp dport 53 drop comment "no names"
 }
 chain forward {
  type filter hook forward priority 0;
  meta l4proto udp jump kill
 }
 chain input {
  type filter hook input priority 0; policy drop;
 }
}
table ip m {
 chain pre {
  type filter hook prerouting priority -150;
  udp dport 53 meta mark set 0x2
 }
}
"""


@pytest.fixture
def road(netns: Callable[..., str]) -> str:
    """Give a router that drops names, between a client and a server."""
    for name in (_CLIENT, _ROUTER, _SERVER):
        netns(name, forward=name == _ROUTER)
    nets.veth(
        *(_CLIENT, "eth0", ("10.1.0.2/24", "fd01::2/64")),
        *(_ROUTER, "eth0", ("10.1.0.1/24", "fd01::1/64")),
    )
    nets.veth(
        *(_ROUTER, "eth1", ("10.2.0.1/24", "fd02::1/64")),
        *(_SERVER, "eth0", ("10.2.0.2/24", "fd02::2/64")),
    )
    for ns, gateway in ((_CLIENT, "10.1.0.1"), (_CLIENT, "fd01::1"), (_SERVER, "10.2.0.1")):
        nets.route(ns, "default", "via", gateway)
    nets.load_rules(_ROUTER, "nftables", _RULES)
    nets.load_rules(_SERVER, "nftables", _RULES)
    return _ROUTER


def _send() -> None:
    nets.send_udp(_CLIENT, "10.2.0.2", 53, COUNT)
    nets.send_udp(_CLIENT, "10.2.0.2", 54, 3)
    nets.send_tcp_syn(_CLIENT, "10.2.0.2", 53, 2)
    nets.send_udp(_CLIENT, "fd02::2", 53, NOISE)
    nets.send_udp(_CLIENT, "10.1.0.1", 99, 11)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--dst 10.2.0.0/24 --proto udp", 10),
        ("--dst 10.2.0.0/24 --proto 6", 2),
        ("--dst fd02::/64", NOISE),
        ("--src fd01::2 --dport domain", NOISE),
        ("--src 10.1.0.0/30 --dport 53", 9),
        ("--src 10.1.0.2 --in eth0 --out eth1", 12),
        ("--src 10.1.0.2 --in eth1", 0),
        ("--src 10.1.0.2 --table m", 23),
        ("--src 10.1.0.2 --table m --verdict continue", COUNT),
        ("--src 10.1.0.2 --chain kill", COUNT),
        ("--src 10.1.0.2 --chain kill --verdict drop", COUNT),
        ("--src 10.1.0.2 --chain input --verdict drop", 11),
        ("--src 10.1.0.2 --hook forward", 12),
        ("--src 10.1.0.2 --hook input", 11),
        ("--src 10.1.0.2 --verdict DROP", 18),
    ],
)
def test_each_word_chooses_exactly(road: str, words: str, expected: int) -> None:
    """Only the journeys that all words mean are told, and all of them."""
    with follow(road, *words.split()) as run:
        _send()
        told = run.finish(0)

    assert expected == len(told.journeys) == told.summary["packets"]


@pytest.mark.parametrize("way", ["names", "process", "all"])
def test_one_packet_is_told_in_each_namespace(road: str, way: str) -> None:
    """Namespaces by name, by process or all of them: each tells its own pass, once."""
    with nets.spawn(_SERVER, "sleep", "60") as process:
        words = {
            "names": ("--netns", road, "--netns", _SERVER, "--netns", road),
            "process": ("--netns", road, "--netns", str(process.pid)),
            "all": ("--netns", "all"),
        }[way]
        options = (*words, "--dst", "10.2.0.2", "--dport", "54")
        with follow(_CLIENT, *options, armed_in=(road, _SERVER)) as run:
            nets.send_udp(_CLIENT, "10.2.0.2", 54, COUNT)
            told = run.finish(0)

    ways = [j for j in told.journeys if j["netns"] in (road, _SERVER)]
    for name in (road, _SERVER):
        assert COUNT == sum(j["netns"] == name for j in ways)
    prints = {j["fingerprint"] for j in ways}
    assert [2] * len(prints) == [
        len({j["netns"] for j in ways if j["fingerprint"] == one}) for one in prints
    ]
    assert COUNT == told.summary["packets"]


def test_count_ends_it(road: str) -> None:
    """--count tells so many packets, not one more, and ends with 0."""
    with follow(road, "--dst", "10.2.0.2", "--count", "5") as run:
        nets.send_udp(_CLIENT, "10.2.0.2", 53, COUNT)
        told = run.wait()

    assert (5, 5, 0) == (len(told.journeys), told.summary["packets"], told.status)
    assert "count reached" == told.summary["reason"]


@pytest.mark.parametrize("ends", ["auto", "off"])
def test_count_counts_a_packet_over_lo_once(road: str, ends: str) -> None:
    """Out by lo and in again is one packet of --count, told in both its journeys."""
    nets.load_rules(road, "nftables", _DROPS_FROM_LO)
    with follow(road, "--ends", ends, "--dst", "127.0.0.1", "--count", "5") as run:
        nets.send_udp(road, "127.0.0.1", 7123, COUNT)
        told = run.wait()

    assert (5, "count reached") == (told.summary["packets"], told.summary["reason"])
    assert 5 == sum(one["ending"]["kind"] == "dropped" for one in told.journeys)
    assert 10 == len(told.journeys)


_DROPS_FROM_LO = """
table inet lo {
    chain c {
        type filter hook input priority 0
        udp dport 7123 drop
    }
}
"""


def test_timeout_ends_it_with_one_where_nothing_was_seen(road: str) -> None:
    """--timeout ends it; the status says whether anything was seen."""
    with follow(road, "--dst", "10.2.0.9", "--timeout", "0.3") as run:
        nothing = run.wait()
    with follow(road, "--dst", "10.2.0.2", "--timeout", "0.7") as run:
        nets.send_udp(_CLIENT, "10.2.0.2", 53)
        something = run.wait()

    assert (1, 0) == (nothing.status, something.status)
    assert ("timeout", "timeout") == (nothing.summary["reason"], something.summary["reason"])


def test_a_capture_holds_each_packet_as_it_came(road: str, tmp_path: Path) -> None:
    """Tcpdump reads back from --pcap what was followed, before it was translated or dropped."""
    capture = tmp_path / "seen.pcapng"
    with follow(road, "--dst", "10.2.0.2", "--dport", "53", "--pcap", str(capture)) as run:
        _send()
        run.finish(0)
    lines = nets.run("tcpdump", "-nn", "-r", str(capture)).stdout.splitlines()

    assert COUNT + 2 == len(lines)
    assert COUNT + 2 == sum("10.1.0.2." in line and "> 10.2.0.2.53" in line for line in lines)
    assert 2 == sum("Flags [S]" in line for line in lines)

"""What follow says became of packets after their last rule, on the running kernel."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_live import Live, follow

if TYPE_CHECKING:
    from collections.abc import Callable

_B, _B6 = "10.2.0.2", "fd02::2"
_R, _R6 = "10.1.0.1", "fd01::1"


@pytest.fixture
def road(netns: Callable[..., str]) -> None:
    """Lay a road from a by the router r to b, IPv4 and IPv6."""
    netns("a")
    netns("r", forward=True)
    netns("b")
    nets.veth("a", "a0", ("10.1.0.2/24", "fd01::2/64"), "r", "r0", (f"{_R}/24", f"{_R6}/64"))
    nets.veth("r", "r1", ("10.2.0.1/24", "fd02::1/64"), "b", "b0", (f"{_B}/24", f"{_B6}/64"))
    for side, v4, v6 in (("a", _R, _R6), ("b", "10.2.0.1", "fd02::1")):
        nets.route(side, "default", "via", v4)
        nets.route(side, "default", "via", v6)


def _ends(live: Live) -> dict[tuple[Any, ...], int]:
    """Count the journeys' ends: kind, hook, device or reason."""
    found: Counter[tuple[Any, ...]] = Counter()
    for journey in live.journeys:
        ending = journey["ending"]
        last = journey["out"] if ending["kind"] == "sent" else ending["reason"]
        found[ending["kind"], ending["hook"], last] += 1
    return dict(found)


def _follow(*words: str, ns: str = "r", ends: str = "wait") -> Any:  # noqa: ANN401 - a context
    return follow(ns, "--ends", ends, *words)


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("to", [_B, _B6])
def test_a_forwarded_packet_is_sent_by_its_device(to: str) -> None:
    """Equal packets, too, are each received and sent, by the kernel's clock."""
    before = time.time_ns()
    with _follow("--dst", to, "--dport", "7101") as live:
        nets.send_udp("a", to, 7101, 13)
    after = time.time_ns()

    assert {("sent", "postrouting", "r1"): 13} == _ends(live)
    assert {"kernel"} == {journey["clock"] for journey in live.journeys}
    assert all(0 <= 1000 * journey["duration_us"] < after - before for journey in live.journeys)


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("to", [_R, _R6])
def test_delivery_and_a_closed_port_are_told_apart(to: str) -> None:
    """Seven packets meet a socket, eleven meet none."""
    with (
        _follow("--dst", to, "--proto", "udp") as live,
        nets.udp_listener("r", 7102, "::" if ":" in to else "0.0.0.0"),  # noqa: S104
    ):
        nets.send_udp("a", to, 7102, 7)
        nets.send_udp("a", to, 7103, 11)

    assert {("delivered", "input", None): 7, ("dropped", "input", "NO_SOCKET"): 11} == {
        (kind, "input", reason): count for (kind, _, reason), count in _ends(live).items()
    }


@pytest.mark.usefixtures("road")
def test_a_refused_connection_had_no_socket() -> None:
    """A SYN to a closed port ends for want of a socket, one to an open port is delivered."""
    with _follow("--dst", _R, "--proto", "tcp") as live, nets.tcp_listener("r", 7104):
        nets.send_tcp_syn("a", _R, 7105, 5)
        with nets.connect("a", _R, 7104):
            pass
    closed = [one for one in live.journeys if one["packet"]["dport"] == 7105]
    opened = [one for one in live.journeys if one["packet"]["tcp_flags"] == "S"]

    assert ["NO_SOCKET"] * 5 == [one["ending"]["reason"] for one in closed]
    assert "delivered" == opened[-1]["ending"]["kind"]


@pytest.mark.usefixtures("road")
def test_routing_drops_have_the_kernels_reason() -> None:
    """No way back, no way on and a hop limit used up end packets before any rule does."""
    nets.run("ip", "-n", "a", "address", "add", "10.77.0.1/32", "dev", "lo")
    nets.sysctl("r", {"net/ipv4/conf/all/rp_filter": 1})
    nets.sysctl("a", {"net/ipv4/ip_default_ttl": 64})
    with _follow("--proto", "udp") as live:
        nets.send_udp("a", _B, 7106, 5, src="10.77.0.1")
        nets.send_udp("a", "10.9.9.9", 7107, 7)
        nets.sysctl("a", {"net/ipv4/ip_default_ttl": 1})
        nets.send_udp("a", _B, 7108, 11)
    reasons = Counter(
        (one["packet"]["dport"], one["ending"]["kind"], one["ending"]["reason"])
        for one in live.journeys
    )

    assert {
        (7106, "dropped", "IP_RPFILTER"): 5,
        (7107, "dropped", "IP_INNOROUTES"): 7,
        (7108, "dropped", "IP_INHDR"): 11,
    } == reasons


@pytest.mark.usefixtures("road")
def test_an_unresolved_neighbour_ends_a_packet() -> None:
    """A packet to an address that nobody answers for dies when its neighbour has failed."""
    pace = {"retrans_time_ms": 10, "mcast_solicit": 1, "app_solicit": 0, "ucast_solicit": 0}
    nets.sysctl("r", {f"net/ipv4/neigh/r1/{name}": value for name, value in pace.items()})
    with _follow("--dst", "10.2.0.99") as live:
        nets.send_udp("a", "10.2.0.99", 7109, 3)

    assert {("dropped", "postrouting", "NEIGH_FAILED"): 3} == {
        (kind, "postrouting", reason): count for (kind, _, reason), count in _ends(live).items()
    }


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_a_rules_drop_is_the_kernels_word_for_it(backend: str) -> None:
    """What a rule drops or rejects has the reason NETFILTER_DROP and the rule."""
    nets.load_rules(
        "r",
        backend,
        "*filter\n-A FORWARD -p udp --dport 7110 -j DROP\n"
        "-A FORWARD -p udp --dport 7111 -j REJECT\nCOMMIT\n",
    )
    with _follow("--dst", _B) as live:
        nets.send_udp("a", _B, 7110, 13)
        nets.send_udp("a", _B, 7111, 1)

    assert {
        ("dropped", "forward", "NETFILTER_DROP"): 13,
        ("rejected", "forward", "NETFILTER_DROP"): 1,
    } == _ends(live)
    assert {1, 2} == {one["ending"]["rule"] for one in live.journeys}


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("backend", ["legacy", "nft", "nftables"])
@pytest.mark.parametrize("asked", ["before", "after"])
def test_translated_packets_are_recognised_at_their_end(backend: str, asked: str) -> None:
    """DNAT and masquerade rename every packet of a flow, and each is seen to leave."""
    nets.load_rules("r", backend, _NAT[backend])
    words = {
        "before": ("--dst", _R, "--dport", "8080"),
        "after": ("--dst", _B, "--dport", "80"),
    }[asked]
    with _follow(*words) as live:
        nets.send_udp("a", _R, 8080, 7, sport=4001)
        nets.send_udp("a", _R, 8080, 5, sport=4003)

    assert {("sent", "postrouting", "r1"): 12} == _ends(live)
    assert {"kernel"} == {journey["clock"] for journey in live.journeys}


@pytest.mark.usefixtures("road")
def test_a_source_before_masquerade_is_seen_to_leave() -> None:
    """A filter that names the inner source alone sees its packets leave as the router's."""
    nets.load_rules("r", "nft", "*nat\n-A POSTROUTING -o r1 -j MASQUERADE\nCOMMIT\n")
    with _follow("--src", "10.1.0.2") as live:
        nets.send_udp("a", _B, 7112, 11)

    assert {("sent", "postrouting", "r1"): 11} == _ends(live)


@pytest.mark.usefixtures("road")
def test_what_is_made_here_begins_unstamped() -> None:
    """A local packet is seen to leave; over lo it leaves once and is delivered once."""
    with _follow("--dport", "7113") as live, nets.udp_listener("r", 7113):
        nets.send_udp("r", _B, 7113, 5)
        nets.send_udp("r", _R, 7113, 7)

    assert {
        ("sent", "postrouting", "r1"): 5,
        ("sent", "postrouting", "lo"): 7,
        ("delivered", "input", None): 7,
    } == _ends(live)
    clocks = Counter((one["ending"]["kind"], one["clock"]) for one in live.journeys)
    assert {("sent", "received"): 12, ("delivered", "kernel"): 7} == clocks


@pytest.mark.usefixtures("road")
def test_one_packet_through_two_namespaces_has_two_ends() -> None:
    """Sent in the router and delivered behind it, each in its own namespace."""
    words = ("--netns", "r", "--netns", "b", "--dst", _B, "--dport", "7114")
    with (
        nets.udp_listener("b", 7114),
        follow("r", "--ends", "wait", *words, armed_in=("r", "b")) as live,
    ):
        nets.send_udp("a", _B, 7114, 13)
    by_place = Counter((one["netns"], one["ending"]["kind"]) for one in live.journeys)

    assert {("r", "sent"): 13, ("b", "delivered"): 13} == by_place
    ended = [(one["count"], one["kind"]) for one in live.summary["endings"] if one["count"]]
    assert [(13, "delivered")] == ended


@pytest.mark.usefixtures("road")
def test_off_claims_nothing() -> None:
    """With --ends off the end behind the last rule is not observed, and no time is claimed."""
    with _follow("--dst", _B, "--dport", "7115", ends="off") as live:
        nets.send_udp("a", _B, 7115, 3)
    told = [(one["ending"]["reason"], one["clock"], one["duration_us"]) for one in live.journeys]

    assert [("not observed", "received", None)] * 3 == told


_NAT = dict.fromkeys(
    ("legacy", "nft"),
    "*nat\n-A PREROUTING -p udp --dport 8080 -j DNAT --to-destination 10.2.0.2:80\n"
    "-A POSTROUTING -o r1 -j MASQUERADE\nCOMMIT\n",
)
_NAT["nftables"] = """
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat
        udp dport 8080 dnat to 10.2.0.2:80
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "r1" masquerade
    }
}
"""


@pytest.mark.usefixtures("road")
def test_too_many_packets_cost_their_ends_and_not_their_journeys() -> None:
    """At a hundred thousand a second all journeys are told, and each unseen end is counted."""
    count = 20_011
    nets.load_rules("r", "nftables", _ACCEPTING)
    with _follow("--dst", _B, "--dport", "7116", "--buffer", "256") as live:
        nets.flood("a", _B, 7116, count, rate=100_000)
    ends = Counter(one["ending"]["kind"] for one in live.journeys)

    assert (count, 0) == (ends.total(), live.summary["lost"])
    assert {"sent", "unknown"} >= set(ends)
    notes = " ".join(live.summary["notes"])
    unseen = re.search(r"(\d+) ends not seen", notes)
    assert ends["unknown"] == (int(unseen[1]) if unseen else 0), notes


_ACCEPTING = """
table ip t {
    chain c {
        type filter hook forward priority 0
        udp dport 7116 accept
    }
}
"""

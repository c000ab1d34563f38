"""Bridges: frames' ways through bridge tables, alone and in turn with ip's own."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow, way
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.follow_helper import Told, Way

LEFT, BRIDGE, RIGHT, FAR = "left", "bridge", "right", "far"
FROM, ACROSS, OWN, BEHIND = "10.3.0.1", "10.3.0.2", "10.3.0.254", "10.4.0.2"
COUNT = 7
ONLY = ("--src", FROM, "--proto", "udp")


@pytest.fixture
def bridge(netns: Callable[..., str]) -> str:
    """Give a bridge with an address of its own between two hosts, a routed third behind it."""
    nets.require("nft_bridge")
    for name in (LEFT, BRIDGE, RIGHT, FAR):
        netns(name, forward=name == BRIDGE)
    nets.ip_batch(BRIDGE, ["link add br0 address 02:00:00:ff:00:01 type bridge", "link set br0 up"])
    for port, (ns, address) in enumerate(((LEFT, FROM), (RIGHT, ACROSS))):
        nets.veth(ns, "eth0", f"{address}/24", BRIDGE, f"p{port}", None)
        nets.ip_batch(BRIDGE, [f"link set p{port} master br0"])
    nets.ip_batch(BRIDGE, [f"address add {OWN}/24 dev br0"])
    macs = {FROM: _mac(LEFT, "eth0"), ACROSS: _mac(RIGHT, "eth0"), OWN: _mac(BRIDGE, "br0")}
    for ns, dev, own in ((LEFT, "eth0", FROM), (RIGHT, "eth0", ACROSS), (BRIDGE, "br0", OWN)):
        known = [(host, mac) for host, mac in macs.items() if host != own]
        lines = [f"neighbour replace {host} lladdr {mac} dev {dev}" for host, mac in known]
        nets.ip_batch(ns, [f"{line} nud permanent" for line in lines])
    # A frame for a port that is not known yet would be copied to all of them.
    for port, host in enumerate((FROM, ACROSS)):
        with nets.in_netns(BRIDGE):
            nets.run("bridge", "fdb", "add", macs[host], "dev", f"p{port}", "master", "static")
    nets.veth(BRIDGE, "eth1", "10.4.0.1/24", FAR, "eth0", f"{BEHIND}/24")
    nets.route(LEFT, "default", "via", OWN)
    nets.route(FAR, "default", "via", "10.4.0.1")
    return BRIDGE


def _mac(ns: str, dev: str) -> str:
    links = json.loads(nets.run("ip", "-n", ns, "-j", "link", "show", dev).stdout)
    return str(links[0]["address"])


def _call_iptables(ns: str, *, wanted: bool) -> None:
    """Let br_netfilter hand frames to ip's tables, or not; on where the kernel is new to it."""
    if wanted:
        nets.require("br_netfilter")
    if nets.has_capability("br_netfilter"):
        nets.sysctl(ns, {"net/bridge/bridge-nf-call-iptables": int(wanted)})


RULES = """\
table bridge b {
 chain pre {
  type filter hook prerouting priority -300; policy accept;
  ether type ip udp dport 101 drop comment "of frames"
  udp dport 102 accept
 }
 chain late { type filter hook prerouting priority 50; udp dport 103 drop; }
 chain in { type filter hook input priority 0; udp dport 104 counter drop; }
 chain early { type filter hook forward priority -200; udp dport 105 drop; }
 chain through {
  type filter hook forward priority 10; policy drop;
  udp dport 106 counter drop
  udp dport != 107 jump known
 }
 chain known { meta l4proto udp ip daddr 10.3.0.2 counter accept; }
 chain out { type filter hook output priority 0; udp dport 108 drop; }
 chain post { type filter hook postrouting priority 0; udp dport 109 drop; }
}
"""
B = {
    name: ("b", name, None, "accept")
    for name in ("pre", "late", "in", "early", "through", "out", "post")
}
KNOWN = (("b", "through", 2, "jump"), ("b", "known", 1, "accept"))
CROSSED: Way = (B["pre"], B["late"], B["early"], *KNOWN, B["post"])
WAYS: dict[int, Way] = {
    101: (("b", "pre", 1, "drop"),),
    102: (("b", "pre", 2, "accept"), *CROSSED[1:]),
    103: (B["pre"], ("b", "late", 1, "drop")),
    104: CROSSED,
    105: (B["pre"], B["late"], ("b", "early", 1, "drop")),
    106: (B["pre"], B["late"], B["early"], ("b", "through", 1, "drop")),
    107: (B["pre"], B["late"], B["early"], ("b", "through", None, "drop")),
    109: (*CROSSED[:-1], ("b", "post", 1, "drop")),
}


def test_frames_are_told_by_the_bridges_rules(bridge: str) -> None:
    """Drops, accepts, a jump and policies of each hook that a bridged frame passes."""
    _call_iptables(bridge, wanted=False)
    nets.load_rules(bridge, "nftables", RULES)

    told = _follow_across(bridge, WAYS)

    assert WAYS == _ways(told)
    assert {("bridge", "nft")} == {
        (step["family"], step["engine"]) for journey in told.journeys for step in journey["steps"]
    }
    dropped = {j["packet"]["dport"] for j in told.journeys if j["ending"]["kind"] == "dropped"}
    assert {101, 103, 105, 106, 107, 109} == dropped
    assert {("p0", "p1")} == {(j["in"], j["out"]) for j in told.to_port(104)}
    assert [COUNT] == nets.rule_counters(bridge, "nftables", "bridge b", "through")
    check_texts(told, bridge)


def test_the_bridges_own_packets_pass_its_hooks_around_ips(bridge: str) -> None:
    """To the bridge itself input comes, through it routing, from it output; ip between."""
    _call_iptables(bridge, wanted=False)
    nets.load_rules(bridge, "nftables", RULES + _IP)

    with follow(bridge, "--src", "10.3.0.0/24", "--proto", "udp") as run:
        nets.send_udp(LEFT, OWN, 104, COUNT)
        nets.send_udp(LEFT, OWN, 110, COUNT)
        nets.send_udp(LEFT, BEHIND, 111, COUNT)
        nets.send_udp(bridge, ACROSS, 108, COUNT)
        nets.send_udp(bridge, ACROSS, 109, COUNT)
        told = run.finish(5 * COUNT)

    received = (B["pre"], B["late"], B["in"])
    assert {
        104: (B["pre"], B["late"], ("b", "in", 1, "drop")),
        110: (*received, F["pre"], ("f", "in", 1, "drop")),
        111: (*received, F["pre"], F["through"], F["post"]),
        108: (F["post"], ("b", "out", 1, "drop")),
        109: (F["post"], B["out"], ("b", "post", 1, "drop")),
    } == _ways(told)
    check_texts(told, bridge)


_IP = """\
table ip f {
 chain pre { type filter hook prerouting priority 0; udp dport 120 drop; }
 chain in { type filter hook input priority 0; udp dport 110 drop; }
 chain through { type filter hook forward priority 0; udp dport 121 drop; }
 chain post { type filter hook postrouting priority 0; udp dport 122 drop; }
}
"""
F = {name: ("f", name, None, "accept") for name in ("pre", "in", "through", "post")}
# br_nf_pre_routing() and br_nf_forward() are at 0 of the bridge's hooks,
# br_nf_post_routing() behind all: net/bridge/br_netfilter_hooks.c, br_nf_ops.
TURNS: Way = (
    *(B["pre"], F["pre"], B["late"]),
    *(B["early"], F["through"], *KNOWN),
    *(B["post"], F["post"]),
)
MIXED_WAYS: dict[int, Way] = {
    101: (("b", "pre", 1, "drop"),),
    120: (*TURNS[:1], ("f", "pre", 1, "drop")),
    103: (*TURNS[:2], ("b", "late", 1, "drop")),
    105: (*TURNS[:3], ("b", "early", 1, "drop")),
    121: (*TURNS[:4], ("f", "through", 1, "drop")),
    106: (*TURNS[:5], ("b", "through", 1, "drop")),
    109: (*TURNS[:7], ("b", "post", 1, "drop")),
    122: (*TURNS[:8], ("f", "post", 1, "drop")),
    123: TURNS,
}


def test_bridge_and_ip_take_turns_in_one_journey(bridge: str) -> None:
    """With br_netfilter each frame is one journey through both, in the kernel's order."""
    _call_iptables(bridge, wanted=True)
    nets.load_rules(bridge, "nftables", RULES + _IP)

    told = _follow_across(bridge, MIXED_WAYS)

    assert MIXED_WAYS == _ways(told)
    assert {("br0", "p1")} == {(j["in"], j["out"]) for j in told.to_port(123)}
    check_texts(told, bridge)


def test_a_bridge_and_legacy_tables_take_turns_in_one_journey(bridge: str) -> None:
    """The same with legacy tables of ip, whose events have no trace id."""
    nets.require("legacy_tables")
    _call_iptables(bridge, wanted=True)
    nets.load_rules(bridge, "nftables", RULES)
    nets.load_rules(bridge, "legacy", _LEGACY)

    ports = (101, 120, 103, 105, 121, 106, 109, 122, 123)
    told = _follow_across(bridge, ports)

    turns: Way = (
        *(B["pre"], ("mangle", "PREROUTING", None, "accept"), B["late"]),
        *(B["early"], ("mangle", "FORWARD", None, "accept"), ("filter", "FORWARD", 2, "accept")),
        *(*KNOWN, B["post"], ("mangle", "POSTROUTING", None, "accept")),
    )
    assert {
        101: (("b", "pre", 1, "drop"),),
        120: (*turns[:1], ("mangle", "PREROUTING", 1, "drop")),
        103: (*turns[:2], ("b", "late", 1, "drop")),
        105: (*turns[:3], ("b", "early", 1, "drop")),
        121: (*turns[:5], ("filter", "FORWARD", 1, "drop")),
        106: (*turns[:6], ("b", "through", 1, "drop")),
        109: (*turns[:8], ("b", "post", 1, "drop")),
        122: (*turns[:9], ("mangle", "POSTROUTING", 1, "drop")),
        123: turns,
    } == _ways(told)
    check_texts(told, bridge)


_LEGACY = """\
*mangle
:PREROUTING ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 120 -j DROP
-A POSTROUTING -p udp -m udp --dport 122 -j DROP
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -p udp -m udp --dport 121 -j DROP
-A FORWARD -p udp -j ACCEPT
COMMIT
"""


@pytest.mark.parametrize("rules", [_IP, _LEGACY], ids=["nftables", "legacy"])
def test_equal_packets_of_a_bridge_are_not_mixed(bridge: str, rules: str) -> None:
    """Datagrams that nothing tells apart, one after the other: as many journeys, all whole."""
    _call_iptables(bridge, wanted=True)
    nets.load_rules(bridge, "nftables", RULES)
    nets.load_rules(bridge, "nftables" if rules is _IP else "legacy", rules)
    count = 1009

    with follow(bridge, *ONLY) as run:
        for port in (123, 109):
            nets.flood(LEFT, ACROSS, port, count, sport=4000, size=8, rate=20_000)
        told = run.finish(2 * count, wait_s=10)

    last = {123: _last(rules), 109: ("b", "post", 1, "drop")}
    assert dict.fromkeys(last.items(), count) == Counter(
        (journey["packet"]["dport"], way(journey)[-1]) for journey in told.journeys
    )
    assert 2 == len(told.ways())
    assert 0 == told.summary["lost"]


def _last(rules: str) -> tuple[str, str, int | None, str]:
    return F["post"] if rules is _IP else ("mangle", "POSTROUTING", None, "accept")


def _follow_across(ns: str, ports: dict[int, Way] | tuple[int, ...]) -> Told:
    with follow(ns, *ONLY) as run:
        for port in ports:
            nets.send_udp(LEFT, ACROSS, port, COUNT)
        return run.finish(COUNT * len(ports))


def _ways(told: Told) -> dict[int, Way]:
    """Return each port's way; all its packets went it, and none is missing."""
    found: dict[int, Counter[Way]] = {}
    for journey in told.journeys:
        found.setdefault(journey["packet"]["dport"], Counter())[way(journey)] += 1
    assert {port: [COUNT] for port in found} == {
        port: list(ways.values()) for port, ways in found.items()
    }
    return {port: next(iter(ways)) for port, ways in found.items()}

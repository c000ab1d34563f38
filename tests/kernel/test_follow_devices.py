"""Chains at a device: ingress comes before everything and egress after it, in one journey."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow, way
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.follow_helper import Told, Way

SENDER, BOX, SERVER = "sender", "box", "server"
FROM, OWN, BEHIND = "10.1.0.1", "10.1.0.2", "10.2.0.2"
FROM6, BEHIND6 = "fd01::1", "fd02::2"
COUNT = 7
ONLY = ("--src", FROM, "--proto", "udp")


@pytest.fixture
def box(netns: Callable[..., str]) -> str:
    """Give a router between a sender and a server, and no rules yet."""
    nets.require("nft_ingress")
    sender, box, server = netns(SENDER), netns(BOX, forward=True), netns(SERVER)
    nets.veth(
        *(sender, "eth0", (f"{FROM}/24", f"{FROM6}/64")),
        *(box, "eth0", (f"{OWN}/24", "fd01::2/64")),
    )
    nets.veth(
        *(box, "eth1", ("10.2.0.1/24", "fd02::1/64")),
        *(server, "eth0", (f"{BEHIND}/24", f"{BEHIND6}/64")),
    )
    for ns, via in ((sender, OWN), (sender, "fd01::2"), (server, "10.2.0.1"), (server, "fd02::1")):
        nets.route(ns, "default", "via", via)
    return box


# In front of conntrack, of reassembly and of every place where tracing would begin else.
INGRESS = """\
table netdev d {
 set blocked { type ipv4_addr; elements = { 10.1.0.9 }; }
 chain eth0 {
  type filter hook ingress device "eth0" priority -500; policy accept;
  ip saddr @blocked drop
  ether type ip meta l4proto udp jump mine
 }
 chain mine {
  udp dport 101 counter drop
  udp dport 102 accept
  udp dport 103 meta mark set 0x3
 }
}
"""
FILTER = """\
table ip f {
 chain pre { type filter hook prerouting priority -500; udp dport 104 drop; }
 chain through {
  type filter hook forward priority 0; policy drop;
  meta mark 3 drop
  udp dport != 105 accept
 }
}
"""
JUMP = ("d", "eth0", 2, "jump")
PASSED: Way = (JUMP, ("d", "eth0", None, "accept"), ("f", "pre", None, "accept"))
INGRESS_WAYS: dict[int, Way] = {
    101: (JUMP, ("d", "mine", 1, "drop")),
    102: (JUMP, ("d", "mine", 2, "accept"), PASSED[2], ("f", "through", 2, "accept")),
    103: (JUMP, ("d", "mine", 3, "continue"), *PASSED[1:], ("f", "through", 1, "drop")),
    104: (*PASSED[:2], ("f", "pre", 1, "drop")),
    105: (*PASSED, ("f", "through", None, "drop")),
    106: (*PASSED, ("f", "through", 2, "accept")),
}


def test_drops_at_ingress_and_after_it(box: str) -> None:
    """A netdev chain at the lowest hook: what dies there, and what dies or passes later."""
    nets.load_rules(box, "nftables", INGRESS + FILTER)

    with follow(box, *ONLY) as run:
        for port in INGRESS_WAYS:
            nets.send_udp(SENDER, BEHIND, port, COUNT)
        told = run.finish(COUNT * len(INGRESS_WAYS))

    assert _times(INGRESS_WAYS) == _by_port(told)
    marked = [step["changes"] for step in told.steps("mine") if step["changes"]]
    assert [{"mark": [0, 3]}] * COUNT == marked
    assert {"ingress"} == {
        s["hook"] for j in told.journeys for s in j["steps"] if s["table"] == "d"
    }
    assert {("eth0", None)} == {(j["in"], j["out"]) for j in told.to_port(101)}
    assert [COUNT] == nets.rule_counters(box, "nftables", "netdev d", "mine")
    check_texts(told, box)


@pytest.mark.parametrize("family", ["inet", "netdev"])
def test_both_ip_versions_pass_ingress(box: str, family: str) -> None:
    """An ingress chain, also of an inet table, is told for IPv4 and IPv6 alike."""
    nets.load_rules(
        box,
        "nftables",
        f"table {family} d {{\n chain in {{\n"
        '  type filter hook ingress device "eth0" priority 0; policy accept;\n'
        "  udp dport 101 drop\n  udp dport 102 counter\n }\n}\n"
        "table inet f { chain pre { type filter hook prerouting priority 0;"
        " udp dport 102 drop; }\n}\n",
    )

    with follow(box, "--proto", "udp", "--in", "eth0") as run:
        for target in (BEHIND, BEHIND6):
            nets.send_udp(SENDER, target, 101, COUNT)
            nets.send_udp(SENDER, target, 102, COUNT)
        told = run.finish(4 * COUNT)

    through: Way = (
        ("d", "in", 2, "continue"),
        ("d", "in", None, "accept"),
        ("f", "pre", 1, "drop"),
    )
    assert {
        (version, steps): COUNT
        for version in ("ipv4", "ipv6")
        for steps in ((("d", "in", 1, "drop"),), through)
    } == Counter((j["packet"]["family"], way(j)) for j in told.journeys)
    assert {family} == {s["family"] for s in told.steps("in")}
    check_texts(told, box)


NAT = {
    "nftables": "table ip n { chain pre { type nat hook prerouting priority dstnat;"
    " udp dport 80 dnat to 10.2.0.2:8080; }\n chain post { type nat hook postrouting"
    " priority srcnat; oifname eth1 masquerade; }\n}\n"
    "table ip f { chain through { type filter hook forward priority 0;"
    " udp dport 8080 counter drop; }\n}\n",
    "legacy": "*nat\n-A PREROUTING -p udp -m udp --dport 80 -j DNAT"
    " --to-destination 10.2.0.2:8080\nCOMMIT\n*filter\n"
    "-A FORWARD -p udp -m udp --dport 8080 -j DROP\nCOMMIT\n",
}


@pytest.mark.parametrize("backend", nets.BACKENDS)
def test_a_filter_by_the_address_behind_nat_begins_at_ingress(box: str, backend: str) -> None:
    """Who asks for the server's own address is told the way from ingress, before DNAT, on."""
    nets.load_rules(box, "nftables", INGRESS)
    nets.load_rules(box, backend, NAT["nftables" if backend == "nftables" else "legacy"])

    with follow(box, "--dst", BEHIND, "--dport", "8080") as run:
        nets.send_udp(SENDER, OWN, 80, COUNT, sport=4000)
        nets.send_udp(SENDER, OWN, 81, 5)
        told = run.finish(COUNT)

    table, chain = ("f", "through") if backend == "nftables" else ("filter", "FORWARD")
    assert {("d", "eth0", 2, "jump"): COUNT} == Counter(way(j)[0] for j in told.journeys)
    assert {(table, chain, 1, "drop"): COUNT} == Counter(way(j)[-1] for j in told.journeys)
    # What is dropped is no connection: each packet is the first of one.
    nat = [step for j in told.journeys for step in j["steps"] if _is_nat(step)]
    change = {"dst": [OWN, BEHIND], "dport": [80, 8080]}
    assert [change] * COUNT == [step["changes"] for step in nat]
    assert COUNT == sum(len(step["changes"]) > 0 for j in told.journeys for step in j["steps"])
    assert {(OWN, 80)} == {(j["packet"]["dst"], j["packet"]["dport"]) for j in told.journeys}
    check_texts(told, box)


def _is_nat(step: dict[str, Any]) -> bool:
    return step["text"] is not None and ("dnat to" in step["text"] or "DNAT" in step["text"])


EGRESS = """\
table netdev e {
 chain eth1 {
  type filter hook egress device "eth1" priority 0; policy accept;
  udp dport 101 counter drop
  udp dport { 102, 103 } jump known
 }
 chain known { udp dport 102 drop; }
}
table ip f {
 chain out { type filter hook output priority 0; udp dport 104 drop; }
 chain through { type filter hook forward priority 0; udp dport 104 drop; }
 chain post { type filter hook postrouting priority 200; udp dport 105 drop; }
}
"""


@pytest.mark.parametrize(("sender", "chain"), [(SENDER, "through"), (BOX, "out")])
def test_drops_at_egress_are_the_journeys_last_step(box: str, sender: str, chain: str) -> None:
    """Forwarded and a host's own packets pass egress behind postrouting, and may die there."""
    nets.require("nft_egress")
    nets.load_rules(box, "nftables", EGRESS)

    with follow(box, "--dst", BEHIND, "--proto", "udp") as run:
        for port in range(101, 107):
            nets.send_udp(sender, BEHIND, port, COUNT)
        told = run.finish(6 * COUNT)

    left: Way = (("f", chain, None, "accept"), ("f", "post", None, "accept"))
    policy = ("e", "eth1", None, "accept")
    ways: dict[int, Way] = {
        101: (*left, ("e", "eth1", 1, "drop")),
        102: (*left, ("e", "eth1", 2, "jump"), ("e", "known", 1, "drop")),
        103: (*left, ("e", "eth1", 2, "jump"), policy),
        104: (("f", chain, 1, "drop"),),
        105: (left[0], ("f", "post", 1, "drop")),
        106: (*left, policy),
    }
    assert _times(ways) == _by_port(told)
    assert {"egress"} == {s["hook"] for s in told.steps("eth1")}
    assert {"eth1"} == {j["out"] for j in told.to_port(101)}
    check_texts(told, box)


def test_legacy_tables_lie_between_ingress_and_egress(box: str) -> None:
    """Events with no trace id take their place between those of one packet at its devices."""
    nets.require("nft_egress")
    nets.require("legacy_tables")
    nets.load_rules(box, "nftables", INGRESS + EGRESS.partition("table ip")[0])
    nets.load_rules(
        box,
        "legacy",
        "*mangle\n-A PREROUTING -p udp -m udp --dport 107 -j DROP\nCOMMIT\n"
        "*filter\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n",
    )
    count = 1009

    with follow(box, *ONLY) as run:
        for port in (107, 103, 108):
            nets.flood(SENDER, BEHIND, port, count, sport=4000, size=8, rate=20_000)
        told = run.finish(3 * count, wait_s=15)

    begin: Way = (JUMP, ("d", "eth0", None, "accept"))
    between: Way = (
        ("mangle", "PREROUTING", None, "accept"),
        ("mangle", "FORWARD", None, "accept"),
        ("filter", "FORWARD", 1, "accept"),
        ("mangle", "POSTROUTING", None, "accept"),
    )
    policy = ("e", "eth1", None, "accept")
    marked: Way = (begin[0], ("d", "mine", 3, "continue"), begin[1])
    assert {
        107: Counter({(*begin, ("mangle", "PREROUTING", 1, "drop")): count}),
        103: Counter({(*marked, *between, ("e", "eth1", 2, "jump"), policy): count}),
        108: Counter({(*begin, *between, policy): count}),
    } == _by_port(told)
    assert 0 == told.summary["lost"]
    check_texts(told, box)


def _times(ways: dict[int, Way]) -> dict[int, Counter[Way]]:
    return {port: Counter({steps: COUNT}) for port, steps in ways.items()}


def _by_port(told: Told) -> dict[int, Counter[Way]]:
    found: dict[int, Counter[Way]] = {}
    for journey in told.journeys:
        found.setdefault(journey["packet"]["dport"], Counter())[way(journey)] += 1
    return found

"""Native nftables: each step is the rule that acted, in every family and at every hook."""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow, way
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.follow_helper import Way

SENDER, BOX, SERVER = "sender", "box", "server"
ADDRESS, FROM, BEHIND = "10.1.0.2", "10.1.0.1", "10.2.0.2"
ADDRESS6, FROM6, BEHIND6 = "fd01::2", "fd01::1", "fd02::2"
COUNT = 7
#: What becomes of packets behind their last rule is not asked here.
ONLY = ("--src", FROM, "--ends", "off")


@pytest.fixture
def box(netns: Callable[..., str]) -> str:
    """Give a router between a sender and a server, and no rules yet."""
    sender, box, server = netns(SENDER), netns(BOX, forward=True), netns(SERVER)
    nets.veth(
        *(sender, "eth0", (f"{FROM}/24", f"{FROM6}/64")),
        *(box, "eth0", (f"{ADDRESS}/24", f"{ADDRESS6}/64")),
    )
    nets.veth(
        *(box, "eth1", ("10.2.0.1/24", "fd02::1/64")),
        *(server, "eth0", (f"{BEHIND}/24", f"{BEHIND6}/64")),
    )
    for via in (ADDRESS, ADDRESS6):
        nets.route(sender, "default", "via", via)
    for via in ("10.2.0.1", "fd02::1"):
        nets.route(server, "default", "via", via)
    return box


RULES = """\
table inet t {
 set ports { type inet_service; elements = { 107, 108 }; }
 set ranges { type inet_service; flags interval; elements = { 300-320 }; }
 map ways {
  type inet_service : verdict; elements = { 109 : jump deep, 110 : drop, 111 : goto last }
 }
 chain last { udp dport 111 counter; }
 chain deep { jump deeper; }
 chain deeper { jump deepest; }
 chain deepest { meta l4proto udp; udp dport 109 drop; }
 chain back { udp dport 117 return; drop; }
 chain away { goto last; accept; }
 chain input {
  type filter hook input priority filter; policy drop;
  udp dport 101 accept
  udp dport 102 drop
  udp dport 103 reject
  udp dport 104 reject with icmpx type admin-prohibited
  udp dport { 105, 106 } counter drop comment "an anonymous set"
  udp dport @ports drop
  udp dport vmap @ways
  udp dport vmap { 112 : accept, 113 : drop, 114-116 : jump back }
  udp dport @ranges reject with icmp type net-unreachable
  udp dport 117 jump back
  udp dport 118 jump away
  udp dport 119 meta mark set 0x2a
  udp dport 119 meta mark set mark or 0x40 counter
  udp dport 120
  udp dport 120
  udp dport 120 drop
  udp dport 120 drop
  udp dport 123 counter name "c" accept
 }
 counter c { }
}
"""
POLICY = ("t", "input", None, "drop")
WAYS: dict[int, Way] = {
    101: (("t", "input", 1, "accept"),),
    102: (("t", "input", 2, "drop"),),
    103: (("t", "input", 3, "reject"),),
    104: (("t", "input", 4, "reject"),),
    105: (("t", "input", 5, "drop"),),
    107: (("t", "input", 6, "drop"),),
    109: (
        ("t", "input", 7, "jump"),
        ("t", "deep", 1, "jump"),
        ("t", "deeper", 1, "jump"),
        ("t", "deepest", 1, "continue"),
        ("t", "deepest", 2, "drop"),
    ),
    110: (("t", "input", 7, "drop"),),
    111: (("t", "input", 7, "goto"), ("t", "last", 1, "continue"), POLICY),
    112: (("t", "input", 8, "accept"),),
    113: (("t", "input", 8, "drop"),),
    115: (("t", "input", 8, "jump"), ("t", "back", 2, "drop")),
    310: (("t", "input", 9, "reject"),),
    117: (("t", "input", 10, "jump"), ("t", "back", 1, "return"), POLICY),
    118: (("t", "input", 11, "jump"), ("t", "away", 1, "goto"), POLICY),
    119: (
        ("t", "input", 12, "continue"),
        ("t", "input", 13, "continue"),
        POLICY,
    ),
    120: (
        ("t", "input", 14, "continue"),
        ("t", "input", 15, "continue"),
        ("t", "input", 16, "drop"),
    ),
    123: (("t", "input", 18, "accept"),),
    124: (POLICY,),
}
ENDINGS = {"drop": "dropped", "reject": "rejected", "accept": "unknown"}


def test_each_way_is_told_by_the_rules_that_acted(box: str) -> None:
    """Maps, sets, jumps, gotos, marks, equal rules and rules without counters are exact."""
    nets.load_rules(box, "nftables", RULES)

    with follow(box, "--proto", "udp", *ONLY) as run:
        for port in WAYS:
            nets.send_udp(SENDER, ADDRESS, port, COUNT)
        told = run.finish(COUNT * len(WAYS))

    assert {port: {way: COUNT} for port, way in WAYS.items()} == {
        port: Counter(way(journey) for journey in told.to_port(port)) for port in WAYS
    }
    assert COUNT * len(WAYS) == len(told.journeys)
    for port, steps in WAYS.items():
        kinds = {journey["ending"]["kind"] for journey in told.to_port(port)}
        assert {ENDINGS[steps[-1][3]]} == kinds
    changes = [step["changes"] for journey in told.to_port(119) for step in journey["steps"]]
    marked = [{"mark": [0, 0x2A]}, {"mark": [0x2A, 0x6A]}, {}]
    assert marked * COUNT == changes
    check_texts(told, box)


@pytest.mark.parametrize(
    "rules", ["ip ttl set 3", "meta mark set 5\n ip ttl set 3", "ip ttl set 3\n counter"]
)
def test_a_ttl_stands_at_the_rule_that_set_it(box: str, rules: str) -> None:
    """Whatever stands before and behind it, the rule that sets the TTL is told to have done it."""
    nets.load_rules(
        box,
        "nftables",
        f"table ip t {{ chain pre {{ type filter hook prerouting priority 0;\n {rules}\n}}\n"
        " chain in { type filter hook input priority 0;\n ip ttl 3 drop\n}\n}\n",
    )

    with follow(box, *ONLY) as run:
        nets.send_udp(SENDER, ADDRESS, 101, COUNT)
        told = run.finish(COUNT)

    assert {("ip ttl set 3", 64, 3): COUNT} == Counter(
        (step["text"], *step["changes"]["ttl"])
        for journey in told.journeys
        for step in journey["steps"]
        if "ttl" in step["changes"]
    )
    assert [("ip ttl 3 drop", COUNT)] == [(text, n) for (_, text), n in told.endings().items()]


# Every hook of a router in two tables each, of the families that see IPv4 or IPv6.
HOOKS = """\
table inet both {
 chain pre { type filter hook prerouting priority raw; policy accept; udp dport 101 drop; }
 chain in { type filter hook input priority filter; policy accept; udp dport 102 drop; }
 chain through { type filter hook forward priority filter; policy accept; udp dport 103 drop; }
 chain post { type filter hook postrouting priority 0; policy accept; udp dport 104 drop; }
}
table FAMILY own {
 chain pre { type filter hook prerouting priority mangle; policy accept; udp dport 105 drop; }
 chain in { type filter hook input priority 10; policy drop; udp dport 106 accept; }
 chain through { type filter hook forward priority 10; policy drop; udp dport != 107 accept; }
 chain post { type nat hook postrouting priority srcnat; policy accept; }
}
"""


def _policies(*chains: str) -> Way:
    tables = {
        "pre": ("both", "own"),
        "in": ("both",),
        "through": ("both",),
        "post": ("both", "own"),
    }
    return tuple((table, chain, None, "accept") for chain in chains for table in tables[chain])


PRE, FORWARDED, RECEIVED = _policies("pre"), _policies("pre", "through"), _policies("pre", "in")
HOOK_WAYS: dict[tuple[int, bool], Way] = {
    (101, True): (("both", "pre", 1, "drop"),),
    (105, False): (PRE[0], ("own", "pre", 1, "drop")),
    (102, False): (*PRE, ("both", "in", 1, "drop")),
    (106, False): (*RECEIVED, ("own", "in", 1, "accept")),
    (108, False): (*RECEIVED, ("own", "in", None, "drop")),
    (103, True): (*PRE, ("both", "through", 1, "drop")),
    (107, True): (*FORWARDED, ("own", "through", None, "drop")),
    (104, True): (*FORWARDED, ("own", "through", 1, "accept"), ("both", "post", 1, "drop")),
    (108, True): (*FORWARDED, ("own", "through", 1, "accept"), *_policies("post")),
}


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_policies_and_drops_at_every_hook_of_a_router(box: str, family: str) -> None:
    """Two tables at each hook: one journey in their priorities' order, to the drop."""
    nets.load_rules(box, "nftables", HOOKS.replace("FAMILY", family))
    source, own, behind = (FROM, ADDRESS, BEHIND) if family == "ip" else (FROM6, ADDRESS6, BEHIND6)

    with follow(box, "--proto", "udp", "--src", source, "--ends", "off") as run:
        for port, forwarded in HOOK_WAYS:
            nets.send_udp(SENDER, behind if forwarded else own, port, COUNT)
        told = run.finish(COUNT * len(HOOK_WAYS))

    expected = Counter(dict.fromkeys(HOOK_WAYS.values(), COUNT))
    # Later packets of a connection skip the nat chains.
    through = HOOK_WAYS[108, True]
    expected.update({through: 1 - COUNT, through[:-1]: COUNT - 1})
    assert expected == told.ways()
    seen = {(s["chain"], s["hook"], s["family"]) for j in told.journeys for s in j["steps"]}
    hooks = {"pre": "prerouting", "in": "input", "through": "forward", "post": "postrouting"}
    assert {(c, hook, f) for c, hook in hooks.items() for f in ("inet", family)} == seen
    check_texts(told, box)


def test_local_packets_are_told_from_output_on(box: str) -> None:
    """A host's own packets: output's rules and policy, then postrouting's."""
    nets.load_rules(
        box,
        "nftables",
        "table ip t {\n chain out { type filter hook output priority 0; policy accept;\n"
        "  udp dport 101 drop\n  udp dport 102 reject\n  udp dport 103 meta mark set 7\n }\n"
        " chain post { type filter hook postrouting priority 0; policy drop; }\n}\n",
    )

    with follow(box, "--dst", BEHIND, "--proto", "udp", "--ends", "off") as run:
        for port in range(101, 105):
            nets.send_udp(box, BEHIND, port, COUNT)
        told = run.finish(4 * COUNT)

    last = ("t", "post", None, "drop")
    assert {
        (("t", "out", 1, "drop"),): COUNT,
        (("t", "out", 2, "reject"),): COUNT,
        (("t", "out", 3, "continue"), ("t", "out", None, "accept"), last): COUNT,
        (("t", "out", None, "accept"), last): COUNT,
    } == told.ways()
    assert {None, "eth1"} >= {journey["out"] for journey in told.journeys}
    check_texts(told, box)


def test_invalid_packets_name_the_rule_that_refused_them(box: str) -> None:
    """What conntrack cannot place (an ACK of nothing) is dropped by `ct state invalid`."""
    nets.sysctl(box, {"net/netfilter/nf_conntrack_tcp_loose": 0})
    nets.load_rules(
        box,
        "nftables",
        "table ip t {\n chain in { type filter hook input priority 0; policy accept;\n"
        "  ct state established,related accept\n  ct state invalid counter drop\n"
        "  ct state new tcp dport 101 reject with tcp reset\n }\n}\n",
    )

    with follow(box, "--proto", "tcp", *ONLY) as run:
        nets.send_tcp_syn(SENDER, ADDRESS, 101, COUNT)
        with nets.in_netns(SENDER), _raw(socket.IPPROTO_TCP) as sock:
            for number in range(11):
                ack = _tcp_ack(4000 + number, 101)
                sock.sendto(ack, (ADDRESS, 0))
        told = run.finish(COUNT + 11)

    assert {
        (("t", "in", 3, "reject"),): COUNT,
        (("t", "in", 2, "drop"),): 11,
    } == told.ways()
    assert [11] == nets.rule_counters(box, "nftables", "t", "in")
    assert {"rejected": COUNT, "dropped": 11} == Counter(
        journey["ending"]["kind"] for journey in told.journeys
    )
    check_texts(told, box)


def test_a_native_queue_without_listener_drops(box: str) -> None:
    """`queue` with nobody there is a drop that says why."""
    nets.require("nft_queue")
    nets.load_rules(
        box,
        "nftables",
        "table ip t { chain in { type filter hook input priority 0;\n"
        " udp dport 101 queue num 3\n}\n}\n",
    )

    with follow(box, *ONLY) as run:
        nets.send_udp(SENDER, ADDRESS, 101, COUNT)
        told = run.finish(COUNT)

    assert {(("t", "in", 1, "queue"),): COUNT} == told.ways()
    assert {("dropped", "QUEUE_NO_LISTENER")} == {
        (journey["ending"]["kind"], journey["ending"]["reason"]) for journey in told.journeys
    }


@pytest.mark.parametrize("backend", ["nftables", "legacy"])
def test_every_protocol_has_its_own_rule(box: str, backend: str) -> None:
    """ICMP, UDP, TCP, SCTP, GRE and a number without a name: each names its rule."""
    protocols = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132, "gre": 47, "253": 253}
    if backend == "legacy":
        nets.require("legacy_tables")
        rules = "".join(f"-A INPUT -p {number} -j DROP\n" for number in protocols.values())
        text = f"*filter\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n"
    else:
        rules = "".join(f"meta l4proto {number} drop\n" for number in protocols.values())
        head = "table inet filter { chain INPUT { type filter hook input priority 0;\n"
        text = f"{head}{rules}}}\n}}\n"
    nets.load_rules(box, backend, text)

    with follow(box, *ONLY) as run:
        nets.send_echo(SENDER, ADDRESS, COUNT)
        nets.send_tcp_syn(SENDER, ADDRESS, 101, COUNT)
        nets.send_udp(SENDER, ADDRESS, 101, COUNT)
        for name in ("sctp", "gre", "253"):
            with nets.in_netns(SENDER), _raw(protocols[name]) as sock:
                for _ in range(COUNT):
                    sock.sendto(os.urandom(24), (ADDRESS, 0))
        told = run.finish(6 * COUNT)

    assert {
        (name, ("filter", "INPUT", number, "drop")): COUNT
        for number, name in enumerate(protocols, 1)
    } == Counter((j["packet"]["proto"], *way(j)) for j in told.journeys)
    check_texts(told, box)


def test_icmpv6_is_told_in_ip6(box: str) -> None:
    """ICMPv6 echo requests: the type's rule is named, in the family inet."""
    nets.load_rules(
        box,
        "nftables",
        "table inet t { chain in { type filter hook input priority 0;\n"
        " icmpv6 type nd-neighbor-solicit accept\n icmpv6 type echo-request counter drop\n}\n}\n",
    )

    with follow(box, "--src", FROM6, "--proto", "icmpv6", "--ends", "off") as run:
        nets.send_echo(SENDER, ADDRESS6, COUNT)
        told = run.finish(COUNT)

    assert {(("t", "in", 2, "drop"),): COUNT} == told.ways()
    packets = [journey["packet"] for journey in told.journeys]
    assert [(128, 0, seq) for seq in range(1, COUNT + 1)] == [
        (packet["icmp_type"], packet["icmp_code"], packet["icmp_seq"]) for packet in packets
    ]
    check_texts(told, box)


def _raw(proto: int) -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, proto)


def _tcp_ack(sport: int, dport: int) -> bytes:
    """Make an ACK of FROM to ADDRESS with a right checksum."""
    head = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + b"\1\2\3\4\5\6\7\10\x50\x10\x10\0"
    pseudo = socket.inet_aton(FROM) + socket.inet_aton(ADDRESS) + b"\0\6\0\x14"
    words = pseudo + head + b"\0\0\0\0"
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head + (~total & 0xFFFF).to_bytes(2, "big") + b"\0\0"

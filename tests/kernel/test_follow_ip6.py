"""IPv6 through ip6tables, of either engine: the same laws as for IPv4."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow, way
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.follow_helper import Told, Way

SENDER, BOX, SERVER = "sender", "box", "server"
FROM, OWN, BEHIND = "fd01::1", "fd01::2", "fd02::2"
COUNT = 7
ENGINES = pytest.mark.parametrize("engine", ["legacy", "nft"])
UDP = ("--src", FROM, "--proto", "udp")


@pytest.fixture
def box(netns: Callable[..., str]) -> str:
    """Give an IPv6 router between a sender and a server, and no rules yet."""
    nets.require("ipv6")
    nets.require("legacy_tables")
    sender, box, server = netns(SENDER), netns(BOX, forward=True), netns(SERVER)
    nets.veth(sender, "eth0", f"{FROM}/64", box, "eth0", f"{OWN}/64")
    nets.veth(box, "eth1", "fd02::1/64", server, "eth0", f"{BEHIND}/64")
    nets.route(sender, "default", "via", OWN)
    nets.route(server, "default", "via", "fd02::1")
    return box


CHAINS = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:KILL - [0:0]
:PASS - [0:0]
:BACK - [0:0]
:END - [0:0]
:AWAY - [0:0]
-A INPUT -p udp -m udp --dport 101 -j KILL
-A INPUT -p udp -m udp --dport 102 -j PASS
-A INPUT -p udp -m udp --dport 103 -j BACK
-A INPUT -p udp -m udp --dport 104 -j END
-A INPUT -p udp -m udp --dport 105 -g AWAY
-A INPUT -p udp -m udp --dport 106 -j REJECT --reject-with icmp6-adm-prohibited
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j KILL
-A INPUT -p tcp -m tcp --dport 101 -j REJECT --reject-with tcp-reset
-A FORWARD -d fd02::/64 -p udp -m udp --dport 201 -m comment --comment "no \\"names\\"" -j DROP
-A FORWARD -p udp -m udp --dport 202 -j KILL
-A KILL -p udp -m udp --dport 9 -j ACCEPT
-A KILL -j DROP
-A PASS -j ACCEPT
-A PASS -j DROP
-A BACK -j RETURN
-A BACK -j ACCEPT
-A END -p tcp -j DROP
-A AWAY -p udp
COMMIT
"""
POLICY = ("filter", "INPUT", None, "drop")
KILLED = ("filter", "KILL", 2, "drop")
WAYS: dict[tuple[str, int], Way] = {
    (OWN, 101): (("filter", "INPUT", 1, "jump"), KILLED),
    (OWN, 102): (("filter", "INPUT", 2, "jump"), ("filter", "PASS", 1, "accept")),
    (OWN, 103): (("filter", "INPUT", 3, "jump"), ("filter", "BACK", 1, "return"), POLICY),
    (OWN, 104): (("filter", "INPUT", 4, "jump"), POLICY),
    (OWN, 105): (("filter", "INPUT", 5, "goto"), ("filter", "AWAY", 1, "continue"), POLICY),
    (OWN, 106): (("filter", "INPUT", 6, "reject"),),
    (OWN, 107): (POLICY,),
    (BEHIND, 201): (("filter", "FORWARD", 1, "drop"),),
    (BEHIND, 202): (("filter", "FORWARD", 2, "jump"), KILLED),
    (BEHIND, 203): (("filter", "FORWARD", None, "accept"),),
}


@ENGINES
def test_each_way_through_chains_is_told_by_the_rules_that_acted(box: str, engine: str) -> None:
    """Drops, returns, gotos and rejects in user chains, ends of chains, and policies."""
    nets.load_rules(box, f"{engine}6", CHAINS)

    with follow(box, *UDP) as run:
        for target, port in WAYS:
            nets.send_udp(SENDER, target, port, COUNT)
        told = run.finish(COUNT * len(WAYS))

    assert {place: Counter({steps: COUNT}) for place, steps in WAYS.items()} == _by_place(told)
    kinds = {"drop": "dropped", "reject": "rejected", "accept": "unknown"}
    for journey in told.journeys:
        assert kinds[way(journey)[-1][3]] == journey["ending"]["kind"]
    assert {("ip6", engine)} == {
        (step["family"], step["engine"]) for journey in told.journeys for step in journey["steps"]
    }
    check_texts(told, box)


@ENGINES
def test_icmpv6_and_resets_name_their_rules(box: str, engine: str) -> None:
    """Echo requests die in a user chain, SYNs are reset: each packet with what it carried."""
    nets.load_rules(box, f"{engine}6", CHAINS)

    with follow(box, "--src", FROM) as run:
        nets.send_echo(SENDER, OWN, COUNT, ident=77)
        nets.send_tcp_syn(SENDER, OWN, 101, COUNT, sport=5000)
        told = run.finish(2 * COUNT)

    pings = [j for j in told.journeys if j["packet"]["proto"] == "icmpv6"]
    assert {(("filter", "INPUT", 7, "jump"), KILLED): COUNT} == Counter(map(way, pings))
    assert [(128, 0, 77, seq) for seq in range(1, COUNT + 1)] == [
        tuple(j["packet"][f"icmp_{name}"] for name in ("type", "code", "id", "seq")) for j in pings
    ]
    syns = [j for j in told.journeys if j["packet"]["proto"] == "tcp"]
    assert {(("filter", "INPUT", 8, "reject"),): COUNT} == Counter(map(way, syns))
    assert [("S", 5000 + n) for n in range(COUNT)] == [
        (j["packet"]["tcp_flags"], j["packet"]["sport"]) for j in syns
    ]
    assert 2 * COUNT == len(told.journeys)
    check_texts(told, box)


NAT = """\
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 80 -j MARK --set-xmark 0x6/0xffffffff
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d fd09::80/128 -p udp -m udp --dport 80 -j DNAT --to-destination [fd02::2]:8080
-A POSTROUTING -o eth1 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -d fd02::2/128 -p udp -m udp --dport 8080 -j ACCEPT
COMMIT
"""


@ENGINES
def test_translation_is_told_where_it_happens(box: str, engine: str) -> None:
    """DNAT and masquerade of IPv6: at their rules once, later packets show it without."""
    nets.load_rules(box, f"{engine}6", NAT)

    with follow(box, "--dst", BEHIND, "--dport", "8080") as run:
        nets.send_udp(SENDER, "fd09::80", 80, COUNT, sport=4000)
        told = run.finish(COUNT)

    changes = [
        {name: pair for step in journey["steps"] for name, pair in step["changes"].items()}
        for journey in told.journeys
    ]
    expected = {"mark": [0, 6], "dst": ["fd09::80", BEHIND], "dport": [80, 8080]}
    masked = {**expected, "src": [FROM, "fd02::1"]}
    assert COUNT == len(changes)
    assert masked == {name: changes[0][name] for name in masked}
    assert [expected] * COUNT == [{name: each[name] for name in expected} for each in changes]
    made = {
        (step["chain"], name): step["rule"]
        for step in told.journeys[0]["steps"]
        for name in step["changes"]
    }
    assert (1, 1, 1) == tuple(
        made[place]
        for place in (("PREROUTING", "mark"), ("PREROUTING", "dst"), ("POSTROUTING", "src"))
    )
    assert [("nat", "PREROUTING"), ("nat", "POSTROUTING")] == [
        step[:2] for journey in told.journeys for step in way(journey) if step[0] == "nat"
    ]
    assert {("filter", "FORWARD", 1, "accept"): COUNT} == Counter(
        step for journey in told.journeys for step in way(journey) if step[0] == "filter"
    )
    check_texts(told, box)


BASES = """\
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j ACCEPT
-A PREROUTING -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j RETURN
-A PREROUTING -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport 201 -j DROP
-A INPUT -j ACCEPT
COMMIT
"""


def test_explicit_rules_of_base_chains_are_not_policies(box: str) -> None:
    """`policy:N` is rule N unless no rule has this number, in ip6's tables as well."""
    nets.load_rules(box, "legacy6", BASES)

    with follow(box, *UDP) as run:
        for port in (201, 202):
            nets.send_udp(SENDER, OWN, port, COUNT)
        told = run.finish(2 * COUNT)

    before: Way = (
        ("raw", "PREROUTING", 1, "accept"),
        ("mangle", "PREROUTING", 1, "return"),
        ("mangle", "PREROUTING", None, "accept"),
    )
    through = tuple(step for step in _only_way(told, 202) if step[:2] != ("mangle", "INPUT"))
    assert (*before, ("filter", "INPUT", 2, "accept")) == through
    assert ("filter", "INPUT", 1, "drop") == _only_way(told, 201)[-1]
    check_texts(told, box)


def test_both_versions_of_legacy_tables_are_followed_at_once(box: str) -> None:
    """IPv4's and IPv6's tables of one name: each packet meets the rules of its own version."""
    nets.ip_batch(SENDER, ["address add 10.1.0.1/24 dev eth0"])
    nets.ip_batch(box, ["address add 10.1.0.2/24 dev eth0"])
    for backend, first in (("legacy", "tcp"), ("legacy6", "udp")):
        nets.load_rules(
            box, backend, f"*filter\n-A INPUT -p {first} -j DROP\n-A INPUT -p udp -j DROP\nCOMMIT\n"
        )

    with follow(box, "--dport", "301") as run:
        nets.send_udp(SENDER, "10.1.0.2", 301, 11)
        nets.send_udp(SENDER, OWN, 301, 13)
        told = run.finish(24)

    assert {
        ("ip", ("filter", "INPUT", 2, "drop")): 11,
        ("ip6", ("filter", "INPUT", 1, "drop")): 13,
    } == Counter((j["steps"][-1]["family"], way(j)[-1]) for j in told.journeys)
    check_texts(told, box)


def _by_place(told: Told) -> dict[tuple[str, int], Counter[Way]]:
    found: dict[tuple[str, int], Counter[Way]] = {}
    for journey in told.journeys:
        place = journey["packet"]["dst"], journey["packet"]["dport"]
        found.setdefault(place, Counter())[way(journey)] += 1
    return found


def _only_way(told: Told, port: int) -> Way:
    ways = Counter(map(way, told.to_port(port)))
    assert [COUNT] == list(ways.values())
    return next(iter(ways))

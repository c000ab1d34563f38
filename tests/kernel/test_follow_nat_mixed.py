"""Translated flows on both cores, over two routers at once: no two packets' steps are mixed."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow, way
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.follow_helper import Told, Way

FIRST, SECOND, SERVER = "vr1", "vr2", "server"
SENDERS = ("left", "right")
BEHIND = "10.3.0.2"
#: Packets of each flow from each sender: a prime.
COUNT = 127


@dataclass(frozen=True)
class Flow:
    """
    What becomes of the packets to one port, on the first router and on the second.

    *to* is the server's address or the first router's own; *dport* behind NAT. *nat* are the
    rules that translate, by chain; *source* the new one. *ends* are the last steps but for
    the policy of mangle POSTROUTING, the second's None where nothing gets there.
    """

    number: int
    to: str
    dport: int
    nat: dict[str, int]
    source: str | None
    ends: tuple[tuple[str, str, int, str], tuple[str, str, int, str] | None]

    @property
    def is_accepted(self) -> bool:
        """Whether the first router makes a connection of it, whose packets then skip nat."""
        return self.ends[0][3] == "accept"


OWN, MASKED = "own", "10.2.0.1"
FLOWS = {
    101: Flow(
        *(1, OWN, 1101, {"PREROUTING": 1}, None),
        (("filter", "FORWARD", 1, "accept"), ("filter", "FORWARD", 1, "drop")),
    ),
    102: Flow(
        *(2, OWN, 1102, {"PREROUTING": 2, "POSTROUTING": 1}, MASKED),
        (("filter", "FORWARD", 2, "accept"), ("filter", "FORWARD", 3, "accept")),
    ),
    103: Flow(
        *(3, BEHIND, 103, {"POSTROUTING": 2}, "10.2.0.77"),
        (("filter", "FORWARD", 3, "accept"), ("filter", "FORWARD", 2, "drop")),
    ),
    104: Flow(
        *(4, OWN, 1104, {"PREROUTING": 3}, None),
        (("filter", "INPUT", 1, "drop"), None),
    ),
    105: Flow(
        *(5, BEHIND, 105, {"POSTROUTING": 3}, MASKED),
        (("filter", "FORWARD", 4, "accept"), ("filter", "FORWARD", 3, "accept")),
    ),
}

IPTABLES_1 = (
    "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n"
    ":POSTROUTING ACCEPT [0:0]\n"
    + "".join(f"-A PREROUTING -p udp -m udp --dport {port}\n" for port in FLOWS)
    + """COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 101 -j DNAT --to-destination 10.3.0.2:1101
-A PREROUTING -p udp -m udp --dport 102 -j DNAT --to-destination 10.3.0.2:1102
-A PREROUTING -p udp -m udp --dport 104 -j REDIRECT --to-ports 1104
-A POSTROUTING -p udp -m udp --dport 1102 -j MASQUERADE
-A POSTROUTING -p udp -m udp --dport 103 -j SNAT --to-source 10.2.0.77
-A POSTROUTING -p udp -m udp --dport 105 -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
-A INPUT -p udp -m udp --dport 1104 -j DROP
-A FORWARD -p udp -m udp --dport 1101 -j ACCEPT
-A FORWARD -p udp -m udp --dport 1102 -j ACCEPT
-A FORWARD -p udp -m udp --dport 103 -j ACCEPT
-A FORWARD -p udp -m udp --dport 105 -j ACCEPT
COMMIT
"""
)
IPTABLES_2 = """*mangle
:PREROUTING ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -p udp -m udp --dport 1101 -j DROP
-A FORWARD -s 10.2.0.77/32 -p udp -m udp --dport 103 -j DROP
-A FORWARD -p udp -j ACCEPT
COMMIT
"""
_BASE = "chain {name} {{ type filter hook {hook} priority {priority}; policy {policy};\n{rules}}}\n"


def _table(name: str, priority: str, chains: dict[str, tuple[str, str]]) -> str:
    """Return a native table with the chain names of iptables; *chains*: (policy, rules)."""
    body = "".join(
        _BASE.format(name=chain, hook=chain.lower(), priority=priority, policy=policy, rules=rules)
        for chain, (policy, rules) in chains.items()
    )
    return f"table ip {name} {{\n{body}}}\n"


def _lines(*rules: str) -> str:
    return "".join(f" {rule}\n" for rule in rules)


NATIVE_1 = (
    _table(
        *("mangle", "mangle"),
        {
            "PREROUTING": ("accept", _lines(*(f"udp dport {port} counter" for port in FLOWS))),
            **dict.fromkeys(("INPUT", "FORWARD", "POSTROUTING"), ("accept", "")),
        },
    )
    + """table ip nat {
 chain PREROUTING { type nat hook prerouting priority dstnat;
  udp dport 101 dnat to 10.3.0.2:1101
  udp dport 102 dnat to 10.3.0.2:1102
  udp dport 104 redirect to :1104
 }
 chain POSTROUTING { type nat hook postrouting priority srcnat;
  udp dport 1102 masquerade
  udp dport 103 snat to 10.2.0.77
  udp dport 105 masquerade
 }
}
"""
    + _table(
        *("filter", "filter"),
        {
            "INPUT": ("accept", _lines("udp dport 1104 drop")),
            "FORWARD": ("drop", _lines(*(f"udp dport {p} accept" for p in (1101, 1102, 103, 105)))),
        },
    )
)
NATIVE_2 = _table(
    *("mangle", "mangle"),
    dict.fromkeys(("PREROUTING", "FORWARD", "POSTROUTING"), ("accept", "")),
) + _table(
    *("filter", "filter"),
    {
        "FORWARD": (
            "drop",
            _lines(
                "udp dport 1101 drop",
                "ip saddr 10.2.0.77 udp dport 103 drop",
                "meta l4proto 17 accept",
            ),
        )
    },
)


@pytest.fixture
def road(netns: Callable[..., str]) -> None:
    """Lay the way: two senders, the first router, the second, a server."""
    for name in (*SENDERS, SERVER):
        netns(name)
    for name in (FIRST, SECOND):
        netns(name, forward=True)
    for index, name in enumerate(SENDERS, 1):
        own, router = f"10.1.{index}.1", f"10.1.{index}.254"
        nets.veth(name, "eth0", f"{own}/24", FIRST, f"in{index}", f"{router}/24")
        nets.route(name, "default", "via", router)
    nets.veth(FIRST, "out", ("10.2.0.1/24", "10.2.0.77/24"), SECOND, "in", "10.2.0.2/24")
    nets.veth(SECOND, "out", "10.3.0.1/24", SERVER, "eth0", f"{BEHIND}/24")
    nets.route(FIRST, "default", "via", "10.2.0.2")
    nets.route(SECOND, "default", "via", "10.2.0.1")


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("backend", nets.BACKENDS)
def test_flows_of_two_senders_over_two_routers_are_not_mixed(backend: str) -> None:
    """Each journey has its own flow's steps and translation, and each packet its journeys."""
    is_native = backend == "nftables"
    nets.load_rules(FIRST, backend, NATIVE_1 if is_native else IPTABLES_1)
    nets.load_rules(SECOND, backend, NATIVE_2 if is_native else IPTABLES_2)
    passed = sum(flow.is_accepted for flow in FLOWS.values())
    expected = COUNT * len(SENDERS) * (len(FLOWS) + passed)

    words = ("--netns", FIRST, "--netns", SECOND, "--proto", "udp")
    with follow(FIRST, *words, armed_in=(FIRST, SECOND)) as run:
        _flood_all()
        told = run.finish(expected, wait_s=20)

    assert 0 == told.summary["lost"]
    assert expected == len(told.journeys)
    for name in (FIRST, SECOND):
        _check_router(told, name)
    _check_packets(told)
    for name in (FIRST, SECOND):
        here = [journey for journey in told.journeys if journey["netns"] == name]
        check_texts(type(told)(here, told.summary, told.status, told.errors), name)


def _flood_all() -> None:
    """
    Send all flows at once, each sender's from a core of its own.

    At a rate that the backlog of a busy machine (netdev_max_backlog) holds.
    """
    cpus = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(len(SENDERS) * len(FLOWS)) as pool:
        jobs = [
            pool.submit(
                nets.ip_netns_exec,
                *(name, str(nets.build_flood()), f"--cpu={cpus[index % len(cpus)]}"),
                f"--dst={flow.to if flow.to != OWN else f'10.1.{index + 1}.254'}",
                *(f"--port={port}", f"--count={COUNT}", f"--sport={_sport(name, port)}"),
                *("--ports=1", "--size=18", "--rate=4000"),
            )
            for port, flow in FLOWS.items()
            for index, name in enumerate(SENDERS)
        ]
        for job in jobs:
            assert str(COUNT) == job.result().stdout.split()[0]


def _sport(sender: str, port: int) -> int:
    return 5000 + 1000 * SENDERS.index(sender) + port


def _check_router(told: Told, name: str) -> None:
    """Hold each flow's journeys through one router against what its rules say."""
    is_first = name == FIRST
    for port, flow in FLOWS.items():
        for sender in SENDERS:
            journeys = [
                journey
                for journey in told.journeys
                if journey["netns"] == name
                and _is_of(journey, flow, sender, port, is_first=is_first)
            ]
            end = flow.ends[0 if is_first else 1]
            assert (COUNT if end is not None else 0) == len(journeys)
            plain = Counter(tuple(s for s in way(j) if s[0] != "nat") for j in journeys)
            assert (
                {} if end is None else {_plain_way(flow, end, is_first=is_first): COUNT}
            ) == plain
            if is_first:
                _check_nat(journeys, flow)


def _is_of(journey: dict[str, Any], flow: Flow, sender: str, port: int, *, is_first: bool) -> bool:
    packet = journey["packet"]
    # Ports that masquerading keeps: they tell the senders apart behind it as well.
    sport = packet["sport"] == _sport(sender, port)
    return sport and packet["dport"] == (port if is_first else flow.dport)


def _plain_way(flow: Flow, end: tuple[str, str, int, str], *, is_first: bool) -> Way:
    """Return the way without the nat chains, which only a connection's first packet passes."""

    def policy(chain: str) -> tuple[str, str, None, str]:
        return ("mangle", chain, None, "accept")

    mark = (("mangle", "PREROUTING", flow.number, "continue"),) if is_first else ()
    through = (*mark, policy("PREROUTING"), policy(end[1]), end)
    return (*through, policy("POSTROUTING")) if end[3] == "accept" else through


def _check_nat(journeys: list[dict[str, Any]], flow: Flow) -> None:
    """Every packet is translated as its flow is; the nat rules see connections' first ones."""
    changes = {} if flow.dport < 1000 else {"dport": flow.dport}
    for journey in journeys:
        found = {k: pair for step in journey["steps"] for k, pair in step["changes"].items()}
        for name, value in changes.items():
            assert value == found[name][1], journey
        if "POSTROUTING" in flow.nat:
            assert flow.source == found["src"][1], journey
        else:
            assert "src" not in found, journey
    rules = Counter(
        step[1:3] for j in journeys for step in way(j) if step[0] == "nat" and step[2] is not None
    )
    times = 1 if flow.is_accepted else COUNT
    assert dict.fromkeys(flow.nat.items(), times) == rules


def _check_packets(told: Told) -> None:
    """Join what both routers say of one packet by its fingerprint: one journey each, no more."""
    routers: dict[str, list[str]] = {}
    for journey in told.journeys:
        if journey["packet"]["dport"] not in (104, 1104):
            routers.setdefault(journey["fingerprint"], []).append(journey["netns"])
    passed = sum(flow.is_accepted for flow in FLOWS.values())
    assert COUNT * len(SENDERS) * passed == len(routers)
    assert {(FIRST, SECOND)} == {tuple(sorted(names)) for names in routers.values()}

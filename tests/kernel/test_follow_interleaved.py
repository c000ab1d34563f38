"""Flows on both cores at once: no step of one packet is ever told as another's."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow, way
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Callable

SENDER, BOX = "sender", "box"
ADDRESS, FROM = "10.1.0.2", "10.1.0.1"
PORTS = (101, 102, 103, 104)
#: Packets of each flow: a prime.
COUNT = 1009
ONLY = ("--proto", "udp", "--src", FROM, "--ends", "off")

IPTABLES = (
    "*mangle\n:PREROUTING ACCEPT [0:0]\n"
    + "".join(f"-A PREROUTING -p udp -m udp --dport {port}\n" for port in PORTS)
    + "COMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n"
    + "".join(
        f"-A PREROUTING -p udp -m udp --dport {port} -j REDIRECT --to-ports {port + 900}\n"
        for port in PORTS[2:]
    )
    + "COMMIT\n*filter\n:INPUT ACCEPT [0:0]\n"
    + "".join(f"-A INPUT -p udp -m udp --dport {port} -j DROP\n" for port in PORTS[:2])
    + "".join(f"-A INPUT -p udp -m udp --dport {port + 900} -j DROP\n" for port in PORTS[2:])
    + "COMMIT\n"
)


@pytest.fixture
def box(netns: Callable[..., str]) -> str:
    """Give a host with a sender beside it, and no rules yet."""
    nets.veth(netns(SENDER), "eth0", f"{FROM}/24", netns(BOX), "eth0", f"{ADDRESS}/24")
    return BOX


def flood_all(ns: str) -> None:
    """
    Send each port's flow from *ns*, equal payloads and all, spread over the cores.

    At a rate that the backlog of a busy machine (netdev_max_backlog) holds.
    """
    cpus = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(len(PORTS)) as pool:
        jobs = [
            pool.submit(
                nets.ip_netns_exec,
                *(ns, str(nets.build_flood()), f"--dst={ADDRESS}", f"--port={port}"),
                *(f"--count={COUNT}", f"--sport={5000 + index}", "--ports=1", "--size=18"),
                *("--rate=4000", f"--cpu={cpus[index % len(cpus)]}"),
            )
            for index, port in enumerate(PORTS)
        ]
        assert [COUNT] * len(PORTS) == [int(job.result().stdout.split()[0]) for job in jobs]


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_each_flow_ends_at_its_own_rule(box: str, backend: str) -> None:
    """With and without NAT: journeys by rule equal the rule's counter and what was sent."""
    nets.load_rules(box, backend, IPTABLES)

    with follow(box, *ONLY) as run:
        flood_all(SENDER)
        told = run.finish(COUNT * len(PORTS), wait_s=15)

    assert 0 == told.summary["lost"]
    assert [COUNT] * len(PORTS) == nets.rule_counters(box, backend, "filter", "INPUT")
    for number, port in enumerate(PORTS, 1):
        journeys = told.to_port(port)
        assert {("filter", "INPUT", number, "drop"): COUNT} == Counter(
            way(journey)[-1] for journey in journeys
        )
        assert {(("mangle", "PREROUTING", number, "continue"),): COUNT} == Counter(
            tuple(step for step in way(journey) if step[:3:2] == ("mangle", number))
            for journey in journeys
        )
        # One pass through each base chain: no step of a second packet.
        assert {(2, 1): COUNT} == Counter(
            (
                sum(step[:2] == ("mangle", "PREROUTING") for step in way(journey)),
                sum(step[0] == "filter" for step in way(journey)),
            )
            for journey in journeys
        )
    check_texts(told, box)


def test_legacy_and_nft_tables_make_one_journey(box: str) -> None:
    """Both engines in one namespace: the kernel's order of hooks and priorities, per packet."""
    nets.require("legacy_tables")
    nets.load_rules(box, "legacy", IPTABLES)
    nets.load_rules(
        box,
        "nftables",
        "table ip t { chain a { type filter hook prerouting priority -140;\n"
        + "".join(f" udp dport {port} counter\n" for port in PORTS)
        + "}\n chain b { type filter hook input priority -10; }\n}\n",
    )

    with follow(box, *ONLY) as run:
        flood_all(SENDER)
        told = run.finish(COUNT * len(PORTS), wait_s=15)

    for number, port in enumerate(PORTS, 1):
        ways = Counter(
            tuple(step for step in way(journey) if step[0] != "nat")
            for journey in told.to_port(port)
        )
        assert {
            (
                ("mangle", "PREROUTING", number, "continue"),
                ("mangle", "PREROUTING", None, "accept"),
                ("t", "a", number, "continue"),
                ("t", "a", None, "accept"),
                ("mangle", "INPUT", None, "accept"),
                ("t", "b", None, "accept"),
                ("filter", "INPUT", number, "drop"),
            ): COUNT
        } == ways
    check_texts(told, box)


def test_equal_trace_ids_in_two_namespaces_are_two_packets(netns: Callable[..., str]) -> None:
    """Two hosts followed at once: each journey has the steps of its own namespace alone."""
    sender = netns(SENDER)
    for index, name in enumerate(("one", "two"), 1):
        host = netns(name)
        nets.veth(sender, f"eth{index}", f"10.{index}.0.1/24", host, "eth0", f"10.{index}.0.2/24")
        nets.load_rules(
            host,
            "nftables",
            f"table ip {name} {{ chain in {{ type filter hook input priority 0;\n"
            " udp dport 101 counter drop\n}\n}\n",
        )

    cpus = sorted(os.sched_getaffinity(0))
    words = ("--netns", "one", "--netns", "two", "--dport", "101", "--ends", "off")
    with follow("one", *words, armed_in=("one", "two")) as run:
        with ThreadPoolExecutor(2) as pool:
            for job in [
                pool.submit(
                    nets.ip_netns_exec,
                    *(sender, str(nets.build_flood()), f"--dst=10.{index}.0.2", "--port=101"),
                    *(f"--count={COUNT}", "--ports=1", "--size=18", "--rate=4000"),
                    *(f"--sport={5000 + index}", f"--cpu={cpus[index % len(cpus)]}"),
                )
                for index in (1, 2)
            ]:
                job.result()
        told = run.finish(2 * COUNT, wait_s=15)

    assert {(name, ((name, "in", 1, "drop"),)): COUNT for name in ("one", "two")} == Counter(
        (journey["netns"], way(journey)) for journey in told.journeys
    )

"""Rules that change in the middle of a burst: the text is the one that was in force."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow

if TYPE_CHECKING:
    from collections.abc import Callable

SENDER, BOX = "sender", "box"
ADDRESS, FROM = "10.1.0.2", "10.1.0.1"
COUNT = 12007
RATE = 4000
VERSIONS = 4
#: Packets between two changes of legacy tables, some 70 ms of them.
BETWEEN = 101
ONLY = ("--dport", "101", "--ends", "off")


@pytest.fixture
def box(netns: Callable[..., str]) -> str:
    """Give a host with a sender beside it, and no rules yet."""
    nets.veth(netns(SENDER), "eth0", f"{FROM}/24", netns(BOX), "eth0", f"{ADDRESS}/24")
    return BOX


def test_replaced_nft_rules_are_told_as_often_as_they_matched(box: str) -> None:
    """Each version of a rule: journeys with its text equal its counter at its removal."""
    nets.load_rules(
        box,
        "nftables",
        "table ip t {\n"
        + "".join(f" counter c{n} {{ }}\n" for n in range(VERSIONS))
        + ' chain in { type filter hook input priority 0;\n counter name "c0" drop\n}\n}\n',
    )

    with follow(box, *ONLY) as run:
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(nets.flood, SENDER, ADDRESS, 101, COUNT, rate=RATE)
            for version in range(1, VERSIONS):
                # A version that was gone before anybody could read it has no text.
                text = f'counter name \\"c{version - 1}\\" drop'
                nets.wait_until(lambda t=text: run.has_told(t), 10, text)  # type: ignore[misc]
                nets.load_rules(
                    box,
                    "nftables",
                    f"insert rule ip t in ip saddr 192.0.2.{version} drop\n"
                    f'add rule ip t in counter name "c{version}" drop\n'
                    f"delete rule ip t in handle {_handle(box, version - 1)}\n",
                )
            assert COUNT == sent.result().sent
        told = run.finish(COUNT, wait_s=10)

    expected = {
        (f'counter name "c{version}" drop', version + 1): _count(box, version)
        for version in range(VERSIONS)
        if _count(box, version)  # the last change may have come behind the burst
    }
    assert len(expected) >= VERSIONS - 1
    assert COUNT == sum(expected.values())
    assert expected == Counter((j["ending"]["text"], j["ending"]["rule"]) for j in told.journeys)


def test_legacy_rules_are_never_told_by_a_wrong_text(box: str) -> None:
    """Each packet's own port names its rule: another rule's text is never told, only none."""
    nets.require("legacy_tables")
    ports = (101, 102, 103)
    head = "*filter\n:INPUT ACCEPT [0:0]\n"
    lines = [f"-A INPUT -p udp -m udp --dport {port} -j DROP" for port in ports]
    orders = [lines, lines[::-1], [*lines[1:], lines[0]]]
    nets.load_rules(box, "legacy", head + "\n".join(lines) + "\nCOMMIT\n")

    with follow(box, "--proto", "udp", "--src", FROM, "--ends", "off") as run:
        with ThreadPoolExecutor(len(ports)) as pool:
            jobs = [
                pool.submit(nets.flood, SENDER, ADDRESS, port, 1009, rate=500) for port in ports
            ]
            turn = 0
            while not all(job.done() for job in jobs):
                turn += 1
                text = head + "\n".join(orders[turn % len(orders)]) + "\nCOMMIT\n"
                nets.load_rules(box, "legacy", text)
                # One change at a time: of several within one look at the tables only the
                # last is ever read, and what stood between is not known to have been there.
                told_before = run.count_lines()
                nets.wait_until(
                    lambda lines=told_before: (  # type: ignore[misc]
                        run.count_lines() > lines + BETWEEN or all(job.done() for job in jobs)
                    ),
                    10,
                    "lines of the new rules",
                )
        told = run.finish(3 * 1009, wait_s=10)

    assert turn > 1
    for port, line in zip(ports, lines, strict=True):
        journeys = told.to_port(port)
        assert len(journeys) == 1009
        assert {line, None} >= {step["text"] for j in journeys for step in j["steps"]}


def _count(ns: str, version: int) -> int:
    text = nets.ip_netns_exec(ns, "nft", "list", "counter", "ip", "t", f"c{version}").stdout
    return int(text.split("packets ")[1].split()[0])


def _handle(ns: str, version: int) -> int:
    text = nets.ip_netns_exec(ns, "nft", "-a", "list", "chain", "ip", "t", "in").stdout
    line = next(line for line in text.splitlines() if f'"c{version}"' in line)
    return int(line.rsplit(" ", 1)[1])

"""From packets that the kernel drops to the numbers that Prometheus reads."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from exporters.prometheus import Exporter
from tests.exporters.watched import values
from tests.kernel import nets
from tracer.core.drops import Rung
from tracer.core.expected import parse_expected
from tracer.core.expected_learning import learn_expected
from tracer.core.health import Health
from tracer.sources.drops import DropSource
from tracer.sources.netns import find_namespace
from tracer.sources.rule_counters import CounterReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracer.core.drops import DropCount
    from tracer.core.rule_reading import NetnsCounters

TO_B = "10.1.0.2"
NATIVE = """table inet t {
  chain early {
    type filter hook prerouting priority -50
    udp dport 7001 counter drop
    udp dport 7002 drop comment "no twos"
    udp dport vmap { 7003 : drop, 7004 : accept }
  }
  chain late {
    type filter hook input priority 10; policy drop
    udp dport 7005 accept
  }
}
"""
LEGACY = "*mangle\n-A INPUT -p udp --dport 7006 -j DROP\nCOMMIT\n"


class Host:
    """The namespace b, as a daemon reads it."""

    def __init__(self, source: DropSource) -> None:
        self.namespace = find_namespace("b")
        self.reader = CounterReader()
        self.source = source

    def namespaces(self) -> dict[int, str]:
        """Give b's inode."""
        return {self.namespace.inode: "b"}

    def counters(self) -> list[NetnsCounters]:
        """Read b's rules."""
        return [self.reader.read(self.namespace)]

    def drops(self) -> list[DropCount]:
        """Give b's drops."""
        return [row for row in self.source.counts() if row.netns == self.namespace.inode]

    def exemplars(self) -> tuple[()]:
        """Give none."""
        return ()

    def health(self) -> Health:
        """Say that nft's drops have their rules."""
        return Health(can_attribute=frozenset({("nft", "inet")}))


@pytest.fixture
def host(netns: Callable[..., str]) -> Iterator[Host]:
    """Lay a cable from a to b, whose rules of both engines drop, and watch b."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{TO_B}/24")
    nets.load_rules("b", "legacy", LEGACY)
    nets.load_rules("b", "nftables", NATIVE)
    source = DropSource([find_namespace("b")])
    source.open()
    with contextlib.closing(source):
        if source.rung is Rung.REASON:
            pytest.skip(f"needs drops with their places: {source.why}")
        yield Host(source)


def by_source(exporter: Exporter) -> dict[tuple[str, str, str], float]:
    """Give the rules' packets by engine, chain, and source, of those that dropped."""
    return {
        (labels[1], labels[4], labels[7]): value
        for labels, value in values(exporter, "nftrace_rule_packets_total").items()
        if value
    }


def send(*sent: tuple[int, int]) -> None:
    """Send packets to ports of b."""
    for port, count in sent:
        nets.send_udp("a", TO_B, port, count)


def test_each_rule_has_its_drops_by_its_counter_or_by_ours(host: Host) -> None:
    """Primes of packets: counted, uncounted, by a map, by a policy, by legacy, by the stack."""
    exporter = Exporter(host)
    exporter.refresh()
    send((7001, 13), (7002, 7), (7003, 3), (7004, 5), (7005, 2), (7006, 11))

    packets = values(exporter, "nftrace_rule_packets_total")

    texts = {labels[5]: labels[7] for labels in values(exporter, "nftrace_rule_info")}
    by_rule = {texts[labels[5]]: (value, labels[7]) for labels, value in packets.items() if value}
    assert {
        "udp dport 7001 counter drop": (13, "counter"),
        'udp dport 7002 drop comment "no twos"': (7, "attributed"),
        "udp dport vmap { 7003 : drop, 7004 : accept }": (3, "attributed"),
        "-A INPUT -p udp -m udp --dport 7006 -j DROP": (11, "counter"),
    } == by_rule
    assert {("b", "nft", "inet", "t", "late", "attributed", "false"): 5} == values(
        exporter, "nftrace_policy_drops_total"
    )
    drops = values(exporter, "nftrace_drops_total")
    assert {("nft", "prerouting"): 23, ("nft", "input"): 5, ("legacy", "input"): 11} == {
        (labels[1], labels[3]): value for labels, value in drops.items() if labels[1]
    }
    assert [2] == [value for labels, value in drops.items() if labels[5] == "NO_SOCKET"]


def test_attributed_drops_go_on_over_reloads(host: Host) -> None:
    """With a scrape now and then, a ruleset loaded anew keeps what its rules have dropped."""
    exporter = Exporter(host)
    exporter.refresh()
    seen = []
    for count in (13, 7, 5):
        send((7001, count), (7002, count))
        seen.append(by_source(exporter))
        nets.ip_netns_exec("b", "nft", "flush", "ruleset")
        nets.load_rules("b", "nftables", NATIVE)
        exporter.refresh()

    for source in ("counter", "attributed"):
        assert [13, 20, 25] == [one["nft", "early", source] for one in seen]


def test_what_is_learned_is_expected_from_then_on(host: Host) -> None:
    """All that dropped while learning is named, and nothing else."""
    send((7001, 13), (7002, 7), (7004, 5), (7005, 2))
    learned = learn_expected(host.counters(), host.drops(), host.namespaces())
    exporter = Exporter(host, expected=parse_expected(learned.entries))
    send((7006, 3))

    told = {
        labels[4]: labels[8]
        for labels in values(exporter, "nftrace_rule_packets_total")
        if labels[1] == "legacy"
    }
    expected = {labels[7]: labels[10] for labels in values(exporter, "nftrace_rule_info")}

    assert 0 == learned.left_out
    assert {"INPUT": "false"} == told
    assert {
        "udp dport 7001 counter drop": "true",
        'udp dport 7002 drop comment "no twos"': "true",
        "-A INPUT -p udp -m udp --dport 7006 -j DROP": "false",
    } == expected
    assert {"true"} == {labels[6] for labels in values(exporter, "nftrace_policy_drops_total")}
    assert {("NO_SOCKET", "true"), ("NETFILTER_DROP", "true"), ("NETFILTER_DROP", "false")} == {
        labels[5:7] for labels in values(exporter, "nftrace_drops_total")
    }

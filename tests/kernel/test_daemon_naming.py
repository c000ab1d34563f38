"""Rules named without asking: retransmissions are traced, within bounds, and leave nothing."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.core.drops import Rung
from tracer.daemon.messages import Messages
from tracer.daemon.readings import DaemonReadings
from tracer.daemon.settings import MessageSettings, Settings, TraceSettings, WatchSettings
from tracer.daemon.watch import Watch
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracer.core.journey import Journey

_TO_B = "10.1.0.2"
_LEGACY = """*mangle
:FIREWALL - [0:0]
-A PREROUTING -p udp -j FIREWALL
-A FIREWALL -p udp -m udp --dport 7001 -j DROP
-A FIREWALL -p udp -m udp --dport 7002 -j DROP
COMMIT
*nat
-A PREROUTING -d 10.1.0.2/32 -p udp -m udp --dport 7100 -j DNAT --to-destination 10.1.0.2:7200
COMMIT
*filter
-A INPUT -p udp -m udp --dport 7200 -j DROP
COMMIT
"""
_NFT = """table inet t {
  chain c {
    type filter hook prerouting priority 5
    udp dport 7002 drop
  }
}
"""


@contextlib.contextmanager
def _watching(rung: str = "reason", **trace: object) -> Iterator[Watch]:
    # Another test's flood on the same machine must not hide the one packet of this one.
    every = TraceSettings(records_per_second=10_000_000)
    settings = Settings(watch=WatchSettings(("b",), rung), trace=replace(every, **trace))
    said = io.StringIO()
    watch = Watch(settings, Messages(MessageSettings("json", "debug"), said))
    watch.open()
    try:
        yield watch
    finally:
        resisted = watch.close()
        print(said.getvalue())  # noqa: T201 - shown where the test fails
    assert [] == resisted


def _turn_until(watch: Watch, condition: Callable[[], bool], timeout_s: float = 60) -> None:
    def turned() -> bool:
        watch.turn()
        return condition()

    nets.wait_until(turned, timeout_s, "the condition")


def _tables() -> str:
    return nets.ip_netns_exec("b", "nft", "list", "tables").stdout


def _logger() -> str:
    return nets.ip_netns_exec("b", "cat", "/proc/sys/net/netfilter/nf_log/2").stdout.strip()


def _name(watch: Watch, port: int, src: str | None = None) -> None:
    """Lose a packet, wait until its flow is armed, lose another, wait until it is named."""
    before = watch.state().naming.named
    nets.send_udp("a", _TO_B, port, 1, sport=5555, src=src)
    _turn_until(watch, lambda: watch.state().waiting == 1)
    nets.send_udp("a", _TO_B, port, 1, sport=5555, src=src)
    _turn_until(watch, lambda: watch.state().naming.named == before + 1)


@pytest.mark.usefixtures("cable")
@pytest.mark.parametrize(
    ("backend", "rules", "text"),
    [
        ("legacy", _LEGACY, "-A FIREWALL -p udp -m udp --dport 7002 -j DROP"),
        ("nft", _LEGACY, "-A FIREWALL -p udp -m udp --dport 7002 -j DROP"),
        ("nftables", _NFT, "udp dport 7002 drop"),
    ],
    ids=["legacy", "nft", "nftables"],
)
def test_the_next_packet_names_the_rule(backend: str, rules: str, text: str) -> None:
    """The first drop arms its flow, the second one is told whole, and nothing stays."""
    nets.load_rules("b", backend, rules)
    before = _tables(), _logger()
    with _watching() as watch:
        _name(watch, 7002)
        naming = watch.state().naming
        (((_, answer), amount),) = naming.attributed.items()
        _turn_until(watch, lambda: watch.state().traced == 0)

        assert before == (_tables(), _logger())
        assert text == answer.text
        # Where reading the rules brought another table to life, the class is another one.
        _turn_until(watch, lambda: amount.packets + sum(naming.untraced.values()) == 2)
        assert amount.packets >= 1


@pytest.mark.usefixtures("cable")
@pytest.mark.parametrize(
    ("backend", "rules"), [("legacy", _LEGACY), ("nft", _LEGACY), ("nftables", _NFT)]
)
def test_a_rule_that_is_known_has_an_example(backend: str, rules: str) -> None:
    """One packet of it is traced, and no other within the hour; its counts stay the kernel's."""
    nets.load_rules("b", backend, rules)
    before = _tables(), _logger()
    with _watching("auto") as watch:
        nets.send_udp("a", _TO_B, 7002, 2, sport=5555)
        _turn_until(watch, lambda: watch.state().waiting == 1)
        nets.send_udp("a", _TO_B, 7002, 3, sport=5555)
        _turn_until(watch, lambda: len(watch.exemplars()) == 1)
        _turn_until(watch, lambda: watch.state().traced == 0)
        nets.send_udp("a", _TO_B, 7002, 7, sport=5556)
        _turn_until(watch, lambda: sum(row.packets for row in watch.drops()) == 12)
        (example,) = watch.exemplars()

        assert (0, 1, {}) == (
            watch.state().traced,
            watch.state().naming.armed,
            watch.state().naming.attributed,
        )
        (row,) = (row for row in watch.drops() if row.rule or row.handle)
        known = "rule" if backend == "legacy" else "handle"
        assert getattr(row, known) == getattr(example, known)
        assert (row.table, row.hook) == (example.table, example.hook)
        assert before == (_tables(), _logger())


@pytest.mark.usefixtures("cable")
def test_what_is_queued_when_tracing_ends_is_told_whole() -> None:
    """A packet that was traced just before people went first has its rule and its device."""
    nets.load_rules("b", "legacy", _LEGACY)
    told: list[Journey] = []
    with _watching() as watch:
        watch._namer.tell = lambda journeys, _: told.extend(journeys)  # noqa: SLF001
        nets.send_udp("a", _TO_B, 7002, 1, sport=5555)
        _turn_until(watch, lambda: watch.state().waiting == 1)
        nets.send_udp("a", _TO_B, 7002, 1, sport=5555)
        watch.give_way(is_followed=True)
        watch.turn()

        assert (0, 1) == (watch.state().traced, watch.state().naming.named)
        assert [("b0", "FIREWALL", 2)] == [
            (one.in_device, one.ending.chain, one.ending.rule) for one in told
        ]


@pytest.mark.usefixtures("cable")
def test_our_chains_are_there_only_while_a_flow_waits() -> None:
    """The table comes with the first flow, and the logger is switched only meanwhile."""
    nets.load_rules("b", "legacy", _LEGACY)
    with _watching(wait_s=1.0) as watch:
        assert "nftrace_" not in _tables()
        assert "nf_log_ipv4" == _logger()
        nets.send_udp("a", _TO_B, 7002, 1)
        _turn_until(watch, lambda: watch.state().waiting == 1)
        assert "nftrace_watch" in _tables()
        assert "nfnetlink_log" == _logger()
        _turn_until(watch, lambda: watch.state().traced == 0)
        naming = watch.state().naming

    assert ("nf_log_ipv4", "nftrace_" in _tables()) == (_logger(), False)
    assert (1, 0, 1) == (naming.armed, naming.named, naming.expired)
    assert {"expired": 1} == naming.untraced


@pytest.mark.usefixtures("cable")
def test_an_answer_is_asked_for_once_a_ruleset() -> None:
    """Another source's packets are given the known rule; after a change it is asked again."""
    nets.load_rules("b", "legacy", _LEGACY)
    with _watching() as watch:
        _name(watch, 7002)
        _turn_until(watch, lambda: watch.state().traced == 0)
        nets.send_udp("a", _TO_B, 7002, 11, sport=6666)
        counted = watch.state().naming.attributed
        _turn_until(watch, lambda: sum(one.packets for one in counted.values()) == 13)
        assert 1 == watch.state().naming.armed

        nets.ip_netns_exec("b", "iptables-legacy", "-t", "mangle", "-I", "FIREWALL")

        def is_asked_again() -> bool:
            # The rules are looked at once a second; until then the former answer is given.
            nets.send_udp("a", _TO_B, 7002, 1, sport=7777)
            return watch.state().waiting == 1

        _turn_until(watch, is_asked_again)
        nets.send_udp("a", _TO_B, 7002, 1, sport=7777)
        _turn_until(watch, lambda: watch.state().naming.named == 2)
        numbers = {answer.rule for _, answer in watch.state().naming.attributed}

    assert {2, 3} == numbers


@pytest.mark.usefixtures("cable")
@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ("-s 10.1.0.1/32 -p udp -j DROP\n-A INPUT -s 10.1.0.3/32 -p udp -j DROP", {1: 2, 2: 2}),
        ("-p udp -j DROP\n-A INPUT -p tcp -j DROP", {1: 4}),
    ],
    ids=["by source", "by port"],
)
def test_an_answer_stands_for_other_sources_where_no_rule_asks(
    rules: str, named: dict[int, int]
) -> None:
    """Where rules look at the source each one's flows are asked for, and else the first's."""
    nets.ip_netns_exec("a", "ip", "address", "add", "10.1.0.3/24", "dev", "a0")
    nets.load_rules("b", "legacy", f"*filter\n-A INPUT {rules}\nCOMMIT\n")
    with _watching("hook") as watch:
        _name(watch, 7002, src="10.1.0.1")
        if len(named) > 1:
            _name(watch, 7002, src="10.1.0.3")
        else:
            nets.send_udp("a", _TO_B, 7002, 2, src="10.1.0.3")
        _turn_until(watch, lambda: sum(_by_rule(watch).values()) == 4)
        _turn_until(watch, lambda: sum(map(bool, _by_rule(watch).values())) == len(named))

        assert named == {rule: n for rule, n in _by_rule(watch).items() if n}
        assert len(named) == watch.state().naming.armed


@pytest.mark.usefixtures("cable")
def test_translation_on_the_way_is_no_obstacle() -> None:
    """A flow whose destination is translated before it dies is found at its first hook."""
    nets.load_rules("b", "legacy", _LEGACY)
    with _watching() as watch:
        _name(watch, 7100)
        ((_, answer),) = watch.state().naming.attributed

    assert ("filter", "INPUT", 1) == (answer.table, answer.chain, answer.rule)


@pytest.mark.usefixtures("cable")
def test_what_ebpf_names_at_once_arms_nothing() -> None:
    """On the highest rung the rule is in the count, and no flow ever waits."""
    nets.load_rules("b", "legacy", _LEGACY)
    with _watching("auto") as watch:
        nets.send_udp("a", _TO_B, 7002, 13)
        _turn_until(watch, lambda: watch.state().recorded >= 13)
        state, drops = watch.state(), watch.drops()

    assert Rung.RULE == state.rung
    assert [("FIREWALL", 2, 13)] == [(r.chain, r.rule, r.packets) for r in drops]
    assert (0, {}) == (state.naming.armed, state.naming.untraced)


@pytest.mark.usefixtures("cable")
def test_without_a_log_rules_that_change_have_their_names_all_the_same() -> None:
    """A legacy table that is replaced is told of, and read before the first drop by it."""
    nets.load_rules("b", "legacy", _LEGACY)
    told: list[int] = []
    with _watching("auto") as watch:
        watch.on_new_rules = lambda: told.append(1)
        watch.keep_events(None)
        _turn_until(watch, lambda: bool(told))
        nets.send_udp("a", _TO_B, 7002, 3)
        _turn_until(watch, lambda: _by_rule(watch).get(2) == 3)
        told.clear()
        nets.load_rules(
            "b", "legacy", _LEGACY.replace("COMMIT", "-A FIREWALL -j RETURN\nCOMMIT", 1)
        )
        nets.ip_netns_exec("b", "iptables-legacy", "-t", "mangle", "-I", "FIREWALL")
        _turn_until(watch, lambda: bool(told))
        nets.send_udp("a", _TO_B, 7002, 5)
        _turn_until(watch, lambda: sum(_by_rule(watch).values()) == 8)

        assert {2: 3, 3: 5} == {rule: n for rule, n in _by_rule(watch).items() if n}
        assert 0 == watch.state().losses.stale


@pytest.mark.usefixtures("cable")
def test_a_source_that_is_detached_is_not_up() -> None:
    """Detached by us, or because the kernel let go of its links, drops are told as unseen."""
    said = Messages(MessageSettings(), io.StringIO())
    with _watching("reason") as watch:
        readings = DaemonReadings(watch, said)

        def up() -> set[bool]:
            sources = readings.health().sources
            return {one.up for one in sources if one.source.startswith("drop")}

        assert {True} == up()
        watch.pause()
        assert {False} == up()
        watch.resume()
        assert {True} == up()
        with Path("/dev/null").open("rb") as nothing:
            for link in _links():
                os.dup2(nothing.fileno(), link)
        assert {False} == up()


def _links() -> list[int]:
    """Return this process's descriptors of attached programs."""
    found = []
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            if "bpf_link" in str(one.readlink()) or "bpf-raw" in str(one.readlink()):
                found.append(int(one.name))
    return found


@pytest.mark.usefixtures("cable")
def test_a_rung_that_knows_the_table_is_given_the_rule() -> None:
    """What was attributed moves to its rule, and no packet is counted twice or lost."""
    nets.load_rules("b", "legacy", _LEGACY)
    with _watching("hook") as watch:
        _name(watch, 7002)
        nets.send_udp("a", _TO_B, 7002, 5, sport=6666)
        nets.send_udp("a", _TO_B, 7001, 3, sport=6666)
        _turn_until(watch, lambda: sum(row.packets for row in watch.drops()) == 10)
        _turn_until(watch, lambda: _by_rule(watch).get(2) == 7)

        assert {2: 7, None: 3} == {k: n for k, n in _by_rule(watch).items() if n}


def _by_rule(watch: Watch) -> dict[int | None, int]:
    return {row.rule: row.packets for row in watch.drops()}


def _send_flows(first: int, count: int) -> None:
    """Send *count* packets, each of a flow and a class of its own, numbered from *first* on."""
    destination = socket.inet_aton(_TO_B)
    with (
        nets.in_netns("a"),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        for number in range(first, first + count):
            source = struct.pack(">I", 0x0A020000 + number)
            header = struct.pack(">BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + source + destination
            raw.sendto(header + struct.pack(">HHHH", 5000, number, 8, 0), (_TO_B, 0))


@pytest.mark.usefixtures("cable")
def test_a_flood_of_flows_stays_within_the_budget() -> None:
    """30,011 flows: never more wait than are allowed, and every packet is accounted for."""
    nets.load_rules(
        "b",
        "nftables",
        "table ip t { chain c {\n type filter hook prerouting "
        "priority 5\n udp sport 5000 drop\n }\n}\n",
    )
    most = 0
    with _watching(flows=31, wait_s=2.0, cpu_percent=20.0) as watch:
        for first in range(0, 30_011, 4_288):
            _send_flows(first, min(4_288, 30_011 - first))
            watch.turn()
            most = max(most, watch.state().waiting)
        inode = find_namespace("b").inode
        _turn_until(watch, lambda: sum(watch.state().naming.untraced.values()) == 30_011)
        state = watch.state()
        dropped = sum(row.packets for row in watch.drops() if row.netns == inode)

    assert (31, 0) == (most, state.waiting)
    assert 31 <= state.naming.armed <= 7 * 31
    assert 30_011 == dropped
    assert dropped == sum(state.naming.untraced.values())
    assert {"flood", "flows", "expired"} == state.naming.untraced.keys()


@pytest.mark.usefixtures("cable")
def test_the_kernel_itself_stops_at_the_packets_of_the_budget() -> None:
    """A flow that sends 20,011 packets at once is traced to its second's share alone."""
    nets.load_rules("b", "nftables", _NFT)
    with _watching(packets_per_second=56, namespaces=8) as watch:
        nets.send_udp("a", _TO_B, 7002, 1, sport=5555)
        _turn_until(watch, lambda: watch.state().waiting == 1)
        started_s = time.monotonic()
        nets.flood("a", _TO_B, 7002, 20_011, sport=5555)
        passed_s = time.monotonic() - started_s
        listed = nets.ip_netns_exec("b", "nft", "list", "counters").stdout
        over = int(listed.partition("packets ")[2].split()[0])
        _turn_until(watch, lambda: watch.state().naming.named == 1)

    assert 7 <= 20_011 - over <= 7 * (passed_s + 1) + 1


@pytest.mark.usefixtures("cable")
def test_drops_are_read_while_a_large_ruleset_is() -> None:
    """30,011 rules are read before the first flow is armed, and drops do not wait for it."""
    many = "  udp dport 9 counter\n" * 30_011
    nets.load_rules("b", "nftables", _NFT.replace("    udp", f"{many}    udp"))
    read_before = []
    with _watching() as watch:
        nets.send_udp("a", _TO_B, 7002, 1, sport=5555)
        _turn_until(watch, lambda: watch.state().recorded >= 1)
        for sent in range(1, 12):
            nets.send_udp("a", _TO_B, 7002, 11, sport=6666)
            _turn_until(watch, lambda sent=sent: watch.state().recorded >= 1 + 11 * sent)
            read_before.append(watch.state().naming.armed == 0)
        _turn_until(watch, lambda: watch.state().waiting == 1)
        nets.send_udp("a", _TO_B, 7002, 1, sport=5555)
        _turn_until(watch, lambda: watch.state().naming.named == 1)

    assert read_before[:3] == [True, True, True]


@pytest.mark.usefixtures("cable")
def test_a_namespace_that_goes_takes_its_flows_along(netns: Callable[..., str]) -> None:
    """A namespace that is deleted while its flow waits is let go, and is really gone."""
    netns("spare")
    nets.load_rules("b", "legacy", _LEGACY)
    with _watching(wait_s=60.0) as watch:
        nets.send_udp("a", _TO_B, 7002, 1)
        _turn_until(watch, lambda: watch.state().waiting == 1)
        nets.ip_netns_exec("b", "ip", "link", "delete", "b0")
        nets.run("ip", "netns", "delete", "b")
        _turn_until(watch, lambda: not watch.state().namespaces)

        assert (0, 0) == (watch.state().waiting, watch.state().traced)
    nets.add_netns("b")


@pytest.mark.usefixtures("cable")
def test_a_syn_that_comes_twice_is_followed_on_request() -> None:
    """With the option, a SYN seen twice in the packet path is told as having got through."""
    with _watching(twice_seen_syns=True) as watch:
        _turn_until(watch, lambda: watch.state().traced == 1)
        nets.send_tcp_syn("a", _TO_B, 9999, 1, sport=4001)
        nets.send_tcp_syn("a", _TO_B, 9999, 1, sport=4002)
        nets.send_tcp_syn("a", _TO_B, 9999, 1, sport=4002)
        _turn_until(watch, lambda: watch.state().naming.unanswered == 1)

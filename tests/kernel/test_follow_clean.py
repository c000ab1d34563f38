"""Follow leaves a machine as it found it, whatever ends it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow
from tracer.sources.nf_log import STATE_DIR, leftovers, repair

if TYPE_CHECKING:
    from collections.abc import Callable

NFT = """
table ip mine {
 counter seen { packets 0 bytes 0 }
 chain in { type filter hook input priority 0; policy accept;
  udp dport 7001 counter drop
  udp dport 7002 counter accept
 }
}
"""
LEGACY = """*filter
:INPUT ACCEPT [0:0]
-A INPUT -p udp --dport 7001 -j DROP
-A INPUT -p udp --dport 7002 -j ACCEPT
COMMIT
"""


@pytest.fixture
def pair(netns: Callable[..., str]) -> None:
    """Lay a cable from a to b, which has nft and legacy rules."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.load_rules("b", "nftables", NFT)
    nets.load_rules("b", "legacy", LEGACY)


def _state(ns: str) -> tuple[str, ...]:
    """Return what the machine says of itself: nft, legacy, the logger, the notes."""
    with nets.in_netns(ns):
        logger = Path("/proc/sys/net/netfilter/nf_log/2").read_text()
    notes = sorted(str(path) for path in STATE_DIR.glob("*"))
    return (
        nets.ip_netns_exec(ns, "nft", "list", "ruleset").stdout,
        _without_comments(nets.ip_netns_exec(ns, "iptables-legacy-save", "-c").stdout),
        logger,
        repr(notes),
    )


def _without_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: signal.Signals) -> None:
    """After a run that a signal ended all is as before, byte by byte, and can be loaded."""
    before = _state("b")
    with follow("b", "--dport", "7003") as run:
        run.process.send_signal(number)
        told = run.wait()

    assert 130 == told.status
    assert before == _state("b")
    nets.load_rules("b", "nftables", "flush ruleset\n" + before[0])


@pytest.mark.usefixtures("pair")
def test_a_normal_end_leaves_nothing() -> None:
    """After a run that its timeout ended all is as before."""
    before = _state("b")
    with follow("b", "--dport", "7003", "--timeout", "0.5") as run:
        told = run.wait()

    assert 1 == told.status
    assert before == _state("b")


@pytest.mark.usefixtures("pair")
def test_thirty_killed_runs_leave_a_note_that_puts_all_right() -> None:
    """No table outlives a SIGKILL, and one repair puts back what thirty runs left."""
    before = _state("b")
    for _ in range(30):
        command = (sys.executable, "-m", "tracer.cli.main", "follow", "-o", "json", "--ends", "off")
        with nets.spawn("b", *command, "--dport", "7003", cwd=nets.ROOT) as process:
            nets.wait_until(lambda: _is_listening(process.pid), 20, "the start")
            process.kill()
    left = nets.ip_netns_exec("b", "nft", "list", "tables").stdout
    notes = leftovers()
    lines = repair()

    assert "nftrace_" not in left
    assert 1 <= len(notes) == len(lines) <= 2
    assert before == _state("b")
    assert [] == leftovers()


def _is_listening(pid: int) -> bool:
    return any(path.name.startswith(f"{pid}-") for path in STATE_DIR.glob("*.json"))


@pytest.mark.usefixtures("pair")
def test_the_next_start_repairs_what_a_killed_run_left() -> None:
    """A start after a SIGKILL says what it put right, and ends with the first setting."""
    before = _state("b")
    with follow("b", "--dport", "7003") as run:
        run.process.kill()
        run.process.wait(10)
    with follow("b", "--dport", "7003") as run:
        told = run.finish(0, wait_s=0)

    assert told.errors.startswith("repaired after an earlier run: netns b")
    assert before == _state("b")


@pytest.mark.usefixtures("pair")
def test_a_refused_start_leaves_nothing(netns: Callable[..., str]) -> None:
    """What was switched on in the first namespace is undone when the second refuses."""
    netns("c")
    nets.load_rules("c", "legacy", LEGACY)
    before = _state("b"), _state("c")
    with follow("c", "--dport", "7003") as holder:
        refused = nets.nftrace("b", "follow", "--netns", "b", "--netns", "c", "--dport", "7003")
        told = holder.finish(0, wait_s=0)

    assert 3 == refused.returncode, refused.stderr
    assert 130 == told.status
    assert before == (_state("b"), _state("c"))


@pytest.mark.usefixtures("pair")
def test_foreign_counters_and_numbers_are_as_without_us() -> None:
    """Rules keep their numbers while we run, and count what they count without us."""

    def send() -> list[list[int]]:
        nets.load_rules("b", "nftables", "flush ruleset\n" + NFT)
        nets.load_rules("b", "legacy", LEGACY)
        nets.send_udp("a", "10.1.0.2", 7002, 11)
        nets.send_udp("a", "10.1.0.2", 7001, 13)
        return [
            nets.rule_counters("b", "nftables", "mine", "in"),
            nets.rule_counters("b", "legacy", "filter", "INPUT"),
        ]

    alone = send()
    numbers = nets.ip_netns_exec("b", "iptables-legacy", "-S").stdout
    with follow("b", "--dst", "10.1.0.2") as run:
        beside = send()
        meanwhile = nets.ip_netns_exec("b", "iptables-legacy", "-S").stdout
        told = run.finish(24)

    assert 24 == len(told.journeys)
    assert alone == beside == [[13, 11], [0, 11]]
    assert numbers == meanwhile


def test_connection_tracking_stays_off_where_it_was_off(netns: Callable[..., str]) -> None:
    """In a namespace without ct and NAT no connection is tracked on our account."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.load_rules("b", "nftables", NFT)
    with follow("b", "--src", "10.1.0.1", "--both") as run:
        nets.send_udp("a", "10.1.0.2", 7002, 7)
        tracked = nets.ip_netns_exec("b", "conntrack", "-L").stdout
        told = run.finish(7)

    assert 7 <= len(told.journeys)
    assert "" == tracked

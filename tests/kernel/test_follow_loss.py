"""What was lost is counted to the message, and said where it may be missing."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import Following, follow

if TYPE_CHECKING:
    from collections.abc import Callable

NFT = """
table ip mine { chain in { type filter hook input priority 0; policy accept;
 udp dport 7001 counter
 udp dport 7001 jump more
}
chain more {
 meta mark 0 counter
 udp dport 7001 drop
}; }
"""
# Our own event where tracing begins, and the four rules.
EVENTS = 5
STEPS = (("in", 1), ("in", 2), ("more", 1), ("more", 2))


@pytest.fixture
def cable(netns: Callable[..., str]) -> None:
    """Lay a cable from a to b, where four rules see each packet."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.load_rules("b", "nftables", NFT)


def _drops(ns: str) -> int:
    """Return what the kernel counted on sockets that hear nft's traces in *ns*."""
    text = nets.ip_netns_exec(ns, "cat", "/proc/net/netlink").stdout
    rows = [line.split() for line in text.splitlines()[1:]]
    return sum(int(row[8]) for row in rows if row[1] == "12" and int(row[3], 16) & 0x100)


def _settled(run: Following, ns: str) -> int:
    """Wait until the socket has been read empty; return its drops."""

    def queued() -> int:
        text = nets.ip_netns_exec(ns, "cat", "/proc/net/netlink").stdout
        rows = [line.split() for line in text.splitlines()[1:]]
        return sum(int(row[4]) for row in rows if row[1] == "12" and int(row[3], 16) & 0x100)

    assert run.process.poll() is None
    nets.wait_until(lambda: queued() == 0, 20, "an empty socket")
    return _drops(ns)


@pytest.mark.usefixtures("cable")
def test_an_overrun_is_counted_to_the_message_and_marks_only_its_journeys() -> None:
    """Received and lost make what was sent; a complete journey has all of its steps."""
    sent = 60_013
    with follow("b", "--dport", "7001", "--buffer", "1", "--ends", "off") as run:
        nets.flood("a", "10.1.0.2", 7001, sent, ports=7)
        drops = _settled(run, "b")
        told = run.finish(0, wait_s=0)
    incomplete = [one for one in told.journeys if not one["complete"]]
    short = [one for one in told.journeys if _steps(one) != STEPS]

    assert 0 < drops == told.summary["lost"]
    assert sent * EVENTS == told.summary["events"] + told.summary["lost"]
    assert [] == [one for one in short if one["complete"]]
    assert 0 < len(incomplete) < 0.5 * len(told.journeys)
    assert all(one["lost"] > 0 for one in incomplete if one["whole"]), incomplete[0]


def _steps(journey: dict[str, object]) -> tuple[tuple[str, int], ...]:
    steps = journey["steps"]
    assert isinstance(steps, list)
    return tuple((step["chain"], step["rule"]) for step in steps)


@pytest.mark.usefixtures("cable")
def test_nothing_is_lost_where_nothing_overruns() -> None:
    """With the usual buffer all journeys are complete and whole."""
    with follow("b", "--dport", "7001", "--ends", "off") as run:
        nets.flood("a", "10.1.0.2", 7001, 10_007, ports=7)
        told = run.finish(10_007, wait_s=20)

    assert 0 == told.summary["lost"]
    assert {STEPS: 10_007} == {STEPS: sum(_steps(one) == STEPS for one in told.journeys)}
    assert all(one["complete"] for one in told.journeys)


@pytest.mark.usefixtures("cable")
def test_a_reader_that_sleeps_costs_no_memory_and_its_losses_are_counted() -> None:
    """While nobody reads, memory does not grow and the socket counts what it refuses."""
    sent = 30_011
    command = (sys.executable, "-m", "tracer.cli.main", "follow", "-o", "json", "--buffer", "1")
    words = ("--dport", "7001", "--ends", "off")
    with nets.spawn("b", *command, *words, cwd=nets.ROOT) as process:
        nets.wait_until(lambda: _drops_known("b"), 20, "arming")
        nets.flood("a", "10.1.0.2", 7001, 997)
        before = _resident(process.pid)
        nets.flood("a", "10.1.0.2", 7001, sent - 997)
        after, drops = _resident(process.pid), _drops("b")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    summary = output.splitlines()[-1]

    assert "" == errors
    assert drops > 0.5 * sent * EVENTS
    assert f'"lost":{drops}' in summary
    assert after - before < 16 << 20
    assert 130 == process.returncode


def _drops_known(ns: str) -> bool:
    return "nftrace_follow_" in nets.ip_netns_exec(ns, "nft", "list", "tables").stdout


def _resident(pid: int) -> int:
    """Return the process's resident memory in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) << 10


@pytest.mark.usefixtures("cable")
def test_memory_stays_flat_over_a_million_messages() -> None:
    """Between the first hundred thousand messages and a million nothing grows."""
    with follow("b", "--dport", "7001", "--ends", "off", "-o", "compact") as run:
        nets.flood("a", "10.1.0.2", 7001, 40_009, rate=40_000, ports=7)
        _settled(run, "b")
        early = _resident(run.process.pid)
        nets.flood("a", "10.1.0.2", 7001, 160_001, rate=40_000, ports=7)
        _settled(run, "b")
        late = _resident(run.process.pid)
        run.process.send_signal(signal.SIGINT)
        run.process.wait(20)

    assert late - early < 16 << 20

"""Events that wait for a ruleset that takes its time: bounded, and what that costs is said."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.sources.netns import entered, find_namespace
from tracer.sources.ruleset import read_ruleset
from tracer.sources.trace import NamespaceTrace
from tracer.sources.trace_socket import TraceSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracer.sources.trace import Told

LIMIT = 1000
#: Of one event each; more than a read of the socket takes in at once.
PACKETS = 6007
OLD, NEW = (f'udp dport 9 counter drop comment "{age}"' for age in ("old", "new"))
_CHAIN = f"""
table ip t {{ chain in {{
 type filter hook prerouting priority -500;
 udp dport 9 meta nftrace set 1
 {OLD}
}}
}}
"""


class _Slow:
    """A trace whose readings of the ruleset wait until they are let go."""

    def __init__(self, trace: NamespaceTrace, gate: Event, limit: int) -> None:
        self.trace = trace
        self.limit = limit
        self._gate = gate

    def take_all(self) -> list[Told]:
        """Read what lies in the socket."""
        found, count = self.trace.receive()
        while count:
            told, count = self.trace.receive()
            found += told
        return found

    def finish(self) -> list[Told]:
        """Let the ruleset be read, and return what was still waiting and open."""
        self._gate.set()
        return self.trace.finish()


@pytest.fixture(params=[LIMIT, 10 * PACKETS], ids=["reached", "not reached"])
def slow(request: pytest.FixtureRequest, netns: Callable[..., str]) -> Iterator[_Slow]:
    """Give the trace of a box whose rules are replaced, and read again only at the end."""
    netns("a")
    netns("box")
    nets.veth("a", "eth0", "10.1.0.1/24", "box", "eth0", "10.1.0.2/24")
    nets.load_rules("box", "nftables", _CHAIN)
    namespace, gate = find_namespace("box"), Event()
    with ThreadPoolExecutor(1) as pool:
        with entered(namespace):
            socket = TraceSocket(namespace, buffer_bytes=64 << 20)
            socket.join()
            read = read_ruleset()
        pool.submit(gate.wait)
        trace = NamespaceTrace(socket, read, pool, waiting_limit=request.param)
        yield _Slow(trace, gate, request.param)
        gate.set()
        socket.close()


def test_more_waiting_events_than_the_limit_are_read_by_the_rules_in_hand(slow: _Slow) -> None:
    """None is lost or named wrong: what could not wait has no text, is counted, and is said."""
    _flood(11)
    told = slow.take_all()
    nets.load_rules("box", "nftables", f"flush chain ip t in\n{_replaced()}")
    _flood(PACKETS)
    early = slow.take_all()
    told += early + slow.finish()

    texts = Counter(
        step.text
        for one in told
        for path in one.paths
        for step in path.steps
        if step.verdict == "drop"
    )
    assert 0 == slow.trace.socket.lost
    assert 11 + PACKETS == sum(texts.values())
    assert 11 == texts[OLD]
    assert {OLD, NEW, None} >= set(texts)
    # Two events a packet, the mark and the drop; those of old rules do not wait.
    hurried = 2 * texts[None]
    notes = [f"netns box: {hurried} events were read by rules that may not be theirs"]
    assert (notes if hurried else []) == slow.trace.errors
    waited = 2 * texts[NEW]
    assert (slow.limit == LIMIT) == (hurried > 0)
    assert waited <= slow.limit
    assert sum(len(one.paths) for one in early) >= texts[None]


def test_since_when_something_waits_is_known(slow: _Slow) -> None:
    """All is told but while rules are read: then, what came before the first that waits."""
    trace = slow.trace
    _flood(3)
    slow.take_all()
    first_ns = time.monotonic_ns()
    nets.load_rules("box", "nftables", f"flush chain ip t in\n{_replaced()}")
    _flood(5)
    slow.take_all()
    second_ns = time.monotonic_ns()
    waiting_ns = trace.find_told_ns(second_ns)

    assert first_ns == trace.find_told_ns(first_ns)
    assert first_ns < waiting_ns < second_ns
    assert waiting_ns == trace.find_told_ns(second_ns + 1)
    assert slow.finish()
    assert second_ns == trace.find_told_ns(second_ns)


def _flood(count: int) -> None:
    """Send so many packets to rules that met none yet, and wait until all have met them."""
    nets.flood("a", "10.1.0.2", 9, count, rate=20_000)
    nets.wait_until(lambda: nets.rule_counters("box", "nftables", "t", "in") == [count], 10)


def _replaced() -> str:
    rules = ("udp dport 9 meta nftrace set 1", NEW)
    return "".join(f"add rule ip t in {rule}\n" for rule in rules)

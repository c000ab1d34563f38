"""Events that wait for a ruleset that takes its time: bounded, and what that costs is said."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.kernel import nets
from tracer.sources.netns import entered, find_namespace
from tracer.sources.ruleset import read_ruleset
from tracer.sources.trace import NamespaceTrace
from tracer.sources.trace_socket import TraceSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from tracer.core.journey import Step
    from tracer.sources.netns import Netns
    from tracer.sources.trace import Told
    from tracer.sources.trace_socket import Received

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
#: So that the rules below it have other numbers.
_ABOVE = "add rule ip t in udp dport 1 drop\n"


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


def _box(netns: Callable[..., str]) -> Netns:
    """Lay a box with rules beside a sender."""
    netns("a")
    netns("box")
    nets.veth("a", "eth0", "10.1.0.1/24", "box", "eth0", "10.1.0.2/24")
    nets.load_rules("box", "nftables", _CHAIN)
    return find_namespace("box")


@pytest.fixture(params=[LIMIT, 10 * PACKETS], ids=["reached", "not reached"])
def slow(request: pytest.FixtureRequest, netns: Callable[..., str]) -> Iterator[_Slow]:
    """Give the trace of a box whose rules are replaced, and read again only at the end."""
    namespace, gate = _box(netns), Event()
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

    texts = Counter(step.text for step in _steps(told))
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


def _flood(count: int, met: int = 0) -> None:
    """Send so many packets to rules that *met* some before, and wait until all have met them."""
    nets.flood("a", "10.1.0.2", 9, count, rate=20_000)
    counted = [met + count]
    nets.wait_until(lambda: nets.rule_counters("box", "nftables", "t", "in") == counted, 10)


def _steps(told: list[Told]) -> Iterator[Step]:
    """Return the steps that dropped."""
    for one in told:
        for path in one.paths:
            yield from (step for step in path.steps if step.verdict == "drop")


def _replaced() -> str:
    rules = ("udp dport 9 meta nftrace set 1", NEW)
    return "".join(f"add rule ip t in {rule}\n" for rule in rules)


class _Late(TraceSocket):
    """A socket that brings announcements of changes when `release` was called, not before."""

    def __init__(self, namespace: Netns) -> None:
        super().__init__(namespace, buffer_bytes=8 << 20)
        self._held: list[Received] = []
        self._is_holding = True

    def release(self) -> None:
        """Hold up nothing any more."""
        self._is_holding = False

    def receive(self) -> Received | None:
        """Return what came, without what is held up; what was comes first."""
        if not self._is_holding and self._held:
            return self._held.pop(0)
        received = super().receive()
        if received is None or not self._is_holding:
            return received
        held = received.announced
        if len(held):
            # The buffer is the next read's.
            self._held.append(replace(_rows(received, held), words=received.words.copy()))
        return _rows(received, np.setdiff1d(np.arange(len(received.starts)), held))


def _rows(received: Received, rows: npt.NDArray[np.int64]) -> Received:
    return replace(
        received,
        starts=received.starts[rows].copy(),
        lengths=received.lengths[rows].copy(),
        announced=np.flatnonzero(np.isin(rows, received.announced)),
    )


@pytest.fixture
def late(netns: Callable[..., str]) -> Iterator[tuple[NamespaceTrace, _Late]]:
    """Give the trace of a box by a socket that hears of changes late."""
    namespace = _box(netns)
    with ThreadPoolExecutor(1) as pool:
        with entered(namespace):
            socket = _Late(namespace)
            socket.join()
            read = read_ruleset()
        yield NamespaceTrace(socket, read, pool), socket
        socket.close()


def test_packets_that_come_before_the_announcement_meet_the_new_rules(
    late: tuple[NamespaceTrace, _Late],
) -> None:
    """A rule that nobody knows says that there are others; what is announced later adds none."""
    trace, socket = late
    told: list[Told] = []

    def count(text: str) -> int:
        told.extend(trace.receive()[0])
        return sum(step.text == text for step in _steps(told))

    _flood(11)
    nets.wait_until(lambda: count(OLD) == 11, 5, "the old rule's packets")
    nets.load_rules("box", "nftables", f"flush chain ip t in\n{_ABOVE}{_replaced()}")
    _flood(7)
    nets.wait_until(lambda: count(NEW) == 7, 5, "the new rule's packets, unannounced")
    early = trace.readings
    socket.release()
    _flood(5, met=7)
    nets.wait_until(lambda: count(NEW) == 12, 5, "the new rule's packets, announced")
    told += trace.finish()

    assert {(OLD, 2): 11, (NEW, 3): 12} == Counter((step.text, step.rule) for step in _steps(told))
    assert [] == trace.errors
    assert (1, 2) == (early, trace.readings)

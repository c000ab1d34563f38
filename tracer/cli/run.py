"""
The wheel of a follow: wait, read, choose, show, until something ends it.

It is turned by `nftrace follow` and by the demo.
"""

from __future__ import annotations

import selectors
import signal
import time
from typing import TYPE_CHECKING

from tracer.core.paths import NOT_OBSERVED
from tracer.pipeline import Progress, choose
from tracer.settle import Settler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Self

    from tracer.cli.sinks import Sink, SummarySink
    from tracer.core.filters import Filter
    from tracer.pipeline import Chosen
    from tracer.sources.follow import Follow
    from tracer.sources.trace import NamespaceTrace, Told

__all__ = ["FollowRun", "Interrupts"]

#: How long we wait for events before looking after what is open.
_TICK_S = 0.05
#: A pause after a small batch lets the next one grow, which is cheaper to read.
_PAUSE_S = 0.004
_LARGE_BATCH = 2048
#: Batches that one namespace may have in a row before the others have their turn.
_TURN = 8


class Interrupts:
    """
    Turns SIGINT and SIGTERM into a question, so that the way out is always walked.

    Whoever asks twice is not kept waiting for a reader that takes nothing: the second
    signal raises KeyboardInterrupt, once, and never after `hold`.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._is_held = False
        self._former: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Take the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, former in self._former.items():
            signal.signal(number, former)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        is_second, self.reason = self.reason is not None, "interrupted"
        if is_second and not self._is_held:
            self._is_held = True
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Raise nothing any more: what is being put back must not be interrupted."""
        self._is_held = True


class FollowRun:
    """
    One follow's reading and showing.

    *count* is the number of packets that end it, None for no such end.
    """

    def __init__(  # noqa: PLR0913 - one follow's parts
        self,
        follow: Follow,
        wanted: Filter,
        sinks: Sequence[Sink],
        summary: SummarySink,
        *,
        both: bool,
        count: int | None = None,
    ) -> None:
        self._follow = follow
        self._wanted = wanted
        self._sinks = (*sinks, summary)
        self._summary = summary
        self._both = both
        self._count = count
        self._shown = 0
        self._early_ends = 0
        self._settler: Settler[NamespaceTrace] | None = None
        self._look_for_ends()
        self._selector = selectors.DefaultSelector()
        for trace in follow.traces:
            self._selector.register(trace.socket, selectors.EVENT_READ, trace)

    def turn(self, until: Callable[[], str | None]) -> str:
        """Read and show until *until* gives a reason, or the count is reached; return which."""
        while True:
            reason = until()
            if reason is not None:
                return reason
            if self._count is not None and self._summary.packets >= self._count:
                return "count reached"
            ready = self._selector.select(_PAUSE_S if self._is_waiting else _TICK_S)
            now_ns, reading_ns = time.time_ns(), time.monotonic_ns()
            self._look_for_ends()
            largest = max((self._read(key.data) for key, _ in ready), default=0)
            for trace in self._follow.traces:
                self._take(trace.advance())
            self._settle(now_ns)
            told_ns = min(trace.find_told_ns(reading_ns) for trace in self._follow.traces)
            self._idle(Progress(reading_ns, told_ns))
            if ready and largest < _LARGE_BATCH:
                time.sleep(_PAUSE_S)

    def drain(self) -> None:
        """Disarm, and show what is still queued and open."""
        self._take(list(self._follow.drain()))
        self._settle(time.time_ns())
        while self._is_waiting:
            time.sleep(_PAUSE_S)
            self._settle(time.time_ns())
        self._idle(None)
        self._selector.close()

    def _read(self, trace: NamespaceTrace) -> int:
        count = 0
        for _ in range(_TURN):
            told, count = trace.receive()
            self._take(told)
            if count < _LARGE_BATCH:
                break
        return count

    def _look_for_ends(self) -> None:
        ends = self._follow.ends
        if self._settler is None and ends is not None and ends.poll() and ends.is_open:
            self._settler = Settler(ends)

    def _take(self, told: Sequence[Told]) -> None:
        for one in told:
            chosen = choose(
                one.journeys,
                one.paths,
                self._wanted,
                both=self._both,
                device=one.trace.device,
            )
            if self._settler is None:
                self._count_early(chosen)
                self._show(one.trace, chosen)
            elif len(chosen):
                trace = one.trace
                self._settler.add(trace, trace.namespace.inode, trace.device, chosen)

    def _count_early(self, chosen: Chosen) -> None:
        """Count the ends that nobody sees because their watching is still being loaded."""
        if self._follow.ends is not None and not self._follow.ends.poll():
            reasons = [path.ending.reason for path in chosen.paths]
            self._early_ends += reasons.count(NOT_OBSERVED)

    @property
    def _is_waiting(self) -> bool:
        return self._settler is not None and self._settler.waiting > 0

    @property
    def unseen_ends(self) -> int:
        """How many journeys' ends were not seen although somebody watched."""
        seen_late = 0 if self._settler is None else self._settler.unseen
        return self._early_ends + seen_late

    def _settle(self, now_ns: int) -> None:
        if self._settler is not None:
            for trace, chosen in self._settler.take(now_ns):
                self._show(trace, chosen)

    def _show(self, trace: NamespaceTrace, chosen: Chosen) -> None:
        if self._count is not None:
            chosen = chosen.first_packets(self._count - self._summary.packets)
        if len(chosen):
            for sink in self._sinks:
                sink.show(trace, chosen, self._shown)
            self._shown += len(chosen)

    def _idle(self, progress: Progress | None) -> None:
        for sink in self._sinks:
            sink.idle(progress)

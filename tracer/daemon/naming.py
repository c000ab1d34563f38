"""
Rules named without asking: a flow that lost a packet is waited for, and traced.

The kernel's record of a drop says which flow lost a packet, and mostly by which rule. Where
it does not say, that flow is armed in its namespace, and its next packet, if it dies alike,
names the rule. What was learned is remembered by version of the ruleset, place and class of
flow, and asked no second time. A rule that is known has one of its packets traced now and
then, as the example that alerts and metrics lead to.

Whatever arrives, the work is bounded: records looked at in a turn, flows and namespaces
that wait, packets that the kernel traces, CPU time on the average. Each packet whose rule
is not asked for is counted under the bound that kept us from it.

Before a namespace's first flow is armed its rules are read, which takes seconds where
there are a hundred thousand: another thread does that, and the flow waits unarmed.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import secrets
import time
from collections import OrderedDict
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from tracer.core.budget import Bucket
from tracer.core.distinct import find_distinct
from tracer.core.drop_events import packets_of
from tracer.core.filters import Filter
from tracer.core.flow_classes import (
    FLOW_CLASS,
    Answers,
    Flow,
    RuleAnswer,
    class_keys,
    flow_keys,
)
from tracer.core.health import Exemplar
from tracer.core.journey import EndingKind
from tracer.daemon.naming_counts import (
    Amount,
    NamingCounts,
    is_named,
    move_attributed,
    needs_name,
)
from tracer.errors import NftraceError
from tracer.pipeline import choose, make_journey
from tracer.sources.adaptive import FlowTrace, RulesetMark
from tracer.sources.netns import entered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    import numpy.typing as npt

    from tracer.core.drops import DropCount, Rung
    from tracer.core.journey import Journey
    from tracer.daemon.settings import TraceSettings
    from tracer.pipeline import Chosen
    from tracer.sources.netns import Netns
    from tracer.sources.trace import Told

__all__ = ["Namer"]

#: Records that are looked at in one turn; a turn takes some ms of them.
RECORDS_MAX = 512
#: CPU time is saved up for so many seconds.
_CPU_BURST_S = 10.0
#: Rules changed or not: asked at most so often in each namespace.
_CHECK_S = 1.0
#: After the kernel or another tool refused, a namespace is left alone for so long.
_REFUSED_S = 30.0
#: Once named, a namespace's chains go when no other flow has come for so long.
_LINGER_S = 1.0
#: Rules by namespace that packets are counted for; more are counted together.
_ATTRIBUTED_MAX = 16_384

#: Rules whose last traced packet is remembered.
_EXEMPLARS_MAX = 1024
#: Kinds of drops for which it is known when the next example is due.
_EXAMPLES_MAX = 8192
#: A flow that sent nothing more was no example: another one is looked for after so long.
_EXAMPLE_AGAIN_S = 60.0

#: What `_bound` calls the bounds that the configuration sets.
_BUDGETS = ("flows", "cpu", "namespaces")

#: Of `FLOW_CLASS`, which begins with the source's address.
_SOURCE_BYTES = FLOW_CLASS["src"].itemsize
_ENDED = (EndingKind.DROPPED, EndingKind.REJECTED)

_Key: TypeAlias = tuple[int, int, str | None, str | None, bytes]


class _Opened(NamedTuple):
    """A trace, and the CPU seconds that it took to open it."""

    trace: FlowTrace
    cost_s: float


@dataclass
class _Space:
    """
    What is known of a namespace; *trace* is there only while flows wait in it.

    *opening* is the trace to come. *is_wanted*: one is to be opened though no flow waits.
    """

    namespace: Netns
    version: int = 0
    #: Tables whose rules look at the source; None while this version was not read.
    by_source: frozenset[str] | None = None
    mark: RulesetMark | None = None
    checked_s: float = 0.0
    refused_until_s: float = 0.0
    trace: FlowTrace | None = None
    opening: Future[_Opened] | None = None
    is_wanted: bool = False
    readings: int = 0
    until_s: float = 0.0
    waiting: dict[Flow, _Waiting] = field(default_factory=dict)
    asked: dict[_Key, _Waiting] = field(default_factory=dict)

    def renew(self) -> None:
        """Take note of other rules: what was learned of the former ones is over."""
        self.version += 1
        self.by_source = None

    @property
    def is_in_use(self) -> bool:
        """Whether it takes one of the places that the configuration has."""
        return bool(self.waiting or self.trace or self.opening or self.is_wanted)


@dataclass(slots=True)
class _Waiting:
    """
    A flow that stands for its class; *died* is what that has lost until now.

    The class is *of*, with the source; answers for it are kept by *key*. *is_example*: the
    rule is known, and one of its packets is wanted whole.
    """

    flow: Flow
    key: _Key
    of: bytes
    kind: DropCount
    until_s: float
    died: Amount
    is_example: bool = False


class Namer:
    """
    Arms flows, and keeps what their traces say.

    *log* is a structlog logger. All times given are monotonic seconds. *tell*, if it is
    set, is called with journeys that were traced and their packets' headers; *wake* by any
    thread, when a turn is due. While *yields* is set nothing is traced: legacy tables'
    events have one listener, and people who follow packets come first.
    """

    def __init__(
        self,
        settings: TraceSettings,
        pool: ThreadPoolExecutor,
        log: Any,  # noqa: ANN401 - structlog's
        now_s: float,
    ) -> None:
        self.counts = NamingCounts()
        self.answers = Answers(settings.answers)
        self.exemplars: dict[tuple[int, RuleAnswer], Exemplar] = {}
        self.resisted: list[str] = []
        self.yields = False
        self.wake: Callable[[], None] = lambda: None
        self.tell: Callable[[Sequence[Journey], npt.NDArray[np.void]], None] | None = None
        self._host = os.uname().nodename
        self._run = secrets.token_hex(5)
        self._journeys = 0
        self._settings = settings
        self._pool = pool
        self._log = log
        share = settings.cpu_percent / 100
        self._cpu = Bucket(share, share * _CPU_BURST_S, now_s)
        # What reading traces costs, apart: opening costs once, and is paid for by not arming.
        self._reading = Bucket(share, share * _CPU_BURST_S, now_s)
        self._spaces: dict[int, _Space] = {}
        self._waiting = 0
        self._examples_due: OrderedDict[DropCount, float] = OrderedDict()
        #: What was being opened for namespaces that are gone.
        self._orphans: list[Future[_Opened]] = []

    @property
    def waiting(self) -> int:
        """How many flows wait for their next packet, armed."""
        spaces = self._spaces.values()
        return sum(len(one.waiting) for one in spaces if one.trace is not None)

    @property
    def traced(self) -> int:
        """In how many namespaces there are chains of ours now."""
        return sum(space.trace is not None for space in self._spaces.values())

    def name(self, rows: Iterable[DropCount]) -> list[DropCount]:
        """Return *rows* with what was attributed moved to its rule."""
        return move_attributed(rows, self.counts.attributed)

    def forget(self, namespaces: Iterable[Netns]) -> None:
        """Drop what is known of *namespaces*, which are gone or no longer watched."""
        for one in namespaces:
            space = self._spaces.pop(one.inode, None)
            if space is not None:
                self._close(space)

    def stand_by(self, namespaces: Iterable[Netns], now_s: float) -> None:
        """Trace SYNs that are seen twice in *namespaces*, if the settings ask for it."""
        for namespace in namespaces if self._settings.twice_seen_syns else ():
            space = self._space(namespace, now_s)
            in_use = self.traced + sum(one.is_wanted for one in self._spaces.values())
            space.is_wanted = space.trace is None and in_use < self._settings.namespaces

    def offer(  # noqa: PLR0913, PLR0917 - what is known of records, and of the moment
        self,
        kinds: Sequence[DropCount],
        indexes: npt.NDArray[np.intp],
        records: npt.NDArray[np.void],
        namespaces: Mapping[int, Netns],
        rung: Rung,
        now_s: float,
    ) -> None:
        """
        Take records of drops; `kinds[indexes[i]]` is the kind of the i-th.

        Shape: *namespaces* are those that are watched, by inode. What *rung* names itself
        is passed over, but for an example now and then.
        """
        wanted = (needs_name(kind, rung) or self._wants_example(kind, now_s) for kind in kinds)
        unknown = np.fromiter(wanted, np.bool_, len(kinds))
        watched = np.isin(records["key"]["netns"], list(namespaces))
        rows = np.flatnonzero(unknown[indexes] & watched)
        if not len(rows):
            return
        if self._cpu.level(now_s) <= 0:
            # Looking costs as well: what comes now is counted and no more.
            self._count_untraced("cpu", int(records["weight"][rows].sum()))
            return
        started_s = time.thread_time()
        look = rows[:: -(-len(rows) // RECORDS_MAX)]
        skipped = records["weight"][rows].sum() - records["weight"][look].sum()
        self._count_untraced("flood", int(skipped))
        self._group(kinds, indexes[look], records[look], namespaces, now_s)
        self._cpu.spend(time.thread_time() - started_s, now_s)

    def _group(
        self,
        kinds: Sequence[DropCount],
        indexes: npt.NDArray[np.intp],
        records: npt.NDArray[np.void],
        namespaces: Mapping[int, Netns],
        now_s: float,
    ) -> None:
        packets = packets_of(records)
        flows, usable = flow_keys(packets)
        weights = records["weight"].astype(np.int64)
        self._count_untraced("no_flow", int(weights[~usable].sum()))
        grouped = np.zeros(len(records), [("kind", "<u4"), ("of", FLOW_CLASS)])
        grouped["kind"], grouped["of"] = indexes, class_keys(packets, records["iif"])
        grouped = grouped[usable]
        first, group = find_distinct(grouped)
        keys = grouped[first]
        lengths = weights * records["length"]
        sums = (np.bincount(group, each[usable], len(keys)) for each in (weights, lengths))
        amounts = zip(*(each.astype(np.int64).tolist() for each in sums), strict=True)
        wanted: dict[int, list[_Waiting]] = {}
        flows, classes = flows[usable], keys["of"].tobytes()
        size = FLOW_CLASS.itemsize
        groups = zip(keys["kind"].tolist(), first.tolist(), amounts, strict=True)
        for number, (which, row, amount) in enumerate(groups):
            kind, died = kinds[which], Amount(*amount)
            space = self._space(namespaces[kind.netns], now_s)
            of = classes[number * size : (number + 1) * size]
            ask = _key(space, kind, of)
            if is_named(kind):
                flow = Flow.of_row(flows[row])
                if self._takes_example(space, kind, flow, now_s):
                    one = _Waiting(flow, ask, of, kind, math.inf, Amount(), is_example=True)
                    space.waiting[flow] = one
                    self._waiting += 1
                    wanted.setdefault(kind.netns, []).append(one)
                continue
            answer = self.answers.find(ask)
            if answer is not None:
                self._attribute(kind, answer, died)
            elif ask in space.asked:
                space.asked[ask].died.add(died)
            elif (bound := self._bound(space, now_s)) is not None:
                self._count_untraced(bound, died.packets)
                self.counts.bounded += bound in _BUDGETS
            elif (flow := Flow.of_row(flows[row])) in space.waiting:
                self._count_untraced("waiting", died.packets)
            else:
                one = _Waiting(flow, ask, of, kind, math.inf, died)
                space.asked[ask] = space.waiting[flow] = one
                self._waiting += 1
                wanted.setdefault(kind.netns, []).append(one)
        for inode, asked in wanted.items():
            self._arm(self._spaces[inode], asked, now_s)

    def expect_other_rules(self, now_s: float) -> None:
        """Trace an example again of rules that may be others now, though not all at once."""
        for kind, due_s in self._examples_due.items():
            self._examples_due[kind] = min(due_s, now_s + _EXAMPLE_AGAIN_S)

    def _wants_example(self, kind: DropCount, now_s: float) -> bool:
        if not self._settings.example_s or not is_named(kind):
            return False
        return now_s >= self._examples_due.get(kind, 0.0)

    def _takes_example(self, space: _Space, kind: DropCount, flow: Flow, now_s: float) -> bool:
        """Tell whether *flow* is to be armed as the example of its rule, and no other now."""
        if not self._wants_example(kind, now_s) or flow in space.waiting:
            return False
        if self._bound(space, now_s) is not None:
            return False
        self._put_off_example(kind, now_s + _EXAMPLE_AGAIN_S)
        return True

    def _put_off_example(self, kind: DropCount, due_s: float) -> None:
        self._examples_due[kind] = due_s
        self._examples_due.move_to_end(kind)
        if len(self._examples_due) > _EXAMPLES_MAX:
            self._examples_due.popitem(last=False)

    def _attribute(self, kind: DropCount, answer: RuleAnswer, died: Amount) -> None:
        attributed, cause = self.counts.attributed, (kind, answer)
        if cause in attributed:
            attributed[cause].add(died)
        elif len(attributed) < _ATTRIBUTED_MAX:
            attributed[cause] = died
        else:
            self.counts.unattributed += died.packets

    def _count_untraced(self, bound: str, packets: int) -> None:
        if packets:
            self.counts.untraced[bound] += packets

    def _bound(self, space: _Space, now_s: float) -> str | None:
        """Return what keeps us from arming another flow; None where nothing does."""
        settings = self._settings
        if self.yields:
            return "followers"
        if now_s < space.refused_until_s:
            return "refused"
        if self._waiting >= settings.flows:
            return "flows"
        if self._cpu.level(now_s) <= 0:
            return "cpu"
        in_use = sum(one.is_in_use for one in self._spaces.values())
        is_new = not space.is_in_use
        return "namespaces" if is_new and in_use >= settings.namespaces else None

    def _space(self, namespace: Netns, now_s: float) -> _Space:
        """Return what is known of *namespace*, its version checked now and then."""
        space = self._spaces.get(namespace.inode)
        if space is None:
            space = self._spaces[namespace.inode] = _Space(namespace)
        if space.trace is not None:
            if space.trace.trace.readings != space.readings:
                space.readings = space.trace.trace.readings
                space.renew()
        elif now_s - space.checked_s >= _CHECK_S:
            space.checked_s = now_s
            self._check_rules(space)
        return space

    def _check_rules(self, space: _Space) -> None:
        if space.mark is None:
            return
        try:
            with entered(space.namespace):
                if space.mark.has_moved():
                    space.renew()
                    space.mark = RulesetMark()
        except NftraceError:
            space.renew()

    def _arm(self, space: _Space, asked: Sequence[_Waiting], now_s: float) -> None:
        """Arm flows where there is a trace; where it is to come they are armed with it."""
        if space.trace is None:
            return
        try:
            space.trace.arm([one.flow for one in asked], self._settings.wait_s)
        except NftraceError as exc:
            self._refuse(space, asked, exc, now_s)
            return
        space.until_s = now_s + self._settings.wait_s * bool(asked)
        for one in asked:
            one.until_s = space.until_s
        self.counts.armed += len(asked)

    def _refuse(
        self, space: _Space, asked: Sequence[_Waiting], why: NftraceError, now_s: float
    ) -> None:
        self._end(space, asked, "refused")
        space.refused_until_s = now_s + _REFUSED_S
        self._log.warning("arming_refused", netns=space.namespace.name, why=str(why))

    def _open(self, namespace: Netns) -> _Opened:
        """Open a trace, in a thread of the pool."""
        settings = self._settings
        before_s = _children_s() + time.thread_time()
        with entered(namespace):
            trace = FlowTrace(
                namespace,
                self._pool,
                rate=max(1, settings.packets_per_second // settings.namespaces),
                size=settings.flows,
                syns=settings.twice_seen_syns,
            )
        return _Opened(trace, _children_s() + time.thread_time() - before_s)

    def _advance(self, space: _Space, now_s: float) -> None:
        """Begin to open a namespace's trace where it is wanted, and take it when it is there."""
        if space.opening is None:
            if self.yields:
                self._end(space, list(space.waiting.values()), "followers")
            elif space.waiting or space.is_wanted:
                space.is_wanted = False
                space.opening = self._pool.submit(self._open, space.namespace)
                space.opening.add_done_callback(lambda _: self.wake())
            return
        if not space.opening.done():
            return
        opening, space.opening = space.opening, None
        waiting = list(space.waiting.values())
        try:
            opened = opening.result()
        except NftraceError as exc:
            self._refuse(space, waiting, exc, now_s)
            return
        space.trace, space.readings = opened.trace, opened.trace.trace.readings
        space.by_source, space.asked = opened.trace.by_source, {}
        for one in waiting:
            # The rules are known now, and whether sources are to be told apart.
            one.key = _key(space, one.kind, one.of)
            if not one.is_example:
                space.asked.setdefault(one.key, one)
        self._cpu.spend(opened.cost_s, now_s)
        self._arm(space, waiting, now_s)

    def turn(self, now_s: float) -> None:
        """Read what was traced, and end what was waited for long enough."""
        self._close_orphans(timeout_s=0)
        for space in list(self._spaces.values()):
            if space.trace is None:
                self._advance(space, now_s)
                continue
            started_s = time.thread_time()
            try:
                self._take(space, space.trace.receive(), now_s)
            except NftraceError as exc:
                self._refuse(space, list(space.waiting.values()), exc, now_s)
                self._close(space)
                continue
            over = [one for one in space.waiting.values() if now_s >= one.until_s]
            self._end(space, over, "expired")
            self.counts.expired += len(over)
            overspent = self._reading.level(now_s) < 0
            idle = not space.waiting and now_s >= space.until_s
            if self.yields or overspent or (idle and not self._settings.twice_seen_syns):
                self._close(space)
            for bucket in (self._cpu, self._reading):
                bucket.spend(time.thread_time() - started_s, now_s)

    def _take(self, space: _Space, told: Iterable[Told], now_s: float) -> None:
        for one in told:
            chosen = choose(one.journeys, one.paths, Filter(), both=False, device=one.trace.device)
            flows, usable = flow_keys(chosen.packets)
            for row in np.flatnonzero(usable).tolist():
                ending = chosen.paths[row].ending
                answer = RuleAnswer.of_ending(ending) if ending.kind in _ENDED else None
                waited = space.waiting.get(Flow.of_row(flows[row]))
                if waited is None and not self._settings.twice_seen_syns:
                    continue  # another's trace
                journey = self._keep(one, chosen, row)
                if waited is not None:
                    self._learn(space, waited, answer, journey, now_s)
                else:
                    self.counts.unanswered += answer is None

    def _keep(self, told: Told, chosen: Chosen, row: int) -> str:
        """Hand the journey of a row on, and return its id."""
        self._journeys += 1
        journey = make_journey(
            chosen,
            row,
            journey_id=f"{self._run}-{self._journeys}",
            host=self._host,
            netns=told.trace.namespace.name,
            device=told.trace.device,
        )
        if self.tell is not None:
            self.tell([journey], chosen.packets[row : row + 1])
        return journey.id

    def _learn(
        self,
        space: _Space,
        waited: _Waiting,
        answer: RuleAnswer | None,
        journey: str,
        now_s: float,
    ) -> None:
        self._end(space, [waited], None)
        if space.trace is not None:
            space.trace.let_go([waited.flow])
        space.until_s = now_s + _LINGER_S
        if answer is None:
            self.counts.passed += 1
            self._count_untraced("passed", waited.died.packets)
        elif waited.kind.table not in {None, answer.table}:
            self.counts.elsewhere += 1
            self._count_untraced("elsewhere", waited.died.packets)
        else:
            if waited.is_example:
                self._put_off_example(waited.kind, now_s + self._settings.example_s)
            else:
                self.counts.named += 1
                self.answers.remember(waited.key, answer)
                self._attribute(waited.kind, answer, waited.died)
            self._exemplify(space, waited.kind, answer, journey)
            self._log.info(
                "example_traced" if waited.is_example else "rule_named",
                netns=space.namespace.name,
                engine=answer.engine,
                table=answer.table,
                chain=answer.chain,
                rule=answer.rule,
                handle=answer.handle,
                text=answer.text,
                journey=journey,
            )

    def _exemplify(self, space: _Space, kind: DropCount, answer: RuleAnswer, journey: str) -> None:
        """Keep the traced packet as the example of its rule."""
        self.exemplars[space.namespace.inode, answer] = Exemplar(
            space.namespace.name,
            journey,
            time.time(),
            kind.reason,
            answer.hook,
            answer.engine,
            answer.family,
            answer.table,
            answer.chain,
            answer.rule,
            answer.handle,
        )
        if len(self.exemplars) > _EXEMPLARS_MAX:
            del self.exemplars[next(iter(self.exemplars))]

    def _end(self, space: _Space, over: Iterable[_Waiting], bound: str | None) -> None:
        for one in over:
            del space.waiting[one.flow]
            if space.asked.get(one.key) is one:
                del space.asked[one.key]
            self._waiting -= 1
            if bound is not None:
                self._count_untraced(bound, one.died.packets)

    def _close_orphans(self, timeout_s: float | None) -> None:
        done, rest = wait(self._orphans, timeout_s) if self._orphans else ((), ())
        self._orphans = list(rest)
        for one in done:
            # What could not be opened left nothing.
            with contextlib.suppress(NftraceError, CancelledError):
                trace = one.result().trace
                trace.close()
                self.resisted += trace.resisted

    def _close(self, space: _Space) -> None:
        trace, space.trace = space.trace, None
        if space.opening is not None:
            space.opening.cancel()
            self._orphans.append(space.opening)
            space.opening = None
            self._end(space, list(space.waiting.values()), "expired")
        if trace is None:
            return
        try:
            if trace.has_moved():
                space.renew()
        except NftraceError:
            space.renew()
        try:
            self._take(space, trace.end(), time.monotonic())
        except NftraceError as exc:
            self._log.warning("traces_not_read", netns=space.namespace.name, why=str(exc))
        finally:
            trace.close()
        self._end(space, list(space.waiting.values()), "expired")
        self.counts.over_limit += trace.over_limit
        self.resisted += trace.resisted
        for line in trace.resisted:
            self._log.error("not_put_back", netns=space.namespace.name, why=line)
        space.mark = None
        try:
            with entered(space.namespace):
                space.mark = RulesetMark()
        except NftraceError:
            space.renew()

    def close(self) -> None:
        """Disarm everywhere; harmless when repeated."""
        for space in self._spaces.values():
            self._close(space)
        self._close_orphans(timeout_s=None)


def _key(space: _Space, kind: DropCount, of: bytes) -> _Key:
    """Return what answers are kept by: with the source where rules may look at it."""
    tables = space.by_source
    by_source = tables is None or (kind.table in tables if kind.table else bool(tables))
    shown = of if by_source else of[_SOURCE_BYTES:]
    return kind.netns, space.version, kind.hook, kind.table, shown


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

"""
Opening a follow: every namespace read, listened to and armed, and all of it undone.

The one place where what changes the machine is switched on, in an order that leaves
nothing behind when any of it is refused: what was switched on is undone, last first.
"""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from socket import if_nameindex
from typing import TYPE_CHECKING

from tracer.core.arm_hooks import OWN_PREFIX
from tracer.core.arming import plan_arming
from tracer.core.nat_map import LocalAddresses
from tracer.errors import KernelUnsupportedError, NftraceError
from tracer.sources.addresses import read_addresses
from tracer.sources.arming import Armed
from tracer.sources.ends import EndWatch
from tracer.sources.netns import Netns, entered
from tracer.sources.nf_log import NfLogSwitch
from tracer.sources.rearming import Rearming
from tracer.sources.ruleset import legacy_tables, read_generation, read_ruleset
from tracer.sources.trace import NamespaceTrace
from tracer.sources.trace_socket import TraceSocket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from tracer.core.arming import ArmingPlan
    from tracer.core.filters import Filter
    from tracer.sources.ruleset import RulesetRead
    from tracer.sources.trace import Told

__all__ = ["Follow", "FollowOptions"]

#: Packets a second that are traced where no address, port, protocol or device narrows the
#: filter: tracing everything takes a busy router four fifths of its throughput.
RATE_UNFILTERED = 20_000

#: Notes of all plans together; rules that come and go could give any number.
_NOTES_KEPT = 256


@dataclass(frozen=True, slots=True)
class FollowOptions:
    """
    What to follow and how.

    *rate* is packets a second for each namespace, 0 for no limit, None for the default:
    no limit where the filter narrows what is traced, else `RATE_UNFILTERED`.
    *buffer_bytes* is each socket's buffer. *ends*: see what becomes of packets after their
    last rule, where the kernel lets us; arming waits for that until *ends_by_s* of the
    monotonic clock, None for as long as it takes. *skip_refused*: go on without the
    namespaces that cannot be followed, if any can.
    """

    wanted: Filter
    both: bool
    rate: int | None
    buffer_bytes: int
    ends: bool = True
    ends_by_s: float | None = None
    skip_refused: bool = False


class Follow:
    """
    The traces of several namespaces; a context manager that undoes all it did.

    *notes* say what cannot be seen. *ends* is None where nobody asked for them. After the
    block `resisted` has a line, with the command that helps, for each thing that could not
    be put back.
    """

    def __init__(self, namespaces: Sequence[Netns], options: FollowOptions) -> None:
        self._namespaces = namespaces
        self._options = options
        self._stack = ExitStack()
        self._armed: list[Armed] = []
        self._rearmings: list[Rearming] = []
        self._switch = NfLogSwitch()
        self._held: list[int] = []
        self.traces: list[NamespaceTrace] = []
        self._notes: list[str] = []
        self.resisted: list[str] = []
        self.over_limit: int | None = 0
        self.ends: EndWatch | None = EndWatch(namespaces) if options.ends else None

    @property
    def notes(self) -> list[str]:
        """Sentences that say what cannot be seen."""
        of_rearming = (note for one in self._rearmings for note in one.notes)
        of_ends = self.ends.notes if self.ends is not None else ()
        return [*dict.fromkeys((*self._notes, *of_rearming, *of_ends))]

    def __enter__(self) -> Self:
        """Read, listen, arm: one namespace after the other."""
        # Of the many values that rules are read into none is garbage: looking for some takes
        # as long as the reading. What is there in the end is not looked at again.
        gc.disable()
        try:
            self._stack.callback(self._let_go)
            pool = self._stack.enter_context(ThreadPoolExecutor(2, "ruleset"))
            self._stack.callback(self._restore)
            if self.ends is not None:
                self._stack.callback(self.ends.close)
                self.ends.start(pool)
            for namespace in self._namespaces:
                self._enter_and_open(namespace, pool)
        except BaseException:
            self._undo()
            raise
        finally:
            gc.freeze()
            gc.enable()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disarm, and put back what is not ours."""
        self._undo()

    def _undo(self) -> None:
        try:
            self.disarm()
        finally:
            self._stack.close()

    def drain(self) -> Iterator[Told]:
        """Disarm and return what is still queued and open."""
        for trace in self.traces:
            trace.socket.leave_announcements()
        self.disarm()
        for trace in self.traces:
            # Packets that others trace must not keep us from coming to the end.
            trace.socket.leave_traces()
            count = 1
            while count:
                told, count = trace.receive()
                yield from told
            yield from trace.finish()

    def disarm(self) -> None:
        """Remove the arming rules, having read how many packets were over the limit."""
        for armed in self._armed:
            over = armed.read_over_limit()
            if over is None or self.over_limit is None:
                self.over_limit = None
            else:
                self.over_limit += over
            armed.close()
        self._armed.clear()

    def _enter_and_open(self, namespace: Netns, pool: ThreadPoolExecutor) -> None:
        try:
            with entered(namespace):
                self._open(namespace, pool)
        except NftraceError as exc:
            # One of many that went away, or cannot be had, does not hide the others.
            is_last_hope = namespace is self._namespaces[-1] and not self.traces
            if is_last_hope or not self._options.skip_refused:
                raise
            self._notes.append(f"netns {namespace.name} is not followed: {exc}")

    def _open(self, namespace: Netns, pool: ThreadPoolExecutor) -> None:
        """Open one namespace; the calling thread is in it."""
        namespace = self._pinned(namespace)
        if read_generation() is None:
            message = f"netns {namespace.name}: the kernel has no nf_tables"
            raise KernelUnsupportedError(message, "modprobe nf_tables, or see `nftrace check`")
        socket = TraceSocket(namespace, buffer_bytes=self._options.buffer_bytes)
        self._stack.callback(socket.close)
        self._listen_to_legacy(namespace, socket)
        # Listening comes before reading: a change in between is announced, and read again.
        socket.join()
        read = read_ruleset()
        plan = self._plan(namespace, read)
        if self.ends is not None:
            self.ends.wait(self._options.ends_by_s)
        armed = Armed(namespace, plan)
        self._armed.append(armed)
        rearming = Rearming(
            namespace, lambda: self._plan(namespace, read_ruleset()), armed, read.ruleset
        )
        self._rearmings.append(rearming)
        hear = partial(self._hear_legacy, socket)
        self.traces.append(NamespaceTrace(socket, read, pool, hear=hear, look=rearming.look))

    def _plan(self, namespace: Netns, read: RulesetRead) -> ArmingPlan:
        """Plan for the namespace that the calling thread is in, whose rules are *read*."""
        plan = plan_arming(
            self._options.wanted,
            read.ruleset,
            read.nat_json,
            LocalAddresses(read_addresses()),
            ip_sets=read.ip_sets,
            table=f"{OWN_PREFIX}follow_{os.getpid()}",
            both=self._options.both,
            rate=self._rate(),
            devices=tuple(name for _, name in if_nameindex()),
            with_ends=self.ends is not None,
        )
        if self.ends is not None:
            self.ends.arm(plan.called, plan.shared)
        prefix = f"netns {namespace.name}: " if len(self._namespaces) > 1 else ""
        # Planned anew it says much the same.
        notes = (prefix + note for note in plan.notes)
        self._notes = [*dict.fromkeys((*self._notes, *notes))][:_NOTES_KEPT]
        return plan

    def _pinned(self, namespace: Netns) -> Netns:
        """Return the namespace by a descriptor, so that it can be entered when its name is gone."""
        held = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._held.append(held)
        return replace(namespace, path=f"/proc/{os.getpid()}/fd/{held}")

    def _listen_to_legacy(self, namespace: Netns, socket: TraceSocket) -> None:
        families = [family for family, names in legacy_tables().items() if names]
        if not families:
            return
        # The group first: where another holds it nothing has been switched yet.
        socket.bind_nflog()
        for family in families:
            self._switch.turn_on(namespace, family)

    def _hear_legacy(self, socket: TraceSocket, families: list[str]) -> None:
        """Listen to legacy tables that have come into being since we began."""
        namespace = socket.namespace
        try:
            with entered(namespace):
                socket.bind_nflog_late()
                for family in families:
                    self._switch.turn_on(namespace, family)
        except NftraceError as exc:
            self._notes.append(f"legacy tables have come into being that are not followed: {exc}")
        else:
            self._notes.append(
                f"netns {namespace.name}: legacy tables came into being while it was followed:"
                " what passed them in their first moments is not seen"
            )

    def _rate(self) -> int | None:
        wanted, rate = self._options.wanted, self._options.rate
        if rate is not None:
            return rate or None
        narrow = (wanted.src, wanted.dst, wanted.sport, wanted.dport, wanted.proto)
        is_narrow = wanted.in_device is not None or any(one is not None for one in narrow)
        return None if is_narrow else RATE_UNFILTERED

    def _let_go(self) -> None:
        for held in self._held:
            os.close(held)
        self._held.clear()

    def _restore(self) -> None:
        self.resisted += self._switch.restore()

"""
What changes on the machine that can kill packets, as it changes.

One thread waits for what the kernel announces in each namespace and for runs of
iptables-legacy, and is awake at once: who did it can be asked only while it runs. It reads
rules, compares legacy tables and looks at counters when that is due. Namespaces are given
to it and taken from it by others, who also take the changes, whenever they like.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from tracer.errors import NftraceError
from tracer.sources.bpf_execs import Execs
from tracer.sources.changes_conntrack import ConntrackChanges
from tracer.sources.changes_lock import LockWatch
from tracer.sources.changes_net import NetChanges
from tracer.sources.changes_process import WhoReader
from tracer.sources.changes_rules import RuleChanges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tracer.core.log_rows import Change
    from tracer.sources.netns import Netns

__all__ = ["ChangeLosses", "ChangeWatch"]

#: Changes that wait to be taken; more are counted as lost.
_WAITING_MAX: Final = 8192
#: Namespaces that are watched: two sockets each. More are counted.
SPACES_MAX: Final = 1024
_IDLE_S: Final = 1.0
#: Between two turns in which nothing came in.
_TURN_S: Final = 0.1
#: A namespace that cannot be listened to is tried again.
_RETRY_S: Final = 30.0
#: Complaints that wait to be taken.
_SAID_MAX: Final = 64


class ChangeLosses(NamedTuple):
    """
    What the watch did not see, or could not keep, since it began.

    *overruns* are sockets' buffers that ran over (the rules and routes were read again),
    *malformed* messages that made no sense, *left_out* changes that nobody took in time,
    *forgotten* facts beyond the limit, *unwatched* namespaces that are not watched now.
    """

    overruns: int = 0
    malformed: int = 0
    left_out: int = 0
    forgotten: int = 0
    unwatched: int = 0

    @property
    def lost(self) -> int:
        """What may be missing."""
        return self.overruns + self.malformed + self.left_out + self.forgotten


@dataclass(slots=True)
class _Space:
    """What is open for one namespace."""

    rules: RuleChanges
    net: NetChanges
    conntrack: ConntrackChanges

    def close(self) -> None:
        self.rules.close()
        self.net.close()


@dataclass(slots=True)
class _Shared:
    """What the thread and the others both touch, under one lock."""

    changes: list[Change] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    wanted: dict[int, Netns] = field(default_factory=dict)
    losses: ChangeLosses = field(default_factory=ChangeLosses)
    read: set[int] = field(default_factory=set)
    is_over: bool = False


class ChangeWatch:
    """
    The watch: `start`, `watch` namespaces, `take` what changed, `close`.

    Changes of rules carry whole tables as *before* and *after*, see `RuleChanges`.
    *on_change* is called by the watch's thread when there is something to take.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._lock = threading.Condition()
        self._shared = _Shared()
        self._spaces: dict[int, _Space] = {}
        self._refused_s: dict[int, float] = {}
        self._past = ChangeLosses()
        self._left_out = 0
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        self._who = WhoReader()
        self._locker = LockWatch(self._who)
        if self._locker.fileno() >= 0:
            self._selector.register(self._locker, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="changes", daemon=True)
        # Compiling takes a while: rules are read and watched meanwhile.
        self._loader = threading.Thread(target=self._load, name="execs", daemon=True)

    def start(self, *, with_names: bool = True) -> None:
        """
        Begin; the threads have the capabilities that the calling one has now.

        *with_names*: processes are known after their end, too, for which a program is loaded.
        """
        self._thread.start()
        if with_names:
            self._loader.start()

    def watch(self, namespaces: Iterable[Netns]) -> None:
        """Watch these namespaces, and no others, from now on."""
        with self._lock:
            self._shared.wanted = {one.inode: one for one in namespaces}
        self._wake()

    def take(self) -> list[Change]:
        """Return what changed since the last call, in the order it was told."""
        with self._lock:
            taken, self._shared.changes = self._shared.changes, []
            return taken

    def take_said(self) -> list[tuple[str, str]]:
        """Return what could not be watched: a namespace's name, and why."""
        with self._lock:
            taken, self._shared.said = self._shared.said, []
            return taken

    @property
    def losses(self) -> ChangeLosses:
        """What was not seen."""
        with self._lock:
            return self._shared.losses

    @property
    def watched(self) -> frozenset[int]:
        """The namespaces whose rules were read and are watched now, by inode."""
        with self._lock:
            return frozenset(self._shared.read)

    def wait_read(self, namespaces: Iterable[Netns], timeout_s: float) -> bool:
        """Wait until the rules of these namespaces were read once; tell whether they were."""
        wanted = {one.inode for one in namespaces}
        with self._lock:
            return self._lock.wait_for(lambda: wanted <= self._shared.read, timeout_s)

    def wait_names(self, timeout_s: float) -> bool:
        """Wait until processes are known after they end; tell whether they are."""
        with self._lock:
            return self._lock.wait_for(lambda: self._who.execs is not None, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop and let go of everything; harmless when repeated."""
        with self._lock:
            if self._shared.is_over:
                return
            self._shared.is_over = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        for space in self._spaces.values():
            space.close()
        self._locker.close()
        if self._who.execs is not None:
            self._who.execs.close()
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_w, b"\0")

    # --- the thread ---------------------------------------------------------------------

    def _load(self) -> None:
        execs = Execs()
        try:
            execs.open()
        except (NftraceError, OSError) as exc:
            self._complain("", f"who changes rules is known only while it runs: {exc}")
            return
        with self._lock:
            if not self._shared.is_over:
                self._who.execs = execs
                self._lock.notify_all()
                return
        execs.close()

    def _run(self) -> None:
        while True:
            with self._lock:
                wanted, is_over = dict(self._shared.wanted), self._shared.is_over
            if is_over:
                return
            self._follow(wanted)
            self._turn()
            self._publish(wanted)

    def _turn(self) -> None:
        now_s = time.monotonic()
        ready = {key.fileobj for key, _ in self._selector.select(self._due_in(now_s))}
        now_ns = time.time_ns()
        # First who did it: they end while we read.
        self._hear()
        with contextlib.suppress(BlockingIOError):
            while self._wake_r in ready and os.read(self._wake_r, 4096):
                pass
        for inode, space in list(self._spaces.items()):
            if space.rules in ready:
                self._try(inode, partial(space.rules.read, now_ns))
            if space.net in ready and inode in self._spaces:
                self._try(inode, partial(space.net.read, now_ns))
        self._look()

    def _look(self) -> None:
        now_s = time.monotonic()
        for inode, space in list(self._spaces.items()):
            space.rules.sharers = space.conntrack.sharers = len(self._spaces)
            self._try(inode, partial(space.rules.look, now_s, self._hear))
            if inode in self._spaces:
                self._try(inode, partial(space.conntrack.look, now_s, time.time_ns()))
            # Others may have begun while rules were read, and end while more are.
            self._hear()
        self._locker.renew()
        if self._who.execs is not None:
            self._who.execs.read()

    def _hear(self) -> None:
        """Note who ran iptables-legacy."""
        for locker in self._locker.read():
            now_ns = time.time_ns()
            for space in self._spaces.values():
                space.rules.note_lock(locker, now_ns)

    def _try(self, inode: int, act: Callable[[], list[Change]]) -> None:
        """Do something about a namespace, and keep what it tells."""
        try:
            self._keep(act())
        except (NftraceError, OSError) as exc:
            self._complain(self._spaces[inode].rules.namespace.name, str(exc))

    def _due_in(self, now_s: float) -> float:
        due_s = _IDLE_S
        for space in self._spaces.values():
            due_s = min(due_s, space.rules.due_in(now_s), space.conntrack.due_in(now_s))
        # What comes in ends the wait at once; what is only due is done together.
        return max(due_s, _TURN_S)

    def _follow(self, wanted: dict[int, Netns]) -> None:
        for inode in [one for one in self._spaces if one not in wanted]:
            self._drop(inode)
        now_s = time.monotonic()
        for inode, namespace in wanted.items():
            is_refused = now_s < self._refused_s.get(inode, 0.0)
            if inode in self._spaces or is_refused or len(self._spaces) >= SPACES_MAX:
                continue
            try:
                self._open(inode, namespace)
            except (NftraceError, OSError) as exc:
                self._refused_s[inode] = now_s + _RETRY_S
                self._complain(namespace.name, str(exc))
        self._refused_s = {one: until for one, until in self._refused_s.items() if one in wanted}

    def _open(self, inode: int, namespace: Netns) -> None:
        rules = RuleChanges(namespace, self._who)
        try:
            net = NetChanges(namespace)
        except BaseException:
            rules.close()
            raise
        self._spaces[inode] = _Space(rules, net, ConntrackChanges(namespace))
        self._selector.register(rules, selectors.EVENT_READ)
        self._selector.register(net, selectors.EVENT_READ)
        # Before anything of it can change: what stands.
        self._try(inode, partial(rules.look, time.monotonic(), self._hear))

    def _drop(self, inode: int) -> None:
        space = self._spaces.pop(inode)
        self._past = _sum([self._past, _losses_of(space)])
        self._selector.unregister(space.rules)
        self._selector.unregister(space.net)
        space.close()

    def _keep(self, changes: list[Change]) -> None:
        if not changes:
            return
        with self._lock:
            room = max(0, _WAITING_MAX - len(self._shared.changes))
            self._shared.changes += changes[:room]
        self._left_out += max(0, len(changes) - room)
        self._on_change()

    def _complain(self, name: str, why: str) -> None:
        with self._lock:
            if len(self._shared.said) < _SAID_MAX:
                self._shared.said.append((name, why))

    def _publish(self, wanted: dict[int, Netns]) -> None:
        now = _sum([self._past, *(_losses_of(space) for space in self._spaces.values())])
        unwatched = len(wanted) - len(self._spaces)
        read = {inode for inode, space in self._spaces.items() if space.rules.is_read}
        with self._lock:
            self._shared.losses = now._replace(left_out=self._left_out, unwatched=unwatched)
            self._shared.read = read
            self._lock.notify_all()


def _losses_of(space: _Space) -> ChangeLosses:
    return ChangeLosses(
        overruns=space.rules.overruns + space.net.overruns,
        malformed=space.rules.malformed + space.net.malformed,
        forgotten=space.net.forgotten,
    )


def _sum(parts: list[ChangeLosses]) -> ChangeLosses:
    return ChangeLosses(*map(sum, zip(*parts, strict=True)))

"""
One namespace in which a few flows are traced, for as long as they are waited for.

Our chains stand in front of everybody's at a packet's first hook and look it up in a set
whose elements time out. All of it is there only while this object is: the table is owned
and ends with us, the logger's setting is put back, NFLOG group 0 is let go.

The ruleset's version is counted by what others change: nft's generation grows with each
transaction, ours included, so ours are counted and subtracted.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.core.arm_hooks import OWN_PREFIX, first_priority
from tracer.core.arming import ArmingPlan
from tracer.core.flow_classes import tables_by_source
from tracer.errors import KernelUnsupportedError, NftraceError
from tracer.sources.arming import Armed
from tracer.sources.netns import entered
from tracer.sources.nf_log import NfLogSwitch
from tracer.sources.ruleset import (
    LegacyFingerprint,
    legacy_tables,
    read_generation,
    read_ruleset,
)
from tracer.sources.trace import NamespaceTrace
from tracer.sources.trace_socket import TraceSocket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from tracer.core.flow_classes import Flow
    from tracer.core.ruleset import Ruleset
    from tracer.sources.netns import Netns
    from tracer.sources.trace import Told

__all__ = ["FlowTrace", "RulesetMark"]

#: The budget is a few hundred packets a second; a queued message takes 1,280 bytes.
_BUFFER_BYTES = 8 << 20
_TABLE = "watch"

_SCRIPT = """table inet {table} {{
 flags owner;
 limit pace {{ rate {rate}/second burst {rate} packets; }}
 counter over_limit {{ packets 0 bytes 0; }}
 set flows4 {{ type ipv4_addr . inet_proto . inet_service; flags timeout; size {size}; }}
 set flows6 {{ type ipv6_addr . inet_proto . inet_service; flags timeout; size {size}; }}
 chain armed {{
  limit name "pace" meta nftrace set 1 accept
  counter name "over_limit"
 }}
{syn_sets}{chains}}}
"""
_CHAIN = """ chain first_{hook} {{
  type filter hook {hook} priority {priority}; policy accept;
  meta nfproto ipv4 ip saddr . meta l4proto . th sport @flows4 goto armed
  meta nfproto ipv6 ip6 saddr . meta l4proto . th sport @flows6 goto armed
{syns} }}
"""
#: A SYN seen twice within ten seconds was not answered. A full set ends its rule and stops
#: no packet; what cannot be remembered is not traced.
_SYN_SETS = """ set syns{version} {{
  type {address} . {address} . inet_service . inet_service;
  flags dynamic,timeout; timeout 10s; size 65536;
 }}
"""
_SYNS = """  {is_syn} {pair} @syns{version} goto armed
  {is_syn} limit rate 1000/second burst 1000 packets add @syns{version} {{ {pair} }}
"""
_FAMILIES = ("ip", "ip6", "inet")


class RulesetMark:
    """
    What a namespace's rules looked like, so that it can be told whether they are others now.

    Made and asked by a thread in the namespace. It reads no rules: the generation and a
    fingerprint are enough, and cheap.
    """

    def __init__(self) -> None:
        self.generation = read_generation()
        self.legacy = LegacyFingerprint.take()

    def has_moved(self, own: int = 0) -> bool:
        """Tell whether others changed the rules, *own* being our transactions since."""
        generation = read_generation()
        if generation is not None and self.generation is not None:
            if generation != self.generation + own:
                return True
        elif generation != self.generation:
            return True
        return LegacyFingerprint.take(self.legacy).changed_since(self.legacy)


class FlowTrace:
    """
    The trace of the flows that are waited for in one namespace.

    It is made by a thread inside *namespace*; what is undone on the way out of a failing
    start is undone before the error is raised. *rate* is packets a second, *size* the
    most flows of each IP version. *syns*: trace connections whose SYN comes twice, too.
    *by_source* are the tables that looked at who sent a packet when this began.
    Errors: KernelRefusedError, KernelUnsupportedError.
    """

    def __init__(
        self,
        namespace: Netns,
        pool: ThreadPoolExecutor,
        *,
        rate: int,
        size: int,
        syns: bool = False,
    ) -> None:
        self.namespace = namespace
        self.resisted: list[str] = []
        self.over_limit = 0
        self._own = 0
        self._stack = ExitStack()
        self._switch = NfLogSwitch()
        self._armed: Armed | None = None
        try:
            self._open(pool, rate, size, syns=syns)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, pool: ThreadPoolExecutor, rate: int, size: int, *, syns: bool) -> None:
        if read_generation() is None:
            message = f"netns {self.namespace.name}: the kernel has no nf_tables"
            raise KernelUnsupportedError(message, "modprobe nf_tables, or see `nftrace check`")
        # Held while we are here, so that what was changed can be put back.
        held = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, held)
        self._stack.callback(self._restore)
        pinned = replace(self.namespace, path=f"/proc/{os.getpid()}/fd/{held}")
        socket = TraceSocket(pinned, buffer_bytes=_BUFFER_BYTES)
        self._stack.callback(socket.close)
        families = [family for family, names in legacy_tables().items() if names]
        if families:
            # The group first: where another holds it nothing has been switched yet.
            socket.bind_nflog()
        for family in families:
            self._switch.turn_on(pinned, family)
        self._mark = RulesetMark()
        socket.join()
        read = read_ruleset()
        self.by_source = tables_by_source(read.ruleset)
        plan = _plan(read.ruleset, rate, size, syns=syns)
        self._armed = Armed(pinned, plan)
        self._own += 1
        self.trace = NamespaceTrace(socket, read, pool)

    def _restore(self) -> None:
        self.resisted += self._switch.restore()

    def arm(self, flows: Sequence[Flow], wait_s: float) -> None:
        """
        Trace packets of *flows* for *wait_s* seconds from now.

        Errors: KernelRefusedError where the kernel does not take them.
        """
        if self._armed is not None and flows:
            self._armed.run(_edit("add", self._table, flows, f" timeout {max(1, round(wait_s))}s"))
            self._own += 1

    def let_go(self, flows: Sequence[Flow]) -> None:
        """Trace packets of *flows* no more; one whose time was over already does no harm."""
        for flow in flows:
            if self._armed is None:
                return
            try:
                self._armed.run(_edit("delete", self._table, [flow], ""))
            except NftraceError:
                continue
            self._own += 1

    @property
    def _table(self) -> str:
        return f"{OWN_PREFIX}{_TABLE}_{os.getpid()}"

    def receive(self) -> Iterator[Told]:
        """Return the journeys that ended; reads a bounded number of messages."""
        told, _ = self.trace.receive()
        yield from told

    def has_moved(self) -> bool:
        """Tell whether others changed the rules since this began."""
        with entered(self.trace.namespace):
            return self._mark.has_moved(self._own)

    def end(self) -> list[Told]:
        """Disarm, and return what was still queued; its names can be asked for until close()."""
        if self._armed is None:
            return []
        self.trace.socket.leave_announcements()
        self.over_limit = self._armed.read_over_limit() or 0
        self._armed.close()
        self._armed = None
        self.trace.socket.leave_traces()
        told: list[Told] = []
        count = 1
        while count:
            more, count = self.trace.receive()
            told += more
        return told + self.trace.finish()

    def close(self) -> None:
        """Undo all, disarmed or not; harmless when repeated."""
        try:
            if self._armed is not None:
                self._armed.close()
                self._armed = None
        finally:
            self._stack.close()


def _plan(ruleset: Ruleset, rate: int, size: int, *, syns: bool) -> ArmingPlan:
    table = f"{OWN_PREFIX}{_TABLE}_{os.getpid()}"
    sets = ""
    if syns:
        sets = "".join(_SYN_SETS.format(version=v, address=f"ipv{v}_addr") for v in (4, 6))
    chains = "".join(
        _CHAIN.format(
            hook=hook,
            priority=first_priority(ruleset, _FAMILIES, hook),
            syns="".join(map(_render_syns, (4, 6))) if syns else "",
        )
        for hook in ("prerouting", "output")
    )
    script = _SCRIPT.format(table=table, rate=rate, size=size, chains=chains, syn_sets=sets)
    return ArmingPlan(table, script, (("inet", table),), (("inet", table, "over_limit"),), notes=())


def _render_syns(version: int) -> str:
    name = "ip" if version == 4 else "ip6"  # noqa: PLR2004 - the IP version's number
    return _SYNS.format(
        version=version,
        is_syn=f"meta nfproto ipv{version} tcp flags & (syn|ack|rst) == syn",
        pair=f"{name} saddr . {name} daddr . tcp sport . tcp dport",
    )


def _edit(verb: str, table: str, flows: Sequence[Flow], behind: str) -> str:
    """Return one transaction that adds or deletes elements."""
    lines = []
    for version in (4, 6):
        elements = [f"{flow.render()}{behind}" for flow in flows if flow.family == version]
        if elements:
            listed = ", ".join(elements)
            lines.append(f"{verb} element inet {table} flows{version} {{ {listed} }}\n")
    return "".join(lines)

"""
Arming: the one act of nftrace that changes a machine, and its undoing.

The tables of an arming plan are loaded through one libnftables context, which owns them:
they end with it, also when the process is killed, and nobody else can remove them. Its
netlink socket is of the namespace that the thread is in when the context is made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tracer.errors import KernelRefusedError, KernelUnsupportedError

if TYPE_CHECKING:
    from tracer.core.arming import ArmingPlan
    from tracer.sources.netns import Netns

__all__ = ["Armed"]

# Behind everything at a packet's last hook: its headers after the last translation, and
# the proof that it got there. INT_MAX is conntrack's confirmation, which must come last.
_LAST = """add chain {family} {table} last_{hook} {{
 type filter hook {hook} priority 2147483646; policy accept;
}}
add rule {family} {table} last_{hook} accept
"""


class Armed:
    """
    An arming plan in force.

    It is made by a thread in *namespace* and ended by `close` from anywhere.
    Errors: KernelRefusedError where the kernel does not take the rules,
    KernelUnsupportedError where libnftables' Python module is missing.
    """

    def __init__(self, namespace: Netns, plan: ArmingPlan) -> None:
        self._namespace = namespace
        self._plan = plan
        self._over_limit = 0
        self._context: Any = _new_context()
        # One transaction: a packet meets all of it or nothing.
        self.run(_render(plan))

    @property
    def is_in_force(self) -> bool:
        """Whether the tables are there: until `close`."""
        return self._context is not None

    def replace(self, plan: ArmingPlan) -> None:
        """
        Put *plan* in the place of the one in force, for all packets at once.

        The calling thread is in the namespace. Connections that were learned are learned
        anew. Errors: as for a new one; the old plan is in force then.
        """
        self._over_limit += self.read_over_limit() or 0
        self.run(_render_removal(self._plan) + _render(plan))
        self._plan = plan

    def read_over_limit(self) -> int | None:
        """Return how many matching packets the rate limit left untraced, None if unknown."""
        total = self._over_limit
        for family, table, name in self._plan.over_limit_counters:
            status, output, _ = self._context.cmd(f"list counter {family} {table} {name}")
            if status != 0:
                return None
            total += _read_packets(output)
        return total

    def close(self) -> None:
        """Remove the tables; harmless when repeated."""
        if not self.is_in_force:
            return
        # Whatever the answer: the tables end with their owner's socket.
        self._context.cmd(_render_removal(self._plan))
        self._context = None

    def run(self, script: str) -> None:
        """
        Run nft commands in one transaction, as those that change our own sets.

        Errors: KernelRefusedError; nothing was changed then.
        """
        status, _, error = self._context.cmd(script)
        if status != 0:
            said = error.strip().splitlines() or ["no reason given"]
            message = f"netns {self._namespace.name}: the arming rules were refused ({said[0]})"
            raise KernelRefusedError(message, "see `nftrace check`")


def _render(plan: ArmingPlan) -> str:
    last = "".join(
        _LAST.format(family=family, table=table, hook=hook)
        for family, table in plan.tables
        if family in ("ip", "ip6")
        for hook in ("postrouting", "input")
    )
    return plan.script + last


def _render_removal(plan: ArmingPlan) -> str:
    return "".join(f"delete table {family} {name}\n" for family, name in plan.tables)


def _new_context() -> Any:  # noqa: ANN401 - the module ships no types
    try:
        import nftables  # noqa: PLC0415 - only those who arm need Debian's package
    except ImportError as exc:
        message = "the Python module nftables is missing"
        raise KernelUnsupportedError(message, "apt install python3-nftables") from exc
    try:
        context = nftables.Nftables()
    except OSError as exc:
        raise KernelUnsupportedError(f"libnftables: {exc}", "apt install libnftables1") from exc
    context.set_json_output(True)
    return context


def _read_packets(output: str) -> int:
    for entry in json.loads(output)["nftables"]:
        if "counter" in entry:
            return int(entry["counter"]["packets"])
    return 0

"""
Where each kind of trace event stands in a packet's way, under the ruleset that was in force.

The decoder interns what an event says (table, chain, handle or number, verdict) as a step
number; a `StepBook` reads those numbers against one version of the ruleset, once for each
step and not for each event. Columns serve the assembler, which asks where an event stands
in the kernel's order and whether it ends a packet; `resolve` names the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.core.arm_hooks import FIRST_CHAINS, LAST_CHAINS, OWN_PREFIX
from tracer.core.journey import Verdict
from tracer.core.resolve import FINAL, Resolver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.resolve import ResolvedStep
    from tracer.core.ruleset import Ruleset
    from tracer.core.trace_steps import StepTable

__all__ = ["BEHIND_PREROUTING", "NO_RANK", "StepBook"]

#: `rank` of a step in a chain that is no base chain, or in one that is not known.
NO_RANK = -(1 << 62)

_LEVEL = 1 << 33  # hooks are further apart than any two priorities

# Where a packet can be, in the order in which it can be there. A packet that a bridge
# hands up passes the bridge's hooks first, one that leaves by a bridge passes them last.
# br_netfilter mixes the two: bridge and ip each keep their own order, and that between a
# step of the one and a step of the other says nothing.
_IP_ORDER = {
    "ingress": 0,
    "prerouting": 3,
    "output": 3,
    "input": 4,
    "forward": 4,
    "postrouting": 5,
    "egress": 9,
}
_BRIDGE_ORDER = {"prerouting": 1, "input": 2, "forward": 6, "output": 7, "postrouting": 8}
#: Above every `rank` up to ip's prerouting, a bridge's input included.
BEHIND_PREROUTING = _IP_ORDER["prerouting"] * _LEVEL + _LEVEL // 2

# Where the chain stands in which we switch tracing on, by its table's family.
_FIRST_LEVELS = {"netdev": _IP_ORDER["ingress"], "bridge": _BRIDGE_ORDER["prerouting"]}

# enum nf_ip_hook_priorities: what a legacy table stands at; nat's depends on the hook.
_LEGACY_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}


class StepBook:
    """
    The steps of one decoder under one version of the ruleset.

    *earlier* are former versions, newest first: a rule that was deleted while its event
    was on its way is named from there, as nft never uses a handle twice in a table.
    *rival* is another version that may have been in force instead, or one of several that
    nobody read: events that came then are named only where both agree, or by a handle of
    an nft table that is the same in both.
    """

    def __init__(
        self,
        table: StepTable,
        ruleset: Ruleset,
        earlier: Sequence[Ruleset] = (),
        rival: Ruleset | None = None,
    ) -> None:
        self._table = table
        self._ruleset = ruleset
        self._resolver = Resolver((ruleset, *earlier), rival)
        self._resolved: list[ResolvedStep] = []
        self._chains: dict[tuple[str, str, str, str | None], int] = {}
        self.rank = np.zeros(0, np.int64)
        self.chain = np.zeros(0, np.int32)
        self.is_final = np.zeros(0, np.bool_)
        self.is_first = np.zeros(0, np.bool_)
        self.is_last = np.zeros(0, np.bool_)
        self.is_late = np.zeros(0, np.bool_)
        self.is_shown = np.zeros(0, np.bool_)
        self.is_queue = np.zeros(0, np.bool_)
        self.is_placed = np.zeros(0, np.bool_)
        self.is_bridge = np.zeros(0, np.bool_)
        self.is_below = np.zeros(0, np.bool_)
        self.is_unknown = np.zeros(0, np.bool_)

    @property
    def ruleset(self) -> Ruleset:
        """The version of the ruleset that this book reads by."""
        return self._ruleset

    def refresh(self) -> None:
        """Take in the steps that the decoder has added since; call before the columns are used."""
        known = len(self._resolved)
        new = self._table.steps[known:]
        if not new:
            return
        self._resolved += [self._resolver.resolve(step) for step in new]
        fresh = self._resolved[known:]
        own = [step.table.startswith(OWN_PREFIX) for step in fresh]
        first = [
            mine and step.chain.startswith(FIRST_CHAINS)
            for mine, step in zip(own, fresh, strict=True)
        ]
        last = [
            mine and step.chain.startswith(LAST_CHAINS) and not self._goes_on(step)
            for mine, step in zip(own, fresh, strict=True)
        ]
        ranks = [self._rank_of(*pair) for pair in zip(fresh, first, strict=True)]
        columns: dict[str, list[int] | list[bool]] = {
            "rank": ranks,
            "chain": [self._number_chain(step) for step in fresh],
            "is_final": [step.verdict in FINAL for step in fresh],
            "is_queue": [step.verdict is Verdict.QUEUE for step in fresh],
            "is_first": first,
            "is_last": last,
            "is_late": [_is_late(step) for step in fresh],
            "is_bridge": [step.family == "bridge" for step in fresh],
            "is_below": [step.family in ("bridge", "netdev") for step in fresh],
            "is_unknown": [
                step.engine == "nft" and step.kind == "rule" and step.rule is None and not mine
                for mine, step in zip(own, fresh, strict=True)
            ],
            "is_placed": [
                one or not (mine or rank == NO_RANK)
                for one, mine, rank in zip(first, own, ranks, strict=True)
            ],
            "is_shown": [
                not mine and step.kind != "end" for mine, step in zip(own, fresh, strict=True)
            ],
        }
        for name, values in columns.items():
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.array(values, column.dtype)]))

    def resolve(self, step: int) -> ResolvedStep:
        """Return what step number *step* means."""
        return self._resolved[step]

    def _goes_on(self, step: ResolvedStep) -> bool:
        """Tell whether chains of a bridge or at egress can come behind our last chain."""
        return step.hook == "postrouting" and any(
            chain.hook == "egress" or (table.family == "bridge" and chain.hook is not None)
            for table in self.ruleset.tables.values()
            for chain in table.chains.values()
        )

    def _number_chain(self, step: ResolvedStep) -> int:
        key = (step.family, step.table, step.chain, step.hook)
        return self._chains.setdefault(key, len(self._chains))

    def _rank_of(self, step: ResolvedStep, first: bool) -> int:  # noqa: FBT001 - a column's
        if first:
            return (
                _FIRST_LEVELS.get(step.family, _IP_ORDER["prerouting"]) * _LEVEL - _LEVEL // 2 + 1
            )
        if step.hook is None:
            return NO_RANK
        order = _BRIDGE_ORDER if step.family == "bridge" else _IP_ORDER
        chain = self._resolver.find_chain(step.engine, step.family, step.table, step.chain)
        priority = None if chain is None else chain.priority
        if step.engine == "legacy":
            priority = _legacy_priority(step.table, step.hook)
        return order.get(step.hook, 3) * _LEVEL + (priority or 0)


def _is_late(step: ResolvedStep) -> bool:
    """Tell whether nothing but the rest of its hook, or a bridge, can come behind a step."""
    if step.family == "bridge":
        return step.hook == "postrouting"
    return step.hook in ("input", "postrouting", "egress")


def _legacy_priority(table: str, hook: str) -> int:
    if table == "nat":
        return 100 if hook in ("input", "postrouting") else -100
    return _LEGACY_PRIORITIES.get(table, 0)

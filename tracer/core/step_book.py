"""
What each kind of trace event means under the ruleset that was in force.

The decoder interns what an event says (table, chain, handle or number, verdict) as a step
number; a `StepBook` reads those numbers against one version of the ruleset, once for each
step and not for each event. Columns serve the assembler, which asks where an event stands
in the kernel's order and whether it ends a packet; `resolve` names the rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.core.arm_hooks import FIRST_CHAINS, LAST_CHAINS, OWN_PREFIX
from tracer.core.iptables import ImplicitEnd, Policy, resolve_legacy
from tracer.core.journey import Verdict
from tracer.core.ruleset import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.ruleset import Chain, Ruleset
    from tracer.core.trace_steps import StepTable, TraceStep

__all__ = ["BEHIND_PREROUTING", "NO_RANK", "ResolvedStep", "StepBook"]

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

# include/uapi/linux/netfilter.h and nf_tables.h; the low byte is the verdict.
_VERDICTS = {
    0: Verdict.DROP,
    1: Verdict.ACCEPT,
    2: Verdict.STOLEN,
    3: Verdict.QUEUE,
    -1: Verdict.CONTINUE,
    -2: Verdict.CONTINUE,
    -3: Verdict.JUMP,
    -4: Verdict.GOTO,
    -5: Verdict.RETURN,
}
_FINAL = frozenset({Verdict.DROP, Verdict.REJECT, Verdict.STOLEN})


# A statement or target that sets up a translation for the connection.
_NAT_NATIVE = re.compile(r"(?:^| )(?:[ds]nat|masquerade|redirect)(?: |$)")
_NAT_TARGETS = re.compile(r" -j (?:DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP|SAME)(?: |$)")
_QUEUE_NUMBER = re.compile(r" --queue-(?:num|balance) (\d+)")

# enum nf_ip_hook_priorities: what a legacy table stands at; nat's depends on the hook.
_LEGACY_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}


@dataclass(frozen=True, slots=True)
class ResolvedStep:
    """
    One step with its rule's name.

    *kind* is rule, policy or end (a chain's implicit end, which nobody is shown).
    *base* is the chain itself where it is a base chain. *rule* is None for policies and
    ends, and where the rule was not in any version of the ruleset that was read.
    *hook* is known for legacy steps and for base chains. *queue* is the queue's number.
    """

    engine: str
    family: str
    table: str
    chain: str
    kind: str
    form: str
    verdict: Verdict
    target: str | None = None
    rule: Rule | None = None
    handle: int | None = None
    number: int | None = None
    hook: str | None = None
    is_base: bool = False
    is_nat: bool = False
    queue: int | None = None
    queue_bypass: bool = False


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
        self._versions = (ruleset, *earlier)
        self._rival = rival
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

    @property
    def ruleset(self) -> Ruleset:
        """The version of the ruleset that this book reads by."""
        return self._versions[0]

    def refresh(self) -> None:
        """Take in the steps that the decoder has added since; call before the columns are used."""
        known = len(self._resolved)
        new = self._table.steps[known:]
        if not new:
            return
        self._resolved += [self._resolve(step) for step in new]
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
            "is_final": [step.verdict in _FINAL for step in fresh],
            "is_queue": [step.verdict is Verdict.QUEUE for step in fresh],
            "is_first": first,
            "is_last": last,
            "is_late": [_is_late(step) for step in fresh],
            "is_bridge": [step.family == "bridge" for step in fresh],
            "is_below": [step.family in ("bridge", "netdev") for step in fresh],
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
        chain = self._find_chain(step.engine, step.family, step.table, step.chain)
        priority = None if chain is None else chain.priority
        if step.engine == "legacy":
            priority = _legacy_priority(step.table, step.hook)
        return order.get(step.hook, 3) * _LEVEL + (priority or 0)

    def _find_chain(self, engine: str, family: str, table: str, chain: str) -> Chain | None:
        for version in self._versions:
            found = version.find_chain(engine, family, table, chain)
            if found is not None:
                return found
        return None

    def _resolve(self, step: TraceStep) -> ResolvedStep:
        return self._resolve_legacy(step) if step.engine == "legacy" else self._resolve_nft(step)

    def _resolve_nft(self, step: TraceStep) -> ResolvedStep:
        chain = self._find_chain("nft", step.family, step.table, step.chain)
        code = step.verdict if step.verdict is not None else -1
        verdict = _VERDICTS.get(code if code < 0 else code & 0xFF, Verdict.CONTINUE)
        kind, rule = "policy", None
        if step.kind != "policy":
            kind = "end" if step.handle is None else "rule"
            rule = self._find_rule(step)
        form = "nft" if rule is None else rule.form
        if rule is None:
            form = self._form_of(step)
        elif rule.verdict is Verdict.REJECT and verdict is Verdict.DROP:
            verdict = Verdict.REJECT
        return ResolvedStep(
            engine="nft",
            family=step.family,
            table=step.table,
            chain=step.chain,
            kind=kind,
            form=form,
            verdict=verdict,
            target=step.target,
            rule=rule,
            handle=step.handle,
            number=None if rule is None else rule.number,
            hook=_own_hook(step) if chain is None else chain.hook,
            is_base=chain is not None and chain.hook is not None,
            is_nat=verdict is Verdict.ACCEPT and rule is not None and _names_nat(rule),
            queue=code >> 16 if verdict is Verdict.QUEUE else None,
            queue_bypass=bool(code & 0x8000) and verdict is Verdict.QUEUE,
        )

    def _form_of(self, step: TraceStep) -> str:
        table = self.ruleset.tables.get((step.engine, step.family, step.table))
        return "nft" if table is None else table.form

    def _find_rule(self, step: TraceStep) -> Rule | None:
        if step.handle is None:
            return None
        found = self._look_up(self.ruleset, step)
        if self._rival is not None:
            other = self._look_up(self._rival, step)
            if self._is_same_table(self._rival, step):
                return found or other
            # Of a table made anew one version alone proves nothing.
            return found if found is not None and found == other else None
        if found is not None:
            return found
        # A table made anew gives its handles again: an earlier one's rules are others.
        is_gone = ("nft", step.family, step.table) not in self.ruleset.tables
        earlier = (
            self._look_up(version, step)
            for version in self._versions[1:]
            if is_gone or self._is_same_table(version, step)
        )
        return next((rule for rule in earlier if rule is not None), None)

    def _look_up(self, version: Ruleset, step: TraceStep) -> Rule | None:
        chain = version.find_chain("nft", step.family, step.table, step.chain)
        return None if chain is None or step.handle is None else chain.by_handle.get(step.handle)

    def _is_same_table(self, version: Ruleset, step: TraceStep) -> bool:
        key = ("nft", step.family, step.table)
        one, other = self.ruleset.tables.get(key), version.tables.get(key)
        return one is not None and other is not None and one.handle == other.handle

    def _find_legacy(
        self, version: Ruleset, step: TraceStep, number: int
    ) -> Rule | ImplicitEnd | Policy | None:
        table = version.tables.get(("legacy", step.family, step.table))
        return None if table is None else resolve_legacy(table, step.chain, step.kind, number)

    def _resolve_legacy(self, step: TraceStep) -> ResolvedStep:
        number = step.number or 0
        kind, rule, verdict, target = "rule", None, Verdict.CONTINUE, None
        found = self._find_legacy(self.ruleset, step, number)
        if self._rival is not None:
            other = self._find_legacy(self._rival, step, number)
            verdict = _agreed_verdict(found, other)
            found = _agreed(found, other)
        if isinstance(found, ImplicitEnd):
            kind, number, verdict = "end", 0, Verdict.RETURN
        elif isinstance(found, Policy):
            kind, number, verdict = "policy", 0, found.verdict
        elif found is not None:
            rule, verdict, target = found, found.verdict or Verdict.CONTINUE, found.target
        return ResolvedStep(
            engine="legacy",
            family=step.family,
            table=step.table,
            chain=step.chain,
            kind=kind,
            form="iptables",
            verdict=verdict,
            target=target,
            rule=rule,
            number=number or None,
            hook=step.hook,
            is_base=step.hook is not None and step.chain == step.hook.upper(),
            is_nat=step.table == "nat" and rule is not None and _names_nat(rule),
            queue=_queue_number(rule) if verdict is Verdict.QUEUE else None,
            queue_bypass=rule is not None and "--queue-bypass" in rule.text,
        )


def _is_late(step: ResolvedStep) -> bool:
    """Tell whether nothing but the rest of its hook, or a bridge, can come behind a step."""
    if step.family == "bridge":
        return step.hook == "postrouting"
    return step.hook in ("input", "postrouting", "egress")


def _own_hook(step: TraceStep) -> str | None:
    """Return the hook of a chain of ours, which no ruleset that was read holds."""
    name, _, hook = step.chain.partition("_")
    is_ours = step.table.startswith(OWN_PREFIX) and f"{name}_" in ("first_", LAST_CHAINS)
    return hook if is_ours and hook in _IP_ORDER else None


def _agreed(
    one: Rule | ImplicitEnd | Policy | None, other: Rule | ImplicitEnd | Policy | None
) -> Rule | ImplicitEnd | Policy | None:
    """Return what two versions of a ruleset both say; what only one can say is right."""
    if one is None or other is None:
        return one or other
    return one if one == other else None


def _agreed_verdict(
    one: Rule | ImplicitEnd | Policy | None, other: Rule | ImplicitEnd | Policy | None
) -> Verdict:
    """Return what the rule did, whichever of the two it was; CONTINUE where that is open."""
    if not isinstance(one, Rule | Policy) or not isinstance(other, Rule | Policy):
        return Verdict.CONTINUE
    verdict = one.verdict if one.verdict is other.verdict else None
    return verdict if verdict in _FINAL else Verdict.CONTINUE


def _names_nat(rule: Rule) -> bool:
    pattern = _NAT_TARGETS if rule.form == "iptables" else _NAT_NATIVE
    return pattern.search(rule.text) is not None


def _queue_number(rule: Rule | None) -> int:
    found = None if rule is None else _QUEUE_NUMBER.search(rule.text)
    return 0 if found is None else int(found[1])


def _legacy_priority(table: str, hook: str) -> int:
    if table == "nat":
        return 100 if hook in ("input", "postrouting") else -100
    return _LEGACY_PRIORITIES.get(table, 0)

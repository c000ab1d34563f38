"""
What one kind of trace event means under the ruleset that was in force: its rule's name.

A rule is looked up where the event says that it was, in the version in force, in an earlier
one where it is gone by now, and in two where it is not known which of them was in force.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.core.arm_hooks import LAST_CHAINS, OWN_PREFIX
from tracer.core.iptables import ImplicitEnd, Policy, resolve_legacy
from tracer.core.journey import Verdict
from tracer.core.ruleset import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.ruleset import Chain, Ruleset
    from tracer.core.trace_steps import TraceStep

__all__ = ["FINAL", "ResolvedStep", "Resolver"]

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
#: Verdicts behind which a packet has no more steps.
FINAL = frozenset({Verdict.DROP, Verdict.REJECT, Verdict.STOLEN})

# A statement or target that sets up a translation for the connection.
_NAT_NATIVE = re.compile(r"(?:^| )(?:[ds]nat|masquerade|redirect)(?: |$)")
_NAT_TARGETS = re.compile(r" -j (?:DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP|SAME)(?: |$)")
_QUEUE_NUMBER = re.compile(r" --queue-(?:num|balance) (\d+)")
_HOOKS = frozenset(("prerouting", "input", "forward", "output", "postrouting", "ingress", "egress"))


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


class Resolver:
    """
    Names steps by *versions* of a ruleset, the one in force first, and a *rival* of it.

    `StepBook` says what these are.
    """

    def __init__(self, versions: Sequence[Ruleset], rival: Ruleset | None) -> None:
        self._versions = versions
        self._rival = rival

    def find_chain(self, engine: str, family: str, table: str, chain: str) -> Chain | None:
        """Return a chain as it is now or, where it is gone, as it was last."""
        for version in self._versions:
            found = version.find_chain(engine, family, table, chain)
            if found is not None:
                return found
        return None

    def resolve(self, step: TraceStep) -> ResolvedStep:
        """Return what *step* means."""
        return self._resolve_legacy(step) if step.engine == "legacy" else self._resolve_nft(step)

    def _resolve_nft(self, step: TraceStep) -> ResolvedStep:
        chain = self.find_chain("nft", step.family, step.table, step.chain)
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
        table = self._versions[0].tables.get((step.engine, step.family, step.table))
        return "nft" if table is None else table.form

    def _find_rule(self, step: TraceStep) -> Rule | None:
        if step.handle is None:
            return None
        found = self._look_up(self._versions[0], step)
        if self._rival is not None:
            other = self._look_up(self._rival, step)
            if self._is_same_table(self._rival, step):
                return found or other
            # Of a table made anew one version alone proves nothing.
            return found if found is not None and found == other else None
        if found is not None:
            return found
        # A table made anew gives its handles again: an earlier one's rules are others.
        is_gone = ("nft", step.family, step.table) not in self._versions[0].tables
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
        one, other = self._versions[0].tables.get(key), version.tables.get(key)
        return one is not None and other is not None and one.handle == other.handle

    def _find_legacy(
        self, version: Ruleset, step: TraceStep, number: int
    ) -> Rule | ImplicitEnd | Policy | None:
        table = version.tables.get(("legacy", step.family, step.table))
        return None if table is None else resolve_legacy(table, step.chain, step.kind, number)

    def _resolve_legacy(self, step: TraceStep) -> ResolvedStep:
        number = step.number or 0
        kind, rule, verdict, target = "rule", None, Verdict.CONTINUE, None
        found = self._find_legacy(self._versions[0], step, number)
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


def _own_hook(step: TraceStep) -> str | None:
    """Return the hook of a chain of ours, which no ruleset that was read holds."""
    name, _, hook = step.chain.partition("_")
    is_ours = step.table.startswith(OWN_PREFIX) and f"{name}_" in ("first_", LAST_CHAINS)
    return hook if is_ours and hook in _HOOKS else None


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
    return verdict if verdict in FINAL else Verdict.CONTINUE


def _names_nat(rule: Rule) -> bool:
    pattern = _NAT_TARGETS if rule.form == "iptables" else _NAT_NATIVE
    return pattern.search(rule.text) is not None


def _queue_number(rule: Rule | None) -> int:
    found = None if rule is None else _QUEUE_NUMBER.search(rule.text)
    return 0 if found is None else int(found[1])

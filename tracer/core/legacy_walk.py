"""
How far a packet has come in the legacy tables, and which event can be its next.

Every rule that matches is told, the end of each user chain and the policy as well, so the
events of one packet are a walk: inside a chain numbers rise, behind a jump comes an event
of the chain jumped to, behind that chain's end one of the caller, and a table is left by
accept or by its policy alone. Source: ipt_do_table() in net/ipv4/netfilter/ip_tables.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from tracer.core.resolve import ResolvedStep

__all__ = ["LegacyWalk"]

# Behind all rules of a chain: its policy or its end, and the place from where only these
# can follow.
_END = 1 << 32
_AT_END = _END - 1


class LegacyWalk:
    """One packet's place in the legacy tables."""

    def __init__(self) -> None:
        self._table: tuple[str, str, str | None] | None = None
        self._stack: list[tuple[str, int]] = []
        # A rule that we cannot name may have jumped or accepted.
        self._is_lost = False

    def allows(self, step: ResolvedStep) -> bool:
        """Tell whether *step* can come next; that its table comes later is not looked at."""
        if (step.family, step.table, step.hook) != self._table:
            return step.is_base and (self._is_lost or not self._stack)
        if self._is_lost or not self._stack:
            return self._is_lost
        chain, number = self._stack[-1]
        return step.chain == chain and _place(step) > number

    def take(self, step: ResolvedStep) -> None:
        """Go on by *step*."""
        table = (step.family, step.table, step.hook)
        if table != self._table:
            self._table, self._is_lost = table, False
            self._stack.clear()
        self._stack[-1:] = [(step.chain, _place(step))]
        if step.kind == "rule" and step.rule is None:
            self._is_lost = True
        elif step.verdict in (Verdict.JUMP, Verdict.GOTO):
            self._enter(step)
        elif step.verdict is Verdict.RETURN:
            self._leave()
        elif step.verdict is not Verdict.CONTINUE:
            self._stack.clear()

    def _enter(self, step: ResolvedStep) -> None:
        if step.verdict is Verdict.GOTO:
            self._leave()
        self._stack.append((step.target or "", 0))

    def _leave(self) -> None:
        """Go back to the caller; from a base chain there is only its policy."""
        if len(self._stack) > 1:
            self._stack.pop()
        else:
            self._stack[-1] = (self._stack[-1][0], _AT_END)


def _place(step: ResolvedStep) -> int:
    return _END if step.kind != "rule" or step.number is None else step.number

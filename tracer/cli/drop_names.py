"""The text of the rule that dropped, or of those that may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.core.journey import Verdict
from tracer.errors import NftraceError
from tracer.sources.netns import entered
from tracer.sources.ruleset import read_ruleset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.core.drops import DropCount
    from tracer.core.ruleset import Chain, Rule, Table
    from tracer.sources.netns import Netns
    from tracer.sources.ruleset import RulesetRead

__all__ = ["RuleName", "RuleNames"]

#: More candidates than this name nothing to anybody.
_CANDIDATES_MAX = 5


@dataclass(frozen=True, slots=True)
class RuleName:
    """
    A rule's place and text where it is known, else its *candidates*, rendered.

    *chain* and *number* are those of the rule, for nft by its handle.
    """

    chain: str | None = None
    number: int | None = None
    text: str | None = None
    candidates: tuple[str, ...] = ()


class RuleNames:
    """Finds rules in the rulesets of namespaces, read again when they changed."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._read: dict[int, RulesetRead] = {}

    def find(self, namespace: Netns | None, count: DropCount) -> RuleName:
        """Return what is known of *count*'s rule; an empty name where nothing is."""
        if namespace is None or count.table is None:
            return RuleName(count.chain, count.rule)
        try:
            with entered(namespace):
                read = self._read.get(namespace.inode)
                if read is None or read.is_stale():
                    read = self._read[namespace.inode] = read_ruleset()
        except NftraceError:
            return RuleName(count.chain, count.rule)
        key = (count.engine or "", count.family or "", count.table)
        table = read.ruleset.tables.get(key)
        if table is None:
            return RuleName(count.chain, count.rule)
        return _find(table, count)


def _find(table: Table, count: DropCount) -> RuleName:
    if count.kind == "policy":
        return RuleName(count.chain)
    for chain, rule in _rules(table):
        by_handle = count.handle is not None and rule.handle == count.handle
        by_number = count.rule is not None and (chain.name, rule.number) == (
            count.chain,
            count.rule,
        )
        if by_handle or by_number:
            return RuleName(chain.name, rule.number, rule.text)
    if count.rule is not None or count.handle is not None:
        return RuleName(count.chain, count.rule)
    dropping = [
        f"{chain.name} {rule.number}: {rule.text}"
        for chain, rule in _rules(table)
        if rule.verdict in {Verdict.DROP, Verdict.REJECT}
    ]
    return RuleName(count.chain, candidates=tuple(dropping[:_CANDIDATES_MAX]))


def _rules(table: Table) -> Iterator[tuple[Chain, Rule]]:
    for chain in table.chains.values():
        for rule in chain.rules:
            yield chain, rule

"""The text of the rule that dropped, or of those that may have."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tracer.core.journey import Verdict
from tracer.errors import NftraceError
from tracer.sources.netns import entered
from tracer.sources.ruleset import read_ruleset

if TYPE_CHECKING:
    from tracer.core.drops import DropCount
    from tracer.core.ruleset import Table
    from tracer.sources.netns import Netns
    from tracer.sources.ruleset import RulesetRead

__all__ = ["RuleName", "RuleNames"]

#: More candidates than this name nothing to anybody.
_CANDIDATES_MAX = 5


@dataclass(frozen=True, slots=True)
class RuleName:
    """
    A rule's place and text where it is known, else its *candidates*, rendered.

    *chain* and *number* are those of the rule, for nft by its handle. *unread*: the rules
    of its namespace cannot be read.
    """

    chain: str | None = None
    number: int | None = None
    text: str | None = None
    candidates: tuple[str, ...] = ()
    unread: bool = False


class RuleNames:
    """
    Finds rules in the rulesets of namespaces.

    Whether one changed is asked once after each `look_anew()`; what was not asked for
    between two of them is forgotten.
    """

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._former: dict[int, _Rules | None] = {}
        self._now: dict[int, _Rules | None] = {}

    def look_anew(self) -> None:
        """Take rulesets as they stand from now on."""
        self._former, self._now = self._now, {}

    def find(self, namespace: Netns | None, count: DropCount) -> RuleName:
        """Return what is known of *count*'s rule; an empty name where nothing is."""
        if count.table is None:
            return RuleName(count.chain, count.rule)
        if namespace is not None and namespace.inode not in self._now:
            self._now[namespace.inode] = self._look(namespace)
        rules = None if namespace is None else self._now[namespace.inode]
        if rules is None:
            return RuleName(count.chain, count.rule, unread=True)
        return rules.find(count)

    def _look(self, namespace: Netns) -> _Rules | None:
        former = self._former.get(namespace.inode)
        try:
            with entered(namespace):
                if former is not None and not former.read.is_stale():
                    return former
                return _Rules(read_ruleset())
        except NftraceError:
            return None


class _Rules:
    """One reading of a ruleset: a table may have many rows, and thousands of rules."""

    def __init__(self, read: RulesetRead) -> None:
        self.read = read
        self._tables: dict[tuple[str, str, str], _Table] = {}

    def find(self, count: DropCount) -> RuleName:
        key = (count.engine or "", count.family or "", count.table or "")
        if key not in self.read.ruleset.tables:
            return RuleName(count.chain, count.rule)
        if key not in self._tables:
            self._tables[key] = _Table(self.read.ruleset.tables[key])
        return self._tables[key].find(count)


class _Table:
    def __init__(self, table: Table) -> None:
        rules = [(chain.name, rule) for chain in table.chains.values() for rule in chain.rules]
        self._by_number = {(chain, rule.number): rule for chain, rule in rules}
        self._by_handle = {rule.handle: (chain, rule) for chain, rule in rules}
        dropping = (
            f"{chain} {rule.number}: {rule.text}"
            for chain, rule in rules
            if rule.verdict in {Verdict.DROP, Verdict.REJECT}
        )
        self._candidates = tuple(islice(dropping, _CANDIDATES_MAX))

    def find(self, count: DropCount) -> RuleName:
        if count.kind == "policy":
            return RuleName(count.chain)
        if count.handle is not None:
            chain, rule = self._by_handle.get(count.handle, (count.chain, None))
        else:
            chain, rule = count.chain, self._by_number.get((count.chain or "", count.rule or 0))
        if rule is not None:
            return RuleName(chain, rule.number, rule.text)
        if count.rule is not None or count.handle is not None:
            return RuleName(count.chain, count.rule)
        return RuleName(count.chain, candidates=self._candidates)

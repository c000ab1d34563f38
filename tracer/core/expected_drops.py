"""Which recorded drops the configuration names as meant, by the rules as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tracer.core.expected import DropFeatures, Expected
from tracer.core.journey import Verdict
from tracer.core.rule_ids import find_comment
from tracer.core.timeline_rules import parse_table
from tracer.core.timeline_versions import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracer.core.drops import DropCount
    from tracer.core.log_rows import Change
    from tracer.core.ruleset import Table
    from tracer.core.timeline_versions import TableKey

__all__ = ["ExpectedDrops"]

#: Answers that are remembered; kinds of drops are about as many.
_ANSWERS_MAX: Final = 8192
_KILLS: Final = frozenset({Verdict.DROP, Verdict.REJECT})


class _Which(NamedTuple):
    """A rule by chain and number (a policy's is 0), or in any chain by its handle."""

    chain: str
    number: int
    handle: int


class ExpectedDrops:
    """
    Holds drops against the entries, with the rule's text where its table is known.

    A drop that comes before its table was read is held against what is known of it then.
    """

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._texts: dict[TableKey, str] = {}
        self._rules: dict[TableKey, dict[_Which, tuple[str, str, str]]] = {}
        self._answers: dict[tuple[str, DropCount], bool] = {}

    def use(self, expected: Expected) -> None:
        """Go on by other entries."""
        self._expected = expected
        self._answers.clear()

    def note(self, change: Change) -> None:
        """Take a change of rules into account; its *after* is the table's text itself."""
        key = key_of(change)
        if key is None:
            return
        self._answers.clear()
        self._rules.pop(key, None)
        # Parsed when something dies there: that takes a moment where there are many rules.
        self._texts.pop(key, None)
        if change.action != "gone":
            self._texts[key] = change.after

    def forget(self, netns: str) -> None:
        """Drop what is known of a namespace that is gone."""
        self._answers.clear()
        for known in (self._texts, self._rules):
            for key in [key for key in known if key[0] == netns]:
                del known[key]

    def are_meant(self, netns: str, kinds: Sequence[DropCount]) -> list[bool]:
        """Return for each kind of drop in *netns* whether an entry names it."""
        if not self._expected.entries:
            return [False] * len(kinds)
        if len(self._answers) > _ANSWERS_MAX:
            self._answers.clear()
        return [self._is_meant(netns, kind.kind_only) for kind in kinds]

    def _is_meant(self, netns: str, kind: DropCount) -> bool:
        known = self._answers.get((netns, kind))
        if known is None:
            chain, text, comment = self._find(netns, kind) or (kind.chain, None, "")
            of_table = kind.engine, kind.family, kind.table
            features = DropFeatures(netns, *of_table, chain, text, comment or None, kind.reason)
            known = self._answers[netns, kind] = self._expected.fits(features)
        return known

    def _find(self, netns: str, kind: DropCount) -> tuple[str, str, str] | None:
        key = netns, kind.engine or "", kind.family or "", kind.table or ""
        if key in self._texts:
            self._rules[key] = dict(_killers(parse_table(self._texts.pop(key))))
        rules = self._rules.get(key, {})
        if kind.handle:
            return rules.get(_Which("", 0, kind.handle))
        if kind.rule is None and kind.kind != "policy":
            return None
        return rules.get(_Which(kind.chain or "", kind.rule or 0, 0))


def _killers(table: Table) -> Iterator[tuple[_Which, tuple[str, str, str]]]:
    """Yield the rules and policies that drop, with chain, text and comment."""
    for chain in table.chains.values():
        for rule in chain.rules:
            # A verdict map's is None: it drops some.
            if rule.verdict in {*_KILLS, None}:
                told = chain.name, rule.text, find_comment(rule)
                yield _Which(chain.name, rule.number, 0), told
                if rule.handle:
                    yield _Which("", 0, rule.handle), told
        if chain.policy in _KILLS:
            yield _Which(chain.name, 0, 0), (chain.name, "policy", "")

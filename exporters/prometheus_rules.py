"""
The series of rules and policies, out of their totals.

Which rules have series of their own is decided once, when they first appear, and stays
while they are there: all that drop, or every one where that is wanted, until there are as
many as the limit says. The others are counted together, for each table, verdict and
`expected`; what is added to such a series is what its rules counted since they are in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from exporters.prometheus_metrics import BY_NAME
from exporters.prometheus_text import Family, Mark, Series, make_series
from tracer.core.expected import DropFeatures, Expected
from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    import numpy.typing as npt

    from tracer.core.rule_counts import Key, RuleCounts, TableKey, TableTotals
    from tracer.core.rule_ids import CountedRule

    #: Exemplars of a table's rules, by column.
    FindMarks: TypeAlias = Callable[[TableKey, TableTotals], Mapping[int, Mark]]

__all__ = ["FoldKey", "RuleSeries"]

_PACKETS, _BYTES = BY_NAME["nftrace_rule_packets_total"], BY_NAME["nftrace_rule_bytes_total"]
_INFO, _POLICY = BY_NAME["nftrace_rule_info"], BY_NAME["nftrace_policy_drops_total"]
_RULES, _FOLDED = BY_NAME["nftrace_rules"], BY_NAME["nftrace_rules_folded"]
#: The rule_id, and a policy's chain, that stands for all that is not told apart.
OTHER: Final = "other"
_SOURCES: Final = ("counter", "attributed")
_NONE, _OWN, _IN_FOLD = 0, 1, 2
#: Longer texts (sets of many elements) are cut: a label is read, not parsed.
_TEXT_MAX: Final = 512


class FoldKey(NamedTuple):
    """What rules that are counted together have in common; *source* is a place in _SOURCES."""

    table: TableKey
    is_policy: bool
    verdict: str
    source: int
    expected: bool


@dataclass(slots=True, eq=False)
class _View:
    """
    How one table's rules are told, while they are the same.

    Shape: *places* of the rules in the columns; *expected* `(n,)`; *state* `int8 (2, n)`:
    for the kernel's counter and for attributed drops, _NONE, _OWN or _IN_FOLD; *apart*
    `bool (n,)`: the kernel's counter does not say how many were dropped; *drops* `bool
    (n,)`. *series* by source and column, *infos* by column.
    """

    layout: int
    places: Mapping[Key, int]
    expected: list[bool]
    state: npt.NDArray[np.int8]
    apart: npt.NDArray[np.bool_]
    drops: npt.NDArray[np.bool_]
    series: dict[tuple[int, int], Series] = field(default_factory=dict)
    infos: dict[int, Series] = field(default_factory=dict)

    @property
    def own(self) -> int:
        """How many series this table has of its own."""
        return int((self.state == _OWN).sum())


class RuleSeries:
    """Families of all tables' rules; `update()` after each reading, then `families()`."""

    def __init__(self, *, every_rule: bool, rules_max: int, tables_max: int) -> None:
        """*rules_max* rules have their own series; tables beyond *tables_max* are not told."""
        self.folds: dict[FoldKey, list[int]] = {}
        self.tables_skipped = 0
        self._every_rule = every_rule
        self._rules_max = rules_max
        self._tables_max = tables_max
        self._own = 0
        self._views: dict[TableKey, _View] = {}
        self._expected = Expected()

    def update(
        self,
        rules: RuleCounts,
        expected: Expected,
        can_attribute: frozenset[tuple[str, str]],
    ) -> None:
        """Decide about what is new in *rules*, and add what was counted to the folds."""
        if expected is not self._expected:
            self._expected = expected
            for known in self._views.values():
                known.layout = -1
        for key in self._views.keys() - rules.tables.keys():
            self._own -= self._views.pop(key).own
        for fold in [fold for fold in self.folds if fold.table.netns not in rules.versions]:
            del self.folds[fold]
        self.tables_skipped = 0
        for key, table in rules.tables.items():
            if key not in self._views and len(self._views) >= self._tables_max:
                self.tables_skipped += 1
                continue
            view = self._views.get(key)
            if view is None or view.layout != table.layout:
                view = self._views[key] = self._look_at(key, table, view)
            wanted = table.attributed[0] > 0
            if (key.engine, key.family) in can_attribute:
                wanted |= view.drops
            self._admit(view, 1, view.apart & wanted)
            self._fold(key, table, view)

    def _look_at(self, key: TableKey, table: TableTotals, before: _View | None) -> _View:
        """Make the view of new rules: those that were there keep what was decided."""
        drops = _mark(table, lambda rule: rule.is_dropping)
        policies = _mark(table, lambda rule: rule.is_policy)
        view = _View(
            table.layout,
            table.index(),
            [self._is_expected(key, rule) for rule in table.rules],
            np.zeros((2, len(table.rules)), np.int8),
            (~table.counted | ~drops) & (~policies | drops),
            drops,
        )
        if before is not None:
            for rule in view.places.keys() & before.places.keys():
                view.state[:, view.places[rule]] = before.state[:, before.places[rule]]
            self._own += view.own - before.own
        told = drops | ~policies if self._every_rule else drops
        self._admit(view, 0, table.counted & told)
        return view

    def _admit(self, view: _View, source: int, wanted: npt.NDArray[np.bool_]) -> None:
        """Give series to those that are wanted and have none, as far as there are any left."""
        fresh = np.flatnonzero(wanted & (view.state[source] == _NONE))
        free = max(self._rules_max - self._own, 0)
        view.state[source, fresh[:free]] = _OWN
        view.state[source, fresh[free:]] = _IN_FOLD
        self._own += min(free, fresh.size)

    def _fold(self, key: TableKey, table: TableTotals, view: _View) -> None:
        new = table.take_new()
        for source, columns in enumerate((new[:2], new[2:])):
            folded = (view.state[source] == _IN_FOLD) & columns.any(axis=0)
            for at in np.flatnonzero(folded).tolist():
                rule = table.rules[at]
                fold = FoldKey(
                    key, rule.is_policy, _verdict(rule, source), source, view.expected[at]
                )
                total = self.folds.setdefault(fold, [0, 0])
                total[0] += int(columns[0, at])
                total[1] += int(columns[1, at])

    def _is_expected(self, key: TableKey, rule: CountedRule) -> bool:
        if not self._expected.entries:
            return False
        return self._expected.fits(
            DropFeatures(*key, rule.chain, rule.text or "policy", rule.comment or None)
        )

    def families(self, rules: RuleCounts, find_marks: FindMarks) -> Iterator[Family]:
        """Yield rules, their texts and policies; *find_marks* gives each table's exemplars."""
        told: list[tuple[Series, int, int]] = []
        policies: list[tuple[Series, int]] = []
        infos: list[Series] = []
        marks: dict[int, Mark] = {}
        for key, view in self._views.items():
            table = rules.tables[key]
            by_column = find_marks(key, table)
            for source, totals in enumerate((table.totals, table.attributed)):
                columns = np.flatnonzero(view.state[source] == _OWN)
                packets, octets = totals[:, columns].tolist()
                for at, count, size in zip(columns.tolist(), packets, octets, strict=True):
                    series = view.series.get((source, at)) or _make(key, table, view, source, at)
                    if table.rules[at].is_policy:
                        policies.append((series, count))
                        continue
                    if at in by_column and (source or not view.apart[at]):
                        marks[len(told)] = by_column[at]
                    told.append((series, count, size))
            infos += _infos(key, table, view)
        for fold, (count, size) in self.folds.items():
            series = _fold_series(fold)
            if fold.is_policy:
                policies.append((series, count))
            else:
                told.append((series, count, size))
        # Both have the same labels.
        counted = [series for series, _, _ in told]
        yield Family(_PACKETS, counted, [count for _, count, _ in told], marks=marks)
        yield Family(_BYTES, counted, [size for _, _, size in told])
        yield Family(_INFO, infos, [1] * len(infos))
        yield Family(_POLICY, [one for one, _ in policies], [count for _, count in policies])
        yield from self._sizes(rules)

    def _sizes(self, rules: RuleCounts) -> Iterator[Family]:
        tables = list(self._views)
        sizes = [sum(not rule.is_policy for rule in rules.tables[key].rules) for key in tables]
        yield Family(_RULES, [make_series(_RULES, key) for key in tables], sizes)
        folded = [int((view.state == _IN_FOLD).any(axis=0).sum()) for view in self._views.values()]
        yield Family(_FOLDED, [make_series(_FOLDED, key) for key in tables], folded)


def _mark(table: TableTotals, predicate: Callable[[CountedRule], bool]) -> npt.NDArray[np.bool_]:
    return np.fromiter(map(predicate, table.rules), np.bool_, len(table.rules))


def _verdict(rule: CountedRule, source: int) -> str:
    """Return the label: attributed drops are drops, whatever else the rule does."""
    if source and not rule.is_dropping:
        return Verdict.DROP.value
    return rule.verdict.value if rule.verdict is not None else "map"


def _make(key: TableKey, table: TableTotals, view: _View, source: int, at: int) -> Series:
    """Make the series of the rule at a column, and keep it."""
    rule, expected = table.rules[at], _word(view.expected[at])
    if rule.is_policy:
        made = make_series(_POLICY, (*key, rule.chain, _SOURCES[source], expected))
    else:
        values = (*key, rule.chain, rule.rule_id, _verdict(rule, source))
        made = make_series(_PACKETS, (*values, _SOURCES[source], expected))
    view.series[source, at] = made
    return made


def _fold_series(fold: FoldKey) -> Series:
    source, expected = _SOURCES[fold.source], _word(fold.expected)
    if fold.is_policy:
        return make_series(_POLICY, (*fold.table, OTHER, source, expected))
    return make_series(_PACKETS, (*fold.table, "", OTHER, fold.verdict, source, expected))


def _infos(key: TableKey, table: TableTotals, view: _View) -> list[Series]:
    for at in np.flatnonzero((view.state == _OWN).any(axis=0)).tolist():
        rule = table.rules[at]
        if at not in view.infos and not rule.is_policy:
            text = rule.text or ""
            cut = text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"
            view.infos[at] = make_series(
                _INFO,
                (
                    *(*key, rule.chain, rule.rule_id, str(rule.number), cut, rule.comment),
                    *(rule.verdict.value if rule.verdict else "map", _word(view.expected[at])),
                ),
            )
    return list(view.infos.values())


def _word(value: bool) -> str:  # noqa: FBT001 - a conversion
    return "true" if value else "false"

"""All totals as one piece of JSON, so that they go on after a restart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from exporters.prometheus_rules import FoldKey, RuleSeries
from tracer.core.drop_totals import DropLabels, DropTotals
from tracer.core.rule_counts import Key, RuleCounts, TableKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeAlias

    #: A rule that is remembered: where, which, and its values as `RuleCounts.remember` has them.
    Remembered: TypeAlias = tuple[TableKey, Key, tuple[int, ...]]

__all__ = ["load_state", "save_state"]

_SCHEMA: Final = "nftrace.totals/1"
#: Totals alone, or with the counter's last values and the namespace's inode.
_VALUES: Final = frozenset({4, 7})
_VALUE_MAX: Final = (1 << 64) - 1


def save_state(rules: RuleCounts, drops: DropTotals, series: RuleSeries) -> bytes:
    """Return the totals; names that were no UTF-8 come back as they were."""
    state = {
        "schema": _SCHEMA,
        "rules": [*_save_tables(rules), *_save_remembered(rules)],
        "changes": rules.changes,
        "resets": [[*key, value] for key, value in rules.resets.items()],
        "forgotten": rules.forgotten,
        "drops": [[*labels, *values] for labels, values in drops.totals.items()],
        "unresolved": drops.unresolved,
        "drops_folded": drops.folded,
        "folds": [[*key.table, *key[1:], *values] for key, values in series.folds.items()],
    }
    return json.dumps(state, separators=(",", ":")).encode()


def _save_tables(rules: RuleCounts) -> Iterator[list[object]]:
    for key, table in rules.tables.items():
        both = np.concatenate((table.totals, table.attributed, table.last)).T
        keys = [(rule.chain, rule.rule_id) for rule in table.rules]
        yield [*key, table.inode, keys, both.tolist()]


def _save_remembered(rules: RuleCounts) -> Iterator[list[object]]:
    for table, key, values in rules.remembered():
        yield [*table, values[6] if len(values) > 4 else 0, [key], [values[:6]]]  # noqa: PLR2004


def load_state(state: bytes, rules: RuleCounts, drops: DropTotals, series: RuleSeries) -> None:
    """
    Take back what `save_state` returned.

    Errors: ValueError for anything else; nothing is taken then.
    """
    try:
        read = _check_schema(json.loads(state))
        remembered = list(_read_rules(read["rules"]))
        resets = {TableKey(*map(_text, row[:4])): _number(row[4]) for row in read["resets"]}
        changes = _read_numbers(read["changes"])
        unresolved = _read_numbers(read["unresolved"])
        numbers = _number(read["forgotten"]), _number(read["drops_folded"])
        totals = [_read_drop(row) for row in read["drops"]]
        folds = [_read_fold(row) for row in read["folds"]]
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError, ValueError) as exc:
        raise ValueError(f"no totals of this version ({exc})") from exc
    for table, key, values in remembered:
        rules.remember(table, key, values)
    rules.resets.update(resets)
    rules.changes.update(changes)
    rules.forgotten, drops.folded = numbers
    drops.unresolved.update(unresolved)
    for labels, (packets, octets) in totals:
        drops.add(labels, packets, octets)
    series.folds.update(folds)


def _check_schema(read: dict[str, Any]) -> dict[str, Any]:
    if read["schema"] != _SCHEMA:
        raise ValueError(f"schema {read['schema']!r}")
    return read


def _read_rules(rows: object) -> Iterator[Remembered]:
    for row in _list(rows):
        *names, inode, keys, values = _list(row)
        table = TableKey(*map(_text, names))
        for key, columns in zip(_list(keys), _list(values), strict=True):
            numbers = tuple(map(_number, _list(columns)))
            more = (*numbers, _number(inode)) if len(numbers) > 4 else numbers  # noqa: PLR2004
            if len(more) not in _VALUES:
                raise ValueError(f"{len(numbers)} values of a rule")
            yield table, Key(*map(_text, _list(key))), more


def _read_drop(row: object) -> tuple[DropLabels, tuple[int, int]]:
    *names, expected, packets, octets = _list(row)
    netns, engine, family, hook, table, reason = map(_text, names)
    labels = DropLabels(netns, engine, family, hook, table, reason, bool(expected))
    return labels, (_number(packets), _number(octets))


def _read_fold(row: object) -> tuple[FoldKey, list[int]]:
    *names, is_policy, verdict, source, expected, packets, octets = _list(row)
    key = FoldKey(
        TableKey(*map(_text, names)),
        bool(is_policy),
        _text(verdict),
        min(_number(source), 1),
        bool(expected),
    )
    return key, [_number(packets), _number(octets)]


def _read_numbers(values: Mapping[str, object]) -> dict[str, int]:
    return {_text(name): _number(value) for name, value in values.items()}


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _VALUE_MAX:
        raise ValueError(f"{value!r:.40} is no count")
    return value

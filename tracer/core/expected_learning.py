"""A first list of expected drops, from what a host drops now."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tracer.core.expected import ENTRIES_MAX, PATTERN_LENGTH_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tracer.core.drops import DropCount
    from tracer.core.rule_reading import NetnsCounters, TableCounters

__all__ = ["Learned", "learn_expected"]

#: What a text that is too long for a pattern is cut to.
_CUT: Final = PATTERN_LENGTH_MAX - 1


class Learned(NamedTuple):
    """Entries as `parse_expected` takes them, worst first; *left_out* were too many."""

    entries: list[dict[str, str]]
    left_out: int


def learn_expected(
    readings: Iterable[NetnsCounters], drops: Iterable[DropCount], names: Mapping[int, str]
) -> Learned:
    """
    Name each dropping rule and policy, and each reason outside of rules, that dropped.

    *readings* are one of each namespace; *drops* count what had no counter; *names* are
    the namespaces' by inode, and drops elsewhere are left out.
    """
    readings = list(readings)
    found: dict[tuple[tuple[str, str], ...], int] = {}
    tables = {
        (one.inode, table.engine, table.family, table.table): table
        for one in readings
        for table in one.tables
    }
    seen = [*_counted(readings), *_seen(drops, names, tables)]
    for entry, packets in seen:
        key = tuple((name, _literal(value)) for name, value in entry.items())
        found[key] = found.get(key, 0) + packets
    worst = sorted(found, key=lambda key: found[key], reverse=True)
    return Learned([dict(key) for key in worst[:ENTRIES_MAX]], max(len(worst) - ENTRIES_MAX, 0))


def _counted(readings: Sequence[NetnsCounters]) -> Iterator[tuple[dict[str, str], int]]:
    for reading in readings:
        for table in reading.tables:
            columns = zip(table.packets.tolist(), table.counted.tolist(), strict=True)
            for at, (packets, has) in enumerate(columns):
                if has and packets and table.rules[at].is_dropping:
                    yield _entry(reading.netns, table, at), packets


def _seen(
    drops: Iterable[DropCount],
    names: Mapping[int, str],
    tables: Mapping[tuple[int, str, str, str], TableCounters],
) -> Iterator[tuple[dict[str, str], int]]:
    for row in drops:
        name = names.get(row.netns)
        if name is None or not row.packets:
            continue
        if row.engine is None:
            yield {"netns": name, "reason": row.reason}, row.packets
        table = tables.get((row.netns, row.engine or "", row.family or "", row.table or ""))
        if table is not None:
            for at, rule in enumerate(table.rules):
                place = (rule.handle, None) if row.handle else (rule.chain, rule.number)
                wanted = (row.handle, None) if row.handle else (row.chain, row.rule)
                is_one = row.kind == "policy" or row.rule is not None or row.handle is not None
                if is_one and place == wanted and not table.counted[at]:
                    yield _entry(name, table, at), row.packets


def _entry(netns: str, table: TableCounters, at: int) -> dict[str, str]:
    rule = table.rules[at]
    return {
        "netns": netns,
        "engine": table.engine,
        "family": table.family,
        "table": table.table,
        "chain": rule.chain,
        "text": rule.text or "policy",
    }


def _literal(value: str) -> str:
    """Return a pattern that fits *value*: of one too long its beginning."""
    if value.startswith("~"):
        return rf"~\A{re.escape(value)}\Z"
    return value if len(value) <= PATTERN_LENGTH_MAX else value[:_CUT] + "*"

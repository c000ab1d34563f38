"""
Drops whose legacy rule was looked for in a sample, given to rules in proportion.

The kernel's program looks at every drop of a table while they are few, and at one in so
many beyond. What it did not look at is known to the table, and counted exactly; which rule
of the table it was is estimated by those that were looked at in the same time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracer.core.drops import DropCount

__all__ = ["spread"]


def spread(rows: Iterable[DropCount]) -> list[DropCount]:
    """
    Give what was not looked at to the rules that were seen in the sample.

    *rows* with *sampled* are of the sample: those with a rule, or a policy, were looked at.
    The sum over a table stays what it was; a row that had something added is *sampled*. A
    table of which no drop was looked at keeps its row without a rule.
    """
    told = []
    groups: defaultdict[DropCount, list[DropCount]] = defaultdict(list)
    for row in rows:
        if row.sampled:
            groups[_table_of(row)].append(row)
        else:
            told.append(row)
    for group in groups.values():
        looked = [row for row in group if row.kind != "table" and row.packets]
        rest = [row for row in group if row.kind == "table" or not row.packets]
        if not looked:
            told += group
            continue
        weights = [row.packets for row in looked]
        packets = _shares(sum(row.packets for row in rest), weights)
        octets = _shares(sum(row.octets for row in rest), weights)
        told += [
            replace(row, packets=row.packets + p, octets=row.octets + o)
            for row, p, o in zip(looked, packets, octets, strict=True)
        ]
    return told


def _table_of(row: DropCount) -> DropCount:
    return replace(row.kind_only, kind="table", chain=None, rule=None, certain=True)


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """Split *total* in proportion to *weights*: whole numbers whose sum it is."""
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    # What rounding left goes to those that it took most from.
    by_rest = sorted(range(len(weights)), key=lambda at: total * weights[at] % whole, reverse=True)
    for at in by_rest[: total - sum(shares)]:
        shares[at] += 1
    return shares

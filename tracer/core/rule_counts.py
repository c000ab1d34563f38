"""
Rule counters that never fall, out of readings that do.

The kernel's counters begin anew when a ruleset is loaded, when they are zeroed, when a
namespace is made anew. Here each rule, known by its id, has a total that only grows by
what a reading shows to be new:

1. A counter at or above its last value went on: the difference is new.
2. A counter below it began anew: all of it is new.
3. A rule with another nft handle, or in another namespace of the same name, is another
   counter: all of it is new. But rules can be loaded with their counters (`nft list
   ruleset` prints them): where every rule of the table is at or above its last value and
   at least one of those that had counted stands exactly at it, 1 holds.
4. A rule that went away and came back goes on from its last total; its counter is new.

A legacy table that was loaded anew and passed its former values before the next reading
cannot be told from one that went on: what it counted up to its former values is missing.
So read soon after a change.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from tracer.core.rule_ids import CountedRule
    from tracer.core.rule_reading import NetnsCounters, TableCounters

__all__ = ["REMEMBERED_MAX", "Key", "RuleCounts", "TableKey", "TableTotals"]

#: Rules that are gone and may come back, about 300 bytes each: 20 MB.
REMEMBERED_MAX: Final = 65_536
#: Totals stop here, where they would be no exact number of Prometheus' for long.
_TOTAL_MAX: Final = np.uint64(1 << 63)

Columns: TypeAlias = "npt.NDArray[np.uint64]"


class TableKey(NamedTuple):
    """A table: *netns* is the namespace's name."""

    netns: str
    engine: str
    family: str
    table: str


class Key(NamedTuple):
    """A rule within its table; a policy has an empty *rule_id*."""

    chain: str
    rule_id: str


@dataclass(slots=True, eq=False)
class TableTotals:
    """
    What one table's rules have counted in all.

    Shape: all columns `(2, n)` of packets and bytes, in the order of *rules*, `uint64`.
    *totals* by the kernel's counters where *counted*; *attributed* by drops that were seen
    and given to the rule. *resets*: readings at which counters had begun anew.
    *layout* is a number that changes when *rules* does.
    """

    rules: tuple[CountedRule, ...]
    counted: npt.NDArray[np.bool_]
    totals: Columns
    attributed: Columns
    last: Columns
    inode: int
    handle: int | None
    resets: int = 0
    layout: int = 0

    def index(self) -> dict[Key, int]:
        """Return the place of each rule in the columns."""
        return {Key(rule.chain, rule.rule_id): at for at, rule in enumerate(self.rules)}


class RuleCounts:
    """The totals of all tables of all namespaces."""

    def __init__(self, remembered_max: int = REMEMBERED_MAX) -> None:
        """Begin with nothing; at most *remembered_max* rules that are gone are kept in mind."""
        self.tables: dict[TableKey, TableTotals] = {}
        self.versions: dict[str, int] = {}
        self.changes: dict[str, int] = {}
        self.forgotten = 0
        self._gone: OrderedDict[tuple[TableKey, Key], tuple[int, ...]] = OrderedDict()
        self._gone_max = remembered_max
        self._layouts = 0

    def update(self, reading: NetnsCounters) -> None:
        """Add what *reading* shows to be new; tables that it does not have are gone."""
        name = reading.netns
        known = self.versions.get(name)
        if known != reading.version:
            self.versions[name] = reading.version
            self.changes[name] = self.changes.get(name, 0) + (known is not None)
        read = {TableKey(name, one.engine, one.family, one.table): one for one in reading.tables}
        for key in [key for key in self.tables if key.netns == name and key not in read]:
            self._bury(key, self.tables.pop(key))
        for key, table in read.items():
            self._update_table(key, table, reading.inode)

    def keep_only(self, names: Iterable[str]) -> None:
        """End the tables of namespaces that are not among *names*; their rules may come back."""
        kept = frozenset(names)
        for key in [key for key in self.tables if key.netns not in kept]:
            self._bury(key, self.tables.pop(key))
        for name in self.versions.keys() - kept:
            del self.versions[name]
        for name in self.changes.keys() - kept:
            del self.changes[name]

    def attribute(self, key: TableKey, at: int, packets: int, octets: int) -> None:
        """Add drops to the rule at column *at* of a table."""
        _add(self.tables[key].attributed[:, at : at + 1], _column(packets, octets))

    def remembered(self) -> Iterator[tuple[TableKey, Key, tuple[int, ...]]]:
        """Yield the rules that are gone with their totals and attributed totals."""
        for (table, key), values in self._gone.items():
            yield table, key, values

    def remember(self, table: TableKey, key: Key, values: tuple[int, ...]) -> None:
        """
        Let a rule that comes back go on from *values*; the oldest of too many is forgotten.

        Shape: packets and bytes of the totals, then of the attributed, then, where the
        counter is to go on as well, its last packets and bytes and the namespace's inode.
        """
        self._gone[table, key] = values
        self._gone.move_to_end((table, key))
        while len(self._gone) > self._gone_max:
            self._gone.popitem(last=False)
            self.forgotten += 1

    def _bury(self, key: TableKey, table: TableTotals, kept: frozenset[Key] = frozenset()) -> None:
        both = np.concatenate((table.totals, table.attributed)).T.tolist()
        for rule, values in table.index().items():
            row = both[values]
            if rule not in kept and any(row):
                self.remember(key, rule, tuple(row))

    def _update_table(self, key: TableKey, table: TableCounters, inode: int) -> None:
        raw = np.stack((table.packets, table.octets))
        known = self.tables.get(key)
        if (
            known is None
            or known.rules is not table.rules
            or (known.inode, known.handle) != (inode, table.handle)
        ):
            known = self.tables[key] = self._lay_out(key, table, inode, known, raw)
        fell = (raw < known.last).any(axis=0) & known.counted
        known.resets += bool(fell.any())
        _add(known.totals, np.where(fell | ~known.counted, raw * known.counted, raw - known.last))
        known.last = raw

    def _lay_out(
        self,
        key: TableKey,
        table: TableCounters,
        inode: int,
        known: TableTotals | None,
        raw: Columns,
    ) -> TableTotals:
        """Carry over to a new layout what was known of each rule."""
        self._layouts += 1
        size = len(table.rules)
        zeros = np.zeros((6, size), np.uint64)
        made = TableTotals(
            table.rules, table.counted, zeros[:2], zeros[2:4], zeros[4:], inode, table.handle
        )
        made.layout = self._layouts
        is_other = known is not None and (inode, table.handle) != (known.inode, known.handle)
        is_new = np.zeros(size, np.bool_)
        before = {} if known is None else known.index()
        rows = (
            []
            if known is None
            else np.concatenate((known.totals, known.attributed, known.last)).T.tolist()
        )
        places = made.index()
        for rule, at in places.items():
            was = before.get(rule)
            if known is not None and was is not None:
                zeros[:, at] = rows[was]
                same = known.rules[was].handle == table.rules[at].handle
                is_new[at] = is_other or not same
            elif (gone := self._gone.pop((key, rule), None)) is not None:
                zeros[:4, at] = gone[:4]
                if gone[4:] and gone[6] == inode:
                    zeros[4:, at] = gone[4:6]
        if known is not None:
            made.resets = known.resets
            self._bury(key, known, frozenset(places))
        if is_new.any() and not _is_restored(made, raw):
            made.resets += bool(made.last[:, is_new].any())
            made.last[:, is_new] = 0
        return made


def _is_restored(table: TableTotals, raw: Columns) -> bool:
    """Tell whether rules were loaded with the counters that they had (rule 3 above)."""
    had = table.counted & table.last.any(axis=0)
    stands = (raw == table.last).all(axis=0) & had
    return bool(stands.any() and (raw >= table.last)[:, had].all())


def _add(totals: Columns, new: Columns) -> None:
    totals += np.minimum(new, _TOTAL_MAX - totals)


def _column(packets: int, octets: int) -> Columns:
    return np.array([[packets], [octets]], np.uint64)

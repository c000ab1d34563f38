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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

from tracer.core.journey import Verdict
from tracer.core.rule_ids import policy_id

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
    """A rule within its table, or a policy by its `policy_id`."""

    chain: str
    rule_id: str


@dataclass(slots=True, eq=False)
class TableTotals:
    """
    What one table's rules have counted in all.

    Shape: all columns `(2, n)` of packets and bytes, in the order of *rules*, `uint64`.
    *totals* by the kernel's counters where *counted*; *attributed* by drops that were seen
    and given to the rule. *new* `(4, n)` is what was added to both since `take_new()`.
    *layout* is a number that changes when *rules* does.
    """

    rules: tuple[CountedRule, ...]
    counted: npt.NDArray[np.bool_]
    totals: Columns
    attributed: Columns
    last: Columns
    inode: int
    handle: int | None
    new: Columns
    layout: int
    _places: dict[int | tuple[str, int | None], int] = field(default_factory=dict)

    def find(self, chain: str, number: int | None, handle: int | None) -> int | None:
        """Return the column of a rule by its handle or place, of a policy by its chain."""
        if not self._places:
            for at, rule in enumerate(self.rules):
                self._places[rule.chain, rule.number] = at
                if rule.handle is not None:
                    self._places[rule.handle] = at
        return self._places.get((chain, number) if handle is None else handle)

    def take_new(self) -> Columns:
        """Return what was added since the last call: two rows totals, two attributed."""
        taken, self.new = self.new, np.zeros_like(self.new)
        return taken

    def index(self) -> dict[Key, int]:
        """Return the place of each rule in the columns."""
        return {Key(rule.chain, rule.rule_id): at for at, rule in enumerate(self.rules)}


class RuleCounts:
    """
    The totals of all tables of all namespaces.

    *changes* counts the rulesets that replaced another, by namespace; *resets* the readings
    at which counters had begun anew, by table.
    """

    def __init__(self, remembered_max: int = REMEMBERED_MAX) -> None:
        """Begin with nothing; at most *remembered_max* rules that are gone are kept in mind."""
        self.tables: dict[TableKey, TableTotals] = {}
        self.versions: dict[str, int] = {}
        self.changes: dict[str, int] = {}
        self.resets: dict[TableKey, int] = {}
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
        for key in [key for key in self.resets if key.netns not in kept]:
            del self.resets[key]

    def attribute(self, key: TableKey, at: int, packets: int, octets: int) -> None:
        """Add drops to the rule at column *at* of a table."""
        table, columns = self.tables[key], slice(at, at + 1)
        more = np.array([[packets], [octets]], np.uint64)
        _add(table.attributed[:, columns], more)
        _add(table.new[2:, columns], more)

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
        raw = np.stack((table.packets, table.octets)) * table.counted
        known = self.tables.get(key)
        if known is None or known.rules is not table.rules or _is_other(known, table, inode):
            known = self.tables[key] = self._lay_out(key, table, inode, known, raw)
        # Rules that changed while they were read can miss their counter for once.
        raw = np.where(known.counted, raw, known.last)
        fell = (raw < known.last).any(axis=0)
        if fell.any():
            self._count_reset(key)
        more = np.where(fell, raw, raw - known.last)
        _add(known.totals, more)
        _add(known.new[:2], more)
        known.last = raw

    def _count_reset(self, key: TableKey) -> None:
        self.resets[key] = self.resets.get(key, 0) + 1

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
        columns = np.zeros((6, size), np.uint64)
        made = TableTotals(
            table.rules,
            table.counted,
            columns[:2],
            columns[2:4],
            columns[4:],
            inode,
            table.handle,
            np.zeros((4, size), np.uint64),
            self._layouts,
        )
        places = made.index()
        is_new = np.zeros(size, np.bool_)
        if known is not None:
            is_new[:] = _is_other(known, table, inode)
            _carry_over(known, made, columns, is_new)
            self._bury(key, known, frozenset(places))
        for rule, at in places.items():
            gone = self._gone.pop((key, rule), None)
            if gone is not None:
                columns[:4, at] = gone[:4]
                if len(gone) > 4 and gone[6] == inode:  # noqa: PLR2004
                    columns[4:, at] = gone[4:6]
        if is_new.any() and not _is_restored(made, raw):
            if made.last[:, is_new].any():
                self._count_reset(key)
            made.last[:, is_new] = 0
        return made


def _is_other(known: TableTotals, table: TableCounters, inode: int) -> bool:
    """Tell whether a table of the same name is another one by now."""
    return (known.inode, known.handle) != (inode, table.handle)


def _carry_over(
    known: TableTotals, made: TableTotals, columns: Columns, is_new: npt.NDArray[np.bool_]
) -> None:
    """Take over the columns of the rules that stay; a rule with another handle is new."""
    before = known.index()
    pairs = []
    for rule, at in made.index().items():
        if (was := before.get(rule)) is not None:
            pairs.append((at, was))
        elif made.rules[at].is_policy and (was := before.get(_other_policy(rule))) is not None:
            # One counter serves both: what it counted so far is the other's.
            columns[4:, at] = known.last[:, was]
    if not pairs:
        return
    now, then = np.array(pairs).T
    columns[:, now] = np.concatenate((known.totals, known.attributed, known.last))[:, then]
    is_new[now] |= [made.rules[at].handle != known.rules[was].handle for at, was in pairs]


def _other_policy(key: Key) -> Key:
    drop, accept = policy_id(Verdict.DROP), policy_id(Verdict.ACCEPT)
    return key._replace(rule_id=accept if key.rule_id == drop else drop)


def _is_restored(table: TableTotals, raw: Columns) -> bool:
    """Tell whether rules were loaded with the counters that they had (rule 3 above)."""
    had = table.counted & table.last.any(axis=0)
    stands = (raw == table.last).all(axis=0) & had
    return bool(stands.any() and (raw >= table.last)[:, had].all())


def _add(totals: Columns, new: Columns) -> None:
    totals += np.minimum(new, _TOTAL_MAX - totals)

"""Which version of which table was in force when, out of the changes of a log."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from tracer.core.timeline_events import UNSEEN
from tracer.core.timeline_rules import NO_TABLE, TableDiff, diff_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.core.log_rows import Change
    from tracer.core.ruleset import Rule, Table

__all__ = ["TableKey", "Version", "Versions", "key_of", "with_unseen"]

#: Namespace, engine, family and table's name.
TableKey = tuple[str, str, str, str]
#: Tables that are kept parsed: 20,000 rules are some 10 MB.
_TABLES_MAX: Final = 16
_DIFFS_MAX: Final = 4096


class Version(NamedTuple):
    """A table from *change* on: *name* is what its text is kept under, empty for none."""

    change: Change
    name: str


class Versions:
    """
    The versions of all tables.

    What is said again and was known is no version. A version that stands although nobody saw
    it come, as after a pause of the watch, is one.
    """

    def __init__(self, changes: Sequence[Change], read: Callable[[str], Table]) -> None:
        self._read = read
        self._of: dict[TableKey, list[Version]] = {}
        self._tables: OrderedDict[str, Table] = OrderedDict()
        self._diffs: OrderedDict[tuple[str, str], TableDiff] = OrderedDict()
        for change in changes:
            key = key_of(change)
            if key is None:
                continue
            known = self._of.setdefault(key, [])
            name = "" if change.action == "gone" else change.after
            if not known or known[-1].name != name:
                known.append(Version(change, name))

    @property
    def keys(self) -> list[TableKey]:
        """The tables that there are versions of."""
        return list(self._of)

    def of(self, key: TableKey) -> list[Version]:
        """Return a table's versions, in the order of time."""
        return self._of.get(key, [])

    def index_at(self, key: TableKey, time_ns: int) -> int:
        """Return which of a table's versions was in force; -1 where none is known."""
        return bisect_right(self.of(key), time_ns, key=lambda one: one.change.time_ns) - 1

    def table(self, name: str) -> Table:
        """Return the version of that name; an empty table where it cannot be read."""
        known = self._tables.get(name)
        if known is None:
            known = self._read(name) if name else NO_TABLE
            self._tables[name] = known
            if len(self._tables) > _TABLES_MAX:
                self._tables.popitem(last=False)
        self._tables.move_to_end(name)
        return known

    def diff(self, change: Change) -> TableDiff:
        """Return what a change of rules changed."""
        names = change.before, "" if change.action == "gone" else change.after
        known = self._diffs.get(names)
        if known is None:
            known = diff_tables(self.table(names[0]), self.table(names[1]))
            self._diffs[names] = known
            if len(self._diffs) > _DIFFS_MAX:
                self._diffs.popitem(last=False)
        return known

    def find_rule(self, name: str, chain: str, *, number: int, handle: int) -> Rule | None:
        """Return the rule by its handle, or where it has none by its number."""
        found = self.table(name).chains.get(chain)
        if found is None:
            return None
        if handle:
            return found.by_handle.get(handle)
        return found.rules[number - 1] if 0 < number <= len(found.rules) else None

    def find_by_handle(self, name: str, handle: int) -> tuple[str, Rule] | None:
        """Return chain and rule of that handle in any chain of a table."""
        for chain in self.table(name).chains.values():
            rule = chain.by_handle.get(handle)
            if rule is not None:
                return chain.name, rule
        return None


def with_unseen(changes: Sequence[Change]) -> list[Change]:
    """
    Return the changes, with those made explicit that happened while nobody watched.

    Where a table stands otherwise than the log last knew it, it was changed in between.
    """
    known: dict[TableKey, str] = {}
    told = []
    for change in changes:
        key = key_of(change)
        one = change
        if key is not None:
            before = known.get(key)
            if change.action == "stands" and before not in {None, change.after}:
                one = replace(change, action="changed", before=before or "", detail=UNSEEN)
            known[key] = "" if change.action == "gone" else change.after
        told.append(one)
    return told


def key_of(change: Change) -> TableKey | None:
    """Return which table a change of rules is about; None for any other change."""
    if change.what != "ruleset":
        return None
    family, _, table = change.subject.partition(" ")
    return change.netns, change.engine, family, table

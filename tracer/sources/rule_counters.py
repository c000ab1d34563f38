"""
Rule counters of network namespaces, read at each scrape.

Nothing is locked against the firewall's own tools: nft's rules and chains come in one
netlink dump each, legacy tables by the getsockopt() that iptables-save uses. Whether the
rules are those of the last time is seen in what was read, with the counters left out, and
not by nft's generation: that one also grows with each element of a set. Only where they
are others the tools are asked for their texts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tracer.core.arm_hooks import OWN_PREFIX
from tracer.core.legacy_entries import EntriesLayout, lay_out_entries
from tracer.core.nft_dump import DumpLayout, lay_out_chains, lay_out_rules, table_handles
from tracer.core.rule_ids import CountedRule, identify
from tracer.core.rule_reading import NetnsCounters, TableCounters
from tracer.sources.legacy_tables import read_blocks
from tracer.sources.netns import entered
from tracer.sources.nft_dumps import read_dumps
from tracer.sources.ruleset import read_ruleset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from tracer.core.ruleset import Ruleset, Table
    from tracer.sources.netns import Netns

__all__ = ["CounterReader"]

#: Rules that change faster than they can be read are taken as they are after so many.
_TRIES: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    """Everything once: what is where, and all counters `(2, n)` in a row, with a 0 before."""

    rules: DumpLayout
    chains: DumpLayout
    handles: Mapping[tuple[str, str], int]
    legacy: Mapping[tuple[str, str], EntriesLayout]
    values: npt.NDArray[np.uint64]

    def same_rules(self, other: _Snapshot) -> bool:
        """Tell whether the rules are those of *other*."""
        return (
            self.rules.digest == other.rules.digest
            and self.chains.digest == other.chains.digest
            and self.handles == other.handles
            and {key: one.digest for key, one in self.legacy.items()}
            == {key: one.digest for key, one in other.legacy.items()}
        )


@dataclass(frozen=True, slots=True, eq=False)
class _KnownTable:
    """A table's rules, and where their counters are in a snapshot's values; 0 is nowhere."""

    table: Table
    rules: tuple[CountedRule, ...]
    at: npt.NDArray[np.int64]
    handle: int | None


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A namespace as it was read last."""

    snapshot: _Snapshot
    version: int
    exact: bool
    tables: tuple[_KnownTable, ...]


class CounterReader:
    """
    Reads counters; remembers each namespace's rules until they change.

    Not for several threads at once: an `Exporter` asks one at a time.
    """

    def __init__(self) -> None:
        """Begin with no namespace known."""
        self._known: dict[int, _Known] = {}

    def read(self, namespace: Netns) -> NetnsCounters:
        """
        Read all rules' and policies' counters of *namespace*.

        The rules' texts are read only where the rules are not those of the last time:
        then it takes as long as the tools need to print them.
        Errors: KernelRefusedError and KernelUnsupportedError; the next call tries again.
        """
        started_ns = time.perf_counter_ns()
        known = self._known.get(namespace.inode)
        with entered(namespace):
            snapshot = _take(known.snapshot if known else None)
            if known is None or not known.exact or not snapshot.same_rules(known.snapshot):
                known = _learn(snapshot, known.version + 1 if known else 1)
                snapshot = known.snapshot
        # Its layouts may be newer: tables of our own came or went.
        known = _Known(snapshot, known.version, known.exact, known.tables)
        self._known[namespace.inode] = known
        return NetnsCounters(
            namespace.name,
            namespace.inode,
            known.version,
            tuple(_count(one, snapshot.values) for one in known.tables),
            known.exact,
            time.perf_counter_ns() - started_ns,
        )

    def keep_only(self, inodes: Iterable[int]) -> None:
        """Forget the rules of all other namespaces."""
        for inode in self._known.keys() - set(inodes):
            del self._known[inode]


def _is_wanted(table: str) -> bool:
    return not table.startswith(OWN_PREFIX)


def _take(known: _Snapshot | None) -> _Snapshot:
    """Read everything of the calling thread's namespace."""
    dumps = read_dumps()
    rules, chains = (known.rules, known.chains) if known else (None, None)
    if rules is None or not rules.fits(dumps.rules):
        rules = lay_out_rules(dumps.rules, _is_wanted)
    if chains is None or not chains.fits(dumps.chains):
        chains = lay_out_chains(dumps.chains, _is_wanted)
    handles = {
        key: handle for key, handle in table_handles(dumps.tables).items() if _is_wanted(key[1])
    }
    values = [np.zeros((2, 1), np.uint64), rules.counters(dumps.rules)]
    values.append(chains.counters(dumps.chains))
    legacy: dict[tuple[str, str], EntriesLayout] = {}
    for key, block in read_blocks().items():
        entries = block.entries.tobytes()
        layout = known.legacy.get(key) if known else None
        if layout is None or not layout.fits(entries):
            layout = lay_out_entries(entries, key[0], block.starts, block.ends)
        legacy[key] = layout
        values.append(layout.counters(entries))
    return _Snapshot(rules, chains, handles, legacy, np.concatenate(values, axis=1))


def _learn(snapshot: _Snapshot, version: int) -> _Known:
    """Read the texts of the rules that *snapshot* has, or of those that came after it."""
    for _ in range(_TRIES):
        read = read_ruleset()
        now = _take(snapshot)
        is_same = now.same_rules(snapshot)
        snapshot = now
        if is_same:
            return _Known(snapshot, version, True, _join(snapshot, read.ruleset))  # noqa: FBT003
    return _Known(snapshot, version, False, _join(snapshot, read.ruleset))  # noqa: FBT003


def _join(snapshot: _Snapshot, ruleset: Ruleset) -> tuple[_KnownTable, ...]:
    """Find each rule's counter: nft's by handle, a legacy one by its place in the chain."""
    places: dict[tuple[str, str, str, str, int | None], int] = {}
    at = 1
    for layout in (snapshot.rules, snapshot.chains):
        for row, has in zip(layout.rows, layout.packets, strict=True):
            if has:
                places["nft", row.family, row.table, row.chain, row.handle] = at
            at += 1
    for (family, table), entries in snapshot.legacy.items():
        for entry in entries.rows:
            places["legacy", family, table, entry.chain, entry.number] = at
            at += 1
    return tuple(
        _join_table(table, places, snapshot.handles)
        for table in ruleset.tables.values()
        if table.engine == "legacy" or _is_wanted(table.name)
    )


def _join_table(
    table: Table,
    places: Mapping[tuple[str, str, str, str, int | None], int],
    handles: Mapping[tuple[str, str], int],
) -> _KnownTable:
    rules = tuple(identify(table))
    is_nft = table.engine == "nft"
    of_table = table.engine, table.family, table.name
    at = [
        places.get((*of_table, rule.chain, rule.handle if is_nft else rule.number), 0)
        for rule in rules
    ]
    handle = handles.get((table.family, table.name)) if is_nft else None
    return _KnownTable(table, rules, np.array(at, np.int64), handle)


def _count(known: _KnownTable, values: npt.NDArray[np.uint64]) -> TableCounters:
    packets, octets = values[:, known.at]
    table = known.table
    return TableCounters(
        table.engine,
        table.family,
        table.name,
        known.rules,
        packets,
        octets,
        known.at != 0,
        known.handle,
    )

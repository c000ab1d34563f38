"""
Every drop of the machine: counted by kind, and where asked recorded, as it happens.

How a drop's place is found is the ladder's affair (`tracer.sources.bpf_ladder`); on top of
any of its rungs but the lowest, the legacy rule is told by the counters of the rules that
can drop.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bpf.layout import (
    CONFIG,
    DROP_COUNT,
    DROP_RECORD,
    FILTER_FLOW,
    FILTER_NETNS,
    MATCHES,
    NO_HOOK,
    STATS,
    WINDOW_NS,
    Mode,
    Stat,
)
from bpf.maps import MapFile, possible_cpus
from bpf.ring import RingReader
from bpf.syscalls import program_misses
from tracer.core.distinct import find_distinct
from tracer.core.drop_flows import fill_matches
from tracer.core.drop_ledger import DropLedger
from tracer.core.drop_sampling import spread
from tracer.core.drops import DropCount, Rung, merge_counts, name_counts
from tracer.errors import KernelRefusedError, KernelUnsupportedError, UsageError
from tracer.sources.bpf_armed import ArmedTables
from tracer.sources.bpf_kinds import KINDS_MAX, Kinds, KindTable
from tracer.sources.bpf_ladder import Ladder
from tracer.sources.bpf_peek import Peek
from tracer.sources.bpf_places import Places
from tracer.sources.bpf_retry import LATER, Retry
from tracer.sources.bpf_rules import find_tables
from tracer.sources.bpf_rungs import COSTS
from tracer.sources.drop_programs import NETNS_MAX, RING_BYTES, load_programs
from tracer.sources.netns import Netns, entered

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from bpf.loader import Loaded
    from tracer.core.filters import Filter
    from tracer.sources.bpf_kinds import Retired

__all__ = ["CALIBRATE_S", "NETNS_MAX", "DropLosses", "DropSource", "Mode", "Standing"]

#: Drops by legacy tables a second and CPU of which every one's rule is looked for.
RULE_RATE = 100_000
#: … and beyond it one in so many.
_RULE_SAMPLE = 50
#: Where so much of a table of the kernel's is taken, what was idle since the last look
#: makes room.
_CROWDED = 3 / 4
#: Seconds of a processor for known drops: a tenth is needed, and up to four where the machine
#: is emulated.
CALIBRATE_S = 10.0


def _rows(ended: Iterable[Retired[DropCount | None]]) -> list[DropCount]:
    return [
        replace(one.name, packets=one.packets, octets=one.octets)
        for one in ended
        if one.name is not None
    ]


class DropLosses(NamedTuple):
    """
    What the programs could not do, in drops, since open().

    *missed*: they were running on that CPU already. *uncounted*: the table of kinds was
    full. *unrecorded*: the ring was, or what came by it was no record. *unlocated*: freed by
    netfilter in a way that the calibration does not know. *stale*: the legacy ruleset was
    new and not read yet.
    *unplaced*: first of a kind whose place has no name, because the table of places was
    full. *coarse*: of kinds long over, and told less exactly by now.
    """

    seen: int
    missed: int
    uncounted: int
    unrecorded: int
    unlocated: int
    stale: int
    unplaced: int = 0
    coarse: int = 0


class Standing(NamedTuple):
    """
    The rung that stands and what it costs, in words.

    *why* says what was missing for higher ones, *notes* what happened since the start.
    """

    rung: Rung
    cost: str
    why: dict[Rung, str]
    notes: tuple[str, ...]


class DropSource:
    """
    Counts, and on request records, of every packet that is dropped.

    `open()`, then `counts()` as often as wanted. *ladder* is there from then on, and *retry*
    where there was no time to prove a rung; `rung` is what stands, `why` says for each rung
    above it what was missing, `notes` what happened to it since.
    """

    def __init__(
        self,
        namespaces: Iterable[Netns] = (),
        rung: Rung | None = None,
        calibrate_s: float = CALIBRATE_S,
    ) -> None:
        """
        Take the *namespaces* whose legacy rules are to be named from the first drop on.

        *rung* forces one: open() raises where it does not hold. Proving takes at most
        *calibrate_s* seconds; after that the lowest rung stands.
        """
        self.why: dict[Rung, str] = {}
        self.notes: list[str] = []
        self.reasons: dict[int, str] = {}
        self._calibrate_s = calibrate_s
        self.ladder: Ladder | None = None
        self._reads_rules = False
        self._namespaces = tuple(namespaces)
        self._wanted = rung
        self._loaded: Loaded | None = None
        self._ring: RingReader | None = None
        self._config = np.zeros(1, CONFIG)
        self._rule_rate = RULE_RATE
        self._kinds: KindTable[DropCount | None] | None = None
        self._places: Places | None = None
        self._armed: ArmedTables | None = None
        self._settled = DropLedger()
        self._last: dict[int, int] = {}
        self._peek: Peek | None = None
        self.retry: Retry | None = None
        self._cpus = possible_cpus()
        self._before: npt.NDArray[np.uint64] = np.zeros(1, np.uint64)
        self._missed_before = 0

    def open(self) -> None:
        """
        Compile, calibrate, prove and attach; counting begins.

        Errors: KernelUnsupportedError, KernelRefusedError; nothing is left open then.
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._loaded = loaded = load_programs(calls_modules=self._wanted is not Rung.REASON)
        names = loaded.enums.get("skb_drop_reason") or {"NOT_SPECIFIED": 0}
        self.reasons = {n: name.removeprefix("SKB_DROP_REASON_") for name, n in names.items()}
        self._ring = RingReader(loaded.maps["records"], RING_BYTES, DROP_RECORD)
        self._peek = Peek(loaded)
        self._kinds = KindTable(loaded.maps)
        self._kinds.fill()
        self._places = Places(loaded.maps["places"])
        self._climb(loaded, self._peek)
        if self._wanted not in {None, self.rung}:
            above = next(iter(self.why.values()), "it was not proved")
            msg = f"the rung {self._wanted} does not hold on this kernel: {above}"
            raise KernelUnsupportedError(msg, "leave out --rung; `nftrace check` says what holds")
        self.set_mode(Mode.COUNT)
        self.resume()
        if self._reads_rules:
            self._arm_namespaces()
        self._forget()

    @property
    def rung(self) -> Rung:
        """How drops are placed now."""
        rung = Rung.REASON if self.ladder is None else self.ladder.rung
        return Rung.RULE if rung is Rung.HOOK and self._reads_rules else rung

    @property
    def standing(self) -> Standing:
        """The rung, its cost, and what is to be said of both."""
        return Standing(self.rung, COSTS[self.rung], self.why, tuple(self.notes))

    @property
    def is_attached(self) -> bool:
        """Tell whether drops are counted now."""
        return self.ladder is not None and self.ladder.is_attached

    def fileno(self) -> int:
        """
        Return a descriptor that is readable when there are records, for a selector.

        Errors: ValueError before open().
        """
        return self._maps()["records"]

    def resume(self) -> None:
        """Attach after pause(); harmless when attached."""
        if self.ladder is not None:
            self.ladder.attach()

    def pause(self) -> None:
        """Detach, so that a drop costs nothing; what was counted stays."""
        if self.ladder is not None:
            self.ladder.detach()

    def _climb(self, loaded: Loaded, peek: Peek) -> None:
        ladder = self.ladder = Ladder(loaded, peek, self._namespaces)
        ladder.climb(self._wanted, self._calibrate_s)
        self.why, self.notes = ladder.why, ladder.notes
        if ladder.rung is not Rung.REASON and self._wanted is not Rung.HOOK:
            self._read_rules(loaded, peek)
        if ladder.is_late and self._wanted is None:
            again = partial(load_programs, calls_modules=True)
            self.retry = Retry(again, self._calibrate_s)
            self.notes.append(LATER)

    def _read_rules(self, loaded: Loaded, peek: Peek) -> None:
        armed = ArmedTables(loaded.maps, peek)
        if not armed.base:
            self.why[Rung.RULE] = "where this kernel has its rules' counters is not known"
            return
        if not self._legacy():
            self.why[Rung.RULE] = "no legacy table could be made to calibrate with"
            return
        self._armed = armed
        self._config["percpu_base"] = armed.base
        self.set_rule_rate(self._rule_rate)
        self._reads_rules = True

    def _legacy(self) -> frozenset[int]:
        return frozenset() if self.ladder is None else self.ladder.found.legacy

    def _arm_namespaces(self) -> None:
        if self._peek is None or self._armed is None:
            return
        for namespace in self._namespaces:
            # One that is gone by now has no drops to name.
            with contextlib.suppress(KernelRefusedError), entered(namespace):
                for address in find_tables(self._peek, self._legacy()):
                    self._armed.arm(address)

    def _forget(self) -> None:
        """
        Begin at nothing: what dropped while the rules were being read is not counted.

        The programs run already, so their statistics are not written to but subtracted.
        """
        table = self._table()
        kinds = table.read()
        table.retire(kinds, [None] * len(kinds.numbers))
        self._before = self._read_stats()
        self._missed_before = self._read_missed()

    def set_mode(self, mode: Mode, sample: int = 1, rules: int | None = None) -> None:
        """
        Choose what happens beside counting.

        *sample*: with Mode.SAMPLE one drop in so many is recorded on each CPU, its
        *weight* says so. *rules*: the legacy rule is looked for at one drop in so many,
        however few there are.
        """
        self._config["mode"], self._config["sample"] = mode, sample
        if rules is not None and self._reads_rules:
            self._config["rules"], self._config["calm"] = rules, 0
        self._push_config()

    def set_rule_rate(self, rate: int, sample: int = _RULE_SAMPLE) -> None:
        """
        Look for the legacy rule at every drop up to *rate* a second on each CPU.

        Beyond it one in *sample* is looked at, and the others are given to rules in
        proportion: counts() marks them, records say it in *rule_weight*. The rate is that
        of a tenth of a second. It may be set before open(), too.
        """
        self._rule_rate = rate
        self._config["rules"] = sample
        self._config["calm"] = min(rate * WINDOW_NS // 1_000_000_000, (1 << 32) - 1)
        if self._loaded is not None:
            self._push_config()

    def record_only(self, netns: Iterable[int] | None, filters: Iterable[Filter] = ()) -> None:
        """
        Choose what is recorded; everything is counted all the same.

        *netns* are inodes, None for all; *filters* look at a packet's addresses, ports and
        protocol, none of them for all.
        Errors: UsageError where there are more than the kernel's tables hold.
        """
        inodes = None if netns is None else list(netns)
        if inodes is not None and len(inodes) > NETNS_MAX:
            msg = f"more than {NETNS_MAX} namespaces cannot be told apart while recording"
            raise UsageError(msg, "record all of them")
        flows = np.zeros(1, MATCHES)
        flows["count"] = fill_matches(filters, flows["match"][0])
        maps = self._maps()
        MapFile(maps["recorded_flows"], 4, MATCHES.itemsize).update(bytes(4), flows.tobytes())
        wanted = MapFile(maps["recorded_netns"], 4, 1)
        keys = {inode.to_bytes(4, "little") for inode in inodes or ()}
        # What stays is recorded all the while.
        for gone in {known.tobytes() for known in wanted.dump(NETNS_MAX)[0]} - keys:
            wanted.delete(gone)
        for key in keys:
            wanted.update(key, b"\1")
        by_netns = FILTER_NETNS if inodes is not None else 0
        self._config["filters"] = by_netns | (FILTER_FLOW if flows["count"][0] else 0)
        self._push_config()

    def _push_config(self) -> None:
        if self.ladder is not None:
            self.ladder.fill_config(self._config)
        MapFile(self._maps()["config"], 4, CONFIG.itemsize).update(bytes(4), self._config.tobytes())

    def counts(self) -> list[DropCount]:
        """Return every kind of drop since open(), most packets first."""
        table = self._table()
        has_stepped = self._take_found_rung()
        self._settled.add(spread(_rows(table.collect())))
        kinds = self._read_kinds(table)
        self._learn_places(kinds.keys)
        has_stepped |= self._look(kinds.keys, kinds.counts)
        rows = self._name(kinds.keys, kinds.counts)
        over = self._arm_stale(kinds, has_stepped=has_stepped) | self._idle(kinds)
        ended = [row for row, is_over in zip(rows, over.tolist(), strict=True) if is_over]
        table.retire(kinds.only(over), ended)
        return merge_counts([*spread(rows), *self._settled.rows])

    def _read_kinds(self, table: KindTable[DropCount | None]) -> Kinds:
        """Return what was counted, but for known drops that a later proof makes."""
        kinds = table.read()
        if self.retry is None or not self.retry.ranges:
            return kinds
        known = np.isin(kinds.keys["netns"], list(self.retry.ranges))
        if not self.retry.is_under_way:
            self._before[Stat.SEEN] += kinds.counts["packets"][known].sum()
            table.retire(kinds.only(known), [None] * int(known.sum()))
        return kinds.only(~known)

    def _take_found_rung(self) -> bool:
        """Let the rung stand that was proved later than at the start; True when it does."""
        found = None if self.retry is None else self.retry.poll()
        if found is None or not (self.ladder and self._loaded and self._peek):
            return False
        if not self.ladder.adopt(found, self.losses().unlocated):
            return False
        self._read_rules(self._loaded, self._peek)
        self._arm_namespaces()
        self._push_config()
        return True

    def _look(self, keys: npt.NDArray[np.void], counts: npt.NDArray[np.void]) -> bool:
        """Let the ladder judge its rung by what it could place; True for another one now."""
        if self.ladder is None:
            return False
        placed = int(counts["packets"][keys["hook"] != NO_HOOK].sum())
        has_stepped = self.ladder.look(placed, self.losses().unlocated)
        if has_stepped:
            self._push_config()
        return has_stepped

    def _read_stats(self) -> npt.NDArray[np.uint64]:
        stats = MapFile(self._maps()["stats"], 4, STATS.itemsize, self._cpus)
        total: npt.NDArray[np.uint64] = np.frombuffer(stats.lookup(bytes(4)) or b"", STATS)[
            "count"
        ].sum(axis=0)
        return total

    def _read_missed(self) -> int:
        return program_misses(self._loaded.programs["on_kfree_skb_count"]) if self._loaded else 0

    def _table(self) -> KindTable[DropCount | None]:
        if self._kinds is None:
            msg = "DropSource is not open"
            raise ValueError(msg)
        return self._kinds

    def _name(self, keys: npt.NDArray[np.void], counts: npt.NDArray[np.void]) -> list[DropCount]:
        places = self._places.names if self._places else {}
        rules = self._armed.names() if self._armed else {}
        return name_counts(keys, counts, self.reasons, places, rules)

    def _arm_stale(self, kinds: Kinds, *, has_stepped: bool) -> npt.NDArray[np.bool_]:
        """
        Read the legacy tables that are new to us or were replaced.

        Return which of *kinds* have rules of such a table by their old places.
        """
        over = np.zeros(len(kinds.numbers), np.bool_)
        if self._armed is None or self._places is None or not self._reads_rules:
            return over
        legacy = self._places.legacy(kinds.keys)
        # What had no place moved the counters of its rule all the same: read them again.
        stale = list(self._armed.tables) if has_stepped else self._armed.stale(legacy)
        for address in stale:
            self._armed.arm(address)
        # Nothing is counted under the old ruleset's indexes any more.
        over |= np.isin(kinds.keys["place"], stale) & (kinds.keys["rule"] != 0)
        return over

    def _idle(self, kinds: Kinds) -> npt.NDArray[np.bool_]:
        """Return which of *kinds* did not move since the last look, where room is needed."""
        packets = kinds.counts["packets"].tolist()
        numbers = kinds.numbers.tolist()
        last, self._last = self._last, dict(zip(numbers, packets, strict=True))
        crowded = len(numbers) > KINDS_MAX * _CROWDED
        if self._places is not None and self._places.is_crowded(_CROWDED):
            crowded = True
        idle = [crowded and last.get(n) == p for n, p in zip(numbers, packets, strict=True)]
        idle_kinds = np.array(idle, np.bool_)
        if crowded and self._places is not None:
            self._places.keep(kinds.keys[~idle_kinds])
        return idle_kinds

    def _learn_places(self, keys: npt.NDArray[np.void]) -> None:
        if self._places is not None:
            self._places.learn(keys, self._legacy())

    def read(self) -> npt.NDArray[np.void]:
        """
        Return the records that are ready, `DROP_RECORD (n,)`, in the kernel's order.

        Their *time_ns* is nanoseconds since the epoch.
        """
        if self._ring is None:
            msg = "DropSource is not open"
            raise ValueError(msg)
        records = self._ring.read()
        if self.retry is not None and self.retry.ranges:
            records = records[~np.isin(records["key"]["netns"], list(self.retry.ranges))]
        records["time_ns"] += np.uint64(time.time_ns() - time.monotonic_ns())
        return records

    def kinds_of(
        self, records: npt.NDArray[np.void]
    ) -> tuple[list[DropCount], npt.NDArray[np.intp]]:
        """
        Name the kinds that *records* are of, and say which record is of which.

        Shape: the kinds are those of counts() with no packets in them; second, an index
        into them `(n,)`. A record older than a change of its legacy table has no rule.
        """
        first, like = find_distinct(records["key"])
        keys = records["key"][first]
        self._learn_places(keys)
        kinds = self._name(keys, np.zeros(len(keys), DROP_COUNT))
        return [kind.kind_only for kind in kinds], like

    def losses(self) -> DropLosses:
        """Return what the programs saw and could not do."""
        counted = (self._read_stats() - self._before).tolist()
        return DropLosses(
            seen=counted[Stat.SEEN],
            missed=self._read_missed() - self._missed_before,
            uncounted=counted[Stat.COUNTS_FULL],
            unrecorded=counted[Stat.RESERVE_FAILED] + (self._ring.totals.odd if self._ring else 0),
            unlocated=counted[Stat.UNLOCATED],
            stale=counted[Stat.STALE_RULES],
            unplaced=counted[Stat.PLACES_FULL],
            coarse=self._settled.coarse,
        )

    def close(self) -> None:
        """Detach and unload everything; harmless when repeated."""
        if self.retry is not None:
            self.retry.close()
        if self.ladder is not None:
            self.ladder.close()
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = self._kinds = None

    def _maps(self) -> dict[str, int]:
        if self._loaded is None:
            msg = "DropSource is not open"
            raise ValueError(msg)
        return self._loaded.maps

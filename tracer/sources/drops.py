"""
Every drop of the machine: counted by kind, and where asked recorded, as it happens.

How a drop's place is found is the ladder's affair (`tracer.sources.bpf_ladder`); on top of
any of its rungs but the lowest, the legacy rule is told by the counters of the rules that
can drop.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bpf.layout import (
    CONFIG,
    DROP_COUNT,
    DROP_KEY,
    DROP_RECORD,
    NO_HOOK,
    PLACE,
    PLACE_KEY,
    RULES,
    RULES_MAX,
    SEEN_RULES,
    STATS,
    Mode,
    Site,
    Stat,
)
from bpf.loader import Loaded, ObjectSpec, ProgramSpec, load
from bpf.ring import RingReader
from bpf.syscalls import (
    PROG_TYPE_RAW_TRACEPOINT,
    MapFile,
    possible_cpus,
    program_misses,
)
from tracer.core.drops import DropCount, Place, Rung, merge_counts, name_counts, name_place
from tracer.errors import KernelRefusedError, KernelUnsupportedError
from tracer.sources import bpf_hooks
from tracer.sources.bpf_calibrate import STACK_RING_BYTES, call_modules
from tracer.sources.bpf_ladder import COSTS, FUNCTIONS, MARKS_MAX, PROGRAMS, TYPES, Ladder
from tracer.sources.bpf_peek import Peek
from tracer.sources.bpf_range import Deadline
from tracer.sources.bpf_rules import (
    OFFSETS,
    LegacyTable,
    cpu_offsets,
    find_tables,
    percpu_base,
    read_table,
)
from tracer.sources.netns import Netns, entered

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

__all__ = ["CALIBRATE_S", "DropLosses", "DropSource", "Mode", "Standing"]

_PAGE = 4096
#: 16 MB: 116,000 records.
_RING_PAGES = 4096
#: Kinds of drop at a time. 20 namespaces with 100 dropping rules each are 2,000.
_COUNTS_MAX = 16384
_PLACES_MAX = 4096
#: Legacy tables whose rules are told apart; five in each of fifty namespaces.
_TABLES_MAX = 256
#: Known drops at the start: a tenth of a second on an idle machine, twenty on a busy one.
CALIBRATE_S = 5.0
#: The kernel reads modules from a disk.
_MODULES_S = 30.0
#: Readings of a table's counters while packets die by it; after that the first drop on
#: each CPU may be uncertain, and says so.
_ARM_TRIES = 16
_SPEC = ObjectSpec(
    source="drops.bpf.c+calibrate.bpf.c+probes.bpf.c+links.bpf.c",
    programs=(
        *(
            ProgramSpec(name, PROG_TYPE_RAW_TRACEPOINT)
            for name in (
                *("on_kfree_skb_locate", "on_kfree_skb_count"),
                *("on_kfree_skb_sample", "on_peek"),
            )
        ),
        *PROGRAMS,
    ),
    maps=(
        *("config", "stats", "counts", "places", "records", "rules", "seen_rules"),
        *("scratches", "stacks", "peeked", "sampled_mark", "marks"),
    ),
    types=(
        *("sk_buff", "net", "net_device", "sock", "dst_entry", "nf_hook_state"),
        *("xt_table", "nft_chain", "nft_table", *TYPES),
    ),
    enums=("skb_drop_reason",),
    offsets=(
        "sk_buff._nfct",
        "nft_table.family",
        "nft_pktinfo.state",
        *OFFSETS,
        *bpf_hooks.OFFSETS,
    ),
    functions=FUNCTIONS,
    defines={
        "NT_COUNTS_MAX": _COUNTS_MAX,
        "NT_PLACES_MAX": _PLACES_MAX,
        "NT_RING_PAGES": _RING_PAGES,
        "NT_TABLES_MAX": _TABLES_MAX,
        "NT_MARKS_MAX": MARKS_MAX,
        "NT_STACK_PAGES": STACK_RING_BYTES // _PAGE,
    },
)


def _modules() -> frozenset[str]:
    return frozenset(path.name for path in Path("/sys/module").iterdir())


class DropLosses(NamedTuple):
    """
    What the programs could not do, in drops, since open().

    *missed*: they were running on that CPU already. *uncounted*: the table of kinds was
    full. *unrecorded*: the ring was. *unlocated*: freed by netfilter in a way that the
    calibration does not know. *stale*: the legacy ruleset was new and not read yet.
    """

    seen: int
    missed: int
    uncounted: int
    unrecorded: int
    unlocated: int
    stale: int


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

    `open()`, then `counts()` as often as wanted. *ladder* is there from then on; `rung` is
    what stands, `why` says for each rung above it what was missing, `notes` what happened to
    it since.
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
        self._places: dict[tuple[int, int], Place] = {}
        self._tables: dict[int, LegacyTable] = {}
        self._generations: dict[int, int] = {}
        self._settled: list[DropCount] = []
        self._peek: Peek | None = None
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
        self._loaded = loaded = self._load()
        names = loaded.enums.get("skb_drop_reason", {})
        self.reasons = {n: name.removeprefix("SKB_DROP_REASON_") for name, n in names.items()}
        self._ring = RingReader(loaded.maps["records"], _RING_PAGES * _PAGE, DROP_RECORD)
        self._peek = Peek(loaded)
        self._climb(loaded, self._peek)
        if self._wanted not in {None, self.rung}:
            above = next(iter(self.why.values()), "it was not proved")
            msg = f"the rung {self._wanted} does not hold on this kernel: {above}"
            raise KernelUnsupportedError(msg, f"go on with --rung {self.rung}")
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

    def resume(self) -> None:
        """Attach after pause(); harmless when attached."""
        if self.ladder is not None:
            self.ladder.attach()

    def pause(self) -> None:
        """Detach, so that a drop costs nothing; what was counted stays."""
        if self.ladder is not None:
            self.ladder.detach()

    def _load(self) -> Loaded:
        """Load the programs, once more where their types came with modules that we called."""
        loaded = load(_SPEC)
        if loaded.missing and self._wanted is not Rung.REASON:
            before = _modules()
            call_modules(Deadline(_MODULES_S))
            if _modules() != before:
                loaded.close()
                loaded = load(_SPEC)
        return loaded

    def _climb(self, loaded: Loaded, peek: Peek) -> None:
        ladder = self.ladder = Ladder(loaded, peek, self._namespaces)
        ladder.climb(self._wanted, self._calibrate_s)
        self.why, self.notes = ladder.why, ladder.notes
        if ladder.rung is not Rung.REASON and self._wanted is not Rung.HOOK:
            self._read_rules(loaded, peek)

    def _read_rules(self, loaded: Loaded, peek: Peek) -> None:
        base = percpu_base(peek, loaded.maps["scratches"])
        if not base or not self._legacy():
            self.why[Rung.RULE] = "no legacy table could be made to calibrate with"
            return
        self._config["percpu_base"] = base
        self._config["rules"] = 1
        self._reads_rules = True

    def _legacy(self) -> frozenset[int]:
        return frozenset() if self.ladder is None else self.ladder.found.legacy

    def _arm_namespaces(self) -> None:
        if self._peek is None:
            return
        for namespace in self._namespaces:
            # One that is gone by now has no drops to name.
            with contextlib.suppress(KernelRefusedError), entered(namespace):
                for address in find_tables(self._peek, self._legacy()):
                    self._arm_table(address)

    def _forget(self) -> None:
        """
        Begin at nothing: what dropped while the rules were being read is not counted.

        The programs run already, so their statistics are not written to but subtracted.
        """
        keys, _ = self._dump()
        kinds = self._counts_map()
        for at in range(len(keys)):
            kinds.delete(keys[at : at + 1].tobytes())
        self._before = self._read_stats()
        self._missed_before = self._read_missed()

    def _arm_table(self, address: int) -> None:
        """Give the program the counters of a table's dropping rules as they stand."""
        if self._peek is None or self._loaded is None:
            return
        table = read_table(self._peek, address)
        if table is None:
            return
        self._tables[address] = table
        generation = self._generations[address] = self._generations.get(address, 0) + 1
        shown = table.rules[:RULES_MAX]
        block = np.zeros(1, RULES)
        block["private"], block["count"] = table.private, len(shown)
        block["generation"] = generation
        for index, rule in enumerate(shown):
            block["counter"][0, index] = rule.counter
        offsets = cpu_offsets(self._peek, int(self._config["percpu_base"][0]))
        key = address.to_bytes(8, "little")
        maps = self._loaded.maps
        seen_rules = MapFile(maps["seen_rules"], 8, SEEN_RULES.itemsize, self._cpus)
        # A drop between the reading of its counter and the writing would make the next one
        # on that CPU look like two. From the writing on the program keeps up by itself:
        # what agrees with the counters once needs no further look.
        for _ in range(_ARM_TRIES):
            seen = self._read_counters(table, offsets)
            seen_rules.update(key, seen.tobytes())
            MapFile(maps["rules"], 8, RULES.itemsize).update(key, block.tobytes())
            kept = np.frombuffer(seen_rules.lookup(key) or b"", SEEN_RULES)
            now = self._read_counters(table, offsets)
            if np.array_equal(kept["packets"], now["packets"]):
                break

    def _read_counters(self, table: LegacyTable, offsets: dict[int, int]) -> npt.NDArray[np.void]:
        """Return the packets that each dropping rule counted, `SEEN_RULES (cpus,)`."""
        seen = np.zeros(self._cpus, SEEN_RULES)
        seen["private"] = table.private
        for index, rule in enumerate(table.rules[:RULES_MAX]):
            for cpu, offset in offsets.items():
                address = (rule.counter + offset) & ((1 << 64) - 1)
                # struct xt_counters: pcnt, bcnt
                seen["packets"][cpu, index] = self._peek.word(address) if self._peek else 0
        return seen

    def set_mode(self, mode: Mode, sample: int = 1, rules: int | None = None) -> None:
        """
        Choose what happens beside counting.

        *sample*: with Mode.SAMPLE one drop in so many is recorded on each CPU, its
        *weight* says so. *rules*: the legacy rule is looked for at one drop in so many.
        """
        self._config["mode"], self._config["sample"] = mode, sample
        if rules is not None and self._reads_rules:
            self._config["rules"] = rules
        self._push_config()

    def _push_config(self) -> None:
        if self.ladder is not None:
            self.ladder.fill_config(self._config)
        MapFile(self._maps()["config"], 4, CONFIG.itemsize).update(bytes(4), self._config.tobytes())

    def counts(self) -> list[DropCount]:
        """Return every kind of drop since open(), most packets first."""
        keys, counts = self._dump()
        self._learn_places(keys)
        has_stepped = self._look(keys, counts)
        rows = self._name(keys, counts)
        # What had no place moved the counters of its rule all the same: read them again.
        stale = self._stale_tables() | (set(self._tables) if has_stepped else set())
        old = np.isin(keys["place"], list(stale)) & (keys["rule"] != 0)
        if stale:
            rules = self._rules()
            for address in stale:
                self._arm_table(address)
            # Nothing is counted under the old ruleset's indexes any more.
            self._settle(keys[old], rules)
        live = [row for row, is_old in zip(rows, old, strict=True) if not is_old]
        return merge_counts([*live, *self._settled])

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

    def _counts_map(self) -> MapFile:
        return MapFile(self._maps()["counts"], DROP_KEY.itemsize, DROP_COUNT.itemsize, self._cpus)

    def _dump(self) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
        raw_keys, raw = self._counts_map().dump(_COUNTS_MAX)
        by_cpu = raw.view(DROP_COUNT)[:, :, 0]
        counts = np.zeros(len(raw_keys), DROP_COUNT)
        for name in DROP_COUNT.names or ():
            counts[name] = by_cpu[name].sum(axis=1)
        return raw_keys.view(DROP_KEY)[:, 0], counts

    def _rules(self) -> dict[tuple[int, int], list[tuple[str, int | None]]]:
        return {
            (address, self._generations[address]): [(r.chain, r.number) for r in table.rules]
            for address, table in self._tables.items()
        }

    def _name(
        self,
        keys: npt.NDArray[np.void],
        counts: npt.NDArray[np.void],
        rules: dict[tuple[int, int], list[tuple[str, int | None]]] | None = None,
    ) -> list[DropCount]:
        return name_counts(keys, counts, self.reasons, self._places, rules or self._rules())

    def _settle(
        self,
        keys: npt.NDArray[np.void],
        rules: dict[tuple[int, int], list[tuple[str, int | None]]],
    ) -> None:
        """Move what was counted under *keys* into rows of ours, by the *rules* of then."""
        kinds = self._counts_map()
        for at in range(len(keys)):
            key = keys[at : at + 1]
            by_cpu = np.frombuffer(kinds.lookup(key.tobytes()) or b"", DROP_COUNT)
            total = np.zeros(1, DROP_COUNT)
            for name in DROP_COUNT.names or ():
                total[name] = by_cpu[name].sum()
            kinds.delete(key.tobytes())
            self._settled = merge_counts([*self._settled, *self._name(key, total, rules)])

    def _learn_places(self, keys: npt.NDArray[np.void]) -> None:
        places = MapFile(self._maps()["places"], PLACE_KEY.itemsize, PLACE.itemsize)
        for key in keys:
            name = int(key["place"]), int(key["tag"])
            if int(key["site"]) == Site.OTHER or not name[0] or name in self._places:
                continue
            raw = places.lookup(np.array([name], PLACE_KEY).tobytes())
            if raw is not None:
                row = np.frombuffer(raw, PLACE)[0]
                site, family = int(key["site"]), int(key["family"])
                self._places[name] = name_place(site, family, row, self._legacy())

    def _stale_tables(self) -> set[int]:
        """Return the tables that are new to us or whose ruleset was replaced."""
        if not self._reads_rules or self._peek is None:
            return set()
        stale = set()
        legacy = {key[0] for key, place in self._places.items() if place.engine == "legacy"}
        for address in legacy | set(self._tables):
            known = self._tables.get(address)
            private = self._peek.follow(address, "xt_table.private")
            if known is None or known.private != private:
                stale.add(address)
        return stale

    def read(self) -> npt.NDArray[np.void]:
        """
        Return the records that are ready, `DROP_RECORD (n,)`, in the kernel's order.

        Their *time_ns* is nanoseconds since the epoch.
        """
        if self._ring is None:
            msg = "DropSource is not open"
            raise ValueError(msg)
        records = self._ring.read()
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
        keys, inverse = np.unique(np.ascontiguousarray(records["key"]), return_inverse=True)
        self._learn_places(keys)
        return self._name(keys, np.zeros(len(keys), DROP_COUNT)), inverse

    def losses(self) -> DropLosses:
        """Return what the programs saw and could not do."""
        counted = (self._read_stats() - self._before).tolist()
        return DropLosses(
            seen=counted[Stat.SEEN],
            missed=self._read_missed() - self._missed_before,
            uncounted=counted[Stat.COUNTS_FULL],
            unrecorded=counted[Stat.RESERVE_FAILED],
            unlocated=counted[Stat.UNLOCATED],
            stale=counted[Stat.STALE_RULES],
        )

    def close(self) -> None:
        """Detach and unload everything; harmless when repeated."""
        if self.ladder is not None:
            self.ladder.close()
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _maps(self) -> dict[str, int]:
        if self._loaded is None:
            msg = "DropSource is not open"
            raise ValueError(msg)
        return self._loaded.maps

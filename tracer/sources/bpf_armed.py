"""
The legacy tables whose rules the program at the drop can tell apart.

It is given the addresses of the dropping rules' counters, and what they had counted when
it was given them. A table that was replaced since is read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bpf.layout import RULES, RULES_MAX, SEEN_RULES
from bpf.maps import MapFile, possible_cpus
from tracer.sources.bpf_rules import LegacyTable, cpu_offsets, percpu_base, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from tracer.sources.bpf_peek import Peek

__all__ = ["TABLES_MAX", "ArmedTables"]

#: Legacy tables whose rules are told apart; five in each of fifty namespaces.
TABLES_MAX = 256
#: Tables read at a time: what is left comes the next time.
_READ_AT_ONCE = 64
#: Readings of a table's counters while packets die by it; after that the first drop on
#: each CPU may be uncertain, and says so.
_TRIES = 16


class ArmedTables:
    """
    Tables by the address of their xt_table, each with the number it has in the maps.

    *tables* are they; *evicted* counts those that made room for others.
    """

    def __init__(self, maps: Mapping[str, int], peek: Peek) -> None:
        """Take the *maps* tables, rules, seen_rules and scratches, and *peek* to read with."""
        self.base = percpu_base(peek, maps["scratches"])
        self.evicted = 0
        self._peek = peek
        self._numbers = MapFile(maps["tables"], 8, 4)
        self._rules = MapFile(maps["rules"], 4, RULES.itemsize)
        self._seen = MapFile(maps["seen_rules"], 4, SEEN_RULES.itemsize, possible_cpus())
        self.tables: dict[int, tuple[int, LegacyTable]] = {}
        self._generations: dict[int, int] = {}

    def names(self) -> dict[tuple[int, int], list[tuple[str, int | None]]]:
        """Map a table's address and the generation of its reading to its rules, in order."""
        return {
            (address, self._generations[number]): [(r.chain, r.number) for r in table.rules]
            for address, (number, table) in self.tables.items()
        }

    def stale(self, dropping: Iterable[int]) -> list[int]:
        """Return those of ours and of the tables *dropping* that are to be read (again)."""
        found = []
        for address in dict.fromkeys((*self.tables, *dropping)):
            known = self.tables.get(address)
            private = self._peek.follow(address, "xt_table.private")
            if known is None or known[1].private != private:
                found.append(address)
        return found[:_READ_AT_ONCE]

    def arm(self, address: int) -> None:
        """Give the program the counters of a table's dropping rules as they stand."""
        table = read_table(self._peek, address)
        if table is None:
            # It is gone: what stands at its address is none of ours any more.
            self._forget(address)
            return
        number = self._number_for(address)
        # Made newer at each reading: what was counted under an old one is told by it.
        generation = self._generations[number] = self._generations.get(number, 0) + 1
        self.tables[address] = number, table
        shown = table.rules[:RULES_MAX]
        block = np.zeros(1, RULES)
        block["address"], block["private"] = address, table.private
        block["count"], block["generation"] = len(shown), generation
        for index, rule in enumerate(shown):
            block["counter"][0, index] = rule.counter
        self._write(number, table, block)
        self._numbers.update(address.to_bytes(8, "little"), number.to_bytes(4, "little"))

    def _write(self, number: int, table: LegacyTable, block: npt.NDArray[np.void]) -> None:
        offsets = cpu_offsets(self._peek, self.base)
        key = number.to_bytes(4, "little")
        # A drop between the reading of its counter and the writing would make the next one
        # on that CPU look like two. From the writing on the program keeps up by itself:
        # what agrees with the counters once needs no further look.
        for _ in range(_TRIES):
            seen = self._read_counters(table, offsets)
            self._seen.update(key, seen.tobytes())
            self._rules.update(key, block.tobytes())
            kept = np.frombuffer(self._seen.lookup(key) or b"", SEEN_RULES)
            now = self._read_counters(table, offsets)
            if np.array_equal(kept["packets"], now["packets"]):
                break

    def _number_for(self, address: int) -> int:
        if address in self.tables:
            return self.tables[address][0]
        if len(self.tables) == TABLES_MAX:
            # The one that was read longest ago: its ruleset is still, or it is gone.
            self._forget(next(iter(self.tables)))
            self.evicted += 1
        taken = {number for number, _ in self.tables.values()}
        return next(number for number in range(TABLES_MAX) if number not in taken)

    def _forget(self, address: int) -> None:
        known = self.tables.pop(address, None)
        if known is not None:
            self._numbers.delete(address.to_bytes(8, "little"))
            self._rules.update(known[0].to_bytes(4, "little"), bytes(RULES.itemsize))

    def _read_counters(self, table: LegacyTable, offsets: dict[int, int]) -> npt.NDArray[np.void]:
        """Return the packets that each dropping rule counted, `SEEN_RULES (cpus,)`."""
        seen = np.zeros(self._seen.cpus, SEEN_RULES)
        seen["private"] = table.private
        for index, rule in enumerate(table.rules[:RULES_MAX]):
            for cpu, offset in offsets.items():
                address = (rule.counter + offset) & ((1 << 64) - 1)
                # struct xt_counters: pcnt, bcnt
                seen["packets"][cpu, index] = self._peek.word(address)
        return seen

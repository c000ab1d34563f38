"""
What the program at the drop counted, by kind; and kinds that are over, taken out of it.

A kind has a number, which `numbers` finds by its key, `kinds` turns into the key, and
`counts` has the packets of. A kind that is taken out gets a new number if it is met
again; what was counted under the old one is read once more a while later, when no program
that had found the old number can still be running. So nothing is lost on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from bpf.layout import DROP_COUNT, DROP_KEY, NUMBERS
from bpf.maps import MapFile, possible_cpus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

__all__ = ["KINDS_MAX", "KindTable", "Kinds", "Retired"]

#: Kinds of drop at a time. 20 namespaces with 100 dropping rules each are 2,000.
KINDS_MAX = 16384
#: Numbers that a CPU takes at once.
_CHUNK = 64
#: Read beyond the last kind: CPUs do not fill their numbers in step.
_READ_AHEAD = 1024

T = TypeVar("T")


class Kinds(NamedTuple):
    """Kinds with packets: *numbers* `(n,)`, *keys* `DROP_KEY (n,)`, *counts* `DROP_COUNT (n,)`."""

    numbers: npt.NDArray[np.uint32]
    keys: npt.NDArray[np.void]
    counts: npt.NDArray[np.void]

    def only(self, chosen: npt.NDArray[np.bool_]) -> Kinds:
        """Return those of them for which *chosen* `(n,)` is true."""
        return Kinds(self.numbers[chosen], self.keys[chosen], self.counts[chosen])


class Retired(NamedTuple, Generic[T]):
    """A kind that was taken out: what the caller calls it, and what it came to."""

    name: T
    packets: int
    octets: int


class KindTable(Generic[T]):
    """The maps `numbers`, `kinds`, `counts` and `free_numbers` of one loaded object."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        """Take the descriptors of *maps*; they stay the caller's."""
        cpus = possible_cpus()
        self._numbers = MapFile(maps["numbers"], DROP_KEY.itemsize, 4)
        self._kinds = MapFile(maps["kinds"], 4, DROP_KEY.itemsize)
        self._counts = MapFile(maps["counts"], 4, DROP_COUNT.itemsize, cpus)
        self._free = MapFile(maps["free_numbers"], 0, NUMBERS.itemsize)
        self._retiring: dict[int, T] = {}
        self._read_up_to = _READ_AHEAD

    def fill(self) -> None:
        """Give out all numbers, once, before the program runs."""
        for first in range(KINDS_MAX - _CHUNK, -1, -_CHUNK):
            self._free.update(b"", np.array((first, _CHUNK), NUMBERS).tobytes())

    def read(self) -> Kinds:
        """Return the kinds that were met and not taken out."""
        keys = self._read_keys()
        _, raw = self._counts.dump(len(keys))
        counts = np.zeros(len(raw), DROP_COUNT)
        for name in DROP_COUNT.names or ():
            counts[name] = raw.view(DROP_COUNT)[:, :, 0][name].sum(axis=1)
        numbers = np.flatnonzero((counts["packets"] != 0) & _is_kind(keys))
        numbers = numbers[~np.isin(numbers, list(self._retiring))]
        return Kinds(numbers.astype(np.uint32), keys[numbers], counts[numbers])

    def _read_keys(self) -> npt.NDArray[np.void]:
        while True:
            _, raw = self._kinds.dump(self._read_up_to)
            keys: npt.NDArray[np.void] = raw.view(DROP_KEY)[:, 0, 0]
            used = np.flatnonzero(_is_kind(keys))
            last = int(used[-1]) if len(used) else 0
            if self._read_up_to == KINDS_MAX or last < self._read_up_to - _READ_AHEAD // 2:
                return keys
            self._read_up_to = min(self._read_up_to + _READ_AHEAD, KINDS_MAX)

    def retire(self, kinds: Kinds, names: Sequence[T]) -> None:
        """Take *kinds* out, one of *names* each, under which collect() tells their end."""
        for number, key, name in zip(kinds.numbers.tolist(), kinds.keys, names, strict=True):
            self._numbers.delete(key.tobytes())
            self._kinds.update(_packed(number), bytes(DROP_KEY.itemsize))
            self._retiring[number] = name

    def retiring(self) -> list[Retired[T]]:
        """Return what the kinds that were taken out and not collected have come to so far."""
        told = []
        for number, name in self._retiring.items():
            by_cpu = np.frombuffer(self._counts.lookup(_packed(number)) or b"", DROP_COUNT)
            told.append(Retired(name, int(by_cpu["packets"].sum()), int(by_cpu["bytes"].sum())))
        return told

    def collect(self) -> list[Retired[T]]:
        """
        Return what those taken out came to, and give their numbers back.

        Not to be called right after retire(), unless nothing is dropped at that moment.
        """
        told = self.retiring()
        for number in self._retiring:
            zero = bytes(DROP_COUNT.itemsize * self._counts.cpus)
            self._counts.update(_packed(number), zero)
            self._free.update(b"", np.array((number, 1), NUMBERS).tobytes())
        self._retiring.clear()
        return told


def _packed(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _is_kind(keys: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    # A drop has a place, or the hook that says that it has none.
    used: npt.NDArray[np.bool_] = (keys["place"] != 0) | (keys["hook"] != 0)
    return used

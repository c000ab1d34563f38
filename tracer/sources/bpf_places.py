"""What stands at the places where packets died: read once, kept while kinds are of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bpf.layout import PLACE, PLACE_KEY, Site
from bpf.maps import MapFile
from tracer.core.drops import Place, name_place

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["PLACES_MAX", "Places"]

#: Tables and base chains at a time, here and in the kernel's table.
PLACES_MAX = 4096

Name = tuple[int, int]


class Places:
    """*names* maps (place, tag) of a kind's key to what stands there."""

    def __init__(self, map_fd: int) -> None:
        """Take the map *places*; it stays the caller's."""
        self.names: dict[Name, Place] = {}
        self._map = MapFile(map_fd, PLACE_KEY.itemsize, PLACE.itemsize)

    def learn(self, keys: npt.NDArray[np.void], legacy: frozenset[int]) -> None:
        """Read the places of *keys* that are not known; *legacy* run legacy tables."""
        for key in keys:
            name = int(key["place"]), int(key["tag"])
            if int(key["site"]) == Site.OTHER or not name[0] or name in self.names:
                continue
            raw = self._map.lookup(_packed(name))
            if raw is not None:
                row = np.frombuffer(raw, PLACE)[0]
                self.names[name] = name_place(int(key["site"]), int(key["family"]), row, legacy)

    def legacy(self, keys: npt.NDArray[np.void]) -> list[int]:
        """Return the addresses of the legacy tables that *keys* are of."""
        places = (self.names.get((int(key["place"]), int(key["tag"]))) for key in keys)
        pairs = zip(keys["place"].tolist(), places, strict=True)
        return [address for address, place in pairs if place and place.engine == "legacy"]

    def is_crowded(self, share: float) -> bool:
        """Say whether more than *share* of what there is room for is known."""
        return len(self.names) > PLACES_MAX * share

    def keep(self, keys: npt.NDArray[np.void]) -> None:
        """Forget, here and in the kernel, all places but those of *keys*."""
        kept = set(zip(keys["place"].tolist(), keys["tag"].tolist(), strict=True))
        for name in [name for name in self.names if name not in kept]:
            self._map.delete(_packed(name))
            del self.names[name]


def _packed(name: Name) -> bytes:
    return np.array([name], PLACE_KEY).tobytes()

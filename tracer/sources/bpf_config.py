"""What calibration found, and how the programs at the drop are told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bpf.layout import LAYOUT

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bpf.layout import Site
    from tracer.core.drop_layout import Layout

__all__ = ["Calibration", "fill_config"]


@dataclass
class Calibration:
    """
    What was found: the address that frees at each site, and the layouts of its ways.

    *sites* are those whose drops the rung that stands has named right. *legacy* are the
    functions that run a legacy table at a hook. *why* says for each site without a layout
    what was missing.
    """

    locations: dict[Site, int] = field(default_factory=dict)
    layouts: dict[Site, list[Layout]] = field(default_factory=dict)
    sites: frozenset[Site] = frozenset()
    legacy: frozenset[int] = frozenset()
    why: dict[Site, str] = field(default_factory=dict)


def fill_config(
    config: npt.NDArray[np.void],
    found: Calibration,
    sites: frozenset[Site],
    layouts: dict[Site, list[Layout]],
) -> None:
    """
    Write what *found* says of *sites* into the one row of *config*, `CONFIG (1,)`.

    *layouts* are those that the rung looks at. The rest stays as it is.
    """
    row = config[0]
    row["location"], row["locate"], row["layout"] = 0, 0, 0
    for site, location in found.locations.items():
        row["location"][site] = location
    for site in sites:
        row["locate"] |= 1 << site
        for index, layout in enumerate(layouts.get(site, ())):
            for name in set(LAYOUT.names or ()) - {"pad"}:
                row["layout"][site, index][name] = getattr(layout, name)

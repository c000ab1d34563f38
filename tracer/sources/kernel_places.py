"""Which of the kernel's functions an address is in, as /proc/kallsyms lists them."""

from __future__ import annotations

import bisect
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["enclosing_functions"]

_LINE = re.compile(rb"^([0-9a-f]+) [tT] (\S+)", re.MULTILINE)


def enclosing_functions(addresses: Collection[int]) -> Mapping[int, str]:
    """Return the names of the functions that *addresses* are in; none where they are hidden."""
    try:
        listed = _LINE.findall(Path("/proc/kallsyms").read_bytes())
    except OSError:
        return {}
    rows = sorted((int(start, 16), name) for start, name in listed if int(start, 16))
    starts = [start for start, _ in rows]
    found = ((address, bisect.bisect_right(starts, address) - 1) for address in addresses)
    return {address: rows[at][1].decode() for address, at in found if at >= 0}

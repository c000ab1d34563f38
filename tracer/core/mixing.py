"""
The constants of the two hashes, and the last step of both.

They stand in the source and not in a generator's state: fingerprints are compared
between hosts and between versions, so they must never change.

Source of the sequence and of `finish`: splitmix64, public domain, by Sebastiano Vigna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["finish", "multipliers"]

_ALL = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def multipliers(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """Return *count* odd 64-bit numbers that look random, the same for the same *seed*."""
    numbers = []
    for turn in range(1, count + 1):
        mixed = (seed + turn * _STEP) & _ALL
        mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _ALL
        mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _ALL
        numbers.append((mixed ^ (mixed >> 31)) | 1)
    return np.array(numbers, np.uint64)


def finish(sums: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread every bit of each sum over the whole word; a bijection."""
    mixed = (sums ^ (sums >> np.uint64(30))) * np.uint64(_FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
    return mixed ^ (mixed >> np.uint64(31))

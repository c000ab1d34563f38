"""
Which rows of an array are equal, found in the time that sorting numbers takes.

numpy sorts structured rows member by member, some microseconds each; under a flood of
drops that was three quarters of the daemon's work. Here rows are numbers first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["find_distinct"]

_WORD = 8
#: Odd, so that no word is lost; from a generator, as regular ones make sums meet.
_FACTORS = np.random.default_rng(4).integers(1 << 62, 1 << 63, 64, np.uint64) | np.uint64(1)


def find_distinct(
    rows: npt.NDArray[np.void],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """
    Return the indexes of one row of each kind, and which of those each row is like.

    Shape: *rows* `(n,)` of at most 512 bytes each; the result `(k,)` and `(n,)`, so that
    `rows[first[inverse]] == rows`. Bytes of padding count.
    """
    size = rows.dtype.itemsize
    padded = np.zeros((len(rows), -(-size // _WORD) * _WORD), np.uint8)
    padded[:, :size] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), size)
    words = padded.view(np.uint64)
    # Sums wrap around, which is what is wanted of them.
    mixed = words ^ (words >> np.uint64(29))
    numbers = (mixed * _FACTORS[: words.shape[1]]).sum(axis=1)
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    if (words[first[inverse]] == words).all():
        return first, inverse
    # Two kinds have one number: sort them as they are.
    _, first, inverse = np.unique(
        padded.view([("", np.void, padded.shape[1])])[:, 0], return_index=True, return_inverse=True
    )
    return first, inverse

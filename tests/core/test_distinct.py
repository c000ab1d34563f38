"""Equal rows are found, whatever is in them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracer.core import distinct
from tracer.core.distinct import find_distinct

_ROW = np.dtype([("a", "<u8"), ("b", "<u4"), ("c", "u1")])
_ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 1 << 31]), st.integers(0, 2)), max_size=60
)


def _check(rows: list[tuple[int, int, int]]) -> None:
    array = np.array(rows, _ROW)
    first, inverse = find_distinct(array)

    assert len(set(rows)) == len(first)
    assert rows == [tuple(array[first[at]].tolist()) for at in inverse]


@given(_ROWS)
def test_each_kind_is_found_once(rows: list[tuple[int, int, int]]) -> None:
    """There are as many kinds as different rows, and each row is like its own kind."""
    _check(rows)


@given(_ROWS)
def test_rows_with_one_number_are_told_apart(rows: list[tuple[int, int, int]]) -> None:
    """Where numbers meet, the rows themselves decide."""
    factors = distinct._FACTORS  # noqa: SLF001 - the only way to make numbers meet
    distinct._FACTORS = np.zeros_like(factors)  # noqa: SLF001
    try:
        _check(rows)
    finally:
        distinct._FACTORS = factors  # noqa: SLF001

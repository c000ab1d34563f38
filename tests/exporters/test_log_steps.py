"""Steps of a log's clock: what SQL says of a row's time is the sum of the steps behind it."""

from __future__ import annotations

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.log import Selection
from exporters.log.steps import Steps

_STEP = st.tuples(st.integers(0, 60), st.integers(-9000, 9000))


@settings(deadline=None)
@given(st.lists(_STEP, max_size=40, unique_by=lambda one: one[0]), st.integers(0, 61))
def test_a_row_is_moved_by_all_steps_behind_it(steps: list[tuple[int, int]], ordinal: int) -> None:
    """Whatever the steps, SQL and addition agree, and the widened window has the row."""
    told = Steps((at, "10000", str(10_000 + by)) for at, by in sorted(steps))
    (row,) = duckdb.sql(
        f"SELECT {told.sql()} FROM (SELECT 500::BIGINT AS time_ns, {ordinal} AS ordinal)"  # noqa: S608 - numbers
    ).fetchall()
    moved = 500 + sum(by for at, by in steps if at > ordinal)
    window = told.as_written(Selection(since_ns=moved, until_ns=moved))

    assert (moved,) == row
    assert (window.since_ns or 0) <= 500 <= (window.until_ns or 0)


def test_rows_that_are_no_steps_move_nothing() -> None:
    """A row of the clock with no numbers in it is passed over."""
    assert not Steps([(3, "", "x"), (4, "-1", "2")])
    assert "time_ns" == Steps().sql()

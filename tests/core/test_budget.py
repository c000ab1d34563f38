"""A bucket never gives more than flowed in, however it is asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracer.core.budget import Bucket

_STEPS = st.lists(st.tuples(st.floats(-1, 5), st.floats(0.01, 20)), min_size=1, max_size=40)


@given(st.floats(0.1, 100), st.floats(0.1, 100), _STEPS)
def test_never_more_than_rate_and_burst(
    rate: float, burst: float, steps: list[tuple[float, float]]
) -> None:
    """What is taken from any moment on is at most the burst and what has flowed in since."""
    bucket, now_s, taken, latest_s = Bucket(rate, burst, 0.0), 0.0, 0.0, 0.0
    for passed_s, amount in steps:
        now_s += passed_s
        latest_s = max(latest_s, now_s)
        taken += amount * bucket.take(amount, now_s)

        assert taken <= burst + rate * latest_s + 1e-6


def test_what_is_spent_already_is_paid_back() -> None:
    """After overspending nothing is given until as much has flowed in."""
    bucket = Bucket(2.0, 10.0, 0.0)
    bucket.spend(16.0, 0.0)

    assert -6.0 == bucket.level(0.0)
    assert not bucket.take(1.0, 3.0)
    assert bucket.take(1.0, 3.5)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Time that runs backwards neither fills nor empties."""
    bucket = Bucket(1.0, 4.0, 100.0)

    assert bucket.take(4.0, 100.0)
    assert 0.0 == bucket.level(50.0)
    assert 1.0 == bucket.level(101.0)

"""Times as people write them."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.cli.times import read_time
from tracer.errors import UsageError

NOW = datetime(2026, 11, 23, 17, 22, 14, 30955, tzinfo=UTC)
NOW_NS = 1_795_454_534_030_955_000


@pytest.mark.parametrize(
    ("word", "seconds_ago"),
    [
        ("now", 0),
        ("5m", 300),
        ("-5m", 300),
        ("5min ago", 300),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("2 hours ago", 7200),
        ("an hour ago", 3600),
        ("1h 30m", 5400),
        ("2h30m ago", 9000),
        ("1 day, 10 minutes ago", 87_000),
        ("2 weeks", 1_209_600),
        ("yesterday 17:22:14.030955", 86_400),
        ("Yesterday 17:22:15.030955", 86_399),
        ("today 17:22:13.030955", 1),
        ("Nov 22 17:22:14.030955", 86_400),
        # Not come yet this year: last year's.
        ("Nov 23 17:22:15.030955", 365 * 86_400 - 1),
        ("@1795454534.030955", 0),
        ("90s", 90),
        ("2026-11-23T17:22:14.030955", 0),
        ("2026-11-23T17:22:14.030955Z", 0),
        ("2026-11-23 18:22:14.030955+01:00", 0),
        ("17:22:14.030955", 0),
        ("17:22:13.030955", 1),
        # Not come yet today: yesterday's.
        ("17:22:15.030955", 86_399),
    ],
)
def test_a_time_is_the_moment_it_names(word: str, seconds_ago: int) -> None:
    """Each way of writing a time gives that moment to the microsecond."""
    assert NOW_NS - seconds_ago * 1_000_000_000 == read_time("--since", word, NOW)


def test_a_time_without_zone_is_in_the_readers() -> None:
    """A date and a time of day are read in the zone of now."""
    there = NOW.astimezone(timezone(timedelta(hours=8)))

    assert NOW_NS == read_time("--since", "2026-11-24T01:22:14.030955", there)
    assert NOW_NS == read_time("--since", "01:22:14.030955", there)
    assert read_time("--since", None, NOW) is None


def test_a_day_without_a_time_begins_at_midnight() -> None:
    """`yesterday` and `today` are the days' first moments."""
    midnight = read_time("--since", "2026-11-23", NOW)

    assert midnight == read_time("--since", "today", NOW)
    assert midnight == read_time("--since", "Nov 23", NOW)
    assert (midnight or 0) - 86_400 * 1_000_000_000 == read_time("--since", "yesterday", NOW)


@pytest.mark.parametrize("word", ["", " ", "25:00", "Feb 30", "Foo 3", "5 parsecs", "@x", "ago"])
def test_what_is_no_time_is_said(word: str) -> None:
    """It is wrong usage, with the ways that there are."""
    with pytest.raises(UsageError, match="not a time"):
        read_time("--since", word, NOW)


@given(st.text(max_size=20))
def test_no_word_fails_otherwise_than_as_wrong_usage(word: str) -> None:
    """Any text is a time or is said to be none."""
    with contextlib.suppress(UsageError):
        assert isinstance(read_time("--until", word, NOW), int)

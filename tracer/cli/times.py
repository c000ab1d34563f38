"""Times as people write them: a moment, a time of day, or how long ago."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from tracer.errors import UsageError

__all__ = ["read_time"]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN: Final = re.compile(
    r"(\d+(?:\.\d+)?|an?)\s*(s|m|h|d|w|secs?|mins?|hrs?|(?:second|minute|hour|day|week)s?)(?![a-z])"
)
_AGO: Final = re.compile(rf"-?(?:{_SPAN.pattern},?\s*)+(?:ago)?")
#: A time of day, after a word for the day or none.
_OF_DAY: Final = re.compile(
    r"(?:(today|yesterday|[a-z]{3} +\d{1,2})(?: +|$))?"
    r"(?:(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d{1,6})?))?)?"
)
_REMEDY: Final = "give 2026-11-23T17:22, 17:22, yesterday 17:22, 5m or 2 hours ago, or now"


def read_time(option: str, word: str | None, now: datetime) -> int | None:
    """
    Return the moment that *word* means, nanoseconds since the epoch; None for None.

    `5m`, `1h 30m`, `2 hours ago` count back from *now*, which has a time zone; `17:22` is the
    last time it was that late; before it, `yesterday` or `Nov 23` say the day, as the timeline
    does; `@1795000000` are seconds since the epoch; dates are as ISO 8601 has them, in *now*'s
    zone unless they say.
    Errors: UsageError for anything else.
    """
    if word is None:
        return None
    try:
        return _nanoseconds(_moment(word.strip(), now))
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{option} {word}: not a time", _REMEDY) from exc


def _moment(word: str, now: datetime) -> datetime:
    small = word.lower()
    if small == "now":
        return now
    if small.startswith("@"):
        return datetime.fromtimestamp(float(small[1:]), now.tzinfo)
    if _AGO.fullmatch(small):
        spans = _SPAN.findall(small)
        parts = [(1.0 if n in {"a", "an"} else float(n)) * _UNITS[unit[0]] for n, unit in spans]
        return now - timedelta(seconds=sum(parts))
    if small and (found := _OF_DAY.fullmatch(small)):
        return _of_day(found, now)
    at = datetime.fromisoformat(word)
    return at if at.tzinfo is not None else at.replace(tzinfo=now.tzinfo)


def _of_day(found: re.Match[str], now: datetime) -> datetime:
    second, _, fraction = (found[4] or "0").partition(".")
    micro = int(fraction.ljust(6, "0")) if fraction else 0
    hour, minute = int(found[2] or 0), int(found[3] or 0)
    at = now.replace(hour=hour, minute=minute, second=int(second), microsecond=micro)
    day = found[1]
    if day is None:
        return at if at <= now else at - timedelta(days=1)
    if day in {"today", "yesterday"}:
        return at - timedelta(days=day == "yesterday")
    # A leap day needs a year that has one.
    named = datetime.strptime(f"2024 {day}", "%Y %b %d")  # noqa: DTZ007 - a month and a day
    at = at.replace(month=named.month, day=named.day)
    return at if at <= now else at.replace(year=at.year - 1)


def _nanoseconds(at: datetime) -> int:
    return int(at.replace(microsecond=0).timestamp()) * 1_000_000_000 + at.microsecond * 1000

"""Times as people write them: a moment, a time of day, or how long ago."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from tracer.errors import UsageError

__all__ = ["read_time"]

_AGO: Final = re.compile(r"-?(\d+(?:\.\d+)?)\s*(s|m|min|h|d)(?:\s+ago)?")
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_OF_DAY: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d{1,6})?))?")


def read_time(option: str, word: str | None, now: datetime) -> int | None:
    """
    Return the moment that *word* means, nanoseconds since the epoch; None for None.

    `5m`, `2h`, `1d ago` count back from *now*, which has a time zone; `17:22` is the last
    time it was that late; dates are as ISO 8601 has them, in *now*'s zone unless they say.
    Errors: UsageError for anything else.
    """
    if word is None:
        return None
    try:
        return _nanoseconds(_moment(word.strip(), now))
    except (ValueError, OverflowError) as exc:
        remedy = "give 2026-11-23T17:22, 17:22, 5m (ago) or now"
        raise UsageError(f"{option} {word}: not a time", remedy) from exc


def _moment(word: str, now: datetime) -> datetime:
    if word == "now":
        return now
    if found := _AGO.fullmatch(word):
        return now - timedelta(seconds=float(found[1]) * _UNITS[found[2]])
    if found := _OF_DAY.fullmatch(word):
        second, _, fraction = (found[3] or "0").partition(".")
        micro = int(fraction.ljust(6, "0")) if fraction else 0
        at = now.replace(
            hour=int(found[1]), minute=int(found[2]), second=int(second), microsecond=micro
        )
        return at if at <= now else at - timedelta(days=1)
    at = datetime.fromisoformat(word)
    return at if at.tzinfo is not None else at.replace(tzinfo=now.tzinfo)


def _nanoseconds(at: datetime) -> int:
    return int(at.replace(microsecond=0).timestamp()) * 1_000_000_000 + at.microsecond * 1000

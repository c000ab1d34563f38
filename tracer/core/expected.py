"""
Drops that are meant to happen, as the configuration names them.

An entry names some of a drop's features; it fits where all that it names do. In a pattern
`*` stands for any run of characters and everything else for itself, because rules are
full of brackets and question marks; a pattern that begins with `~` is a regular
expression that is searched for. Text is compared as it is printed, case and all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "ENTRIES_MAX",
    "FEATURES",
    "PATTERN_LENGTH_MAX",
    "DropFeatures",
    "Expected",
    "parse_expected",
]

#: What an entry can name, in the order that --learn writes it.
FEATURES: Final = ("netns", "engine", "family", "table", "chain", "text", "comment", "reason")
#: Entries are tried one after the other on each rule of each new ruleset: a second for
#: 10,000 rules.
ENTRIES_MAX: Final = 200
PATTERN_LENGTH_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class DropFeatures:
    """
    What entries are held against: a rule, a policy (*text* `policy`), or a kernel reason.

    None is what a drop does not have or is not known of it: no pattern fits it.
    """

    netns: str
    engine: str | None = None
    family: str | None = None
    table: str | None = None
    chain: str | None = None
    text: str | None = None
    comment: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """All entries; `fits` is what labels are made from."""

    entries: tuple[Mapping[str, re.Pattern[str]], ...] = ()

    def fits(self, drop: DropFeatures) -> bool:
        """Tell whether any entry names this drop."""
        return any(_fits(entry, drop) for entry in self.entries)


def _fits(entry: Mapping[str, re.Pattern[str]], drop: DropFeatures) -> bool:
    for feature, pattern in entry.items():
        value = getattr(drop, feature)
        if value is None or pattern.search(value) is None:
            return False
    return True


def parse_expected(entries: Sequence[Mapping[str, object]]) -> Expected:
    """
    Return the entries of a configuration, in its order.

    Shape: each entry maps some of `FEATURES` to a pattern, a string.
    Errors: UsageError that names the entry (from 1) and the key where one is unknown,
    is no pattern, or where an entry names nothing.
    """
    if len(entries) > ENTRIES_MAX:
        message = f"{len(entries)} expected drops are more than {ENTRIES_MAX}"
        raise UsageError(message, "say more with fewer patterns")
    return Expected(tuple(_parse_entry(at, one) for at, one in enumerate(entries, start=1)))


def _parse_entry(at: int, entry: Mapping[str, object]) -> Mapping[str, re.Pattern[str]]:
    if not entry:
        raise UsageError(f"expected drop {at} names nothing", _one_of(FEATURES))
    for key in entry:
        if key not in FEATURES:
            raise UsageError(f"expected drop {at} has an unknown key {key!r}", _one_of(FEATURES))
    return {key: _compile(f"expected drop {at}, {key}", value) for key, value in entry.items()}


def _one_of(words: Iterable[str]) -> str:
    return f"name one or more of {', '.join(words)}"


def _compile(where: str, value: object) -> re.Pattern[str]:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: {value!r} is no pattern", "give a string in quotes")
    if len(value) > PATTERN_LENGTH_MAX:
        message = f"{where}: a pattern of {len(value)} characters"
        raise UsageError(message, f"give at most {PATTERN_LENGTH_MAX}")
    if not value.startswith("~"):
        return _compile_stars(value)
    try:
        return re.compile(value[1:])
    except (re.error, OverflowError, RecursionError) as exc:
        message = f"{where}: {value[1:]!r} is no regular expression ({exc})"
        raise UsageError(message, "a pattern without ~ in front takes all but * as it is") from exc


def _compile_stars(value: str) -> re.Pattern[str]:
    """Compile a pattern of stars so that no text makes it slow: no part is tried twice."""
    first, *parts = map(re.escape, value.split("*"))
    if not parts:
        return re.compile(rf"\A{first}\Z")
    between = "".join(f"(?>.*?{part})" for part in parts[:-1])
    return re.compile(rf"\A{first}{between}.*{parts[-1]}\Z", re.DOTALL)

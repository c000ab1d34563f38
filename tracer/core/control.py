"""
What may be asked of a running daemon: one JSON object a line, and what it is turned into.

A request is `{"do": "follow", "words": {"dport": "22"}, "columns": 80, "color": true}`,
with the words of the command line. Nothing of it reaches a command but what stands in the
tables below, each as one argument `--word=value`, so that no value can be an option.

Answers are objects with one of `out` (text for standard output), `err` (for standard
error), `end` (the exit status; the last).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "REQUEST_BYTES_MAX",
    "Limits",
    "Request",
    "arguments_of",
    "known_words",
    "parse_request",
]

#: The longest request; every word of `follow` at its longest is shorter.
REQUEST_BYTES_MAX = 8192
_WORD_MAX = 256
_NAMESPACES_MAX = 64
_COLUMNS = (20, 1000)

Value: TypeAlias = str | int | float | bool | list[str]

#: By what is asked: the words, and each one's kind.
_FILTER = dict.fromkeys(
    ("src", "dst", "sport", "dport", "proto", "in", "out", "table", "chain", "hook", "verdict"),
    "text",
)
_WORDS: dict[str, dict[str, str]] = {
    "follow": {
        **_FILTER,
        **dict.fromkeys(("both", "verbose", "full"), "flag"),
        **dict.fromkeys(("count", "rate", "timeout"), "number"),
        "netns": "list",
        "output": "text",
    },
    "drops": {
        **dict.fromkeys(("reason", "table", "chain", "hook", "sort", "output"), "text"),
        **dict.fromkeys(("src", "dst", "sport", "dport", "proto"), "text"),
        **dict.fromkeys(("interval", "timeout"), "number"),
        "once": "flag",
        "netns": "list",
    },
    "stop": {},
}
_WHAT = {
    "text": f"a string of at most {_WORD_MAX} characters",
    "flag": "true or false",
    "number": "a number from 0 to 1000000000",
    "list": f"a list of at most {_NAMESPACES_MAX} such strings",
}
_NUMBER_MAX = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """One request that is as it should be; *words* are checked for kind, not for sense."""

    do: str
    words: Mapping[str, Value] = field(default_factory=dict)
    columns: int = 80
    color: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What one who asks may have: packets a second, and seconds; None sets no limit."""

    packets_per_second: int | None
    duration_s: int | None


def known_words(do: str) -> frozenset[str]:
    """Return the words that *do* has; none for what cannot be asked for."""
    return frozenset(_WORDS.get(do, ()))


def parse_request(line: bytes) -> Request:
    """
    Return the request that *line* is.

    Errors: UsageError that says what is wrong with it; nothing else, whatever *line* is.
    """
    if len(line) > REQUEST_BYTES_MAX:
        message = f"a request of more than {REQUEST_BYTES_MAX} bytes"
        raise UsageError(message, "ask for less at once")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise UsageError("the request is not JSON", "send one object a line") from exc
    if not isinstance(found, dict) or not found.keys() <= {"do", "words", "columns", "color"}:
        message = "the request is no object of do, words, columns, color"
        raise UsageError(message, "send one object a line")
    do = found.get("do")
    if not isinstance(do, str) or do not in _WORDS:
        message = f"there is nothing called {_show(do)} to do"
        raise UsageError(message, f"ask for one of {', '.join(_WORDS)}")
    words = found.get("words", {})
    if not isinstance(words, dict):
        raise UsageError("words is no object", "give the command's words by name")
    for name, value in words.items():
        kind = _WORDS[do].get(name)
        if kind is None:
            message = f"{do} has no word {_show(name)}"
            raise UsageError(message, f"give some of {', '.join(_WORDS[do])}")
        if not _is_kind(kind, value):
            raise UsageError(f"{name} is {_show(value)}", f"give {_WHAT[kind]}")
    columns, color = found.get("columns", 80), found.get("color", False)
    low, high = _COLUMNS
    if not _is_whole(columns) or not low <= columns <= high or not isinstance(color, bool):
        message = "columns or color is not as it should be"
        raise UsageError(message, f"give a number from {low} to {high}, and true or false")
    return Request(do, words, columns, color)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_kind(kind: str, value: object) -> bool:
    if kind == "text":
        return _is_word(value)
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "number":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and 0 <= value <= _NUMBER_MAX  # type: ignore[operator]
    return isinstance(value, list) and len(value) <= _NAMESPACES_MAX and all(map(_is_word, value))


def _is_word(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _WORD_MAX and value.isprintable()


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _WORD_MAX else f"{shown[:_WORD_MAX]}…"


def arguments_of(request: Request, limits: Limits, netns: str) -> list[str]:
    """
    Return the arguments of `nftrace` that do what is asked, within *limits*.

    *netns* names the namespace where the request names none.
    """
    words = dict(request.words)
    words.setdefault("netns", [netns])
    if limits.duration_s is not None:
        words["timeout"] = _at_most(limits.duration_s, words.get("timeout"))
    if limits.packets_per_second is not None and request.do == "follow":
        words["rate"] = int(_at_most(limits.packets_per_second, words.get("rate"))) or 1
    arguments = [request.do, f"--color={'always' if request.color else 'never'}"]
    for name, value in words.items():
        if isinstance(value, bool):
            arguments += [f"--{name}"] if value else []
        elif isinstance(value, list):
            arguments += [f"--{name}={each}" for each in value]
        else:
            arguments.append(f"--{name}={value}")
    return arguments


def _at_most(limit: int, asked: Value | None) -> int | float:
    # 0 asks for no limit, which nobody has here.
    return min(asked, limit) if asked and isinstance(asked, int | float) else limit

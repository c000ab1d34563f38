"""
The lines of iptables-save, and the arguments of a line.

iptables-save quotes an argument that holds anything but plain characters, and escapes
quotes and backslashes inside; names of chains it prints as they are, quotes and all, but
they hold no white space and begin with neither `-` nor `!`. So a quote opens a string only
at the start of an argument that is no chain, and a string may hold newlines.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["logical_lines", "split_arguments"]

_NOT_CHAIN: Final = r"(?<=[ \t])(?<! -[Ajg] )"
_STRING = re.compile(_NOT_CHAIN + r'"(?:[^"\\]|\\.)*"(?=[ \t]|\Z)', re.DOTALL)
_OPEN_STRING = re.compile(_NOT_CHAIN + '"')
_ARGUMENT = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s|\Z)|(\S+)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_COUNTERS = re.compile(r"\[\d+:\d+\] ")
#: A comment has at most 255 bytes (struct xt_comment_info), so no string has more newlines.
_MAX_STRING_LINES: Final = 256


def split_arguments(line: str) -> list[str]:
    """
    Return the arguments of a line of iptables-save, unquoted.

    A quote within an argument, as chain names may have it, stands for itself.
    """
    arguments: list[str] = []
    for quoted in _ARGUMENT.finditer(line):
        raw = quoted[0]
        is_chain = bool(arguments) and arguments[-1] in ("-A", "-j", "-g")
        if quoted[2] is not None or (is_chain and not any(c.isspace() for c in raw)):
            arguments.append(raw)
        else:
            arguments.append(_ESCAPED.sub(r"\1", quoted[1]))
    return arguments


def logical_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield each line without counters, whole, and the same with a word for each string."""
    lines = text.split("\n")
    index = 0
    while index < len(lines):
        line = lines[index]
        index += 1
        if line.startswith("["):
            line = _COUNTERS.sub("", line, count=1)
        if '"' not in line:
            yield line, line
            continue
        bare = _STRING.sub("_", line)
        if _OPEN_STRING.search(bare):
            more = _find_string_end(line, lines[index : index + _MAX_STRING_LINES])
            line = "\n".join((line, *lines[index : index + more]))
            bare = _STRING.sub("_", line)
            index += more
        yield line, bare


def _find_string_end(line: str, following: Sequence[str]) -> int:
    """Return how many of the *following* lines belong to *line*; 0 if its string never ends."""
    for more in range(1, len(following) + 1):
        joined = "\n".join((line, *following[:more]))
        if not _OPEN_STRING.search(_STRING.sub("_", joined)):
            return more
    return 0

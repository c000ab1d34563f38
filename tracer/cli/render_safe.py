r"""
Text from elsewhere made fit for a terminal: escaped, measured, shortened, wrapped.

Rules, comments, chains and namespaces are named by whoever could write them. Nothing of
theirs may move the cursor, turn the direction of the text or break a column, so what does
not print one glyph in its place is shown as an escape (`\x1b`, `\u202e`). Widths are
terminal cells: a wide character takes two.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from rich.cells import get_character_cell_size
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Part", "cells", "cut", "escape", "pad", "shorten", "shorten_middle", "wrap"]

#: A run of text, already escaped, and its style.
Part: TypeAlias = tuple[str, str]

# Cc controls, Cf direction and joiners, Cs lone surrogates, Cn unassigned, Co private,
# Zl and Zp line separators; Zs but for the space; marks that combine over the neighbour.
_UNPRINTABLE: Final = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp", "Zs", "Mn", "Me", "Mc"})
# Bytes that were not UTF-8 and came through Python's surrogateescape.
_SURROGATE_BYTES: Final = range(0xDC80, 0xDD00)
_PLAIN: Final = re.compile(r"[ -~]*")
_WORDS: Final = re.compile(r" +|[^ ]+")


@lru_cache(maxsize=4096)
def _escape_character(character: str) -> str:
    if character == " " or unicodedata.category(character) not in _UNPRINTABLE:
        # Wide or narrow is known; anything else would shift what follows.
        return character
    return _code(ord(character))


def _code(number: int) -> str:
    if number in _SURROGATE_BYTES:
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x100:  # noqa: PLR2004 - what two hexadecimal digits can say
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"  # noqa: PLR2004


def escape(text: str, *, ascii_only: bool = False) -> str:
    """Return *text* with everything that is not one visible glyph in its place escaped."""
    if _PLAIN.fullmatch(text):
        return text
    if ascii_only:
        return "".join(c if " " <= c <= "~" else _code(ord(c)) for c in text)
    return "".join(map(_escape_character, text))


def cells(text: str) -> int:
    """Return how many terminal cells escaped *text* takes."""
    return len(text) if text.isascii() else sum(map(get_character_cell_size, text))


def cut(text: str, width: int) -> str:
    """Return the longest beginning of *text* that fits into *width* cells."""
    if text.isascii():
        return text[: max(width, 0)]
    used = 0
    for index, character in enumerate(text):
        used += get_character_cell_size(character)
        if used > width:
            return text[:index]
    return text


def pad(text: str, width: int) -> str:
    """Return *text* followed by the spaces that are missing to *width* cells."""
    return text + " " * (width - cells(text))


def shorten(text: str, width: int, more: str) -> str:
    """Return *text* cut at its end to fit *width* cells, with the sign *more* if it was."""
    if cells(text) <= width:
        return text
    return cut(text, width - cells(more)) + cut(more, width)


def shorten_middle(text: str, width: int, more: str) -> str:
    """Return *text* with its middle left out to fit *width* cells: names differ at the end."""
    if cells(text) <= width:
        return text
    room = width - cells(more)
    tail = cut(text[::-1], room - room // 2)[::-1]
    return cut(cut(text, room // 2) + more + tail, width)


def wrap(parts: Iterable[Part], width: int, hang: int, *, first: int = 0) -> list[Text]:
    """
    Lay *parts* out in lines of at most *width* cells.

    Lines after the first begin with *hang* spaces; the first has *first* cells less to fill.
    A word that no line can hold is broken. A *width* with no room behind *hang* is taken as
    the narrowest that has: a wide character takes two cells.
    """
    width = max(width, hang + 2)
    lines: list[list[Part]] = [[]]
    used = first
    for gap, word in _split(parts):
        size = sum(cells(text) for text, _ in word)
        if used + gap + size > width and lines[-1]:
            lines.append([])
            used = hang
        elif gap:
            style = word[0][1] if lines[-1] and lines[-1][-1][1] == word[0][1] else ""
            lines[-1].append((" " * gap, style))
            used += gap
        for text, style in word:
            left = text
            while cells(left) > width - used:
                head = cut(left, width - used)
                lines[-1].append((head, style))
                lines.append([])
                left, used = left[len(head) :], hang
            lines[-1].append((left, style))
            used += cells(left)
    return [_line(line, hang if number else 0) for number, line in enumerate(lines)]


def _line(parts: Iterable[Part], indent: int) -> Text:
    """Return one line; neighbours of one style become one run, to spare the terminal."""
    line = Text(" " * indent)
    run, style = "", ""
    for text, its in parts:
        if its != style:
            line.append(run, style)
            run, style = "", its
        run += text
    return line.append(run, style)


def _split(parts: Iterable[Part]) -> Sequence[tuple[int, list[Part]]]:
    """Return the words with the spaces before each; a word may have several styles."""
    words: list[tuple[int, list[Part]]] = []
    gap: int | None = 0
    for text, style in parts:
        for token in _WORDS.findall(text):
            if token[0] == " ":
                gap = (gap or 0) + len(token)
            elif gap is not None:
                words.append((gap, [(token, style)]))
                gap = None
            else:
                words[-1][1].append((token, style))
    return words

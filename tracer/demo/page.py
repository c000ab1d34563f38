"""Paragraphs, labelled items and the drawing, fitted to the console that they are for."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from rich.text import Text

from tracer.cli.theme import NARROWEST, QUIET, STRONG, symbols_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

__all__ = ["Page"]

# Prose wider than this is hard to read, however wide the terminal.
_WIDEST: Final = 96
_LABEL_COLUMNS: Final = 13

# What the page itself uses of Unicode, for outputs that know only ASCII.
_PLAIN: Final = str.maketrans(
    {
        **dict.fromkeys("┌┐└┘├┤", "+"),
        "─": "-",
        "│": "|",
        "→": "->",
        "›": ">",  # noqa: RUF001 - the path sign is meant
        "✓": "+",
        "✗": "x",
    }
)


class Page:
    """Write for people on *console*: every line fits it, in colour or without."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ascii = symbols_for(console).ascii_only
        self._width = max(NARROWEST, min(console.width, _WIDEST))

    def heading(self, text: str, remark: str = "") -> None:
        """Begin a section; *remark* stands beside its name."""
        self._console.print()
        words = [(text.upper(), STRONG)]
        if remark:
            words.append((f"   {remark}", QUIET))
        self._print(*words)

    def paragraph(self, text: str, style: str = "") -> None:
        """Write prose, wrapped, indented by two."""
        for line in self._wrap(text, self._width - 2):
            self._print(("  " + line, style))

    def shell(self, prompt: str, command: str) -> None:
        """Write a command as somebody types it; it is never broken, to be copied."""
        self._print((f"  {prompt} ", QUIET), (command, STRONG))

    def verbatim(self, lines: Iterable[str], style: str = "", indent: int = 2) -> None:
        """Write lines as they are, wrapped only where the console is narrower."""
        for line in lines:
            room = max(NARROWEST, self._console.width) - indent
            for part in self._wrap(line, room, hang=4):
                self._print((" " * indent + part, style))

    def item(self, label: str, text: str, details: Iterable[str] = (), after: str = "") -> None:
        """Write *label* and beside it prose, then *details* a line each, then prose again."""
        room = self._width - 2 - _LABEL_COLUMNS
        margin = " " * (2 + _LABEL_COLUMNS)
        for index, line in enumerate(self._wrap(text, room)):
            start = f"  {label:<{_LABEL_COLUMNS}}" if index == 0 else margin
            self._print((start, STRONG), (line, ""))
        self.verbatim(details, indent=len(margin) + 2)
        for line in self._wrap(after, room) if after else []:
            self._print((margin + line, ""))

    def blank(self) -> None:
        """Leave a line free."""
        self._console.print()

    def _print(self, *words: tuple[str, str]) -> None:
        line = Text()
        for text, style in words:
            line.append(text.translate(_PLAIN) if self._ascii else text, style)
        line.rstrip()
        self._console.print(line)

    @staticmethod
    def _wrap(text: str, columns: int, hang: int = 0) -> list[str]:
        if len(text) <= columns:
            return [text]
        return textwrap.wrap(
            text,
            columns,
            subsequent_indent=" " * hang,
            break_long_words=False,
            break_on_hyphens=False,
        )

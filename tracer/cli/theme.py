"""The look of everything that is printed for people: styles, symbols and the console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from rich.console import Console

from tracer.cli.options import wants_color
from tracer.core.journey import EndingKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ASCII",
    "ENDING_STYLES",
    "NARROWEST",
    "UNICODE",
    "VERDICT_STYLES",
    "Symbols",
    "make_console",
    "symbols_for",
]

#: Below this many columns lines are no longer fitted: nothing readable would be left.
NARROWEST: Final = 40

# Only the sixteen colours of the terminal's own palette, so that what somebody chose to be
# readable on their background stays so; never the colour alone: a symbol or a word says
# the same.
QUIET: Final = "dim"
STRONG: Final = "bold"
PLACE: Final = "cyan"
CHANGE: Final = "magenta"
WARNING: Final = "yellow"

VERDICT_STYLES: Final[Mapping[Verdict, str]] = {
    Verdict.ACCEPT: "green",
    Verdict.DROP: "bold red",
    Verdict.REJECT: "bold red",
    Verdict.JUMP: "cyan",
    Verdict.GOTO: "cyan",
    Verdict.RETURN: "dim",
    Verdict.CONTINUE: "dim",
    Verdict.QUEUE: "yellow",
    Verdict.STOLEN: "yellow",
}

ENDING_STYLES: Final[Mapping[EndingKind, str]] = {
    EndingKind.DROPPED: "bold red",
    EndingKind.REJECTED: "bold red",
    EndingKind.SENT: "bold green",
    EndingKind.DELIVERED: "bold green",
    EndingKind.QUEUED: "bold yellow",
    EndingKind.UNKNOWN: "bold yellow",
}


@dataclass(frozen=True, slots=True)
class Symbols:
    """The signs between the words; *ascii_only* where the output knows no others."""

    arrow: str
    becomes: str
    inside: str
    more: str
    verdicts: Mapping[Verdict, str]
    endings: Mapping[EndingKind, str]
    ascii_only: bool


UNICODE: Final = Symbols(
    arrow="→",
    becomes="⇒",
    inside="›",  # noqa: RUF001 - the path sign is meant
    more="…",
    verdicts={
        Verdict.ACCEPT: "✓",
        Verdict.DROP: "✗",
        Verdict.REJECT: "✗",
        Verdict.JUMP: "→",
        Verdict.GOTO: "→",
        Verdict.RETURN: "↩",
        Verdict.CONTINUE: "·",
        Verdict.QUEUE: "»",
        Verdict.STOLEN: "»",
    },
    endings={
        EndingKind.DROPPED: "✗",
        EndingKind.REJECTED: "✗",
        EndingKind.SENT: "✓",
        EndingKind.DELIVERED: "✓",
        EndingKind.QUEUED: "»",
        EndingKind.UNKNOWN: "?",
    },
    ascii_only=False,
)

ASCII: Final = Symbols(
    arrow="->",
    becomes="=>",
    inside=">",
    more="...",
    verdicts={
        Verdict.ACCEPT: "+",
        Verdict.DROP: "x",
        Verdict.REJECT: "x",
        Verdict.JUMP: ">",
        Verdict.GOTO: ">",
        Verdict.RETURN: "<",
        Verdict.CONTINUE: ".",
        Verdict.QUEUE: "!",
        Verdict.STOLEN: "!",
    },
    endings={
        EndingKind.DROPPED: "x",
        EndingKind.REJECTED: "x",
        EndingKind.SENT: "+",
        EndingKind.DELIVERED: "+",
        EndingKind.QUEUED: "!",
        EndingKind.UNKNOWN: "?",
    },
    ascii_only=True,
)


def symbols_for(console: Console) -> Symbols:
    """Return the signs that the console's encoding can write."""
    return UNICODE if console.encoding.lower().startswith("utf") else ASCII


class _Console(Console):
    """A console whose reader may go away: rich would end the program with status 1."""

    def on_broken_pipe(self) -> None:
        # rich calls it where it has caught the error.
        raise BrokenPipeError


def make_console(color: str, *, file: IO[str], width: int | None = None) -> Console:
    """
    Make the console for *color* auto, always or never.

    Units: *width* in columns, None for the terminal's (or COLUMNS), 80 where there is none.
    """
    wanted = wants_color(color, file)
    return _Console(
        file=file,
        width=width,
        color_system="standard" if wanted else None,
        force_terminal=wanted,
        no_color=not wanted,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )

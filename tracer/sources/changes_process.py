"""
Who a process is: asked while it runs, and else by what the kernel told when it began.

A tool that loads rules ends within milliseconds. On a busy machine it has ended before we
are awake: then what `Execs` remembers of it and of those that started it is told.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tracer.sources.bpf_execs import Execs

__all__ = ["NOBODY", "Who", "WhoReader"]

#: Of a command line; the rest is cut, and an ellipsis says so.
_COMMAND_MAX: Final = 400
#: Ancestors that are asked for: a tool, its script, the shell and what started that.
_PARENTS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Who:
    """
    A process: *pid* 0 and empty words where they are not known.

    *parents* are the command lines of those that started it, the nearest first.
    """

    pid: int = 0
    process: str = ""
    command: str = ""
    parents: tuple[str, ...] = ()


NOBODY: Final = Who()


class WhoReader:
    """Tells who processes are; *execs* is None where the kernel does not tell what begins."""

    def __init__(self, execs: Execs | None = None) -> None:
        self.execs = execs

    def read(self, pid: int, process: str = "") -> Who:
        """
        Return what is known of *pid*; *process* is its name where that is known already.

        It takes some 50 us. Does not raise: of one that nobody remembers there is less.
        """
        if pid <= 0:
            return Who(0, process)
        name, command, parent = self._ask(pid)
        parents: list[str] = []
        for _ in range(_PARENTS_MAX):
            if parent <= 1:
                break
            _, words, parent = self._ask(parent)
            parents += [words] * bool(words)
        return Who(pid, process or name, command, tuple(parents))

    def _ask(self, pid: int) -> tuple[str, str, int]:
        """Return a process's name, command line and parent."""
        # A process that ends meanwhile loses its command line first: who has one here has
        # told its parent, too, and of all others what is missing is remembered.
        name, parent = _read_stat(pid)
        command = _read_command(pid)
        if command or self.execs is None:
            return name, command, parent
        began = self.execs.find(pid)
        if began is None:
            return name, command, parent
        return name or began.process, began.command, parent or began.parent


def _read_stat(pid: int) -> tuple[str, int]:
    """Return name and parent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name stands in parentheses and may hold some itself.
        name, _, rest = text.partition("(")[2].rpartition(")")
        return name, int(rest.split()[1])
    except (OSError, IndexError, ValueError):
        return "", 0


def _read_command(pid: int) -> str:
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            raw = file.read(_COMMAND_MAX * 4)
    except OSError:
        return ""
    words = raw.rstrip(b"\0").decode(errors="replace").split("\0") if raw else []
    text = shlex.join(words)
    return text if len(text) <= _COMMAND_MAX else text[: _COMMAND_MAX - 1] + "…"

"""Who a process is, while it still can be asked."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["NOBODY", "Who", "read_who"]

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


def read_who(pid: int, process: str = "") -> Who:
    """
    Return what /proc still tells of *pid*; *process* is its name where it is known already.

    It takes some 50 us. Does not raise: of one that has ended there is less.
    """
    if pid <= 0:
        return Who(0, process)
    # The command line first: it is gone before the process is.
    own = _read_command(pid)
    name, parent = _read_stat(pid)
    parents: list[str] = []
    while parent > 1 and len(parents) < _PARENTS_MAX:
        command = _read_command(parent)
        if command:
            parents.append(command)
        _, parent = _read_stat(parent)
    return Who(pid, process or name, own, tuple(parents))


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

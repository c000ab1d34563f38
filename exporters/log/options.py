"""What is kept, how long, and how the log's files are made."""

from __future__ import annotations

import contextlib
import grp
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DIRECTORY_MODE", "FILE_MODE", "LogOptions", "give_to_group", "open_new"]

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class LogOptions:
    """
    The log's limits; whichever of *keep_s* and *size_bytes* bites first counts.

    *segment_bytes* and *segment_s*: an open segment is sealed at that size or age; a reader
    has to read the open one whole. *queue_rows*: drops that wait to be written, 140 bytes
    each; from half of it on they are thinned. *sync_s*: how often what was written is forced
    onto the disk, 0 each time, None only when sealed; SIGKILL loses nothing acknowledged
    either way, a loss of power what came since. *restate_s*: how often the rulesets in force
    are said again, so that they do not age out of the log.
    """

    keep_s: float = 30 * _DAY_S
    size_bytes: int = 8 << 30
    segment_bytes: int = 64 << 20
    segment_s: float = 3600.0
    queue_rows: int = 1 << 19
    sync_s: float | None = None
    restate_s: float = _DAY_S
    group: str = "nftrace"


def open_new(path: Path, group: str) -> int:
    """
    Create *path* for appending, readable by *group* where there is such a one.

    Errors: OSError, FileExistsError among them.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, FILE_MODE)
    # The mode that open() was given is what umask left of it.
    os.fchmod(descriptor, FILE_MODE)
    give_to_group(descriptor, group)
    return descriptor


def give_to_group(target: int | Path, group: str) -> None:
    """Let *group* own the file; where there is none, or we may not, it stays as it is."""
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(target, -1, grp.getgrnam(group).gr_gid)

"""One writer in a folder: its lock, and when the last one ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from typing import TYPE_CHECKING, Final

from exporters.log.options import DIRECTORY_MODE, give_to_group
from tracer.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["lock_folder", "note_end", "take_end"]

_TRIES: Final = 100
_WAIT_S: Final = 0.01
#: Digits of a time in nanoseconds.
_TIME_BYTES: Final = 32


def lock_folder(directory: Path, group: str) -> int:
    """Take the folder for this process; the lock ends with it, however it ends."""
    try:
        if not directory.is_dir():
            directory.mkdir(parents=True)
            directory.chmod(DIRECTORY_MODE)
            give_to_group(directory, group)
        file = os.open(directory / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as exc:
        message = f"the log {directory} cannot be written ({exc.strerror})"
        raise OutputError(message, "name a folder that can be") from exc
    pause = threading.Event()
    for _ in range(_TRIES):
        # What a killed writer was about to start holds its lock until it has become another
        # program, a moment later.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        pause.wait(_WAIT_S)
    os.close(file)
    message = f"another nftrace writes the log {directory}"
    raise OutputError(message, "end it first, or name another folder")


def take_end(file: int) -> int:
    """Return when the last writer ended, ns UTC, 0 where it was killed; then it is forgotten."""
    told = os.pread(file, _TIME_BYTES, 0)
    os.ftruncate(file, 0)
    return int(told) if told.isdigit() else 0


def note_end(file: int, now_ns: int) -> None:
    """Leave word for the next writer, whose clock may be another."""
    os.pwrite(file, str(now_ns).encode(), 0)

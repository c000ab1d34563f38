"""
Writers to be killed: each appends drops and small events as fast as it can, until it is.

Reads `FIRST` a line and forks a writer that begins with that number: a process that has
everything imported, so that a hundred of them take seconds. The writer says `PID` and, after
each flush, how many drops it has put; its parent `end` when it is gone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow.parquet  # noqa: F401 - before the fork

from exporters.log import LogOptions, LogWriter
from tests.exporters.log_case import drops
from tracer.core.log_rows import Loss


def main() -> None:
    """Fork writers, one after another, for as long as there is input."""
    directory = Path(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            write(directory, int(line))
        os.waitpid(child, 0)
        say("end")


def write(directory: Path, first: int) -> None:
    """Write and never end; segments are small, so that they are sealed as well."""
    say(str(os.getpid()))
    writer = LogWriter(directory, "h", LogOptions(segment_bytes=400_000))
    while True:
        writer.append_drops(drops(97, first=first), 97)
        writer.append_losses([Loss(first, "trace", "lost", 1)])
        first += 97
        writer.flush(60)
        say(str(first))


def say(word: str) -> None:
    """Write a line at once, also where another process is to go on with the pipe."""
    os.write(1, f"{word}\n".encode())


main()

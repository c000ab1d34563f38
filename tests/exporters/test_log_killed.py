"""SIGKILL at any moment: nothing that was acknowledged is gone, and readers never fail."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exporters.log import LogReader, LogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
KILLS = 100
_COUNTS = "SELECT count(*), count(DISTINCT tcp_seq), min(tcp_seq), max(tcp_seq) FROM drops"


class Writers:
    """Starts writers one after another and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self._pid = 0

    def start(self, first: int) -> None:
        """Let one begin with the drop number *first*."""
        self._in.write(f"{first}\n")
        self._in.flush()
        self._pid = int(self._out.readline())

    def said(self) -> int:
        """Wait until another flush was acknowledged; return how many drops there are."""
        return int(self._out.readline())

    def kill(self) -> int | None:
        """Kill it; return the last that it said, if anything since."""
        os.kill(self._pid, signal.SIGKILL)
        last = None
        while (line := self._out.readline().strip()) != "end":
            last = int(line)
        return last


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    """Give a process that starts writers."""
    command = [sys.executable, "-m", "tests.exporters.log_killed", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Writers(process)


def test_a_hundred_kills_lose_nothing_that_was_acknowledged(
    tmp_path: Path, writers: Writers
) -> None:
    """After each SIGKILL every row up to the last said is there once, and new ones go on."""
    chance = random.Random(20_261_123)  # noqa: S311 - moments, no secrets
    first, spans = 0, []
    for number in range(KILLS):
        writers.start(first)
        for _ in range(chance.randint(1, 7)):
            said = writers.said()
        # Every tenth lives long enough for its segments to be sealed meanwhile.
        threading.Event().wait(chance.random() * (0.5 if number % 10 == 7 else 0.01))
        spans.append((first, writers.kill() or said))
        # The next begins where no row of this one can be: those that nobody acknowledged.
        first = spans[-1][1] + 970_000
    with LogReader(tmp_path) as reader:
        assert spans == _told(reader, spans)
    with LogWriter(tmp_path, "h"):
        pass
    with LogReader(tmp_path) as reader:
        rows = reader.query("SELECT count(*), count(DISTINCT ordinal) FROM drops")

        assert spans == _told(reader, spans)
        assert rows[0][0] == rows[0][1]
        assert [] == reader.problems


def _told(reader: LogReader, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return how much of each span is told without a gap from its beginning."""
    seen = [row[0] for row in reader.query("SELECT tcp_seq FROM drops ORDER BY tcp_seq")]
    assert len(seen) == len(set(seen))
    there = set(seen)
    return [
        (first, next((n for n in range(first, end) if n not in there), end)) for first, end in spans
    ]


def test_readers_beside_the_writer_see_each_row_once(tmp_path: Path, writers: Writers) -> None:
    """While segments are sealed and begun, a reader sees a whole beginning of the log."""
    writers.start(0)
    said = writers.said()
    with LogReader(tmp_path) as reader:
        for _ in range(13):
            reader.refresh()
            count, distinct, low, high = reader.query(_COUNTS)[0]

            assert (count, 0, count - 1) == (distinct, low, high)
            assert count >= said
            said = writers.said()
    writers.kill()

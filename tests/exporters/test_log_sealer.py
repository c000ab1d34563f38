"""The sealing process: whatever becomes of it, whoever writes does not wait for it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from exporters.log import LogOptions, LogReader, LogWriter
from exporters.log.sealer import Sealer
from exporters.log.segments import list_segments
from tests.exporters.log_case import drops

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

#: Requests and answers that no pipe holds.
_MANY = 3001


def test_asking_never_waits_for_answers(tmp_path: Path) -> None:
    """Thousands of requests are taken at once, and each is answered, in their order."""
    sealer = Sealer(tmp_path, "root")
    names = [f"drops-{n:016x}.arrows" for n in range(_MANY)]
    for name in names:
        sealer.ask({"seal": name})
    told = sealer.close(120)

    assert names == [answer["seal"] for answer in told]
    assert {"another sealed it"} == {answer["why"] for answer in told}
    assert (0, 0) == (sealer.waiting, sealer.restarts)


def test_one_that_was_killed_while_idle_is_counted(tmp_path: Path) -> None:
    """Its end is seen without a request, and the next request has another process."""
    sealer = Sealer(tmp_path, "root")
    sealer.ask({"seal": "drops-0000000000000000.arrows"})
    _answers(sealer, 1)
    os.kill(_process(sealer).pid, signal.SIGKILL)
    os.waitid(os.P_PID, _process(sealer).pid, os.WEXITED | os.WNOWAIT)
    list(sealer.answers())
    sealer.ask({"seal": "drops-0000000000000001.arrows"})

    assert ["another sealed it"] == [one["why"] for one in sealer.close(60)]
    assert 1 == sealer.restarts


def test_without_a_process_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no process can be had, requests stay asked, and are done when there is one."""
    sealer = Sealer(tmp_path, "root")

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuse)
        sealer.ask({"seal": "drops-0000000000000000.arrows"})

        assert [] == list(sealer.answers())
        assert 1 == sealer.waiting
    assert ["another sealed it"] == [one["why"] for one in sealer.close(60)]


def test_closing_ends_in_time_and_says_what_is_left(tmp_path: Path) -> None:
    """With a sealer that stands still the rows are there, unsealed, and are said."""
    writer = LogWriter(tmp_path, "h", LogOptions(segment_bytes=1, group="root"))
    for first in range(3):
        writer.append_drops(drops(7, first=7 * first), 7)
        writer.flush()
    process = _process(writer._disk.sealer)  # noqa: SLF001 - it is to stand still
    os.kill(process.pid, signal.SIGSTOP)
    try:
        writer.append_drops(drops(7, first=21), 7)
        writer.flush()
        began_s = time.monotonic()
        left = writer.close(1.0)
        took_s = time.monotonic() - began_s
    finally:
        process.kill()
        process.wait()
    unsealed = len(list_segments(tmp_path).open)
    with LogReader(tmp_path) as reader:
        rows = reader.query("SELECT count(*), count(DISTINCT tcp_seq) FROM drops")

    assert took_s < 1.0 + 5.0
    assert left is not None
    assert "segments, to be sealed by the next start" in left
    assert 0 < unsealed
    assert [(28, 28)] == rows


def _process(sealer: Sealer) -> subprocess.Popen[bytes]:
    process = sealer._process  # noqa: SLF001 - to be stopped and killed
    assert process is not None
    return process


def _answers(sealer: Sealer, count: int) -> None:
    pause, told = threading.Event(), 0
    for _ in range(1500):
        told += len(list(sealer.answers()))
        if told >= count:
            return
        pause.wait(0.02)
    raise AssertionError(told)

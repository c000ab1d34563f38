"""
A log on a disk that gets full and has room again; run in a mount namespace of its own.

Prints one JSON object: what the writer said while the disk was full, and afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from exporters.log import LogOptions, LogReader, LogWriter
from tests.exporters.log_case import drops
from tests.journeys import START_NS
from tracer.core.log_rows import Change

_LAST = "SELECT count(*) FROM drops WHERE tcp_seq >= ?"
OPTIONS = LogOptions(queue_rows=20_000, size_bytes=1 << 30)


def main() -> None:
    """Fill the disk beside the log, go on writing, and make room."""
    mount = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], check=True)
    log, ballast = mount / "log", mount / "ballast"
    with LogWriter(log, "h", OPTIONS) as writer:
        put = _put(writer, 0, 1009)
        before = writer.flush()
        _fill(ballast)
        while writer.status().trouble is None:
            put = _put(writer, put, 997)
            writer.flush(0.2)
        for _ in range(50):
            put = _put(writer, put, 991)
        writer.append_changes([Change(START_NS, "vr2", "route", "gone", "default")])
        full = writer.status()
        with LogReader(log) as reader:
            beside = reader.query("SELECT count(*) FROM drops WHERE tcp_seq < 1009")[0][0]
        ballast.unlink()
        _wait(writer)
        put = _put(writer, put, 983)
        writer.flush(60)
        after = writer.status()
    with LogReader(log) as reader:
        found = {
            "put": put,
            "before": before,
            "trouble_full": full.trouble,
            "queued_full": full.queued,
            "beside": beside,
            "trouble_after": after.trouble,
            "rows": reader.query("SELECT count(*) FROM drops")[0][0],
            "distinct": reader.query("SELECT count(DISTINCT tcp_seq) FROM drops")[0][0],
            "last": reader.query(_LAST, None, [put - 983])[0][0],
            "weight": reader.query("SELECT sum(weight)::BIGINT FROM drops")[0][0],
            "losses": _summed(reader),
            "changes": [change.subject for change in reader.changes()],
            "problems": [problem.name for problem in reader.problems],
        }
    sys.stdout.write(json.dumps(found))


def _put(writer: LogWriter, first: int, count: int) -> int:
    writer.append_drops(drops(count, first=first), count)
    return first + count


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def _wait(writer: LogWriter) -> None:
    pause = threading.Event()
    while writer.status().queued or writer.status().trouble:
        pause.wait(0.02)


def _summed(reader: LogReader) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for loss in reader.losses():
        totals[loss.what] += loss.count
    return dict(totals)


main()

"""
What the timeline of a day costs, beside the plainest question to the same rows.

Drops of 20,000 clients at twelve rules over a day, with twenty changes of their table; the
peer is DuckDB counting all rows by place. `--rows N`, default 10,000,000.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporters.log import LogOptions, LogReader, LogWriter
from tests.timelines import BEFORE, INSTALLED
from tracer.core.log_rows import Change, Words

if TYPE_CHECKING:
    from tracer.core.log_rows import Columns

_BATCH = 250_000
_DAY_NS = 86_400 * 1_000_000_000
_CHANGES = 20
_CLIENTS = 20_000
_PORTS = 2000
_COUNT = "SELECT netns, table_name, chain, rule, sum(weight) FROM drops GROUP BY ALL"


def main() -> None:
    """Print one JSON object for each measurement."""
    words = argparse.ArgumentParser()
    words.add_argument("--rows", type=int, default=10_000_000)
    rows = words.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="nftrace-bench-") as directory:
        log = Path(directory) / "log"
        kept = _write(log, rows)
        with LogReader(log) as reader:
            reader.query("SELECT count(*) FROM drops")
            began_s = time.monotonic()
            reader.query(_COUNT)
            plain_s = time.monotonic() - began_s
        for name, filters in (("everything", ()), ("port", ("--dport", "22"))):
            _time(name, log, kept, plain_s, filters)


def _time(name: str, log: Path, rows: int, plain_s: float, filters: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tracer.cli.main", "timeline", "--log", str(log), *filters]
    began_s = time.monotonic()
    subprocess.run([*command, "-o", "json"], check=True, stdout=subprocess.DEVNULL)
    took_s = time.monotonic() - began_s
    told = {
        "bench": f"timeline_{name}",
        "rows": rows,
        "s": round(took_s, 3),
        "of_counting": round(took_s / plain_s, 2),
        # Of the largest child until now: the first one asks for most.
        "max_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    sys.stdout.write(json.dumps(told) + "\n")


def _write(log: Path, rows: int) -> int:
    """Write a day's drops and changes; return how many rows are there."""
    start_ns = time.time_ns() - _DAY_NS
    wait = 0.02
    with LogWriter(log, "bench", LogOptions(queue_rows=1 << 21)) as writer:
        for number in range(_CHANGES):
            texts = (BEFORE, INSTALLED) if number % 2 else (INSTALLED, BEFORE)
            names = [writer.store_text(text) for text in texts]
            at_ns = start_ns + number * _DAY_NS // _CHANGES
            place = ("vr2", "ruleset", "changed", "ip mangle")
            writer.append_changes([Change(at_ns, *place, *names, engine="legacy", pid=number + 1)])
        for first in range(0, rows, _BATCH):
            count = min(_BATCH, rows - first)
            writer.append_drops(_drops(first, count, start_ns, _DAY_NS // rows), count)
            while writer.status().queued > _BATCH:
                time.sleep(wait)
        writer.flush(60)
        return writer.status().rows["drops"]


def _drops(first: int, count: int, start_ns: int, step_ns: int) -> Columns:
    chance = np.random.default_rng(first)
    number = np.arange(first, first + count)
    return {
        "time_ns": start_ns + number * step_ns,
        "netns": "vr2",
        "family": 4,
        "proto": 6,
        "src_low": (0xFFFF_0000_0000 + chance.integers(0, _CLIENTS, count)).astype(np.uint64),
        "dst_low": 0xFFFF_AC11_1569,
        "sport": chance.integers(32_768, 61_000, count).astype(np.uint16),
        "dport": chance.integers(1, _PORTS, count).astype(np.uint16),
        "tcp_flags": 2,
        "length": 52,
        "weight": 1,
        "kind": "rule",
        "hook": "prerouting",
        "engine": "legacy",
        "table_family": "ip",
        "table_name": "mangle",
        "chain": Words(["C", "D", "E"], number % 3),
        "rule": (5 + number % 4).astype(np.uint32),
        "reason": "NETFILTER_DROP",
    }


if __name__ == "__main__":
    main()

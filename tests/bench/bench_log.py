"""
What the log costs: writing, sealing, disk and looking up, beside SQLite and plain numpy.

Rows are drops as the ring buffer's records give them, 40 kinds, flows that come again. All
ratios are of one run on one disk. `--rows N` (default 10,000,000) for the look-up: 100
million rows take some 3 GB and minutes. What a row takes on the disk is measured with real
drops, recorded in namespaces; the made up ones have more chance in them than traffic has.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporters.log import LogOptions, LogReader, LogWriter, Selection
from exporters.log.segments import list_segments
from tracer.core.log_rows import Words
from tracer.core.log_schema import DROPS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.core.log_rows import Columns

_BATCH = 1 << 16
_ROWS = 4_000_000
_LOOKUPS = 9
_KINDS = 40
_FLOWS = 20_000
_MINUTES_5_NS = 300_000_000_000
_DAY_NS = 86_400_000_000_000
_OPTIONS = LogOptions(size_bytes=64 << 30, queue_rows=1 << 21)


def main() -> None:
    """Print one JSON object for each measurement."""
    words = argparse.ArgumentParser()
    words.add_argument("--rows", type=int, default=10_000_000)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="nftrace-bench-") as directory:
        scratch = Path(directory)
        _measure_real(scratch / "real")
        batches = list(_batches(1 << 20, 1_000))
        plain = _time_numpy(scratch / "rows", batches)
        lite = _time_sqlite(scratch / "rows.db", batches[:4])
        _time_log(scratch / "log", batches, plain, lite)
        shutil.rmtree(scratch / "log")
        _time_lookup(scratch / "day", asked.rows)


def _tell(name: str, **values: object) -> None:
    sys.stdout.write(json.dumps({"measured": name, **values}) + "\n")
    sys.stdout.flush()


def _batches(rows: int, gap_ns: int, start_ns: int | None = None) -> Iterator[Columns]:
    chance = np.random.default_rng(7)
    start = time.time_ns() if start_ns is None else start_ns
    kinds = {
        name: [f"{name}-{n % few}" for n in range(_KINDS)]
        for name, few in (("netns", 3), ("chain", 40), ("table_name", 5), ("reason", 4))
    }
    flows = chance.integers(0, 1 << 32, (3, _FLOWS))
    for first in range(0, rows, _BATCH):
        count = min(_BATCH, rows - first)
        flow = chance.integers(0, _FLOWS, count)
        kind = flow % _KINDS
        columns: Columns = {
            "time_ns": start + first * gap_ns + np.sort(chance.integers(0, count * gap_ns, count)),
            "src_low": (flows[0][flow] | 0xFFFF_0000_0000).astype(np.uint64),
            "dst_low": (flows[1][flow] | 0xFFFF_0000_0000).astype(np.uint64),
            "sport": (flows[2][flow] & 0xFFFF).astype(np.uint16),
            "dport": (flow % 7 * 1000 + 22).astype(np.uint16),
            "fingerprint": chance.integers(0, 1 << 63, count).astype(np.uint64),
            "ip_id": chance.integers(0, 1 << 16, count).astype(np.uint16),
            "tcp_seq": (flows[0][flow] ^ flows[1][flow]).astype(np.uint32),
            "rule": (kind + 1).astype(np.uint32),
            "weight": np.ones(count, np.uint32),
            **{name: Words(words, kind) for name, words in kinds.items()},
            "family": 4,
            "proto": 6,
            "tcp_flags": 2,
            "length": 60,
            "ttl": 62,
            "hook": "prerouting",
            "engine": "legacy",
            "kind": "rule",
            "in_device": "eth0",
        }
        yield columns


def _structured(columns: Columns, rows: int) -> np.ndarray:
    """Return a batch as one array of fixed width, as the ring buffer's records are."""
    types = {Kind.WORD: "u2", Kind.TEXT: "u2", Kind.BYTES: "u2"}
    dtype = [(c.name, types.get(c.kind, c.kind.value)) for c in DROPS.columns]
    array = np.zeros(rows, dtype)
    for name, values in columns.items():
        array[name] = (
            values.of if isinstance(values, Words) else 0 if isinstance(values, str) else values
        )
    return array


def _time_numpy(path: Path, batches: list[Columns]) -> float:
    arrays = [_structured(columns, len(columns["time_ns"])) for columns in batches]
    began, spent = time.perf_counter(), time.process_time()
    with path.open("wb") as file:
        rows = 0
        while rows < _ROWS:
            for array in arrays:
                array.tofile(file)
                rows += len(array)
    rate = rows / (time.perf_counter() - began)
    spent = rows / (time.process_time() - spent)
    path.unlink()
    _tell(
        "numpy tofile",
        rows_a_second=round(rate),
        rows_a_cpu_second=round(spent),
        bytes_a_row=arrays[0].itemsize,
    )
    return rate


def _time_sqlite(path: Path, batches: list[Columns]) -> float:
    tables = [_structured(columns, len(columns["time_ns"])) for columns in batches]
    names = ", ".join(f"c{number}" for number in range(len(DROPS.columns)))
    marks = ", ".join("?" * len(DROPS.columns))
    with sqlite3.connect(path, isolation_level=None) as base:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = OFF")
        base.execute(f"CREATE TABLE drops ({names})")
        began, spent = time.perf_counter(), time.process_time()
        for table in tables:
            # SQLite's integers have a sign.
            columns = [table[name].astype(np.int64).tolist() for name in table.dtype.names or ()]
            base.execute("BEGIN")
            base.executemany(f"INSERT INTO drops VALUES ({marks})", zip(*columns, strict=True))  # noqa: S608
            base.execute("COMMIT")
        rows = sum(map(len, tables))
        rate = rows / (time.perf_counter() - began)
        spent = rows / (time.process_time() - spent)
    _tell(
        "sqlite wal",
        rows_a_second=round(rate),
        rows_a_cpu_second=round(spent),
        bytes_a_row=round(path.stat().st_size / rows, 1),
    )
    base.close()
    return rate


def _time_log(directory: Path, batches: list[Columns], plain: float, lite: float) -> None:
    """Append as fast as the writer takes it, while segments are sealed."""
    worst_ns = 0
    with LogWriter(directory, "bench", _OPTIONS) as writer:
        began, spent, rows = time.perf_counter(), time.process_time(), 0
        while rows < _ROWS:
            for columns in batches:
                at_ns = time.perf_counter_ns()
                writer.append_drops(columns, _BATCH)
                worst_ns = max(worst_ns, time.perf_counter_ns() - at_ns)
                rows += _BATCH
                if rows % (8 * _BATCH) == 0:
                    # The writer's own queue is not what is measured: do not let it thin.
                    writer.flush(60)
        writer.flush(60)
        rate = rows / (time.perf_counter() - began)
        spent = rows / (time.process_time() - spent)
        status = writer.status()
        writer.close(600)
    took = time.perf_counter() - began
    size = sum(one.path.stat().st_size for one in list_segments(directory).sealed)
    _tell(
        "log",
        rows_a_second=round(rate),
        rows_a_cpu_second=round(spent),
        sealed_rows_a_second=round(rows / took),
        to_numpy=round(rate / plain, 3),
        to_sqlite=round(rate / lite, 1),
        longest_append_ms=round(worst_ns / 1e6, 3),
        thinned=status.thinned,
        bytes_a_row_sealed=round(size / rows, 1),
    )


def _time_lookup(directory: Path, rows: int) -> None:
    """Look up one flow's five minutes in a day of *rows*."""
    start = time.time_ns() - _DAY_NS
    with LogWriter(directory, "bench", _OPTIONS) as writer:
        for number, columns in enumerate(_batches(rows, _DAY_NS // rows, start)):
            writer.append_drops(columns, len(columns["time_ns"]))
            if number % 8 == 7:
                writer.flush(60)
        writer.close(600)
    middle = start + _DAY_NS // 2
    selection = Selection(since_ns=middle, until_ns=middle + _MINUTES_5_NS)
    sql = "SELECT count(*), min(time_ns), max(time_ns) FROM drops WHERE src_low = ? AND sport = ?"
    with LogReader(directory) as reader:
        flow = reader.query("SELECT src_low, sport FROM drops LIMIT 1", selection)[0]
        times, spent = [], time.process_time()
        for _ in range(_LOOKUPS):
            began = time.perf_counter()
            found = reader.query(sql, selection, flow)
            times.append(time.perf_counter() - began)
        spent = (time.process_time() - spent) / _LOOKUPS
        began = time.perf_counter()
        reader.query("SELECT chain, rule, sum(weight) FROM drops GROUP BY ALL")
        whole = time.perf_counter() - began
    _tell(
        "one flow's five minutes",
        of_rows=rows,
        found=found[0][0],
        median_s=round(sorted(times)[_LOOKUPS // 2], 4),
        cpu_s=round(spent, 4),
        whole_day_by_rule_s=round(whole, 3),
        segments=len(list_segments(directory).sealed),
    )


def _measure_real(directory: Path) -> None:
    """Record drops of a flood and of scattered SYNs in namespaces, and say their size."""
    from tests.bench.log_recording import record  # noqa: PLC0415 - needs bcc and namespaces

    rows, kinds = record(directory)
    size = sum(one.path.stat().st_size for one in list_segments(directory).sealed)
    _tell("real drops", rows=rows, kinds=kinds, bytes_a_row_sealed=round(size / max(rows, 1), 1))


if __name__ == "__main__":
    main()

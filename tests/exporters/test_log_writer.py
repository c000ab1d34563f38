"""The log's writer: what is acknowledged is there, and what is not is counted."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from exporters.log import LogOptions, LogReader, LogWriter, Selection
from exporters.log.encode import WORDS_MAX
from exporters.log.queue import Item, Queue
from exporters.log.segments import list_segments
from tests.exporters.log_case import HandClock, S, drops
from tests.journeys import START_NS
from tracer.core.log_rows import Change, Loss, Words
from tracer.errors import OutputError

ROOT = Path(__file__).resolve().parents[2]


def test_what_was_flushed_is_read_as_it_was_put(tmp_path: Path) -> None:
    """After flush a reader sees every row, in order, with host, namespace and number."""
    with LogWriter(tmp_path / "log", "router") as writer:
        writer.append_drops(drops(31), 31)
        writer.append_drops(drops(6, first=31, netns="vr1"), 6)
        writer.append_losses([Loss(START_NS, "trace", "lost", 7)])
        last = writer.flush()
        with LogReader(tmp_path / "log") as reader:
            rows = reader.query(
                "SELECT tcp_seq, host, netns, chain, rule, ordinal FROM drops ORDER BY ordinal"
            )
            lost = reader.losses()

    assert list(range(37)) == [row[0] for row in rows]
    assert {("router", "vr2"), ("router", "vr1")} == {row[1:3] for row in rows}
    assert ("FIREWALL_172.17.21.105", 5) == rows[0][3:5]
    assert ("INPUT", 1) == rows[1][3:5]
    assert [Loss(START_NS, "trace", "lost", 7)] == lost
    assert last == 37
    assert len({row[5] for row in rows}) == 37


def test_numbers_go_on_over_a_restart(tmp_path: Path) -> None:
    """No two rows have one ordinal, also when the first writer is long gone."""
    lasts = []
    for first in (0, 13, 26):
        with LogWriter(tmp_path, "h") as writer:
            writer.append_drops(drops(13, first=first), 13)
            lasts.append(writer.flush())
    with LogReader(tmp_path) as reader:
        rows = reader.query("SELECT ordinal, tcp_seq FROM drops ORDER BY ordinal")

    assert list(range(39)) == [row[1] for row in rows]
    assert [12, 25, 38] == lasts
    assert [(n, n) for n in range(39)] == rows


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """The second writer of a folder is refused, and the first does not notice."""
    with LogWriter(tmp_path, "h") as writer:
        with pytest.raises(OutputError, match="another nftrace writes"):
            LogWriter(tmp_path, "h")
        writer.append_drops(drops(3), 3)

        assert writer.flush() == 2


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """Where no folder can be, the error names it."""
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError, match="file/log cannot be written"):
        LogWriter(tmp_path / "file" / "log", "h")


def test_files_are_for_root_and_the_group_alone(tmp_path: Path) -> None:
    """Segments and texts have mode 0640 and folders 0750, whatever the umask."""
    before = os.umask(0)
    try:
        with LogWriter(tmp_path / "log", "h") as writer:
            writer.append_drops(drops(3), 3)
            writer.store_text("-P INPUT DROP")
            writer.flush()
            modes = _modes(tmp_path)
        modes |= _modes(tmp_path)
    finally:
        os.umask(before)

    assert {".arrows", ".parquet", ".gz"} <= {suffix for suffix, _ in modes}
    assert {0o640, 0o750} == {mode for suffix, mode in modes if suffix != ".lock"}


def _modes(directory: Path) -> set[tuple[str, int]]:
    return {(path.suffix, stat.S_IMODE(path.stat().st_mode)) for path in directory.rglob("*")}


def test_rows_that_are_no_rows_cost_only_themselves(tmp_path: Path) -> None:
    """Columns of a wrong length are counted as invalid; those beside them are written."""
    with LogWriter(tmp_path, "h") as writer:
        writer.append_drops(drops(5), 5)
        writer.append_drops({**drops(7), "ttl": np.zeros(3, np.uint8)}, 7)
        writer.append_drops({**drops(2), "chain": Words(["a"], np.array([0, 9]))}, 2)
        writer.append_drops(drops(11, first=5), 11)
        writer.flush()
        status = writer.status()
    with LogReader(tmp_path) as reader:
        seen = reader.query("SELECT tcp_seq FROM drops ORDER BY ordinal")

    assert (9, 0) == (status.invalid, status.queued)
    assert [(n,) for n in range(16)] == seen


def test_a_step_of_the_clock_is_an_event_and_does_not_change_the_order(tmp_path: Path) -> None:
    """An hour back is told as a change; rows keep the order in which they were put."""
    clock = HandClock()
    with LogWriter(tmp_path, "h", clock=clock) as writer:
        writer.append_drops(drops(3, at_ns=clock.wall), 3)
        writer.flush()
        clock.wall -= 3600 * S
        writer.append_drops(drops(3, first=3, at_ns=clock.wall), 3)
        writer.flush()
        with LogReader(tmp_path) as reader:
            order = reader.query("SELECT tcp_seq FROM drops ORDER BY ordinal")
            steps = [change for change in reader.changes() if change.what == "clock"]
            span = reader.span()

    assert [(n,) for n in range(6)] == order
    assert [f'{{"step_ns":{-3600 * S}}}'] == [step.detail for step in steps]
    assert [(str(START_NS), str(START_NS - 3600 * S))] == [(s.before, s.after) for s in steps]
    assert (START_NS - 3600 * S, START_NS + 2_000_000) == span


def test_the_oldest_are_retired_by_age(tmp_path: Path) -> None:
    """What ended longer ago than is kept is unlinked, and nothing else."""
    clock = HandClock()
    for age_s in (5000, 900, 10):
        with LogWriter(tmp_path, "h", clock=clock) as writer:
            writer.append_drops(drops(5, first=age_s, at_ns=START_NS - age_s * S), 5)
            writer.flush()
    with LogWriter(tmp_path, "h", LogOptions(keep_s=1000), clock):
        pass
    with LogReader(tmp_path) as reader:
        kept = reader.query("SELECT min(tcp_seq), count(*) FROM drops")

    assert [(10, 10)] == kept


def test_drops_make_room_before_journeys_and_changes(tmp_path: Path) -> None:
    """Where the size is the limit, drops go first, oldest first; the newest stay."""
    for number in range(5):
        with LogWriter(tmp_path, "h") as writer:
            writer.append_drops(drops(5000, first=number * 5000), 5000)
            writer.flush()
    with LogWriter(tmp_path, "h") as writer:
        changes = [Change(START_NS + n, "vr2", "route", "new", str(n)) for n in range(5)]
        writer.append_changes(changes)
        writer.flush()
    sizes = [one.path.stat().st_size for one in list_segments(tmp_path).sealed]
    with LogWriter(tmp_path, "h", LogOptions(size_bytes=sum(sizes) // 2, keep_s=1e9)):
        pass
    after = sum(one.path.stat().st_size for one in list_segments(tmp_path).sealed)
    with LogReader(tmp_path) as reader:
        told = reader.changes()
        kept = reader.query("SELECT min(tcp_seq) % 5000, max(tcp_seq), count(*) FROM drops")

    assert changes == told
    assert sum(sizes) // 2 >= after
    assert [(0, 24_999)] == [row[:2] for row in kept]
    assert kept[0][2] in {5000, 10_000}


def test_rulesets_in_force_are_said_again(tmp_path: Path) -> None:
    """With each restatement the log says anew which version stands, until it is gone."""
    clock = HandClock()
    options = LogOptions(restate_s=100, keep_s=1e9)
    with LogWriter(tmp_path, "h", options, clock) as writer:
        name = writer.store_text("-P INPUT DROP")
        gone = Change(START_NS, "vr1", "ruleset", "gone", "mangle", before=name)
        new = Change(START_NS, "vr2", "ruleset", "new", "filter", after=name)
        writer.append_changes([gone, new])
        writer.flush()
        clock.pass_s(101)
        _until(writer, changes=3)
        with LogReader(tmp_path) as reader:
            stands = [one for one in reader.changes() if one.action == "stands"]
            text = reader.text(stands[0].after)

    assert [("vr2", "filter", name)] == [(o.netns, o.subject, o.after) for o in stands]
    assert "-P INPUT DROP" == text


def test_the_rules_of_three_hundred_namespaces_are_said_again(tmp_path: Path) -> None:
    """Ten tables in each of them: every one stands anew, once, and with its own version."""
    clock = HandClock()
    names = [f"vr{n}" for n in range(300)]
    with LogWriter(tmp_path, "h", LogOptions(restate_s=100, keep_s=1e9), clock) as writer:
        for netns in names:
            tables = [f"ip table{n}" for n in range(10)]
            writer.append_changes(
                [
                    Change(clock.wall, netns, "ruleset", "new", one, after=f"{netns} {one}")
                    for one in tables
                ]
            )
            writer.flush()
        clock.pass_s(101)
        _until(writer, changes=6000)
        with LogReader(tmp_path) as reader:
            stands = [one.after for one in reader.changes() if one.action == "stands"]

        assert 6000 == writer.status().rows["changes"]
    assert sorted(stands) == sorted(f"{netns} ip table{n}" for netns in names for n in range(10))


def _until(writer: LogWriter, *, changes: int = 0, restarts: int = 0) -> None:
    pause = threading.Event()
    for _ in range(1500):
        status = writer.status()
        if status.rows["changes"] >= changes and status.sealer_restarts >= restarts:
            return
        pause.wait(0.02)
    raise AssertionError(writer.status())


def test_more_words_than_a_segment_holds_begin_another(tmp_path: Path) -> None:
    """Every word is told, also when there are more of them than one segment has numbers."""
    half = WORDS_MAX // 2 + 7
    with LogWriter(tmp_path, "h") as writer:
        for part in range(2):
            words = Words([f"chain-{part}-{n}" for n in range(half)], np.arange(half))
            writer.append_drops({**drops(half), "chain": words}, half)
        writer.flush()
        with LogReader(tmp_path) as reader:
            told = reader.query("SELECT count(*), count(DISTINCT chain) FROM drops")

        assert [(2 * half, 2 * half)] == told


def test_a_full_queue_thins_drops_and_keeps_their_weight() -> None:
    """From half full on one drop in eight is kept, standing for eight; journeys are not cut."""
    queue = Queue(8000)
    for first in range(0, 16_000, 100):
        queue.put(Item("drops", drops(100, first=first), 100), START_NS + first)
    queue.put(Item("journeys", {"id": ["a", "b"]}, 2), START_NS)
    left_out = queue.take_left_out()
    kept = [item for item in queue.take(0) if item.table == "drops"]
    weight = sum(int(np.broadcast_to(item.columns["weight"], item.rows).sum()) for item in kept)
    weighed = sum(one.count for one in left_out if one.is_weighed)

    assert {True} == {one.is_weighed for one in left_out}
    assert 16_000 == sum(item.rows for item in kept) + weighed
    assert abs(weight - 16_000) < 64
    assert 8000 >= sum(item.rows for item in kept)


def test_beyond_full_nothing_is_taken_and_it_is_counted() -> None:
    """Rows that do not fit are left out, and their number is told with the time."""
    queue = Queue(10)
    queue.put(Item("drops", drops(7), 7), START_NS)
    queue.put(Item("drops", drops(801), 801), START_NS + 5)
    queue.put(Item("losses", {"count": [1] * 9000}, 9000), START_NS + 9)
    told = {(one.table, one.is_weighed): one for one in queue.take_left_out()}

    assert (801 * 7) // 8 == told["drops", True].count
    assert 801 - (801 * 7) // 8 == told["drops", False].count
    assert 9000 == told["losses", False].count
    assert (START_NS + 9, START_NS + 9) == (
        told["losses", False].since_ns,
        told["losses", False].until_ns,
    )
    assert [7] == [item.rows for item in queue.take(0)]


def test_what_was_thinned_is_a_loss_in_the_log(tmp_path: Path) -> None:
    """Rows and losses of a run add up to what was put."""
    with LogWriter(tmp_path, "h", LogOptions(queue_rows=1000)) as writer:
        for first in range(0, 100_000, 500):
            writer.append_drops(drops(500, first=first), 500)
        writer.flush(30)
    with LogReader(tmp_path) as reader:
        rows = reader.query("SELECT count(*)::BIGINT FROM drops")[0][0]
        losses = reader.losses()

    assert {"thinned", "left_out"} >= {loss.what for loss in losses}
    assert {"drops"} == {loss.unit for loss in losses}
    assert 100_000 == rows + sum(loss.count for loss in losses)


def test_a_closed_writer_leaves_sealed_segments_only(tmp_path: Path) -> None:
    """After close everything is sealed, and closing again does nothing."""
    writer = LogWriter(tmp_path, "h")
    writer.append_drops(drops(17), 17)
    writer.close()
    writer.close()
    listing = list_segments(tmp_path)

    assert ((), 1, ()) == (listing.open, len(listing.sealed), listing.foreign)
    with LogReader(tmp_path) as reader:
        since = Selection(until_ns=START_NS)

        assert [(17,)] == reader.query("SELECT count(*) FROM drops")
        assert [(0,)] == reader.query("SELECT count(*) FROM drops", since)


def test_a_sealer_that_is_killed_is_started_again(tmp_path: Path) -> None:
    """Segments are sealed by the next one, nothing is lost, and its end is counted."""
    with LogWriter(tmp_path, "h", LogOptions(segment_bytes=1)) as writer:
        put = 0
        for _ in range(5):
            put = _put_one(writer, put)
        os.kill(_sealers()[0], signal.SIGKILL)
        put = _put_one(writer, put)
        put = _put_one(writer, put)
        _until(writer, restarts=1)
        writer.close(120)
    listing = list_segments(tmp_path)
    with LogReader(tmp_path) as reader:
        rows = reader.query("SELECT count(*), count(DISTINCT tcp_seq), max(tcp_seq) FROM drops")

    assert () == listing.open
    assert [(put, put, put - 1)] == rows


def _put_one(writer: LogWriter, first: int) -> int:
    writer.append_drops(drops(1, first=first), 1)
    writer.flush()
    return first + 1


def _sealers() -> list[int]:
    """Return the processes that we started and that seal."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                if b"exporters.log.sealer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
    return found


def test_commands_that_read_no_log_do_not_load_what_reads_it() -> None:
    """Neither pyarrow nor duckdb is imported by the command line before a log is opened."""
    script = (
        "import sys; import tracer.cli.main, tracer.cli.show, tracer.cli.export, tracer.cli.follow;"
        "print(sorted({'pyarrow', 'duckdb'} & sys.modules.keys()))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    script = (
        "import sys; from exporters.log import LogWriter;"
        "print(sorted({'duckdb', 'rich', 'pyarrow.dataset'} & sys.modules.keys()))"
    )
    written = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert ["[]\n", "[]\n"] == [shown.stdout, written.stdout]

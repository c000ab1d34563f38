"""A timeline across a clock that was set: the order is the log's, on every surface."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exporters.log import LogOptions, LogReader, LogWriter
from tests.exporters.log_case import HandClock, S, drops
from tests.timelines import BEFORE, FIXED, INSTALLED, ruleset
from tracer.core.log_rows import Change, Words

_ROOT = Path(__file__).resolve().parents[2]
_OPTIONS = LogOptions(group="root")


def _kept(writer: LogWriter, change: Change, at_ns: int) -> Change:
    names = [writer.store_text(text) if text else "" for text in (change.before, change.after)]
    return replace(change, time_ns=at_ns, before=names[0], after=names[1])


def _die(writer: LogWriter, count: int, at_ns: int) -> None:
    columns = dict(drops(count, at_ns=at_ns))
    columns |= {"engine": "legacy", "table_family": "ip", "table_name": "mangle"}
    columns |= {"hook": "prerouting", "rule": 5, "chain": Words(["C"], columns["rule"] * 0)}
    writer.append_drops(columns, count)


def _write(folder: Path, step_s: int, *, restarts: bool = False) -> HandClock:
    """
    Write a story of 100 s in which the clock is set by *step_s* after 50 s.

    The chain comes at 10 s, 5 SYNs die at 20 s, 3 just before the step are read just behind
    it, 11 die at 70 s, and at 90 s it is fixed.
    """
    clock = HandClock()
    writer = LogWriter(folder, "vr", _OPTIONS, clock)
    writer.append_changes([_kept(writer, ruleset(0, "", BEFORE, "stands"), clock.wall)])
    clock.pass_s(10)
    writer.append_changes([_kept(writer, ruleset(0, BEFORE, INSTALLED, pid=4711), clock.wall)])
    clock.pass_s(10)
    _die(writer, 5, clock.wall)
    clock.pass_s(30)
    read_ns = clock.wall - S // 5
    if restarts:
        _die(writer, 3, read_ns)
        writer.close()
    clock.wall += step_s * S
    if restarts:
        writer = LogWriter(folder, "vr", _OPTIONS, clock)
    else:
        _die(writer, 3, read_ns)
    clock.pass_s(20)
    _die(writer, 11, clock.wall)
    clock.pass_s(20)
    writer.append_changes([_kept(writer, ruleset(0, INSTALLED, FIXED, pid=17), clock.wall)])
    clock.pass_s(10)
    writer.append_changes([Change(clock.wall, "vr2", "route", "new", "10.9.0.0/16")])
    writer.close()
    return clock


def _run(folder: Path, *args: str) -> str:
    command = [sys.executable, "-m", "tracer.cli.main", "timeline", "--log", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=_ROOT).stdout


@pytest.mark.parametrize("step_s", [-3600, 3600, -7])
def test_the_story_is_in_order_across_a_step(tmp_path: Path, step_s: int) -> None:
    """First drop, last drop, cause, end and the series are those of a clock that stood right."""
    clock = _write(tmp_path, step_s)
    told = json.loads(_run(tmp_path, "-o", "json"))
    (killer,) = told["killers"]
    with LogReader(tmp_path, is_steady=True) as reader:
        times = [ns for (ns,) in reader.query("SELECT time_ns FROM drops ORDER BY ordinal")]
        span = reader.span()

    began_ns = clock.wall - 100 * S
    assert (4711, 17, "over") == (killer["cause"]["pid"], killer["fix"]["pid"], killer["state"])
    assert (19, 0) == (killer["packets"], killer["inferred"])
    assert [began_ns + 20 * S, began_ns + 50 * S - S // 5, began_ns + 70 * S] == [
        times[0],
        times[5],
        times[8],
    ]
    assert (began_ns, clock.wall) == span
    assert [5, 3, 11] == [count for count in killer["series"] if count]


def test_text_and_page_tell_the_step(tmp_path: Path) -> None:
    """The terminal and the page have the beginning before the end, and say what was set."""
    _write(tmp_path, -3600)
    page = tmp_path / "page.html"
    text = _run(tmp_path, "--html", str(page))

    began, last = re.findall(r"began +([\d:.]+), last ([\d:.]+) ", text)[0]
    said = "the clock was set back by 3600.0 s: times before it are told as set since"
    assert began < last
    assert [1, 1] == [text.count(said), page.read_text().count(said)]
    assert f"Began {began}, last {last}." in page.read_text()


def test_a_window_is_of_the_clock_that_was_set(tmp_path: Path) -> None:
    """Segments that were written an hour later by the old clock are within the window."""
    clock = _write(tmp_path, -3600)
    since, until = clock.wall - 85 * S, clock.wall - 49 * S
    words = [datetime.fromtimestamp(ns // S, UTC).isoformat() for ns in (since, until)]
    told = json.loads(_run(tmp_path, "--since", words[0], "--until", words[1], "-o", "json"))

    assert [8] == [killer["packets"] for killer in told["killers"]]


def test_a_step_between_two_writers_is_found(tmp_path: Path) -> None:
    """Where the last one ended later than it is now, the order still is the log's."""
    _write(tmp_path, -3600, restarts=True)
    (killer,) = json.loads(_run(tmp_path, "-o", "json"))["killers"]

    assert (4711, "over", 19) == (killer["cause"]["pid"], killer["state"], killer["packets"])
    assert [8, 11] == [sum(killer["series"][:30]), sum(killer["series"][30:])]

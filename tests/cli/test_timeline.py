"""`nftrace timeline` and `blame` on a log: what they print, and what they say where they cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exporters.log import LogOptions, LogWriter
from tests.exporters import log_case
from tests.timelines import BEFORE, FIXED, INSTALLED, ruleset
from tracer.core.log_rows import Words
from tracer.core.timeline_words import sparkline

if TYPE_CHECKING:
    from tracer.core.log_rows import Change

_ROOT = Path(__file__).resolve().parents[2]
_NOON_NS = 1_795_000_000 * log_case.S


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a log: a chain comes, 1,009 SYNs die by its rule 5 a millisecond apart, it is fixed."""
    folder = tmp_path_factory.mktemp("log")
    with LogWriter(folder, "r-588-VM", LogOptions(group="root")) as writer:

        def keep(change: Change) -> None:
            names = [
                writer.store_text(text) if text else "" for text in (change.before, change.after)
            ]
            at_ns = _NOON_NS + change.time_ns
            writer.append_changes([replace(change, time_ns=at_ns, before=names[0], after=names[1])])

        keep(ruleset(1, "", BEFORE, "stands"))
        keep(ruleset(10, BEFORE, INSTALLED, pid=4711))
        columns = dict(log_case.drops(1009, at_ns=_NOON_NS + 20 * log_case.S))
        columns |= {"engine": "legacy", "table_family": "ip", "table_name": "mangle"}
        columns |= {"hook": "prerouting", "rule": 5, "chain": Words(["C"], columns["rule"] * 0)}
        writer.append_drops(columns, 1009)
        keep(ruleset(60, INSTALLED, FIXED, pid=17))
        writer.flush()
    return folder


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer.cli.main", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)


def test_exact_numbers_are_told(log: Path) -> None:
    """Every drop is counted once, by the rule as it stood, and the sources once each."""
    done = _run("timeline", "--log", str(log), "--dst", "172.17.21.105", "-o", "json")
    (killer,) = json.loads(done.stdout)["killers"]

    assert (0, "") == (done.returncode, done.stderr)
    assert (1009, 1009, 251, 1009) == (
        killer["packets"],
        killer["syns"],
        killer["clients"],
        sum(killer["series"]),
    )
    assert (4711, 17, "over") == (
        killer["cause"]["pid"],
        killer["fix"]["pid"],
        killer["state"],
    )


def test_the_window_decides_what_is_told(log: Path) -> None:
    """Before the first drop there is none; changes before the window still explain it."""
    early = _run("timeline", "--log", str(log), "--until", "2026-11-18T11:06:55+00:00")
    late = _run("timeline", "--log", str(log), "--since", "2026-11-18T11:07:00+00:00")

    assert "no drop of everything" in early.stdout
    assert "because   chain C was installed" in late.stdout


def test_expected_drops_do_not_lead(tmp_path: Path) -> None:
    """What the configuration names is told last, and said to be meant, in text and page."""
    with LogWriter(tmp_path / "log", "h", LogOptions(group="root")) as writer:
        for count, expected in ((1009, 1), (7, 0)):
            columns = dict(log_case.drops(count))
            columns |= {"expected": expected, "netns": f"vr{expected}", "chain": "C", "rule": 5}
            writer.append_drops(columns, count)
    page = tmp_path / "page.html"
    text = _run("timeline", "--log", str(tmp_path / "log"), "--html", str(page)).stdout

    said = "y the configuration these drops are meant"
    for told in (text, page.read_text()):
        assert 0 < told.index("in vr0") < told.index("in vr1") < told.index(said)
        assert 1 == told.count(said)


def test_what_is_not_there_is_said(log: Path, tmp_path: Path) -> None:
    """Each wrong word and missing folder is one clear line and its own status."""
    nothing = _run("timeline", "--log", str(log), "--dport", "23", "--since", "now")
    missing = _run("timeline", "--log", str(tmp_path / "none"))
    both = _run("timeline", "--log", str(log), "--around", "17:00", "--since", "16:00")
    page = _run("timeline", "--log", str(log), "--html", str(tmp_path / "none" / "page.html"))
    chain = _run("blame", "mangle", "NONE", "--log", str(log))

    assert [1, 4, 2, 4, 2] == [o.returncode for o in (nothing, missing, both, page, chain)]
    for done in (missing, both, page, chain):
        (line,) = done.stderr.splitlines()
        assert line.startswith("nftrace: ")


def test_a_foreign_files_name_does_nothing_to_the_terminal(log: Path, tmp_path: Path) -> None:
    """Names are of whoever made the file: each is one line, and of many the first ten."""
    for number in range(13):
        (tmp_path / f"x\n\x1b[31m{number}").touch()
    for path in log.glob("*.parquet"):
        shutil.copy(path, tmp_path)
    lines = _run("timeline", "--log", str(tmp_path)).stderr.splitlines()

    assert 11 == len(lines)
    assert all(line.startswith("nftrace: ") and line.isprintable() for line in lines)
    assert "nftrace: … and 3 more such files" == lines[-1]


def test_an_empty_log_is_said(tmp_path: Path) -> None:
    """A log in which nothing is yet has nothing to tell: status 1."""
    LogWriter(tmp_path / "log", "h", LogOptions(group="root")).close()
    done = _run("timeline", "--log", str(tmp_path / "log"))

    assert 1 == done.returncode
    assert "is empty" in done.stderr


def test_blame_prints_each_rule_with_its_maker(log: Path) -> None:
    """Numbers and texts are today's; drops are those of the rule, under whatever number."""
    text = _run("blame", "mangle", "C", "--log", str(log)).stdout
    (last,) = _run("blame", "mangle", "C", "3", "--log", str(log), "-o", "json").stdout.splitlines()
    told = json.loads(last)

    assert "  2  -A C -p tcp -m tcp --dport 22 -j RETURN" in text
    assert "(pid 17)" in text
    assert (4711, 1009, "-A C -j DROP") == (
        told["brought"]["pid"],
        told["packets"],
        told["text"],
    )


def test_a_sparkline_is_as_high_as_its_numbers() -> None:
    """Nothing is a space, something is never nothing, and the most is the highest."""
    assert " ▁▄█" == sparkline([0, 1, 500, 1000])
    assert "" == sparkline([])
    assert "   " == sparkline([0, 0, 0])
    assert "#@" == sparkline([7, 8], ascii_only=True)

"""The daemon's voice: once in a while, by level, and never an obstacle."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from hypothesis import given
from hypothesis import strategies as st

from tracer.daemon.messages import Messages, RepeatLimit, is_journal
from tracer.daemon.settings import MessageSettings

if TYPE_CHECKING:
    import pytest


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from("abc")), max_size=60))
def test_a_complaint_is_said_once_in_its_time(complaints: list[tuple[float, str]]) -> None:
    """Those in between are counted, and no two of a kind are closer than the time given."""
    now_s = [0.0]
    limit = RepeatLimit(10.0, lambda: now_s[0])
    said: dict[str, float] = {}
    repeated = suppressed = 0
    for passed_s, kind in complaints:
        now_s[0] += passed_s
        try:
            event = limit(None, "warning", {"event": kind})
        except structlog.DropEvent:
            suppressed += 1
            assert now_s[0] - said[kind] < 10.0
        else:
            assert now_s[0] - said.get(kind, -10.0) >= 10.0
            said[kind] = now_s[0]
            repeated += event.get("repeated", 0)

    assert suppressed == limit.suppressed
    assert repeated <= suppressed


def test_complaints_of_other_places_are_other_complaints() -> None:
    """Two namespaces may complain of the same at once, and news is never held back."""
    limit = RepeatLimit(10.0, lambda: 0.0)
    for netns in ("a", "b"):
        limit(None, "error", {"event": "refused", "netns": netns})
    for _ in range(3):
        limit(None, "info", {"event": "named", "netns": "a"})

    assert 0 == limit.suppressed


def test_kinds_are_forgotten_before_they_are_too_many() -> None:
    """However many different complaints come, memory is bounded."""
    limit = RepeatLimit(1e9, lambda: 0.0)
    for number in range(5000):
        limit(None, "warning", {"event": "refused", "netns": str(number)})

    assert len(limit._said) <= 512  # noqa: SLF001 - the bound is what is tested


def test_json_is_one_object_a_line() -> None:
    """Whatever is in a value, a message is a line."""
    out = io.StringIO()
    Messages(MessageSettings("json"), out).log.warning("refused", why="a\nb\x1b[31m")
    (line,) = out.getvalue().splitlines()

    told = json.loads(line)
    assert ("refused", "warning", "a\nb\x1b[31m") == (told["event"], told["level"], told["why"])


def test_the_level_is_the_least_that_is_said() -> None:
    """Below it nothing is written, and nothing is counted as lost."""
    out = io.StringIO()
    messages = Messages(MessageSettings("json", "error"), out)
    messages.log.warning("refused")

    assert ("", 0, 0) == (out.getvalue(), messages.lost, messages.suppressed)


def test_in_the_journal_a_line_has_its_level_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is known by the device and inode that the environment names."""
    path = tmp_path / "journal"
    with path.open("w", encoding="utf-8") as out:
        found = os.fstat(out.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert is_journal(out, os.environ)
        log = Messages(MessageSettings(), out).log
        log.info("ready", pid=7)
        log.error("refused", why="a\nb")

    lines = path.read_text(encoding="utf-8").splitlines()
    assert ["<6>event='ready' pid=7 level='info'", "<3>"] == [lines[0], lines[1][:3]]
    assert 2 == len(lines)


def test_another_stream_is_not_the_journal(tmp_path: Path) -> None:
    """A redirected standard error, and one without a descriptor, get the time as well."""
    with (tmp_path / "file").open("w", encoding="utf-8") as out:
        assert not is_journal(out, {"JOURNAL_STREAM": "1:2"})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


def test_what_cannot_be_written_is_counted() -> None:
    """A full disk raises nothing here: the next line is tried again."""
    with Path("/dev/full").open("w", encoding="utf-8") as out:
        messages = Messages(MessageSettings("json", repeat_s=0), out)
        for _ in range(3):
            messages.log.warning("refused")

        assert 3 == messages.lost

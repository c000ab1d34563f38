"""The notes of the one setting that does not end with us, read back however they are."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tracer.sources.nf_log import leftovers, repair, started_at

if TYPE_CHECKING:
    from pathlib import Path

GONE = {"netns": "gone", "inode": 1, "family": "ip", "before": "NONE", "pid": 0, "started": 0}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"7",
        json.dumps({**GONE, "family": "bogus"}).encode(),
        json.dumps({**GONE, "pid": "zero"}).encode(),
        json.dumps({**GONE, "before": ""}).encode(),
        json.dumps({**GONE, "more": 1}).encode(),
    ],
)
def test_a_damaged_note_is_said_and_removed(tmp_path: Path, damage: bytes) -> None:
    """What cannot be read names itself and what to look at, and stands in nobody's way."""
    path = tmp_path / "1-2-ip.json"
    path.write_bytes(damage)
    lines = repair(tmp_path)

    assert 1 == len(lines)
    assert lines[0].startswith("1-2-ip.json was damaged and is removed: see `sysctl ")
    assert not path.exists()


def test_a_note_of_a_namespace_that_is_gone_needs_nothing(tmp_path: Path) -> None:
    """It is a leftover until it is removed without a word."""
    (tmp_path / "0-1-ip.json").write_text(json.dumps(GONE))

    assert ["netns gone ip"] == leftovers(tmp_path)
    assert [] == repair(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_living_process_keeps_its_note(tmp_path: Path) -> None:
    """What a process that runs wrote down, or is writing, is left alone."""
    pid = os.getpid()
    note: dict[str, Any] = {**GONE, "pid": pid, "started": started_at(pid)}
    (tmp_path / f"{pid}-1-ip.json").write_text(json.dumps(note))
    (tmp_path / f"{pid}-1-ip6.tmp").write_text("{")
    (tmp_path / "999999999-1-ip.tmp").write_text("{")
    lines = repair(tmp_path)

    assert [] == lines
    assert {f"{pid}-1-ip.json", f"{pid}-1-ip6.tmp"} == {p.name for p in tmp_path.iterdir()}


def test_no_notes_need_no_repair(tmp_path: Path) -> None:
    """Where nobody ever wrote a note there is nothing to do."""
    assert [] == repair(tmp_path / "none")

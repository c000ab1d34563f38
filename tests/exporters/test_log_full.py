"""A full disk: what was written stays, what comes is thinned and counted, and then it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_full_disk_loses_nothing_uncounted(tmp_path: Path) -> None:
    """Rows of before are read while it is full; with room again all is told or counted."""
    command = [sys.executable, "-m", "tests.exporters.log_full", str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)

    assert "No space left on device" in found["trouble_full"]
    assert found["trouble_after"] is None
    assert (1008, 1009) == (found["before"], found["beside"])
    assert 0 < found["queued_full"] <= 20_001
    assert found["rows"] == found["distinct"]
    assert 983 == found["last"]
    left = found["losses"]
    assert found["put"] == found["rows"] + left["thinned"] + left.get("left_out", 0)
    assert ["default"] == found["changes"]
    assert [] == found["problems"]
    # What stands for others stands for as many as were thinned, but for those left out.
    assert abs(found["weight"] - found["rows"] - left["thinned"]) <= 64 * (
        left.get("left_out", 0) + 1
    )

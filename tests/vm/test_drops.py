"""Drops that nobody asked about, on another kernel."""

from __future__ import annotations

import json
import sys

import pytest

from tests.kernel import nets
from tracer.demo.lab import Backend, Lab

#: Known drops take a second under emulation, and many where the machine is busy.
_PATIENT = ("--interval", "5", "--calibrate", "120")


@pytest.mark.parametrize("backend", list(Backend))
def test_the_killing_rule_is_named_unasked(backend: Backend, netns: object) -> None:
    """`nftrace drops --once --netns all` names vr2's rule while ssh is tried, certain of it."""
    del netns
    command = (sys.executable, "-m", "tracer.cli.main", "drops", "--once", "--netns", "all")
    with (
        Lab(backend) as lab,
        nets.spawn("vr1", *command, *_PATIENT, "-o", "json", cwd=nets.ROOT) as process,
    ):
        while process.poll() is None:
            # Three SYNs in four seconds; the watch begins and ends while they are tried.
            lab.attempt()
        out, err = process.communicate()
    rows = [json.loads(line) for line in out.splitlines()]

    assert ("", 0) == (err, process.returncode)
    names = ("netns", "hook", "engine", "table", "chain", "rule", "certain")
    found = [tuple(row[name] for name in names) for row in rows if row["netns"] == "vr2"]
    engine = "legacy" if backend is Backend.LEGACY else "nft"
    assert [("vr2", "prerouting", engine, "mangle", "FIREWALL_172.17.21.105", 5, True)] == found

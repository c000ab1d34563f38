"""`nftrace demo --watch`: ends with the alert that names the rule, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel import nets

CHAIN = "FIREWALL_172.17.21.105"
_COMMAND = (sys.executable, "-m", "tracer.cli.main", "demo", "--watch", "--color", "never")


def _start(*words: str, path: str | None = None) -> subprocess.Popen[str]:
    env = {**os.environ, "COLUMNS": "160", **({} if path is None else {"PATH": path})}
    return subprocess.Popen(
        (*_COMMAND, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=nets.ROOT,
        env=env,
    )


def _below(pid: int) -> set[int]:
    """Return the processes that *pid* started, and those that they did."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text("ascii").split()):
                found |= {child} | _below(child)
    return found


def _living(pids: set[int]) -> list[str]:
    """Return the names of those that run; one that ended and was not waited for does not."""
    living = []
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
            name, _, rest = stat.partition("(")[2].rpartition(") ")
            if rest[0] != "Z":
                living.append(name)
    return living


def _outside() -> tuple[set[str], str]:
    """Return the names of namespaces and the mounts, which the demo does not touch."""
    names = {path.name for path in Path("/run/netns").iterdir()}
    return names, Path("/proc/self/mounts").read_text("utf-8")


def test_the_alert_names_the_rule_that_killed_the_packets() -> None:
    """An alert of vr2, mangle, the chain and its DROP arrives; both tell of three packets."""
    before = _outside()
    with _start("--backend", "legacy") as process:
        out, err = process.communicate(timeout=150)

    assert (0, "") == (process.returncode, err)
    told = " ".join(out.split())
    assert "critical NftraceUnexpectedDropInMangle" in told
    summary = f"netns vr2: packets dropped by mangle {CHAIN}, rule 5: -A {CHAIN} -j DROP"
    assert summary in told
    assert f'nftrace_rule_packets_total{{netns="vr2", chain="{CHAIN}"}} 3' in told
    assert "iptables-legacy-save -c 3" in told
    assert before == _outside()


def test_nothing_is_left_of_an_interrupted_watch() -> None:
    """Ctrl-C in the midst of it ends every process that it started; status 130."""
    before = _outside()
    with _start() as process:
        started = nets.wait_until(
            lambda: (found := _below(process.pid)) and "prometheus" in _living(found) and found,
            100,
            "Prometheus",
        )
        process.send_signal(signal.SIGINT)
        status = process.wait(30)
        nets.wait_until(lambda: not _living(started), 10, "the end of what it started")

        assert status == 130
    assert before == _outside()


def test_a_missing_prometheus_is_said_in_one_line(tmp_path: Path) -> None:
    """Without it: one line on standard error with what installs it, and status 3."""
    with _start(path=str(tmp_path)) as process:
        out, err = process.communicate(timeout=60)

    assert (3, "") == (process.returncode, out)
    assert err == (
        "nftrace: prometheus is not installed: `./dev demo --watch` installs it;"
        " elsewhere: apt-get install prometheus\n"
    )


@pytest.mark.parametrize("other", ["--fixed", "--keep"])
def test_a_watch_is_of_the_failing_case_only(other: str) -> None:
    """What follows nothing and ends by itself is neither fixed nor kept: status 2."""
    with _start(other) as process:
        _, err = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "--watch" in err

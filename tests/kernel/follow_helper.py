"""
A real `nftrace follow -o json` beside a test: started, armed, waited for, ended.

    with follow("router", "--dport", "22") as run:
        nets.send_udp("client", "10.1.0.1", 22, 7)
        told = run.finish(7)
    assert told.ways() == {(("filter", "INPUT", 1, "drop"),): 7}
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.kernel import nets

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

__all__ = ["Following", "Speaking", "Told", "Way", "follow", "follow_text", "way"]

_ARM_S = 20.0
_END_S = 30.0
_INTERRUPTED = 130
_CLOCK = re.compile(r"\b\d\d:\d\d:\d\d\.\d{6}\b")
_LATER = re.compile(r"\b\d+\.\d m?s later\b")

_Run = TypeVar("_Run", bound="Following")

#: A journey in short: (table, chain, rule, verdict) of each step, rule None for a policy.
Way = tuple[tuple[str, str, int | None, str], ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What a follow wrote: its journeys in order, its summary, its errors, its exit status."""

    journeys: list[dict[str, Any]]
    summary: dict[str, Any]
    status: int
    errors: str

    def ways(self) -> Counter[Way]:
        """Count the journeys by their steps in short."""
        return Counter(way(journey) for journey in self.journeys)

    def endings(self) -> Counter[tuple[str, str | None]]:
        """Count the journeys by (kind of ending, text of the rule that ended them)."""
        return Counter((j["ending"]["kind"], j["ending"]["text"]) for j in self.journeys)

    def to_port(self, dport: int) -> list[dict[str, Any]]:
        """Return the journeys of packets that were first seen going to *dport*."""
        return [j for j in self.journeys if j["packet"].get("dport") == dport]

    def steps(self, chain: str) -> list[dict[str, Any]]:
        """Return all steps in the chain, of all journeys, in order."""
        return [step for j in self.journeys for step in j["steps"] if step["chain"] == chain]


def way(journey: dict[str, Any]) -> Way:
    """Return a journey in short."""
    return tuple(
        (step["table"], step["chain"], step["rule"], step["verdict"]) for step in journey["steps"]
    )


class Following:
    """A follow that is armed. One of the ways to end it gives what it told."""

    def __init__(self, process: subprocess.Popen[str], output: Path, errors: Path) -> None:
        self.process = process
        self._output = output
        self._errors = errors

    def count_lines(self) -> int:
        """Return how many lines were written so far."""
        return self._output.read_bytes().count(b"\n")

    def has_told(self, words: str) -> bool:
        """Tell whether *words*, as they are in JSON, were written so far."""
        return words in self._output.read_text(encoding="utf-8")

    def finish(self, expected: int, *, wait_s: float = 5.0) -> Told:
        """
        Interrupt it once *expected* journeys were written, or after *wait_s* at the latest.

        What was queued by then is told, too: a test asks for the exact number itself.
        """
        end = time.monotonic() + wait_s
        while self.count_lines() < expected and time.monotonic() < end:
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self, timeout_s: float = _END_S) -> Told:
        """Wait until it ends by itself (--count, --timeout)."""
        status = self.process.wait(timeout_s)
        lines = self._output.read_text(encoding="utf-8").splitlines()
        errors = self._errors.read_text(encoding="utf-8")
        assert lines, f"follow ended with status {status} and told nothing: {errors}"
        *journeys, summary = (json.loads(line) for line in lines)
        assert summary["schema"] == "nftrace.summary/1", (status, errors, summary)
        return Told(journeys, summary, status, errors)


class Speaking(Following):
    """A follow that is armed and tells people: its ends give text."""

    def finish_text(self, last: str, count: int = 1, *, wait_s: float = 20.0) -> str:
        """
        Interrupt it once *last* was written *count* times; return all that it wrote.

        Times of day are replaced by TIME, and differences of time by SOON.
        """

        def is_told() -> bool:
            return self._output.read_text(encoding="utf-8").count(last) >= count

        nets.wait_until(is_told, wait_s, f"{last!r}, {count} times")
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(_END_S) == _INTERRUPTED, self._errors.read_text()
        assert "" == self._errors.read_text(encoding="utf-8")
        text = _CLOCK.sub("TIME", self._output.read_text(encoding="utf-8"))
        return _LATER.sub("SOON", text)


@contextlib.contextmanager
def follow(ns: str, *words: str, armed_in: Sequence[str] = ()) -> Iterator[Following]:
    """
    Run `nftrace follow -o json WORDS` in *ns*; the block begins when it is armed.

    *armed_in* are the namespaces to wait for, by default *ns*. It is killed at the
    end of the block unless it has ended.
    """
    with _run(Following, ns, ("-o", "json", "--ends", "off", *words), armed_in) as run:
        yield run


@contextlib.contextmanager
def follow_text(ns: str, *words: str, armed_in: Sequence[str] = ()) -> Iterator[Speaking]:
    """Run `nftrace follow WORDS` in *ns*, in 100 columns without colour; else as follow()."""
    with _run(Speaking, ns, ("--ends", "off", *words), armed_in) as run:
        yield run


@contextlib.contextmanager
def _run(
    kind: type[_Run], ns: str, words: Sequence[str], armed_in: Sequence[str]
) -> Iterator[_Run]:
    command = (sys.executable, "-m", "tracer.cli.main", "follow", *words)
    environment = {**os.environ, "COLUMNS": "100", "PYTHONUTF8": "1"}
    with tempfile.TemporaryDirectory(prefix="follow-") as folder:
        output, errors = Path(folder, "stdout"), Path(folder, "stderr")
        options = {"cwd": nets.ROOT, "env": environment}
        with (
            output.open("wb") as out,
            errors.open("wb") as err,
            nets.spawn(ns, *command, stdout=out, stderr=err, **options) as process,
        ):
            for name in armed_in or (ns,):
                _wait_armed(process, name, errors)
            yield kind(process, output, errors)


def _wait_armed(process: subprocess.Popen[str], ns: str, errors: Path) -> None:
    def is_armed() -> bool:
        status = process.poll()
        assert status is None, f"follow ended with status {status}: {errors.read_text()}"
        tables = nets.ip_netns_exec(ns, "nft", "list", "tables").stdout
        return f"nftrace_follow_{process.pid}" in tables

    nets.wait_until(is_armed, _ARM_S, f"arming in {ns}")

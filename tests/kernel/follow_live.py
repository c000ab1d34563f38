"""One run of `nftrace follow` beside a test: started, armed, ended, and what it told."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.kernel import nets

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

_ARM_S = 15.0
_END_S = 20.0

#: A step in short: (table, chain, rule number, verdict).
Place = tuple[str, str, int | None, str]


@dataclass
class Live:
    """A follow in the background; after its block *journeys*, *summary* and *status* stand."""

    process: subprocess.Popen[str]
    journeys: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    output: str = ""
    errors: str = ""
    status: int | None = None

    @property
    def table(self) -> str:
        """The name of its arming tables."""
        return f"nftrace_follow_{self.process.pid}"

    def is_armed(self, ns: str) -> bool:
        """Tell whether its arming table stands in *ns*; an end of the run is an error."""
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        return self.table in nets.ip_netns_exec(ns, "nft", "list", "tables").stdout


@contextlib.contextmanager
def follow(
    ns: str, *words: str, armed: tuple[str, ...] = (), form: str = "json", ends: str = "off"
) -> Iterator[Live]:
    """
    Run `nftrace follow -o FORM WORDS` in *ns* for the block, from armed to interrupted.

    *armed* are the namespaces that it arms, by default *ns*. *ends* is --ends's word: what
    becomes of packets behind their last rule is its own tests' matter. A run that ended before
    (`--count`) is not interrupted.
    """
    options = ("-o", form, "--ends", ends, *words)
    command = (sys.executable, "-m", "tracer.cli.main", "follow", *options)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        with nets.spawn(ns, *command, stdout=output) as process:
            live = Live(process)
            for one in armed or (ns,):
                nets.wait_until(lambda one=one: live.is_armed(one), _ARM_S, f"arming {one}")  # type: ignore[misc]
            yield live
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            _, live.errors = process.communicate(timeout=_END_S)
            live.status = process.returncode
        output.seek(0)
        live.output = output.read()
    if form == "json":
        *journeys, live.summary = map(json.loads, live.output.splitlines())
        live.journeys = journeys


def wait_for_lines(live: Live, count: int) -> None:
    """Wait until a run that ends by itself has ended; *count* names what it waits for."""
    nets.wait_until(lambda: live.process.poll() is not None, 10, f"the end after {count}")


def places(journey: dict[str, Any]) -> list[Place]:
    """Return a journey's steps in short."""
    return [(s["table"], s["chain"], s["rule"], s["verdict"]) for s in journey["steps"]]


def endpoints(packet: dict[str, Any]) -> str:
    """Return SRC > DST:PORT of a packet."""
    return f"{packet['src']} > {packet['dst']}:{packet['dport']}"


def changes(journey: dict[str, Any]) -> dict[str, list[Any]]:
    """Return all that a journey's steps changed, by field: the first value and the last."""
    found: dict[str, list[Any]] = {}
    for step in journey["steps"]:
        for name, (before, after) in step["changes"].items():
            found[name] = [found.get(name, [before])[0], after]
    return found

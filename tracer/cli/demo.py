"""`nftrace demo`: the two-router case, built in isolated namespaces and solved."""

from __future__ import annotations

import ipaddress
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from tracer.cli.follow import build_summary, note_ends
from tracer.cli.options import color_option
from tracer.cli.render import JourneyPrinter
from tracer.cli.run import FollowRun
from tracer.cli.sinks import SummarySink, TextSink
from tracer.cli.telling import new_names
from tracer.cli.theme import make_console
from tracer.core.filters import Filter
from tracer.core.summary import SummaryBuilder
from tracer.demo.demo import FOLLOWED_ADDRESS, FOLLOWED_PORT, DemoOptions, run_demo
from tracer.demo.lab import Backend
from tracer.demo.watch import run_watch
from tracer.errors import UsageError
from tracer.sources.follow import Follow, FollowOptions
from tracer.sources.netns import find_namespace
from tracer.sources.trace_socket import DEFAULT_BUFFER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from tracer.core.journey import Journey
    from tracer.pipeline import Chosen, Progress
    from tracer.sources.trace import NamespaceTrace

__all__ = ["demo"]

#: The demo sends a handful of packets: what is kept for its conclusion is bounded all the same.
_KEPT = 1000


@click.command()
@click.option(
    "--backend",
    type=click.Choice([one.value for one in Backend]),
    default=Backend.NFT.value,
    help="whose rules: iptables-legacy, iptables-nft (default) or native nftables",
)
@click.option("--fixed", is_flag=True, help="with the case solved: ssh gets through")
@click.option("--keep", is_flag=True, help="keep the network up until Ctrl-C")
@click.option(
    "--watch", is_flag=True, help="nobody follows: daemon, Prometheus and Alertmanager tell"
)
@color_option
def demo(*, backend: str, fixed: bool, keep: bool, watch: bool, color: str) -> int:
    """Build the two-router case in isolated namespaces and show it being solved."""
    console = make_console(color, file=sys.stdout)
    if watch:
        if fixed or keep:
            raise UsageError("--watch shows the failing case and ends", "leave --fixed and --keep")
        return run_watch(Backend(backend), console)
    options = DemoOptions(Backend(backend), fixed=fixed, keep=keep)
    return run_demo(options, console, lambda: _DemoFollower(console))


class _Kept:
    """A sink that keeps the journeys for the demo's conclusion."""

    def __init__(self, inner: TextSink) -> None:
        self._inner = inner
        self.journeys: list[Journey] = []

    def show(self, trace: NamespaceTrace, chosen: Chosen, first_id: int) -> None:
        names = self._inner.names
        room = max(_KEPT - len(self.journeys), 0)
        self.journeys += names.journeys(trace, chosen.head(room), first_id)
        self._inner.show(trace, chosen, first_id)

    def idle(self, progress: Progress | None) -> None:
        self._inner.idle(progress)

    def finish(self, summary: object) -> None:
        """Left to the text itself."""


class _DemoFollower:
    """`nftrace follow` as the demo runs it."""

    def __init__(self, console: Console) -> None:
        self._wanted = Filter(dst=ipaddress.ip_network(FOLLOWED_ADDRESS), dport=FOLLOWED_PORT)
        names = new_names()
        self._text = TextSink(JourneyPrinter(console), names, several=True)
        self._kept = _Kept(self._text)
        self._builder = SummaryBuilder()
        self._counts = SummarySink(self._builder, names, several=True)
        self._stack = ExitStack()
        self._reason = "interrupted"

    def start(self, namespaces: Sequence[str]) -> None:
        options = FollowOptions(self._wanted, both=False, rate=None, buffer_bytes=DEFAULT_BUFFER)
        found = [find_namespace(name) for name in namespaces]
        self._session = self._stack.enter_context(Follow(found, options))
        self._run = FollowRun(self._session, self._wanted, [self._kept], self._counts, both=False)

    def watch(self, until: Callable[[], bool]) -> None:
        self._reason = self._run.turn(lambda: "attempt over" if until() else None)

    def finish(self) -> Sequence[Journey]:
        with self._stack:
            self._run.drain()
            note_ends(self._session, self._run, self._builder)
            summary = build_summary(self._session, self._builder, self._reason)
            self._text.finish(summary)
        return self._kept.journeys

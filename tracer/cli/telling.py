"""
What a follow tells with: its sinks, and the words that it begins with.

Apart from the command because packets do not wait for it: rendering takes longer to import
than arming takes.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from exporters.pcapng import PcapngWriter
from tracer.cli.passed_over import PassedOver
from tracer.cli.render import JourneyPrinter
from tracer.cli.sinks import CompactSink, JsonSink, Names, PcapSink, SummarySink, TextSink
from tracer.cli.theme import make_console
from tracer.core.summary import SummaryBuilder
from tracer.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

    from rich.console import Console

    from tracer.cli.sinks import Sink
    from tracer.sources.follow import Follow
    from tracer.sources.netns import Netns

__all__ = ["Telling", "new_names"]


class Telling:
    """
    One follow's sinks, from the command line's *words*; *namespaces* were asked for.

    *counts* is the sink that fills *builder*; it is not among *sinks*. Files are closed
    by *stack*. Errors: UsageError and OutputError where a file cannot be written.
    """

    def __init__(
        self,
        words: Mapping[str, Any],
        session: Follow,
        namespaces: Sequence[Netns],
        stack: ExitStack,
    ) -> None:
        names = new_names()
        several = len(namespaces) > 1
        self._namespaces = [one.name for one in namespaces]
        self._words = words
        self._session = session
        self._console = make_console(words["color"], file=sys.stdout)
        self.builder = SummaryBuilder()
        self.counts = SummarySink(self.builder, names, several=several)
        passed = PassedOver(session) if words["verbose"] else None
        self.sinks = _make_sinks(words, self._console, names, stack, several=several, passed=passed)

    def announce(self) -> None:
        """Say what is followed, and what cannot be."""
        _announce(self._words, self._console, self._namespaces, self._session.notes)


def new_names() -> Names:
    """Return this run's names: the host's, and a prefix for ids that no other run has."""
    return Names(socket.gethostname(), os.urandom(5).hex())


def _make_sinks(  # noqa: PLR0913 - one follow's parts
    words: Mapping[str, Any],
    console: Console,
    names: Names,
    stack: ExitStack,
    *,
    several: bool,
    passed: PassedOver | None,
) -> list[Sink]:
    form = words["output"]
    sink: Sink
    if form == "json":
        sink = JsonSink(sys.stdout, names)
    elif form == "compact":
        sink = CompactSink(console, names)
    else:
        printer = JourneyPrinter(console, full=words["full"], passed_over=passed)
        sink = TextSink(printer, names, several=several)
    sinks: list[Sink] = [sink]
    if words["pcap"] is not None:
        sinks.append(PcapSink(PcapngWriter(stack.enter_context(_open(words["pcap"]))), names))
    return sinks


def _open(name: str) -> BinaryIO:
    if name == "-":
        message = "--pcap -: the capture cannot share standard output"
        raise UsageError(message, "name a file")
    try:
        return Path(name).open("wb")
    except OSError as exc:
        message = f"--pcap {name}: {exc.strerror}"
        raise OutputError(message, "name a file that can be written") from exc


def _announce(
    words: Mapping[str, Any], console: Console, names: list[str], notes: list[str]
) -> None:
    """Say what is followed, and what cannot be; JSON has standard output to itself."""
    if words["output"] == "json":
        return
    src = words["src"] or ("" if words["sport"] is None else "any")
    dst = words["dst"] or ("" if words["dport"] is None else "any")
    sides = [
        f"{address}:{port}" if port is not None else address
        for address, port in ((src, words["sport"]), (dst, words["dport"]))
    ]
    what = " ".join(
        part
        for part in (words["proto"] or "", sides[0], f"→ {sides[1]}" if sides[1] else "")
        if part
    )
    both = ", both ways" if words["both"] else ""
    console.print(f"following {what or 'everything'}{both} in {', '.join(names)}; Ctrl-C ends")
    for note in notes:
        console.print(f"note: {note}")
    console.print()
    console.file.flush()

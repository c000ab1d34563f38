"""`nftrace follow`: live journeys of matching packets."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from tracer.cli.options import (
    Seconds,
    color_option,
    filter_options,
    namespaces_of,
    output_option,
    read_filter,
)
from tracer.cli.remote import ask_daemon, daemon_option, wants_daemon
from tracer.cli.run import FollowRun, Interrupts
from tracer.errors import KernelRefusedError
from tracer.settle import MAX_RATE
from tracer.sources.follow import Follow, FollowOptions
from tracer.sources.nf_log import repair, started_at
from tracer.sources.trace_socket import DEFAULT_BUFFER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.core.summary import Summary, SummaryBuilder

__all__ = ["build_summary", "follow", "note_ends"]

_INTERRUPTED = 130
#: So long after its start a follow is armed, whether it sees ends by then or not: packets
#: that are missed are worse than ends that are.
_PATIENCE_S = 0.6


@click.command()
@filter_options
@daemon_option
@click.option("--both", is_flag=True, help="show the replies, too")
@output_option("text", "compact", "json")
@click.option("--count", type=click.IntRange(1), metavar="N", help="end after N packets")
@click.option("--timeout", type=Seconds(0, min_open=True), metavar="S", help="end after S seconds")
@click.option("-v", "--verbose", is_flag=True, help="list the rules that were passed over, too")
@click.option("--full", is_flag=True, help="print every packet whole: fold nothing")
@color_option
@click.option("--pcap", metavar="FILE", help="also write the packets' headers to a capture")
@click.option(
    "--rate",
    type=click.IntRange(0),
    metavar="N",
    help="trace at most N packets a second (0: all; default: 20000 where nothing narrows)",
)
@click.option(
    "--buffer",
    "buffer_mb",
    type=click.IntRange(1, 2048),
    default=DEFAULT_BUFFER >> 20,
    metavar="MB",
    help=f"the trace socket's buffer (default: {DEFAULT_BUFFER >> 20})",
)
@click.option(
    "--ends",
    type=click.Choice(["auto", "wait", "off"]),
    default="auto",
    help="see by eBPF what becomes of packets after their last rule; wait: follow none"
    " before that works (default: auto, which waits half a second)",
)
def follow(**words: Any) -> int:  # noqa: ANN401 - click hands over what its options say
    """Tell each matching packet's way through netfilter, live: every rule, and its end."""
    wanted = read_filter(words)
    if wants_daemon("follow", words):
        return ask_daemon("follow", words, "following packets needs root")
    if os.geteuid() != 0:
        message = "following packets needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN)"
        raise KernelRefusedError(message, "run it with sudo")
    namespaces = namespaces_of(words["netns"])
    for line in repair():
        click.echo(f"repaired after an earlier run: {line}", err=True)
    options = FollowOptions(
        wanted,
        words["both"],
        words["rate"],
        words["buffer_mb"] << 20,
        ends=words["ends"] != "off",
        ends_by_s=_find_deadline_s() if words["ends"] == "auto" else None,
        skip_refused="all" in words["netns"],
    )
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        session = stack.enter_context(Follow(namespaces, options))
        stack.callback(interrupts.hold)
        # Packets are traced by now: nobody waits for what puts them into words.
        telling = import_module("tracer.cli.telling").Telling(words, session, namespaces, stack)
        telling.announce()
        builder, sinks = telling.builder, telling.sinks
        run = FollowRun(
            session, wanted, sinks, telling.counts, both=words["both"], count=words["count"]
        )
        reason = run.turn(_until(interrupts, words["timeout"]))
        run.drain()
        note_ends(session, run, builder)
        summary = build_summary(session, builder, reason)
        for sink in sinks:
            sink.finish(summary)
    for line in session.resisted:
        click.echo(f"nftrace: {line}", err=True)
    if reason == "interrupted":
        return _INTERRUPTED
    return 0 if summary.packets else 1


def _find_deadline_s() -> float:
    """Return until when, by the monotonic clock, arming may wait for what sees ends."""
    lived_s = time.clock_gettime(time.CLOCK_BOOTTIME) - (
        (started_at(os.getpid()) or 0) / os.sysconf("SC_CLK_TCK")
    )
    return time.monotonic() + _PATIENCE_S - lived_s


def build_summary(session: Follow, builder: SummaryBuilder, reason: str) -> Summary:
    """Return the summary of a session that was drained."""
    for note in session.notes:
        builder.note(note)
    for trace in session.traces:
        for error in trace.errors:
            builder.note(error)
    return builder.build(
        events=sum(trace.events for trace in session.traces),
        lost=sum(trace.socket.lost for trace in session.traces),
        over_limit=session.over_limit,
        evicted=sum(trace.evicted for trace in session.traces),
        malformed=sum(trace.malformed for trace in session.traces),
        reason=reason,
    )


def note_ends(session: Follow, run: FollowRun, builder: SummaryBuilder) -> None:
    """Note in the summary which ends were not seen, and why."""
    if session.ends is not None and (lost := session.ends.lost()):
        builder.note(f"{lost} end events lost: some ends were not observed")
    if run.unseen_ends:
        builder.note(
            f"{run.unseen_ends} ends not seen; nobody looks for them"
            f" above {MAX_RATE} packets a second, or in the first moments"
        )


def _until(interrupts: Interrupts, timeout_s: float | None) -> Callable[[], str | None]:
    end_s = None if timeout_s is None else time.monotonic() + timeout_s

    reader = select.poll()
    with contextlib.suppress(OSError, ValueError):  # no standard output, or not a file's
        reader.register(sys.stdout.fileno(), 0)

    def reason() -> str | None:
        if interrupts.reason is not None:
            return interrupts.reason
        # A pipe without a reader: do not wait for the next packet to find out.
        if any(events & select.POLLERR for _, events in reader.poll(0)):
            raise BrokenPipeError
        return "timeout" if end_s is not None and time.monotonic() >= end_s else None

    return reason

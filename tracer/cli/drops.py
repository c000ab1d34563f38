"""`nftrace drops`: where traffic dies, worst first."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click
from rich.live import Live

from tracer.cli.drop_names import RuleNames
from tracer.cli.drop_table import DropRow, render_json, render_table
from tracer.cli.options import namespaces_of
from tracer.cli.remote import ask_daemon, daemon_option, wants_daemon
from tracer.cli.run import Interrupts
from tracer.cli.theme import make_console
from tracer.core.drop_talkers import Talkers
from tracer.core.drops import DropCount, Rung
from tracer.errors import KernelRefusedError
from tracer.sources.drops import CALIBRATE_S, DropSource, Mode
from tracer.sources.netns import all_namespaces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from tracer.sources.netns import Netns

__all__ = ["drops"]

_INTERRUPTED = 130
#: The ring is emptied this often.
_TURN_S = 0.05
#: Above so many records a second only one in a hundred is kept, for the talkers' sake.
_RECORDS_MAX = 50_000
_SAMPLE = 100


@click.command()
@click.option("--netns", metavar="NAME|PID|all", multiple=True, help="only these namespaces")
@click.option("--reason", metavar="NAME", help="only this kernel reason, as NO_SOCKET")
@click.option("--table", metavar="NAME", help="only drops in this table")
@click.option("--chain", metavar="NAME", help="… in this chain")
@click.option("--hook", metavar="NAME", help="… at this hook")
@click.option("--once", is_flag=True, help="watch for one interval, print once, end")
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=2.0,
    metavar="S",
    help="seconds between two tables (default: 2)",
)
@click.option("--timeout", type=click.FloatRange(0.1), metavar="S", help="end after S seconds")
@click.option("--sort", type=click.Choice(["rate", "total"]), default="rate", help="worst by what")
@click.option(
    "--rung", type=click.Choice([r.value for r in Rung]), help="force how drops are named"
)
@click.option(
    "--calibrate",
    type=click.FloatRange(0.1),
    default=CALIBRATE_S,
    metavar="S",
    help=f"prove at most so many seconds how drops are named (default: {CALIBRATE_S:g})",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto")
@daemon_option
def drops(**words: Any) -> int:  # noqa: ANN401 - click hands over what its options say
    """Show where packets die on this machine, live: rule, policy, or the kernel's reason."""
    if wants_daemon(words):
        return ask_daemon("drops", words, "seeing drops needs root")
    if os.geteuid() != 0:
        message = "seeing drops needs root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN)"
        raise KernelRefusedError(message, "run it with sudo")
    everywhere = "all" in words["netns"]
    namespaces = namespaces_of(words["netns"])
    rung = Rung(words["rung"]) if words["rung"] else None
    source = DropSource(namespaces, rung, words["calibrate"])
    source.open()
    with closing(source), Interrupts() as interrupts:
        watch = _Watch(source, words, None if everywhere else namespaces)
        console = make_console(words["color"], file=sys.stdout)
        return watch.run(interrupts, console)


class _Watch:
    """One run of the command: intervals, and what is shown of each."""

    def __init__(
        self, source: DropSource, words: Mapping[str, Any], namespaces: list[Netns] | None
    ) -> None:
        self._source = source
        self._words = words
        self._inodes = None if namespaces is None else {one.inode for one in namespaces}
        self._talkers = Talkers()
        self._names = RuleNames()
        self._before: dict[DropCount, int] = {}
        self._seen = False

    def run(self, interrupts: Interrupts, console: Console) -> int:
        """Show tables until told to end; return the exit status."""
        once, interval_s = self._words["once"], self._words["interval"]
        end_s = time.monotonic() + self._words["timeout"] if self._words["timeout"] else None
        self._source.set_mode(Mode.RECORD)
        live = Live(console=console, auto_refresh=False, transient=False)
        shown_live = self._words["output"] == "text" and not once and console.is_terminal
        if shown_live:
            live.start()
        try:
            while True:
                elapsed_s = self._watch(interval_s, interrupts, end_s)
                rows = self._rows(elapsed_s)
                if self._words["output"] == "json":
                    render_json(sys.stdout, rows, self._source.standing)
                elif shown_live:
                    live.update(self._table(rows, console), refresh=True)
                else:
                    console.print(self._table(rows, console))
                over = end_s is not None and time.monotonic() >= end_s
                if once or over or interrupts.reason is not None:
                    break
        finally:
            live.stop()
        if interrupts.reason == "interrupted":
            return _INTERRUPTED
        return 0 if self._seen else 1

    def _table(self, rows: list[DropRow], console: Console) -> Any:  # noqa: ANN401 - rich's
        return render_table(rows, self._source.losses(), self._source.standing, console)

    def _watch(self, interval_s: float, interrupts: Interrupts, end_s: float | None) -> float:
        """Take records for one interval; return how long it was."""
        start = time.monotonic()
        until = start + interval_s if end_s is None else min(start + interval_s, end_s)
        taken = 0
        self._talkers.forget()
        while time.monotonic() < until and interrupts.reason is None:
            records = self._source.read()
            taken += len(records)
            if len(records):
                self._talkers.add(*self._source.kinds_of(records), records)
            if taken > _RECORDS_MAX * interval_s:
                self._source.set_mode(Mode.SAMPLE, _SAMPLE)
                taken = 0
            time.sleep(min(_TURN_S, max(until - time.monotonic(), 0)))
        return max(time.monotonic() - start, 1e-3)

    def _rows(self, elapsed_s: float) -> list[DropRow]:
        named = {one.inode: one for one in all_namespaces()}
        rows = []
        for count in self._source.counts():
            kind = count.kind_only
            since = count.packets - self._before.get(kind, 0)
            self._before[kind] = count.packets
            if not self._is_wanted(count):
                continue
            self._seen = True
            namespace = named.get(count.netns)
            rule = self._names.find(namespace, count)
            name = namespace.name if namespace else f"net:[{count.netns}]"
            talkers = self._talkers.top(kind)
            rows.append(DropRow(count, name, since / elapsed_s, since, rule, talkers))
        worst = (lambda row: row.rate) if self._words["sort"] == "rate" else _total
        return sorted(rows, key=lambda row: (worst(row), row.count.packets), reverse=True)

    def _is_wanted(self, count: DropCount) -> bool:
        if self._inodes is not None and count.netns not in self._inodes:
            return False
        wanted = ((self._words[name], getattr(count, name)) for name in ("table", "chain", "hook"))
        if any(word is not None and word != has for word, has in wanted):
            return False
        reason = self._words["reason"]
        return reason is None or reason.upper() == count.reason


def _total(row: DropRow) -> float:
    return row.count.packets

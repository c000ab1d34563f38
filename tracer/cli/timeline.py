"""`nftrace timeline`: what happened, from the log."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tracer.cli.log_options import log_option, open_log, read_selection, tell_problems, time_options
from tracer.cli.options import color_option, filter_options, output_option
from tracer.cli.times import read_time
from tracer.errors import OutputError, UsageError

if TYPE_CHECKING:
    from exporters.log.select import Selection
    from tracer.core.timeline_events import Timeline

__all__ = ["timeline"]

#: What `--around` looks at on both sides.
_AROUND_NS: Final = 15 * 60 * 1_000_000_000


@click.command()
@filter_options
@time_options
@click.option("--around", metavar="TIME", help="a quarter of an hour before and after that time")
@log_option
@output_option("text", "json")
@click.option("--html", "page", metavar="FILE", help="write it as one page with pictures, too")
@color_option
def timeline(**words: Any) -> int:  # noqa: ANN401 - click's
    """Tell when it began, what changed just before, what died where, and whether it is over."""
    selection = _selection(words)
    with open_log(words["log_directory"], is_steady=True) as reader:
        from tracer.cli.timeline_evidence import read_evidence  # noqa: PLC0415 - numpy, duckdb

        evidence = read_evidence(reader, selection)
        told = None if evidence is None else _build(evidence)
        tell_problems(reader)
    if told is None:
        click.echo(f"the log {words['log_directory']} is empty", err=True)
        return 1
    if words["page"]:
        _write_page(words["page"], told, _asked(words))
    _print(told, words)
    return 0 if told.killers or told.changes else 1


def _selection(words: dict[str, Any]) -> Selection:
    if words["around"] is None:
        return read_selection(words)
    if words["since"] or words["until"]:
        raise UsageError("--around says both ends of the time", "leave out --since and --until")
    around = read_time("--around", words["around"], datetime.now().astimezone()) or 0
    selection = read_selection(words)
    return replace(selection, since_ns=around - _AROUND_NS, until_ns=around + _AROUND_NS)


def _build(evidence: Any) -> Timeline:  # noqa: ANN401 - imported when it is needed
    from tracer.core.timeline import build_timeline  # noqa: PLC0415 - as above

    return build_timeline(evidence)


def _asked(words: dict[str, Any]) -> str:
    """Return what was asked for, in the words in which it was."""
    packet = ("proto", "src", "sport", "dst", "dport")
    names = (*packet, "in_device", "out_device", "table", "chain", "hook", "verdict")
    told = [f"--{name.removesuffix('_device')} {words[name]}" for name in names if words[name]]
    told += [f"--netns {name}" for name in words["netns"]]
    return " ".join(told) or "everything"


def _print(told: Timeline, words: dict[str, Any]) -> None:
    from tracer.cli.theme import make_console, symbols_for  # noqa: PLC0415 - rich is slow

    if words["output"] == "json":
        from exporters.timeline_json import render_timeline  # noqa: PLC0415 - only one is used

        sys.stdout.write(render_timeline(told) + "\n")
        return
    from tracer.cli.timeline_text import TimelinePrinter  # noqa: PLC0415 - the same
    from tracer.core.timeline_words import Clock  # noqa: PLC0415 - the same

    clock = Clock(None, told.since_ns, told.until_ns)
    console = make_console(words["color"], file=sys.stdout)
    span = f"{clock.day(told.since_ns)} to {clock.day(told.until_ns)}"
    if not told.killers:
        console.print(f"no drop of {_asked(words)} from {span}")
    else:
        console.print(f"{_asked(words)}, {span}", style="dim")
    TimelinePrinter(console, symbols_for(console), told, clock).show()


def _write_page(path: str, told: Timeline, asked: str) -> None:
    from exporters.html import render_page  # noqa: PLC0415 - only where it is asked for

    try:
        Path(path).write_text(render_page(told, asked), encoding="utf-8")
    except OSError as exc:
        message = f"the page {path} cannot be written ({exc.strerror})"
        raise OutputError(message, "name a file that can be") from exc

"""What the commands that read the log share: where it is, and which part of it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tracer.cli.options import read_filter
from tracer.cli.times import read_time
from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exporters.log.reader import LogReader
    from exporters.log.select import Selection

__all__ = [
    "LOG_DIRECTORY",
    "log_option",
    "open_log",
    "read_selection",
    "tell_problems",
    "time_options",
]

#: Where the daemon writes unless told.
LOG_DIRECTORY: Final = "/var/lib/nftrace/log"

#: Files that are named one by one; a wrong folder has many.
_PROBLEMS: Final = 10

Command = TypeVar("Command", bound="Callable[..., Any]")


def log_option(command: Command) -> Command:
    """Give a command the option that names the log."""
    return click.option(
        "--log",
        "log_directory",
        metavar="DIR",
        default=LOG_DIRECTORY,
        help=f"the log's folder, also a copy of one (default: {LOG_DIRECTORY})",
    )(command)


def time_options(command: Command) -> Command:
    """Give a command the options that narrow the time."""
    until = click.option("--until", metavar="TIME", help="… and not after that")
    since = click.option(
        "--since", metavar="TIME", help="not before: 17:22, yesterday, 5m (ago), or a date"
    )
    return since(until(command))


def open_log(directory: str, *, is_steady: bool = False) -> LogReader:
    """
    Return a reader of the log; *is_steady*: times as its clock was last set, else as written.

    Errors: OutputError where there is none or it may not be read, UsageError for no name.
    """
    if not directory:
        raise UsageError("--log names no folder", "give a log's, or leave it out")
    from exporters.log.reader import LogReader  # noqa: PLC0415 - 0.2 s that others need not wait

    return LogReader(Path(directory), is_steady=is_steady)


def read_selection(words: Mapping[str, Any]) -> Selection:
    """
    Return what the filter's words, the namespaces and the times choose.

    Errors: UsageError that names the word which is wrong.
    """
    from exporters.log.select import Selection  # noqa: PLC0415 - as above

    now = datetime.now().astimezone()
    since = read_time("--since", words["since"], now)
    until = read_time("--until", words["until"], now)
    if since is not None and until is not None and since > until:
        message = f"--since {words['since']} is after --until {words['until']}"
        raise UsageError(message, "exchange them")
    named = () if "all" in words["netns"] else tuple(words["netns"])
    return Selection(read_filter(words), since, until, named)


def tell_problems(reader: LogReader) -> None:
    """Say on standard error what of the log could not be told; a torn end is no news."""
    told = [one for one in reader.problems if one.kind != "torn"]
    if not told:
        return
    from tracer.cli.render_safe import escape  # noqa: PLC0415 - rich is slow

    for problem in told[:_PROBLEMS]:
        # A name is whatever somebody could give a file.
        said = escape(f"{problem.name}: {problem.kind}: {problem.what}")
        click.echo(f"nftrace: {said}", err=True)
    if len(told) > _PROBLEMS:
        click.echo(f"nftrace: … and {len(told) - _PROBLEMS:,} more such files", err=True)

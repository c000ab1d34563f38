"""`nftrace blame`: who brought a rule, when, what it was before, and what it dropped since."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tracer.cli.log_options import log_option, open_log, read_selection, tell_problems, time_options
from tracer.cli.options import color_option, output_option
from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exporters.log.reader import LogReader
    from tracer.core.timeline_blame import Blame

__all__ = ["blame"]

_NO_WORDS = dict.fromkeys(
    ("src", "dst", "sport", "dport", "proto", "in_device", "out_device", "hook", "verdict")
)


@click.command()
@click.argument("table")
@click.argument("chain", required=False)
@click.argument("rule", required=False, type=click.IntRange(1))
@click.option("--netns", metavar="NAME", multiple=True, help="in this namespace (default: all)")
@time_options
@log_option
@output_option("text", "json")
@color_option
def blame(  # noqa: PLR0913 - click's
    *,
    table: str,
    chain: str | None,
    rule: int | None,
    netns: tuple[str, ...],
    since: str | None,
    until: str | None,
    log_directory: str,
    output: str,
    color: str,
) -> int:
    """
    Say of each rule of TABLE (or of one CHAIN, or of the RULE of that number) who brought it.

    TABLE is a name, or family and name in quotes: "ip6 filter".
    """
    if not table.strip():
        raise UsageError("TABLE names no table", "give a name, as filter, or `inet filter`")
    words = {"netns": netns, "since": since, "until": until}
    with open_log(log_directory, is_steady=True) as reader:
        found = _find(reader, (table, chain, rule), words)
        tell_problems(reader)
    if not found:
        raise UsageError(
            f"the log {log_directory} has no rule of {_wanted(table, chain, rule)}", _REMEDY
        )
    if output == "json":
        from exporters.timeline_json import render_blame  # noqa: PLC0415 - only one is used

        for one in found:
            sys.stdout.write(json.dumps(render_blame(one), separators=(",", ":")) + "\n")
        return 0
    from tracer.cli.blame_text import show_blame  # noqa: PLC0415 - rich is slow
    from tracer.cli.theme import make_console  # noqa: PLC0415 - the same

    show_blame(make_console(color, file=sys.stdout), found)
    return 0


_REMEDY = "`nftrace timeline` shows which tables changed; rules are in the log from its start on"


def _wanted(table: str, chain: str | None, rule: int | None) -> str:
    parts = [f"table {table}"]
    parts += [f"chain {chain}"] * (chain is not None) + [f"rule {rule}"] * (rule is not None)
    return ", ".join(parts)


def _find(
    reader: LogReader, wanted: tuple[str, str | None, int | None], words: Mapping[str, Any]
) -> Sequence[Blame]:
    from tracer.cli.timeline_evidence import read_evidence  # noqa: PLC0415 - numpy, duckdb
    from tracer.core.timeline_blame import find_blame  # noqa: PLC0415 - the same

    table, chain, rule = wanted
    selection = read_selection({**_NO_WORDS, **words, "table": table.split()[-1], "chain": None})
    # Drops before the window are not asked for, changes before it are.
    evidence = read_evidence(reader, replace(selection))
    if evidence is None:
        return ()
    return find_blame(evidence, table, chain, rule)

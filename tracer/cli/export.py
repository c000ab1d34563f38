"""`nftrace export`: the log, or a part of it, in a form that other tools read."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from tracer.cli.log_options import (
    log_option,
    open_log,
    read_selection,
    tell_problems,
    time_options,
)
from tracer.cli.options import filter_options
from tracer.core.filters import Filter
from tracer.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from exporters.anonymize import Anonymizer
    from exporters.log.export import LogExport

__all__ = ["export"]

_TABLES = ("drops", "journeys", "changes", "losses")
_FORMS = ("json", "csv", "parquet", "pcap")


@click.command()
@filter_options
@time_options
@log_option
@click.option("--json", metavar="FILE", help="one object a line; - is standard output")
@click.option("--csv", metavar="FILE", help="one table with a head; - is standard output")
@click.option("--parquet", metavar="FILE", help="one table, as the log has it")
@click.option("--pcap", metavar="FILE", help="the packets' headers, their way as comment")
@click.option(
    "--events",
    type=click.Choice(_TABLES),
    multiple=True,
    help="what of it; may be repeated (default: all, in a table drops)",
)
@click.option("--anonymize", is_flag=True, help="other addresses, their prefixes kept")
@click.option(
    "--anonymize-key", metavar="FILE", help="32 bytes: the same addresses with each export"
)
def export(**words: Any) -> int:  # noqa: ANN401 - click hands over what its options say
    """Write events of the log to files: JSON lines, CSV, Parquet, or a capture."""
    forms = [form for form in _FORMS if words[form] is not None]
    if not forms:
        raise UsageError("nothing to write to", "give --json, --csv, --parquet or --pcap FILE")
    if sum(words[form] == "-" for form in forms) > 1:
        raise UsageError("two forms cannot share standard output", "name a file for one of them")
    selection = read_selection(words)
    tables = {form: _tables(form, words["events"], selection.filter) for form in forms}
    anonymizer = _anonymizer(words)
    from exporters.log.export import LogExport  # noqa: PLC0415 - pyarrow, duckdb: 0.2 s

    rows, passed_over = 0, 0
    with open_log(words["log_directory"]) as reader:
        for form in forms:
            one = LogExport(reader, selection, anonymizer)
            _write(one, form, words[form], tables[form])
            rows = max(rows, one.rows)
            passed_over = max(passed_over, one.passed_over)
        tell_problems(reader)
    more = f", {passed_over:,} more are no IP packets" if passed_over else ""
    click.echo(f"{rows:,} events written{more}", err=True)
    return 0 if rows else 1


def _tables(form: str, asked: Sequence[str], wanted: Filter) -> tuple[str, ...]:
    if form == "json":
        # A filter's words choose among packets alone.
        return tuple(asked) or (_TABLES if wanted == Filter() else ("drops", "journeys"))
    if form == "pcap":
        if set(asked) - {"drops", "journeys"}:
            message = "--pcap: changes and losses are no packets"
            raise UsageError(message, "give --events drops or journeys")
        return tuple(asked) or ("drops", "journeys")
    if len(asked) > 1:
        raise UsageError(f"--{form} holds one table", "give --events once, or --json")
    return tuple(asked) or ("drops",)


def _anonymizer(words: Mapping[str, Any]) -> Anonymizer | None:
    name = words["anonymize_key"]
    if not words["anonymize"] and name is None:
        return None
    from exporters.anonymize import Anonymizer  # noqa: PLC0415 - seldom wanted

    try:
        return Anonymizer(None if name is None else Path(name).read_bytes())
    except OSError as exc:
        message = f"--anonymize-key {name}: {exc.strerror}"
        raise UsageError(message, "make one with `head -c 32 /dev/urandom > FILE`") from exc
    except ValueError as exc:
        message = f"--anonymize-key {name}: {exc}"
        raise UsageError(message, "make one with `head -c 32 /dev/urandom > FILE`") from exc


def _write(one: LogExport, form: str, name: str, tables: Sequence[str]) -> None:
    if form in {"json", "csv"}:
        with _text_file(form, name) as out:
            if form == "json":
                one.json(out, tables)
            else:
                one.csv(out, tables[0])
        return
    if name == "-":
        raise UsageError(f"--{form} -: it is no text", "name a file")
    with _opened(form, name, "wb") as file:
        if form == "parquet":
            one.parquet(file, tables[0])
            return
        from exporters.pcapng import PcapngWriter  # noqa: PLC0415 - as the form asks
        from tracer.cli.render_compact import render_compact  # noqa: PLC0415

        one.pcap(PcapngWriter(file), tables, render_compact)


@contextlib.contextmanager
def _text_file(form: str, name: str) -> Iterator[IO[str]]:
    if name == "-":
        yield sys.stdout
        return
    with _opened(form, name, "w") as file:
        yield file


@contextlib.contextmanager
def _opened(form: str, name: str, mode: str) -> Iterator[Any]:
    encoding = None if "b" in mode else "utf-8"
    try:
        with Path(name).open(mode, encoding=encoding) as file:
            yield file
    except OSError as exc:
        message = f"--{form} {name}: {exc.strerror}"
        raise OutputError(message, "name a file that can be written, with room for it") from exc

"""`nftrace show`: one journey from the log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tracer.cli.log_options import log_option, open_log, tell_problems
from tracer.cli.options import color_option, output_option
from tracer.errors import NftraceError, UsageError

if TYPE_CHECKING:
    from exporters.log.reader import LogReader
    from tracer.core.journey import Journey

__all__ = ["show"]

#: The same packet in other namespaces is not further away than this.
_NEAR_NS = 2_000_000_000
#: Ids that are named where one is meant.
_NAMED = 5


@click.command()
@click.argument("journey_id", metavar="ID")
@log_option
@output_option("text", "compact", "json")
@color_option
def show(journey_id: str, log_directory: str, output: str, color: str) -> int:
    """
    Tell one packet's way from the log, as follow would have: through all namespaces.

    ID may be the beginning of one, if it is no other's.
    """
    with open_log(log_directory) as reader:
        stored = reader.journey(_whole(reader, journey_id))
        if stored is None:
            tell_problems(reader)
            message = f"the log {log_directory} has no journey {journey_id or 'without an id'}"
            there = reader.journey_ids("", _NAMED)
            remedy = f"there are {', '.join(there)}, …" if there else "it holds no journeys"
            raise NftraceError(message, f"{remedy}: `nftrace export --json -` lists what it has")
        packet = _packet(reader, stored.journey) if output == "text" else [stored.journey]
        tell_problems(reader)
    _print(packet, output, color)
    return 0


def _whole(reader: LogReader, journey_id: str) -> str:
    """Return the one id that begins so, or what was given."""
    found = reader.journey_ids(journey_id, _NAMED) if journey_id else []
    if len(found) > 1 and journey_id not in found:
        message = f"{journey_id} is the beginning of {', '.join(found)}"
        raise UsageError(message, "give more of it")
    return found[0] if len(found) == 1 else journey_id


def _packet(reader: LogReader, journey: Journey) -> list[Journey]:
    """Return the journeys of the packet that *journey* is a part of."""
    from exporters.log.select import Selection  # noqa: PLC0415 - pyarrow, duckdb: 0.2 s
    from tracer.pipeline import Joiner  # noqa: PLC0415 - the same

    near = Selection(since_ns=journey.start_ns - _NEAR_NS, until_ns=journey.start_ns + _NEAR_NS)
    joiner = Joiner(hold=True)
    packets: list[list[Journey]] = []
    for stored in reader.journeys(near):
        if stored.journey.fingerprint == journey.fingerprint:
            packets += joiner.add(stored.journey)
    packets += joiner.take()
    return next(
        (packet for packet in packets if any(one.id == journey.id for one in packet)), [journey]
    )


def _print(packet: list[Journey], output: str, color: str) -> None:
    from exporters.json_lines import render_journey  # noqa: PLC0415 - only one of them is used
    from tracer.cli.render import JourneyPrinter  # noqa: PLC0415
    from tracer.cli.render_compact import render_compact  # noqa: PLC0415
    from tracer.cli.theme import make_console, symbols_for  # noqa: PLC0415

    if output == "json":
        sys.stdout.write(render_journey(packet[0]) + "\n")
        return
    console = make_console(color, file=sys.stdout)
    if output == "compact":
        symbols = symbols_for(console)
        colored = console.color_system is not None
        sys.stdout.write(render_compact(packet[0], color=colored, symbols=symbols) + "\n")
        return
    JourneyPrinter(console, full=True).show(packet)

"""`nftrace show`: one journey from the log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tracer.cli.log_options import log_option, open_log, tell_problems
from tracer.cli.options import color_option, output_option
from tracer.errors import NftraceError

if TYPE_CHECKING:
    from exporters.log.reader import LogReader
    from tracer.core.journey import Journey

__all__ = ["show"]

#: The same packet in other namespaces is not further away than this.
_NEAR_NS = 2_000_000_000


@click.command()
@click.argument("journey_id", metavar="ID")
@log_option
@output_option("text", "compact", "json")
@color_option
def show(journey_id: str, log_directory: str, output: str, color: str) -> int:
    """Tell one packet's way from the log, as follow would have: through all namespaces."""
    with open_log(log_directory) as reader:
        stored = reader.journey(journey_id)
        if stored is None:
            tell_problems(reader)
            message = f"the log {log_directory} has no journey {journey_id}"
            raise NftraceError(message, "take the id from `nftrace export --json -`")
        packet = _packet(reader, stored.journey) if output == "text" else [stored.journey]
        tell_problems(reader)
    _print(packet, output, color)
    return 0


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

"""
Where journeys go: lines of JSON, compact lines, text, a capture file.

A sink gets rows as columns. The JSON and the compact form make a line from the columns and
the path's constant text; only what is told at length becomes a value.
"""

from __future__ import annotations

from collections import Counter
from typing import IO, TYPE_CHECKING, Protocol

from exporters.json_lines import (
    JourneyTemplate,
    packet_format,
    render_packet,
    render_start,
    render_summary,
)
from tracer.cli.render_compact import (
    CompactTemplate,
    journey_note,
    packet_columns,
    render_compact,
)
from tracer.cli.render_packet import clock_text, peer
from tracer.cli.render_summary import render_summary_text
from tracer.cli.theme import symbols_for
from tracer.core.packet_text import packet_value, render_addresses, render_tcp_flags
from tracer.pipeline import Joiner, make_journey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from exporters.pcapng import PcapngWriter
    from tracer.cli.render import JourneyPrinter
    from tracer.core.journey import Journey
    from tracer.core.paths import Path
    from tracer.core.summary import Summary, SummaryBuilder
    from tracer.pipeline import Chosen, Progress
    from tracer.sources.trace import NamespaceTrace

__all__ = ["CompactSink", "JsonSink", "Names", "PcapSink", "Sink", "SummarySink", "TextSink"]

_TCP, _UDP = 6, 17
_FAMILIES = {4: "ipv4", 6: "ipv6"}
_PORTS = ("src", "sport", "dst", "dport", "length", "ttl")
_FIELDS = {
    (4, _TCP): (*_PORTS, "ip_id", "tcp_flags", "tcp_seq"),
    (6, _TCP): (*_PORTS, "tcp_flags", "tcp_seq"),
    (4, _UDP): (*_PORTS, "ip_id"),
    (6, _UDP): _PORTS,
}
_FORMATS = {
    kind: packet_format(_FAMILIES[kind[0]], "tcp" if kind[1] == _TCP else "udp", names)
    for kind, names in _FIELDS.items()
}

#: Rendered paths that are remembered, 5 KB each; emptied when full.
_TEMPLATES = 16_384


class Sink(Protocol):
    """Takes journeys of one namespace as they end."""

    def show(self, trace: NamespaceTrace, chosen: Chosen, first_id: int) -> None:
        """Take rows in; row i is journey number `first_id + i` of the run."""

    def idle(self, progress: Progress | None) -> None:
        """Give out what waited long enough by now, after each turn; all if it is None."""

    def finish(self, summary: Summary) -> None:
        """End the output."""


class Names:
    """What journeys are called in this run: the host, and ids that no other run uses."""

    def __init__(self, host: str, run: str) -> None:
        self.host = host
        self.run = run

    def journey_id(self, number: int) -> str:
        """Return the id of the run's journey *number*."""
        return f"{self.run}{number:08x}"

    def journeys(self, trace: NamespaceTrace, chosen: Chosen, first_id: int) -> Iterator[Journey]:
        """Make values of rows."""
        for row in range(len(chosen)):
            yield self.journey(trace, chosen, row, first_id + row)

    def journey(self, trace: NamespaceTrace, chosen: Chosen, row: int, number: int) -> Journey:
        """Make a value of one row."""
        return make_journey(
            chosen,
            row,
            journey_id=self.journey_id(number),
            host=self.host,
            netns=trace.namespace.name,
            device=trace.device,
        )


def _plain_rows(chosen: Chosen) -> list[bool]:
    """Tell which rows are TCP or UDP with all of their header: most, and quick to write."""
    packets = chosen.packets
    tcp = (packets["proto"] == _TCP) & (packets["transport_length"] >= 14)  # noqa: PLR2004
    udp = (packets["proto"] == _UDP) & (packets["transport_length"] >= 4)  # noqa: PLR2004
    plain: list[bool] = ((packets["family"] != 0) & (tcp | udp)).tolist()
    return plain


def _columns(
    chosen: Chosen,
) -> Iterator[tuple[int, int, str, int, str, int, int, int, int, int, int]]:
    packets = chosen.packets
    names = ("sport", "dport", "length", "ttl", "ip_id", "tcp_flags", "seq")
    numbers = {name: packets[name].tolist() for name in names}
    yield from zip(
        packets["family"].tolist(),
        packets["proto"].tolist(),
        render_addresses(packets["family"], packets["src"]),
        numbers["sport"],
        render_addresses(packets["family"], packets["dst"]),
        numbers["dport"],
        numbers["length"],
        numbers["ttl"],
        numbers["ip_id"],
        numbers["tcp_flags"],
        numbers["seq"],
        strict=True,
    )


class JsonSink:
    """Writes `nftrace.journey/1`, one object a line, flushed with each batch."""

    def __init__(self, out: IO[str], names: Names) -> None:
        self._out = out
        self.names = names
        self._templates: dict[Path, JourneyTemplate] = {}

    def show(self, trace: NamespaceTrace, chosen: Chosen, first_id: int) -> None:
        """Write the rows."""
        lines = []
        fingerprints = chosen.packets["fingerprint"].tolist()
        lasted = chosen.lasted_us
        special = ~chosen.complete | ~chosen.whole | (chosen.lost != 0)
        if lasted is not None:
            special |= lasted >= 0
        starts = _cached(render_start, chosen.started_ns)
        rows = zip(
            _columns(chosen),
            _plain_rows(chosen),
            chosen.paths,
            fingerprints,
            starts,
            special.tolist(),
            strict=True,
        )
        run = self.names.run
        for row, (columns, plain, path, fingerprint, start, odd) in enumerate(rows):
            template = self._templates.get(path)
            if template is None:
                template = self._add(trace, chosen, row, first_id + row)
            packet = (
                _json_packet(columns) if plain else render_packet(packet_value(chosen.packets[row]))
            )
            identity = (f"{run}{first_id + row:08x}", f"{fingerprint:016x}", start, packet)
            if odd:
                lines.append(
                    template.line_in_full(
                        *identity,
                        complete=bool(chosen.complete[row]),
                        lost=int(chosen.lost[row]),
                        whole=bool(chosen.whole[row]),
                        duration_us=_duration(lasted, row),
                    )
                )
            else:
                lines.append(template.line(*identity))
        lines.append("")
        self._out.write("\n".join(lines))
        self._out.flush()

    def idle(self, progress: Progress | None) -> None:
        """Nothing waits."""

    def finish(self, summary: Summary) -> None:
        """Write the summary's line."""
        self._out.write(render_summary(summary) + "\n")
        self._out.flush()

    def _add(self, trace: NamespaceTrace, chosen: Chosen, row: int, number: int) -> JourneyTemplate:
        if len(self._templates) >= _TEMPLATES:
            self._templates.clear()
        template = JourneyTemplate(self.names.journey(trace, chosen, row, number))
        self._templates[chosen.paths[row]] = template
        return template


def _duration(lasted_us: npt.NDArray[np.int64] | None, row: int) -> int | None:
    if lasted_us is None or lasted_us[row] < 0:
        return None
    return int(lasted_us[row])


def _json_packet(columns: tuple[int, int, str, int, str, int, int, int, int, int, int]) -> str:
    family, proto, src, sport, dst, dport, length, ttl, ip_id, flags, seq = columns
    common = (f'"{src}"', sport, f'"{dst}"', dport, length, ttl)
    tcp = (f'"{render_tcp_flags(flags)}"', seq) if proto == _TCP else ()
    with_id = (ip_id,) if family == 4 else ()  # noqa: PLR2004 - an IP version
    return _FORMATS[family, proto] % (*common, *with_id, *tcp)


def _cached(
    render: Callable[[int], str], times: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> list[str]:
    """Render each distinct time once: a batch has one."""
    known: dict[int, str] = {}
    out = []
    for time_ns in times.tolist():
        text = known.get(time_ns)
        if text is None:
            text = known[time_ns] = render(time_ns)
        out.append(text)
    return out


class CompactSink:
    """Writes one readable line a journey."""

    def __init__(self, console: Console, names: Names) -> None:
        self._console = console
        self._out = console.file
        self.names = names
        self._color = console.color_system is not None
        self._symbols = symbols_for(console)
        self._templates: dict[Path, CompactTemplate] = {}

    def show(self, trace: NamespaceTrace, chosen: Chosen, first_id: int) -> None:
        """Write the rows."""
        lines = []
        clocks = _cached(lambda one: clock_text(one, None), chosen.started_ns)
        special = (~chosen.complete | ~chosen.whole).tolist()
        arrow = self._symbols.arrow
        rows = zip(
            _columns(chosen), _plain_rows(chosen), chosen.paths, clocks, special, strict=True
        )
        for row, (columns, plain, path, clock, odd) in enumerate(rows):
            template = self._templates.get(path)
            if template is None:
                template = self._add(trace, chosen, row, first_id + row)
            if plain:
                shown = _compact_columns(columns, arrow)
                now = template.translated(*columns[2:6]) if template.translates else ""
            else:
                packet = packet_value(chosen.packets[row])
                shown = packet_columns(packet, self._symbols)
                now = template.translated(packet.src, packet.sport, packet.dst, packet.dport)
            note = ""
            if odd:
                note = journey_note(self.names.journey(trace, chosen, row, first_id + row))
            lines.append(template.line(clock, shown, now + note))
        lines.append("")
        self._out.write("\n".join(lines))
        self._out.flush()

    def idle(self, progress: Progress | None) -> None:
        """Nothing waits."""

    def finish(self, summary: Summary) -> None:
        """Write the summary, set off by an empty line."""
        self._console.print()
        for line in render_summary_text(summary, self._console.width, self._symbols):
            self._console.print(line, soft_wrap=True)

    def _add(self, trace: NamespaceTrace, chosen: Chosen, row: int, number: int) -> CompactTemplate:
        if len(self._templates) >= _TEMPLATES:
            self._templates.clear()
        journey = self.names.journey(trace, chosen, row, number)
        template = CompactTemplate(journey, color=self._color, symbols=self._symbols)
        self._templates[chosen.paths[row]] = template
        return template


def _compact_columns(
    columns: tuple[int, int, str, int, str, int, int, int, int, int, int], arrow: str
) -> str:
    family, proto, src, sport, dst, dport, *_, flags, _seq = columns
    if family == 4:  # noqa: PLR2004 - an IP version
        one, two = f"{src}:{sport}", f"{dst}:{dport}"
    else:
        one, two = peer(src, sport), peer(dst, dport)
    if proto == _TCP:
        return f"tcp   {render_tcp_flags(flags) or '-':<2} {one:<21} {arrow} {two:<21}"
    return f"udp   -  {one:<21} {arrow} {two:<21}"


class TextSink:
    """Tells packets at length, joined over the namespaces."""

    def __init__(self, printer: JourneyPrinter, names: Names, *, several: bool) -> None:
        self._printer = printer
        self.names = names
        self._joiner = Joiner(hold=several)

    def show(self, trace: NamespaceTrace, chosen: Chosen, first_id: int) -> None:
        """Take the rows in and print the packets that are over."""
        for journey in self.names.journeys(trace, chosen, first_id):
            for packet in self._joiner.add(journey):
                self._printer.show(packet)

    def idle(self, progress: Progress | None) -> None:
        """Print the packets that nothing more came of."""
        for packet in self._joiner.take(progress):
            self._printer.show(packet)

    def finish(self, summary: Summary) -> None:
        """Print the summary."""
        self._printer.finish(summary)


class PcapSink:
    """Writes each journey's headers, with its compact line as comment, into a capture."""

    def __init__(self, writer: PcapngWriter, names: Names) -> None:
        self._writer = writer
        self.names = names

    def show(self, trace: NamespaceTrace, chosen: Chosen, first_id: int) -> None:
        """Write the rows."""
        for row, journey in enumerate(self.names.journeys(trace, chosen, first_id)):
            packet = chosen.packets[row]
            raw = packet["raw"].tobytes()
            network = raw[: int(packet["network_length"])]
            transport = raw[40 : 40 + int(packet["transport_length"])]
            comment = render_compact(journey)
            self._writer.write(journey, network, transport, comment)
        self._writer.flush()

    def idle(self, progress: Progress | None) -> None:
        """Nothing waits."""

    def finish(self, summary: Summary) -> None:  # noqa: ARG002 - a sink's
        """Write what is left."""
        self._writer.flush()


class SummarySink:
    """Counts packets by where they ended; a packet ends in the last namespace it was seen in."""

    def __init__(self, builder: SummaryBuilder, names: Names, *, several: bool) -> None:
        self._builder = builder
        self.names = names
        self._several = several
        self._joiner = Joiner(hold=several)
        self.packets = 0

    def show(self, trace: NamespaceTrace, chosen: Chosen, first_id: int) -> None:
        """Count the rows."""
        if self._several:
            for journey in self.names.journeys(trace, chosen, first_id):
                for packet in self._joiner.add(journey):
                    self._count(packet)
            return
        for path, count in Counter(chosen.paths).items():
            passing = path.comes_again
            self.packets += 0 if passing else count
            self._builder.add_many(trace.namespace.name, path.ending, count, passing=passing)
        self._builder.add_flaws(
            incomplete=int((~chosen.complete).sum()), began_late=int((~chosen.whole).sum())
        )

    def idle(self, progress: Progress | None) -> None:
        """Count the packets that nothing more came of."""
        for packet in self._joiner.take(progress):
            self._count(packet)

    def finish(self, summary: Summary) -> None:
        """Nothing to do: the summary is made of these counts."""

    def _count(self, packet: list[Journey]) -> None:
        self.packets += 1
        for journey in packet[:-1]:
            self._builder.add(journey, packets=0)
        self._builder.add(packet[-1])

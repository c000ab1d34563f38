"""
Packets and their journeys told to people, in the order in which they come.

A packet that goes a way of its own is told whole; one that went as an earlier packet did
takes one line, and when there are many of those, one line for every ten, hundred,
thousand. All text that came from elsewhere passes through `render_safe.escape`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracer.cli import theme
from tracer.cli.render_ending import ending_parts
from tracer.cli.render_fold import WAYS_REMEMBERED, Replies, Ways, flow_of
from tracer.cli.render_packet import clock_text, date_text, packet_word, peer
from tracer.cli.render_safe import Part, cells, escape, wrap
from tracer.cli.render_steps import StepRows
from tracer.cli.render_summary import render_summary_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import tzinfo

    from rich.console import Console

    from tracer.cli.render_fold import Way
    from tracer.core.journey import Journey, Packet
    from tracer.core.ruleset import Rule
    from tracer.core.summary import Summary

__all__ = ["JourneyPrinter"]

#: Packets of one way that get a line each before only every tenth, hundredth… does.
LINES_EACH: Final = 6
#: Packet time after which a way's count is told again, so that a live screen stays alive.
QUIET_NS: Final = 10_000_000_000
#: Ways whose count is brought up to date at the end.
WAYS_TOLD_AT_END: Final = 20
_INDENT: Final = 3


class JourneyPrinter:
    """
    Prints packets as text.

    *full* prints every packet whole. *passed_over* gives, for each index of a journey's
    steps, the rules that were passed over before it. *zone* is the time zone, None for the
    machine's own. *ways_limit* bounds the ways remembered to fold by.
    """

    def __init__(
        self,
        console: Console,
        *,
        full: bool = False,
        passed_over: Callable[[Journey], Mapping[int, Sequence[Rule]]] | None = None,
        zone: tzinfo | None = None,
        ways_limit: int = WAYS_REMEMBERED,
    ) -> None:
        """Print to *console*; nothing is printed before the first packet."""
        self._console = console
        self._full = full
        self._passed_over = passed_over
        self._zone = zone
        self._symbols = theme.symbols_for(console)
        self._ways = Ways(ways_limit)
        self._replies = Replies()
        self._number = 0
        self._day = ""
        self._told_way = 0
        self._after_packet = False

    def show(self, packet: Sequence[Journey]) -> None:
        """Print one packet, given its journeys in order through the namespaces."""
        if not packet:
            return
        self._number += 1
        reply_to = self._replies.note(packet, self._number)
        way = None if self._full else self._ways.find(packet)
        if way is not None:
            self._fold(way, packet[0])
            return
        if not self._full:
            forgotten = self._ways.add(packet, self._number)
            if forgotten is not None:
                self._tell_count(forgotten)
        self._whole(packet, reply_to)

    def finish(self, summary: Summary) -> None:
        """Print what the folded lines still owe, and the summary."""
        owing = [way for way in self._ways if way.packets > way.told]
        for way in owing[:WAYS_TOLD_AT_END]:
            self._tell_count(way)
        rest = owing[WAYS_TOLD_AT_END:]
        if rest:
            more = sum(way.packets - way.told for way in rest)
            self._line(
                [(f"{self._symbols.more}  {more:,} more went ways shown above", theme.QUIET)]
            )
        if self._ways.forgotten:
            text = (
                f"{self._symbols.more}  {self._ways.forgotten:,} ways were forgotten to bound the "
                "memory: packets that went them later were shown whole again"
            )
            self._line([(text, theme.WARNING)])
        if self._number:
            self._blank()
        for line in render_summary_text(summary, self._width, self._symbols):
            self._print(line)

    @property
    def _width(self) -> int:
        return max(self._console.width, theme.NARROWEST)

    def _safe(self, text: str) -> str:
        return escape(text, ascii_only=self._symbols.ascii_only)

    def _print(self, line: object) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def _blank(self) -> None:
        self._print("")

    def _line(self, parts: Sequence[Part], *, hang: int = _INDENT, first: int = 0) -> None:
        lead: list[Part] = [(" " * first, ""), *parts] if first else list(parts)
        for line in wrap(lead, self._width, hang):
            self._print(line)

    def _new_day(self, journey: Journey) -> None:
        day = date_text(journey.start_ns, self._zone)
        if self._day and day != self._day:
            self._line([(f"{day}", theme.STRONG)])
        self._day = day

    def _whole(self, packet: Sequence[Journey], reply_to: int | None) -> None:
        if self._number > 1:
            self._blank()
        self._new_day(packet[0])
        skipped = [self._passed_over(j) if self._passed_over else {} for j in packet]
        rows = StepRows(packet, self._width, self._symbols, skipped)
        for index, journey in enumerate(packet):
            if index:
                self._blank()
                self._next_headline(journey, packet[index - 1].packet)
            else:
                self._headline(journey, reply_to)
            self._arrival(journey)
            for line in rows.show(journey, skipped[index]):
                self._print(line)
            self._hole(journey)
            hang = _INDENT + 2
            self._line(ending_parts(journey, self._symbols), hang=hang, first=_INDENT)
        self._told_way = self._number
        self._after_packet = True

    def _headline(self, journey: Journey, reply_to: int | None) -> None:
        packet = journey.packet
        number = f"{self._number}  "
        parts: list[Part] = [
            (number, theme.STRONG),
            (f"{clock_text(journey.start_ns, self._zone)}  ", theme.QUIET),
            (f"{self._safe(journey.netns)}   ", theme.PLACE),
        ]
        if reply_to is not None:
            parts.append((f"reply to {reply_to}: ", theme.CHANGE))
        parts += [(f"{packet_word(packet)} ", theme.STRONG), (self._ends(packet), theme.STRONG)]
        if packet.icmp_id is not None:
            sequence = "" if packet.icmp_seq is None else f" seq {packet.icmp_seq}"
            parts.append((f" id {packet.icmp_id}{sequence}", ""))
        elif packet.sport is None and packet.proto in {"tcp", "udp"}:
            parts.append((" (a fragment without ports)", theme.QUIET))
        if packet.length is not None:
            parts.append((f"   {packet.length:,} B", theme.QUIET))
        self._line(parts, hang=cells(number))

    def _ends(self, packet: Packet) -> str:
        if packet.src is None and packet.dst is None:
            return "(no IP addresses)"
        src, dst = peer(packet.src, packet.sport), peer(packet.dst, packet.dport)
        return f"{src} {self._symbols.arrow} {dst}"

    def _next_headline(self, journey: Journey, before: Packet) -> None:
        packet, arrow = journey.packet, self._symbols.arrow
        moved_src = (packet.src, packet.sport) != (before.src, before.sport)
        moved_dst = (packet.dst, packet.dport) != (before.dst, before.dport)
        now = ""
        if moved_src and moved_dst:
            now = f", now {self._ends(packet)}"
        elif moved_src:
            now = f", now from {peer(packet.src, packet.sport)}"
        elif moved_dst:
            now = f", now {arrow} {peer(packet.dst, packet.dport)}"
        parts = [
            (f"{clock_text(journey.start_ns, self._zone)}  ", theme.QUIET),
            (f"{self._safe(journey.netns)}   ", theme.PLACE),
            (f"the same packet{now}", theme.STRONG),
        ]
        self._line(parts, first=_INDENT)

    def _arrival(self, journey: Journey) -> None:
        if journey.in_device is not None:
            self._line([(f"in {self._safe(journey.in_device)}", theme.PLACE)], first=_INDENT)
        elif journey.steps and journey.steps[0].hook == "output":
            self._line([("from a local process", theme.PLACE)], first=_INDENT)
        if not journey.whole:
            text = "tracing began behind this packet's first hook: earlier steps were not seen"
            self._line([(f"! {text}", theme.WARNING)], hang=_INDENT + 2, first=_INDENT)

    def _hole(self, journey: Journey) -> None:
        if not journey.complete:
            events = "1 event was" if journey.lost == 1 else f"{journey.lost:,} events were"
            text = f"! {events} lost while this packet was on its way: steps may be missing"
            self._line([(text, theme.WARNING)], hang=_INDENT + 2, first=_INDENT)

    def _fold(self, way: Way, journey: Journey) -> None:
        packet, flow = journey.packet, flow_of(journey.packet)
        way.packets += 1
        if way.packets <= LINES_EACH:
            self._new_day(journey)
            detail = self._detail(way, journey)
            self._fold_line(way, journey, detail)
        elif _is_milestone(way.packets) or journey.start_ns - way.told_ns >= QUIET_NS:
            self._new_day(journey)
            self._tell_count(way)
            way.told_ns = journey.start_ns
        way.flow, way.packet, way.time_ns = flow, packet, journey.start_ns

    def _detail(self, way: Way, journey: Journey) -> str:
        packet = journey.packet
        if flow_of(packet) != way.flow:
            return f"{packet_word(packet)} {self._ends(packet)}"
        # The same header again is the sender's retransmission.
        again = packet.tcp_flags and packet.tcp_seq == way.packet.tcp_seq
        same = again and packet.tcp_flags == way.packet.tcp_flags
        word = f"{packet_word(packet)} again" if same else packet_word(packet)
        return f"{word}, {_later(journey.start_ns - way.time_ns)}"

    def _fold_line(self, way: Way, journey: Journey, detail: str) -> None:
        self._gap()
        same = "the same way" if way.number == self._told_way else f"the same way as {way.number}"
        parts = [
            (f"{self._number}  ", theme.STRONG),
            (f"{clock_text(journey.start_ns, self._zone)}  ", theme.QUIET),
            (f"{same}, the same end ", ""),
            (f"({detail})", theme.QUIET),
        ]
        self._line(parts)
        self._told_way = way.number
        way.told, way.told_ns = way.packets, journey.start_ns

    def _tell_count(self, way: Way) -> None:
        if way.told == way.packets:
            return
        self._gap()
        text = f"{way.packets:,} packets so far the same way as {way.number}"
        self._line([(f"{self._symbols.more}  ", theme.STRONG), (text, "")])
        self._told_way = way.number
        way.told = way.packets

    def _gap(self) -> None:
        """Set the folded lines off from the packet above them."""
        if self._after_packet:
            self._blank()
        self._after_packet = False


def _is_milestone(count: int) -> bool:
    return str(count).strip("0") == "1"


def _later(nanoseconds: int) -> str:
    seconds = nanoseconds / 1e9
    if seconds < 0.1:  # noqa: PLR2004 - below, tenths would say 0.0
        return f"{nanoseconds / 1e6:.1f} ms later"
    return f"{seconds:.1f} s later"

r"""
One line a journey, for grep and awk: columns that are always there, `-` where empty.

    TIME NETNS PROTO WHAT SRC → DST ENDING TABLE CHAIN RULE TEXT…

Columns are separated by spaces and hold none (`\x20` stands for one in a name); only
TEXT, the last, has spaces. WHAT is the TCP flags or the ICMP message; RULE the number in
the chain or `policy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.style import Style

from tracer.cli import theme
from tracer.cli.render_ending import last_seen
from tracer.cli.render_packet import clock_text, icmp_name, peer, rule_text
from tracer.cli.render_safe import escape
from tracer.core.journey import EndingKind

if TYPE_CHECKING:
    from datetime import tzinfo

    from tracer.core.journey import Journey, Packet

__all__ = ["CompactTemplate", "journey_note", "packet_columns", "render_compact"]


_ENDPOINTS = ("src", "sport", "dst", "dport")


class CompactTemplate:
    """
    The constant part of the lines of all journeys that went as *journey* did.

    Same namespace, steps and ending: what is left for each line is the time, the packet's
    columns, and where an address was translated what it was with the packet's other ones.
    """

    def __init__(
        self, journey: Journey, *, color: bool = False, symbols: theme.Symbols = theme.UNICODE
    ) -> None:
        """Write down what stays the same."""
        ending = journey.ending
        kind = ending.kind.value
        padding = " " * (9 - len(kind))
        if color:
            kind = Style.parse(theme.ENDING_STYLES[ending.kind]).render(kind)
        place = " ".join(_column(name, symbols) for name in (ending.table, ending.chain))
        tail = f"{kind}{padding} {place} {_rule_column(journey)} {_text(journey, symbols)}"
        self._tail = tail.rstrip()
        self._netns = f"{_column(journey.netns, symbols):<8}"
        self._arrow = symbols.arrow
        self._now = {
            name: after
            for changes in journey.all_changes
            for name, (_, after) in changes.items()
            if name in _ENDPOINTS
        }

    @property
    def translates(self) -> bool:
        """Whether some step changed an address or a port."""
        return bool(self._now)

    def translated(
        self, src: str | None, sport: int | None, dst: str | None, dport: int | None
    ) -> str:
        """Return the addresses after NAT, which people grep for; empty where they are the same."""
        before = (src, sport, dst, dport)
        after = [self._now.get(*each) for each in zip(_ENDPOINTS, before, strict=True)]
        if after == list(before):
            return ""
        ends = [
            peer(None if address is None else str(address), None if port is None else int(port))
            for address, port in (after[:2], after[2:])
        ]
        return f" (now {ends[0]} {self._arrow} {ends[1]})"

    def line(self, clock: str, columns: str, note: str = "") -> str:
        """
        Return the line, without its end.

        *clock* is the time as shown, *columns* what `packet_columns` makes of the packet,
        *note* what is said of this packet alone: `translated`, `journey_note`.
        """
        return f"{clock} {self._netns} {columns} {self._tail}{note}"


def packet_columns(packet: Packet, symbols: theme.Symbols = theme.UNICODE) -> str:
    """Return PROTO WHAT SRC → DST."""
    what = packet.tcp_flags or "-"
    if packet.proto in {"icmp", "icmpv6"}:
        what = icmp_name(packet).replace(" ", "-")
    src, dst = peer(packet.src, packet.sport), peer(packet.dst, packet.dport)
    return f"{_column(packet.proto, symbols):<5} {what:<2} {src:<21} {symbols.arrow} {dst:<21}"


def render_compact(
    journey: Journey,
    *,
    zone: tzinfo | None = None,
    color: bool = False,
    symbols: theme.Symbols = theme.UNICODE,
) -> str:
    """Return the journey's line, without its end; times in *zone*, None for the machine's."""
    template = CompactTemplate(journey, color=color, symbols=symbols)
    packet = journey.packet
    columns = packet_columns(packet, symbols)
    now = template.translated(packet.src, packet.sport, packet.dst, packet.dport)
    clock = clock_text(journey.start_ns, zone)
    return template.line(clock, columns, now + journey_note(journey))


def journey_note(journey: Journey) -> str:
    """Return what is missing from this journey, empty if nothing is."""
    late = "" if journey.whole else " [first hooks not seen]"
    return late if journey.complete else f"{late} [may have a hole: {journey.lost} events lost]"


def _column(name: str | None, symbols: theme.Symbols) -> str:
    return escape(name, ascii_only=symbols.ascii_only).replace(" ", "\\x20") if name else "-"


def _rule_column(journey: Journey) -> str:
    ending = journey.ending
    if ending.rule is not None:
        return str(ending.rule)
    if ending.handle is not None:
        return f"handle:{ending.handle}"
    return "policy" if ending.chain is not None else "-"


def _text(journey: Journey, symbols: theme.Symbols) -> str:
    ending = journey.ending
    if ending.kind is EndingKind.SENT:
        device = ending.device or journey.out_device
        text = f"out {_column(device, symbols)}" if device else ""
    elif ending.kind is EndingKind.UNKNOWN:
        text = last_seen(journey, symbols)
    else:
        text = escape(rule_text(ending.text or "", ending.chain), ascii_only=symbols.ascii_only)
    if ending.reason not in {None, "NETFILTER_DROP"}:
        text += f" ({escape(ending.reason or '', ascii_only=symbols.ascii_only)})"
    return text

"""
Which packets went the same way, and which are replies.

A way is the namespaces in order, each with its steps but for the values that differ from
packet to packet, and the ending. Thousands of packets that die alike are one thing to
know, so only the first is told whole.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from tracer.cli.render_packet import final_packet

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from tracer.core.journey import Journey, Packet, Step

__all__ = ["FLOWS_REMEMBERED", "WAYS_REMEMBERED", "Flow", "Replies", "Way", "Ways", "flow_of"]

#: Ways remembered, the least recently gone forgotten first: more different ways than this
#: no reader can hold apart, and each keeps a key of some kilobytes.
WAYS_REMEMBERED: Final = 1000
#: Flows remembered to know their replies by.
FLOWS_REMEMBERED: Final = 4096

#: (protocol, source, its port or ICMP id, destination, its port or ICMP id).
Flow: TypeAlias = tuple[str, object, object, object, object]


def flow_of(packet: Packet) -> Flow:
    """Return what tells the packet's connection from others."""
    ends = (
        (packet.sport, packet.dport) if packet.icmp_id is None else (packet.icmp_id, packet.icmp_id)
    )
    return packet.proto, packet.src, ends[0], packet.dst, ends[1]


@dataclass(slots=True)
class Way:
    """
    One way that packets went.

    *number* is that of the packet shown whole, *packets* how many went it, *told* how many
    of them the last line about it counted, *told_ns* that line's packet's time. *flow*,
    *packet* and *time_ns* are the last packet's.
    """

    number: int
    packets: int
    told: int
    told_ns: int
    flow: Flow
    packet: Packet
    time_ns: int


class Ways:
    """The ways seen so far, at most *limit* of them."""

    def __init__(self, limit: int = WAYS_REMEMBERED) -> None:
        """Start with no way known."""
        self._limit = limit
        self._ways: OrderedDict[Hashable, Way] = OrderedDict()
        #: Ways that had to be forgotten because of the limit.
        self.forgotten = 0

    def find(self, journeys: Sequence[Journey]) -> Way | None:
        """Return the way that *journeys* went if one went it before."""
        key = _way_key(journeys)
        way = self._ways.get(key)
        if way is not None:
            self._ways.move_to_end(key)
        return way

    def add(self, journeys: Sequence[Journey], number: int) -> Way | None:
        """Remember a new way; return the one forgotten for it, if any."""
        first = journeys[0]
        self._ways[_way_key(journeys)] = Way(
            number, 1, 1, first.start_ns, flow_of(first.packet), first.packet, first.start_ns
        )
        if len(self._ways) <= self._limit:
            return None
        self.forgotten += 1
        return self._ways.popitem(last=False)[1]

    def __iter__(self) -> Iterator[Way]:
        """Iterate over the remembered ways."""
        return iter(self._ways.values())


def _way_key(journeys: Sequence[Journey]) -> Hashable:
    return tuple(
        (
            journey.netns,
            journey.in_device,
            journey.out_device,
            tuple(map(_step_key, journey.steps)),
            tuple(journey.changes),
            journey.ending,
            journey.complete,
            journey.whole,
        )
        for journey in journeys
    )


def _step_key(step: Step) -> Hashable:
    # Of what a step changed only the names: the values are the packet's, not the way's.
    return (
        step.hook,
        step.engine,
        step.family,
        step.table,
        step.chain,
        step.rule,
        step.handle,
        step.text,
        step.verdict,
        tuple(step.changes),
    )


class Replies:
    """Flows seen, so that a packet of the opposite direction can be called a reply."""

    def __init__(self, limit: int = FLOWS_REMEMBERED) -> None:
        """Start with no flow known; remember at most *limit*."""
        self._limit = limit
        self._awaited: OrderedDict[Flow, int] = OrderedDict()

    def note(self, journeys: Sequence[Journey], number: int) -> int | None:
        """
        Return the number of the packet that this one replies to, or None.

        What is no reply is remembered with its addresses in every namespace, before and
        after NAT: the reply comes to the translated ones first.
        """
        for journey in journeys:
            flow = flow_of(journey.packet)
            if flow in self._awaited:
                self._awaited.move_to_end(flow)
                return self._awaited[flow]
        for journey in journeys:
            before = flow_of(journey.packet)
            now = final_packet(journey)
            ends = (now["sport"], now["dport"]) if journey.packet.icmp_id is None else before[2::2]
            after = (before[0], now["src"], ends[0], now["dst"], ends[1])
            for flow in (before, after):
                proto, src, sport, dst, dport = flow
                reply = (proto, dst, dport, src, sport)
                if reply != flow:
                    self._awaited.setdefault(reply, number)
        while len(self._awaited) > self._limit:
            self._awaited.popitem(last=False)
        return None

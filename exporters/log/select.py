"""Which rows of the log are asked for: the filter's words, namespaces, and a span of time."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tracer.core.filters import Filter
from tracer.core.log_rows import address_halves
from tracer.core.packet_text import PROTOCOL_NAMES

if TYPE_CHECKING:
    from tracer.core.filters import IPNetwork
    from tracer.core.journey import Journey

__all__ = ["Selection", "matches_journey", "where"]

_HALF = 64
_OF_PACKET = ("drops", "journeys")


@dataclass(frozen=True, slots=True)
class Selection:
    """
    What to tell; everything, unless told.

    *since_ns* and *until_ns* are nanoseconds since the epoch, both included. *netns* are
    names, none for all; changes and losses of no namespace, such as the clock's, are always
    among what is chosen.
    """

    filter: Filter = field(default_factory=Filter)
    since_ns: int | None = None
    until_ns: int | None = None
    netns: tuple[str, ...] = ()


def where(table: str, selection: Selection) -> tuple[str, list[Any]]:
    """
    Return the condition for a table's rows, and what stands for its question marks.

    Of journeys it lets pass what may match: `matches_journey` decides.
    """
    parts: list[str] = ["true"]
    values: list[Any] = []

    def add(part: str, *given: object) -> None:
        parts.append(part)
        values.extend(given)

    if selection.since_ns is not None:
        add("time_ns >= ?", selection.since_ns)
    if selection.until_ns is not None:
        add("time_ns <= ?", selection.until_ns)
    if selection.netns:
        marks = ", ".join("?" * len(selection.netns))
        empty = "" if table in _OF_PACKET else " OR netns = ''"
        add(f"(netns IN ({marks}){empty})", *selection.netns)
    if table == "drops":
        for part, given in _drop_parts(selection.filter):
            add(part, *given)
    elif table == "journeys" and selection.filter.proto is not None:
        add("proto = ?", selection.filter.proto)
    return " AND ".join(parts), values


def _drop_parts(wanted: Filter) -> list[tuple[str, list[Any]]]:
    parts: list[tuple[str, list[Any]]] = []
    for name, network in (("src", wanted.src), ("dst", wanted.dst)):
        if network is not None:
            parts.append(_network_part(name, network))
    if wanted.needs_ports:
        parts.append(("proto IN (6, 17, 33, 132, 136)", []))
    equal = {
        "sport": wanted.sport,
        "dport": wanted.dport,
        "proto": wanted.proto,
        "in_device": wanted.in_device,
        "table_name": wanted.table,
        "chain": wanted.chain,
        "hook": wanted.hook,
    }
    parts += [(f"{name} = ?", [value]) for name, value in equal.items() if value is not None]
    if wanted.out_device is not None:
        parts.append(("device = ? AND device <> in_device", [wanted.out_device]))
    if wanted.verdict is not None:
        # A drop record cannot tell reject from drop.
        said = "kind IN ('rule', 'policy', 'table')" if wanted.verdict == "drop" else "false"
        parts.append((said, []))
    return parts


def _network_part(name: str, network: IPNetwork) -> tuple[str, list[Any]]:
    high, low = address_halves(network.network_address)
    last_high, last_low = address_halves(network.broadcast_address)
    family = f"family = {network.version} AND "
    if high != last_high:
        return f"{family}{name}_high BETWEEN ? AND ?", [high, last_high]
    return f"{family}{name}_high = ? AND {name}_low BETWEEN ? AND ?", [high, low, last_low]


def matches_journey(wanted: Filter, journey: Journey) -> bool:
    """
    Tell whether a journey meets the filter, as the follower would have.

    The words about the packet hold if they do at one point of its way, before a NAT or after.
    """
    if not wanted.match_steps(journey.steps):
        return False
    devices = ((wanted.in_device, journey.in_device), (wanted.out_device, _way_out(journey)))
    if any(word is not None and word != name for word, name in devices):
        return False
    return any(_matches_packet(wanted, packet) for packet in _packets(journey))


def _way_out(journey: Journey) -> str | None:
    return journey.out_device or journey.ending.device


def _packets(journey: Journey) -> list[Any]:
    """Return the packet as it was first seen, and after each step that changed it."""
    packets = [journey.packet]
    for changes in journey.all_changes:
        after: dict[str, Any] = {
            name: value[1] for name, value in changes.items() if name in _HEADERS
        }
        if after:
            packets.append(replace(packets[-1], **after))
    return packets


_HEADERS = ("src", "dst", "sport", "dport")


def _matches_packet(wanted: Filter, packet: Any) -> bool:  # noqa: ANN401 - a Packet
    if wanted.proto is not None and packet.proto not in {
        PROTOCOL_NAMES.get(wanted.proto),
        str(wanted.proto),
    }:
        return False
    for network, address in ((wanted.src, packet.src), (wanted.dst, packet.dst)):
        if network is not None and (not address or ipaddress.ip_address(address) not in network):
            return False
    ports = ((wanted.sport, packet.sport), (wanted.dport, packet.dport))
    return all(word is None or word == port for word, port in ports)

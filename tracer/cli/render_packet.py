"""The words for a packet, its addresses, its time, and for a rule and its table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tracer.cli.render_safe import cells, cut, escape, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.core.journey import Journey, Packet

__all__ = [
    "clock_text",
    "date_text",
    "final_packet",
    "icmp_name",
    "packet_word",
    "peer",
    "rule_text",
    "shorten_rule",
    "table_text",
]

_FLAGS: Final = {
    "F": "FIN",
    "S": "SYN",
    "R": "RST",
    "P": "PSH",
    "A": "ACK",
    "U": "URG",
    "E": "ECE",
    "C": "CWR",
}

# include/uapi/linux/icmp.h
_ICMP: Final = {
    0: "echo-reply",
    3: "destination-unreachable",
    4: "source-quench",
    5: "redirect",
    8: "echo-request",
    9: "router-advertisement",
    10: "router-solicitation",
    11: "time-exceeded",
    12: "parameter-problem",
    13: "timestamp-request",
    14: "timestamp-reply",
}
_ICMP_UNREACHABLE: Final = {
    0: "net-unreachable",
    1: "host-unreachable",
    2: "protocol-unreachable",
    3: "port-unreachable",
    4: "fragmentation-needed",
    9: "net-prohibited",
    10: "host-prohibited",
    13: "admin-prohibited",
}
# include/uapi/linux/icmpv6.h, include/net/ndisc.h
_ICMPV6: Final = {
    1: "destination-unreachable",
    2: "packet-too-big",
    3: "time-exceeded",
    4: "parameter-problem",
    128: "echo-request",
    129: "echo-reply",
    133: "router-solicitation",
    134: "router-advertisement",
    135: "neighbour-solicitation",
    136: "neighbour-advertisement",
    137: "redirect",
    143: "multicast-listener-report",
}
_ICMPV6_UNREACHABLE: Final = {
    0: "no-route",
    1: "admin-prohibited",
    3: "address-unreachable",
    4: "port-unreachable",
}
_ICMP_UNREACHABLE_TYPE: Final = 3
_ICMPV6_UNREACHABLE_TYPE: Final = 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def icmp_name(packet: Packet) -> str:
    """Return the message's name, `type 42` where it has none."""
    number, code = packet.icmp_type, packet.icmp_code
    if number is None:
        return "message"
    if packet.proto == "icmpv6":
        if number == _ICMPV6_UNREACHABLE_TYPE and code in _ICMPV6_UNREACHABLE:
            return _ICMPV6_UNREACHABLE[code]
        return _ICMPV6.get(number, f"type {number}")
    if number == _ICMP_UNREACHABLE_TYPE and code in _ICMP_UNREACHABLE:
        return _ICMP_UNREACHABLE[code]
    return _ICMP.get(number, f"type {number}")


def packet_word(packet: Packet) -> str:
    """Return what the packet is, in a word: `SYN`, `UDP`, `ICMP echo-request`."""
    if packet.tcp_flags:
        return "-".join(_FLAGS.get(flag, flag) for flag in packet.tcp_flags)
    if packet.proto in {"icmp", "icmpv6"}:
        return f"{'ICMP' if packet.proto == 'icmp' else 'ICMPv6'} {icmp_name(packet)}"
    return f"protocol {packet.proto}" if packet.proto.isdigit() else escape(packet.proto).upper()


def peer(address: str | None, port: int | None) -> str:
    """Return `10.0.0.1:22`, `[2001:db8::1]:22`, or the address alone."""
    if address is None:
        return "?"
    shown = escape(address)
    if port is None:
        return shown
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def final_packet(journey: Journey) -> Mapping[str, str | int | None]:
    """Return src, sport, dst and dport as they are after all that changed."""
    packet = journey.packet
    now: dict[str, str | int | None] = {
        "src": packet.src,
        "sport": packet.sport,
        "dst": packet.dst,
        "dport": packet.dport,
    }
    for changes in journey.all_changes:
        for name, (_, after) in changes.items():
            if name in now:
                now[name] = after
    return now


@lru_cache(maxsize=64)
def _second(seconds: int, zone: tzinfo | None) -> datetime:
    return (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)


def clock_text(time_ns: int, zone: tzinfo | None) -> str:
    """Return the time of day in *zone* (None: the machine's own) to the microsecond."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{_second(seconds, zone):%H:%M:%S}.{rest // 1000:06d}"


def date_text(time_ns: int, zone: tzinfo | None) -> str:
    """Return the day in *zone* as `2026-11-23`."""
    return f"{_second(time_ns // 1_000_000_000, zone):%Y-%m-%d}"


def table_text(family: str | None, table: str) -> str:
    """Return the table's name, with its family where that does not follow from the packet."""
    name = escape(table)
    return name if family in {"ip", "ip6", None} else f"{family} {name}"


def rule_text(text: str, chain: str | None) -> str:
    """Return the rule, escaped, without the `-A CHAIN` that its place already says."""
    for name in (chain, f'"{chain}"'):
        if chain is not None and text.startswith(f"-A {name} "):
            return escape(text[len(f"-A {name} ") :])
    return escape(text)


def shorten_rule(text: str, width: int, more: str, *, jumps: bool = False) -> str:
    """
    Return the rule shortened to *width* cells at the borders of its words.

    What an iptables rule does stands at its end (`-j …`), and so do most verdicts of nft:
    the end is kept and what fits of the beginning, and the sign *more* between them.
    *jumps*: where to is told elsewhere, so the beginning is worth more.
    """
    if cells(text) <= width or jumps:
        return shorten(text, width, more)
    does = max(text.rfind(" -j "), text.rfind(" -g "))
    if does < 0:
        does = text.rfind(" ")
    head, tail = text[: max(does, 0)], text[max(does, 0) :]
    if cells(tail) > width // 2:
        # `-j DNAT --to-destination …`: the target alone.
        short = " ".join(tail.split(" ")[:3])
        tail = f"{short} {more}" if len(short) < len(tail) else tail
    room = width - cells(tail) - cells(more) - 1
    if does < 0 or room < -1:
        return shorten(text, width, more)
    kept = cut(head, room + 1)
    kept = kept[: max(kept.rfind(" "), 0)]
    option = kept.rpartition(" ")[2]
    if option.startswith("-"):
        # An option whose value did not fit says nothing.
        kept = kept[: -len(option)].rstrip()
    if kept:
        return f"{kept} {more}{tail}"
    words = head.split(" ")
    while words and (cells(" ".join(words)) > room or not words[0].startswith("-")):
        words.pop(0)
    return f"{' '.join([more, *words])}{tail}"

"""
The filter words that every command shares, as a value, and what they match.

A filter is met by a packet when all words that were given hold. It is used three
ways: `tracer.core.arming` turns the part that a packet's headers can answer into nft
rules, the follower compares it with the headers of each base chain that a journey
passed (a filter may name the addresses before NAT or after it), and the words about
devices and rules choose among whole journeys.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Filter", "IPNetwork"]

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Filter:
    """
    What to look for; None is any.

    *src* and *dst* are networks (a lone address is a /32 or /128). *proto* is the IP
    protocol's number. *in_device* and *out_device* are device names. *table*, *chain*,
    *hook* and *verdict* must all hold for one and the same step of a journey.
    """

    src: IPNetwork | None = None
    dst: IPNetwork | None = None
    sport: int | None = None
    dport: int | None = None
    proto: int | None = None
    in_device: str | None = None
    out_device: str | None = None
    table: str | None = None
    chain: str | None = None
    hook: str | None = None
    verdict: str | None = None

    @property
    def reversed(self) -> Filter:
        """The same filter for the replies: source and destination change places."""
        return Filter(
            src=self.dst, dst=self.src, sport=self.dport, dport=self.sport, proto=self.proto
        )

    @property
    def family(self) -> int | None:
        """4 or 6 where the addresses say so, else None for both."""
        named = self.src or self.dst
        return None if named is None else named.version

    @property
    def needs_ports(self) -> bool:
        """Whether a port was named, so that only protocols with ports can match."""
        return self.sport is not None or self.dport is not None

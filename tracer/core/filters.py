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
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.journey import Step

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

    def match_packets(self, packets: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        """
        Tell which headers the words about addresses, ports and protocol hold for.

        Shape: *packets* is `PACKET (k,)`, the result `(k,)`.
        """
        met = np.ones(len(packets), np.bool_)
        for network, name in ((self.src, "src"), (self.dst, "dst")):
            if network is not None:
                met &= packets["family"] == network.version
                met &= _within(network, packets[name])
        for port, name in ((self.sport, "sport"), (self.dport, "dport")):
            if port is not None:
                met &= packets[name] == port
        if self.proto is not None:
            met &= packets["proto"] == self.proto
        return met

    @property
    def chooses_steps(self) -> bool:
        """Whether a word about tables, chains, hooks or verdicts was given."""
        return any((self.table, self.chain, self.hook, self.verdict))

    def match_steps(self, steps: Sequence[Step]) -> bool:
        """Tell whether one of a journey's steps meets all words about tables and rules."""
        return not self.chooses_steps or any(map(self._match_step, steps))

    def _match_step(self, step: Step) -> bool:
        words = (
            (self.table, step.table),
            (self.chain, step.chain),
            (self.hook, step.hook),
            (self.verdict, step.verdict.value),
        )
        return all(word is None or word == value for word, value in words)


def _within(network: IPNetwork, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Tell which addresses (four words each, in network order) lie in *network*."""
    size = network.max_prefixlen // 32
    address = np.frombuffer(network.network_address.packed, np.uint32)
    mask = np.frombuffer(network.netmask.packed, np.uint32)
    found: npt.NDArray[np.bool_] = ((words[:, :size] & mask) == address).all(1)
    return found

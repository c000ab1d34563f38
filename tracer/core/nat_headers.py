"""
Which packets a rule or a filter can meet, as limits on each header field.

A `Headers` is a product: a packet is in it when every field is within its limit. What a
rule says beyond that (marks, connection states, sets that cannot be read) is left out, so
that a `Headers` holds at least the packets that are meant, never fewer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracer.core.nat_ranges import Limit, covers, join, meet, read_network

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracer.core.filters import Filter

__all__ = [
    "ANY_DEVICE",
    "MAX_PRODUCTS",
    "PORT_PROTOCOLS",
    "Devices",
    "Headers",
    "hull",
    "narrow",
    "read_filter",
    "reduce",
]

#: Protocols that begin with two ports: tcp, udp, dccp, sctp, udplite (IANA's numbers).
PORT_PROTOCOLS = ((6, 6), (17, 17), (33, 33), (132, 132), (136, 136))

#: A match on so many members of sets is kept as one product that holds them all; 65,536 is
#: what an ipset holds unless it was made for more.
MAX_PRODUCTS = 65536


@dataclass(frozen=True, slots=True)
class Devices:
    """
    Device names: any of *only* (None for all) and none of *but_not*.

    A name that ends in `*` stands for every name that begins so.
    """

    only: frozenset[str] | None = None
    but_not: frozenset[str] = frozenset()

    @property
    def is_limited(self) -> bool:
        """Whether some device is left out."""
        return self.only is not None or bool(self.but_not)

    @property
    def is_empty(self) -> bool:
        """Whether no device can be meant."""
        return self.only is not None and not self.only

    def meet(self, other: Devices) -> Devices:
        """Return the devices that both mean."""
        but_not = self.but_not | other.but_not
        if self.only is None or other.only is None:
            only = other.only if self.only is None else self.only
        else:
            only = frozenset(
                one if _is_under(one, two) else two
                for one in self.only
                for two in other.only
                if _is_under(one, two) or _is_under(two, one)
            )
        if only is not None and but_not:
            only = frozenset(n for n in only if not any(_is_under(n, b) for b in but_not))
        return Devices(only, but_not)

    def has(self, name: str) -> bool:
        """Tell whether the device *name* is meant."""
        allowed = self.only is None or any(_is_under(name, pattern) for pattern in self.only)
        return allowed and not any(_is_under(name, pattern) for pattern in self.but_not)


def _is_under(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


ANY_DEVICE = Devices()


@dataclass(frozen=True, slots=True)
class Headers:
    """
    Packets of one IP *version* whose fields are within the limits; None is any.

    *iif* and *oif* limit the devices that a packet comes in and goes out by.
    """

    version: int
    src: Limit = None
    dst: Limit = None
    sport: Limit = None
    dport: Limit = None
    proto: Limit = None
    iif: Devices = ANY_DEVICE
    oif: Devices = ANY_DEVICE

    @property
    def is_empty(self) -> bool:
        """Whether no packet can be in it."""
        limits = (self.src, self.dst, self.sport, self.dport, self.proto)
        return () in limits or self.iif.is_empty or self.oif.is_empty

    @property
    def is_wide(self) -> bool:
        """Whether neither an address nor a port is limited."""
        return self.src is self.dst is self.sport is self.dport is None

    def meet(self, other: Headers) -> Headers:
        """Return the packets in both."""
        return Headers(
            self.version,
            meet(self.src, other.src),
            meet(self.dst, other.dst),
            meet(self.sport, other.sport),
            meet(self.dport, other.dport),
            meet(self.proto, other.proto),
            self.iif if other.iif == ANY_DEVICE else self.iif.meet(other.iif),
            self.oif if other.oif == ANY_DEVICE else self.oif.meet(other.oif),
        )

    def covers(self, other: Headers) -> bool:
        """Tell whether every packet of *other* is in this."""
        return (
            covers(self.dst, other.dst)
            and covers(self.src, other.src)
            and covers(self.dport, other.dport)
            and covers(self.sport, other.sport)
            and covers(self.proto, other.proto)
            and self.iif in (ANY_DEVICE, other.iif)
            and self.oif in (ANY_DEVICE, other.oif)
        )

    @property
    def swapped(self) -> Headers:
        """The replies: source and destination change places, devices are forgotten."""
        return Headers(self.version, self.dst, self.src, self.dport, self.sport, self.proto)

    def without_devices(self) -> Headers:
        """Return the same packets by whatever devices they pass."""
        if self.iif == ANY_DEVICE == self.oif:
            return self
        return replace(self, iif=ANY_DEVICE, oif=ANY_DEVICE)


def read_filter(wanted: Filter, version: int) -> Headers:
    """
    Return what *wanted* says of a packet's headers and its incoming device.

    A filter that names a port means protocols that have ports; the result is empty where
    it names another one, or addresses of the other IP *version*.
    """
    ports = wanted.needs_ports
    proto: Limit = None if wanted.proto is None else ((wanted.proto, wanted.proto),)
    networks = [network for network in (wanted.src, wanted.dst) if network is not None]
    if any(network.version != version for network in networks):
        return Headers(version, proto=())
    src, dst = (
        None if network is None or network.prefixlen == 0 else read_network(network)
        for network in (wanted.src, wanted.dst)
    )
    return Headers(
        version,
        src,
        dst,
        None if wanted.sport is None else ((wanted.sport, wanted.sport),),
        None if wanted.dport is None else ((wanted.dport, wanted.dport),),
        meet(proto, PORT_PROTOCOLS) if ports else proto,
        ANY_DEVICE if wanted.in_device is None else Devices(frozenset((wanted.in_device,))),
    )


def hull(boxes: Iterable[Headers]) -> Headers:
    """Return one `Headers` that holds them all, and perhaps more."""
    first, *rest = boxes
    for box in rest:
        first = Headers(
            first.version,
            join(first.src, box.src),
            join(first.dst, box.dst),
            join(first.sport, box.sport),
            join(first.dport, box.dport),
            join(first.proto, box.proto),
            first.iif if first.iif == box.iif else ANY_DEVICE,
            first.oif if first.oif == box.oif else ANY_DEVICE,
        )
    return first


#: Each box is compared with so many of the first ones, the plain filter among them:
#: all pairs would be quadratic, and what overlaps costs an element, never a wrong answer.
_COMPARED = 8


def reduce(boxes: Iterable[Headers]) -> list[Headers]:
    """Return *boxes* in order without the empty ones and those that others cover."""
    kept: list[Headers] = []
    for box in dict.fromkeys(boxes):
        if not box.is_empty and not any(other.covers(box) for other in kept[:_COMPARED]):
            kept.append(box)
    return kept


def narrow(boxes: Sequence[Headers], others: Sequence[Headers]) -> list[Headers]:
    """Return the products of both lists that hold packets."""
    found = (box.meet(other) for box in boxes for other in others)
    kept = [box for box in found if not box.is_empty]
    return [hull(kept)] if len(kept) > MAX_PRODUCTS else kept

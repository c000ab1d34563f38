"""
Which packets to watch for their ends: all that a followed one may be called on its way.

NAT renames packets, and the kernel's programs compare headers. So they are given the
filter, the headers that it will have before NAT and those behind it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from tracer.core.filters import Filter
from tracer.core.nat_headers import ANY_DEVICE, hull, reduce

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracer.core.filters import IPNetwork
    from tracer.core.nat_headers import Headers
    from tracer.core.nat_ranges import Limit

__all__ = ["EndFilters", "make_filters"]


@dataclass(frozen=True, slots=True)
class EndFilters:
    """
    At least the packets that are meant, as filters of addresses, ports and protocol.

    *is_cut*: there were too many kinds, and the last ones are left out.
    """

    filters: tuple[Filter, ...]
    is_cut: bool


def make_filters(boxes: Iterable[Headers], most: int) -> EndFilters:
    """
    Return at most *most* filters that hold all of *boxes*, if need be and some more.

    The first boxes are kept apart the longest.
    """
    plain = reduce(replace(box, iif=ANY_DEVICE, oif=ANY_DEVICE) for box in boxes)
    exact = tuple(dict.fromkeys(each for box in plain for each in _split(box)))
    if len(exact) <= most:
        return EndFilters(exact, is_cut=False)
    coarse = [*plain[: most - 2]]
    is_cut = False
    for version in (4, 6):
        rest = [box for box in plain[most - 2 :] if box.version == version]
        if rest:
            joined = hull(rest)
            is_cut |= joined.is_wide
            coarse += [] if joined.is_wide else [joined]
    return EndFilters(tuple(dict.fromkeys(map(_cover, coarse))), is_cut=is_cut)


def _split(box: Headers) -> Iterator[Filter]:
    """Walk filters for each pair of the address ranges of *box*."""
    ends = (
        [None] if limit is None else [((low, high),) for low, high in limit]
        for limit in (box.src, box.dst)
    )
    for src, dst in product(*ends):
        yield _cover(replace(box, src=src, dst=dst))


def _cover(box: Headers) -> Filter:
    return Filter(
        src=_network(box.src, box.version),
        dst=_network(box.dst, box.version),
        sport=_single(box.sport),
        dport=_single(box.dport),
        proto=_single(box.proto),
    )


def _network(limit: Limit, version: int) -> IPNetwork | None:
    """Return the smallest prefix that holds all of *limit*."""
    if not limit:
        return None
    low, high = min(pair[0] for pair in limit), max(pair[1] for pair in limit)
    free = (low ^ high).bit_length()
    if version == 4:  # noqa: PLR2004 - an IP version
        return ipaddress.IPv4Network((low >> free << free, 32 - free))
    return ipaddress.IPv6Network((low >> free << free, 128 - free))


def _single(limit: Limit) -> int | None:
    if limit is None or len(limit) != 1 or limit[0][0] != limit[0][1]:
        return None
    return limit[0][0]

"""
Sets of whole numbers as sorted, disjoint, inclusive ranges: addresses, ports, protocols.

`None` stands for any number and is never a tuple: `()` is no number at all.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.core.filters import IPNetwork

__all__ = [
    "Limit",
    "Ranges",
    "complement",
    "count",
    "covers",
    "join",
    "make_ranges",
    "meet",
    "move",
    "move_back",
    "read_addresses",
    "read_network",
]

Ranges: TypeAlias = tuple[tuple[int, int], ...]
#: A field's allowed values, None for any.
Limit: TypeAlias = Ranges | None

#: Beyond so many blocks a prefix translation is not followed address by address: a rule
#: that matches more than this many networks of the target's size is not a one-to-one map.
_MAX_BLOCKS = 256


def make_ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Return *pairs* sorted, with those that overlap or touch joined."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        elif low <= high:
            merged.append((low, high))
    return tuple(merged)


def meet(one: Limit, other: Limit) -> Limit:
    """Return the numbers in both."""
    if one is None or one == other:
        return other
    if other is None:
        return one
    found = []
    i = j = 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            found.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def join(one: Limit, other: Limit) -> Limit:
    """Return the numbers in either."""
    return None if one is None or other is None else make_ranges((*one, *other))


def complement(ranges: Ranges, top: int) -> Ranges:
    """Return the numbers from 0 to *top* that are not in *ranges*."""
    gaps = []
    low = 0
    for first, last in ranges:
        if first > low:
            gaps.append((low, first - 1))
        low = last + 1
    if low <= top:
        gaps.append((low, top))
    return tuple(gaps)


def covers(outer: Limit, inner: Limit) -> bool:
    """Tell whether every number of *inner* is in *outer*."""
    return outer is None or (inner is not None and meet(outer, inner) == inner)


def count(ranges: Ranges) -> int:
    """Return how many numbers there are."""
    return sum(high - low + 1 for low, high in ranges)


def read_network(network: IPNetwork) -> Ranges:
    """Return the addresses of *network* as numbers."""
    low = int(network.network_address)
    return ((low, low + network.num_addresses - 1),)


def read_addresses(text: str, version: int) -> Ranges:
    """
    Return the addresses that *text* names: one, `ADDRESS/LENGTH`, `ADDRESS/MASK` or `A-B`.

    Errors: ValueError where it is none of these, or of the other IP version.
    """
    if "/" in text:
        network = ipaddress.ip_network(text, strict=False)
        if network.version != version:
            message = f"{text} is not IPv{version}"
            raise ValueError(message)
        return read_network(network)
    first, _, last = text.partition("-")
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address  # noqa: PLR2004
    low = int(kind(first))
    return ((low, int(kind(last)) if last else low),)


def move(ranges: Ranges, size: int, base: int) -> Ranges:
    """
    Move each number into the block at *base*, keeping its place in its own block.

    Blocks are aligned and hold *size* numbers, a power of two: what NETMAP does to the
    network part of an address. A range over many blocks becomes the whole target.
    """
    moved = []
    for low, high in ranges:
        if high // size - low // size > _MAX_BLOCKS:
            return ((base, base + size - 1),)
        start = low
        while start <= high:
            end = min(high, start | (size - 1))
            moved.append((base | (start & (size - 1)), base | (end & (size - 1))))
            start = end + 1
    return make_ranges(moved)


def move_back(moved: Ranges, size: int, source: Limit) -> Limit:
    """Return those numbers of *source* that `move` takes into *moved*, or more of them."""
    if source is None or sum(high // size - low // size + 1 for low, high in source) > _MAX_BLOCKS:
        return source
    bases = {block * size for low, high in source for block in range(low // size, high // size + 1)}
    origins = (pair for base in bases for pair in move(moved, size, base))
    return meet(source, make_ranges(origins))

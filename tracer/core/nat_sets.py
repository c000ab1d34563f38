"""
What a match on an ipset says of a packet's header: `-m set --match-set NAME dst,dst`.

Each dimension of a set is looked up in the source or the destination, as the rule says.
Sets are as they were when they were read; what cannot be said as header fields is left
out, so that the products hold at least the packets that match.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from tracer.core.nat_headers import MAX_PRODUCTS, PORT_PROTOCOLS, Headers, hull
from tracer.core.nat_ranges import complement, make_ranges
from tracer.core.nat_rules import TOPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracer.core.ip_sets import IpSet, Member
    from tracer.core.nat_ranges import Limit, Ranges

__all__ = ["MAX_DEPTH", "IpSets", "read_match_set"]

IpSets: TypeAlias = "Mapping[str, IpSet]"

#: A list of sets may not hold lists, but what the kernel sends could say anything.
MAX_DEPTH = 2

_FIELDS = {"ip": ("src", "dst"), "net": ("src", "dst"), "port": ("sport", "dport")}
_Key: TypeAlias = "tuple[tuple[str, Limit], ...]"


def read_match_set(
    sets: IpSets, name: str, ways: Sequence[str], version: int, *, negated: bool
) -> list[Headers]:
    """
    Return products that together hold at least the packets that the match lets through.

    Shape: *ways* has src or dst for each dimension. No product means that it can match
    nothing of this IP *version*. A set that is not in *sets* says nothing.
    """
    known = sets.get(name)
    if known is None or known.members is None:
        return [Headers(version)]
    if negated:
        return [_complement(known, ways, version)]
    found = _merge(_walk(sets, known, ways, version, MAX_DEPTH), version)
    return [hull(found)] if len(found) > MAX_PRODUCTS else found


def _complement(known: IpSet, ways: Sequence[str], version: int) -> Headers:
    """Return what is not in a set of addresses alone; of other sets, anything."""
    members = known.members or ()
    if known.version != version or known.dimensions not in (("ip",), ("net",)):
        return Headers(version)
    pairs = [pair for member in members for pair in member.limits[0] or ((0, TOPS[version]),)]
    if not ways or any(member.nomatch for member in members):
        return Headers(version)
    rest = complement(make_ranges(pairs), TOPS[version])
    return Headers(version, **{ways[0]: rest if pairs else None})  # type: ignore[arg-type]


def _walk(
    sets: IpSets, known: IpSet, ways: Sequence[str], version: int, depth: int
) -> Iterator[Headers]:
    if known.dimensions == ("set",):
        for member in known.members or ():
            inner = sets.get(member.name or "")
            if inner is None or inner.members is None:
                yield Headers(version)
            elif depth:
                yield from _walk(sets, inner, ways, version, depth - 1)
        return
    # ip_set_test(): a rule that names fewer dimensions, or another family, does not match.
    if len(ways) < len(known.dimensions) or known.version not in (None, version):
        return
    for member in known.members or ():
        if not member.nomatch:
            yield _headers(known, member, ways, version)


def _headers(known: IpSet, member: Member, ways: Sequence[str], version: int) -> Headers:
    limits: dict[str, Limit] = {}
    for word, way, limit in zip(known.dimensions, ways, member.limits, strict=False):
        if word in _FIELDS:
            limits[_FIELDS[word][way == "dst"]] = limit
    if member.proto:
        limits["proto"] = ((member.proto, member.proto),)
    elif "port" in known.dimensions:
        limits["proto"] = PORT_PROTOCOLS
    return Headers(version, **limits)  # type: ignore[arg-type]


def _merge(boxes: Iterator[Headers], version: int) -> list[Headers]:
    """Join products that differ in their addresses of one side alone, or in nothing."""
    for name in ("dst", "src"):
        groups: dict[_Key, list[Ranges | None]] = defaultdict(list)
        for box in boxes:
            others = ("src", "dst", "sport", "dport", "proto")
            key = tuple((other, getattr(box, other)) for other in others if other != name)
            groups[key].append(getattr(box, name))
        boxes = iter([_join(name, key, limits, version) for key, limits in groups.items()])
    return list(boxes)


def _join(name: str, key: _Key, limits: Sequence[Ranges | None], version: int) -> Headers:
    joined: Limit = None
    if None not in limits:
        joined = make_ranges(pair for limit in limits for pair in limit or ())
    return Headers(version, **dict(key), **{name: joined})  # type: ignore[arg-type]

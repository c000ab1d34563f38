"""What nft's JSON says of a header's fields: values, prefixes, ranges, sets, concatenations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from tracer.core.nat_headers import (
    ANY_DEVICE,
    MAX_PRODUCTS,
    PORT_PROTOCOLS,
    Devices,
    Headers,
    hull,
)
from tracer.core.nat_iptables import PROTOCOLS
from tracer.core.nat_ranges import Limit, Ranges, complement, make_ranges, read_addresses
from tracer.core.nat_rules import TOPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Json",
    "Sets",
    "Unreadable",
    "read_element",
    "read_fields",
    "read_limit",
    "read_match",
    "unwrap",
]

#: A value out of nft's JSON; which shape it has is asked where it is used.
Json: TypeAlias = object
#: The elements of each named set and map of one table, None where they change by themselves.
Sets: TypeAlias = Mapping[str, "Sequence[Json] | None"]

_TOP_PORT = 65535
_TOP_PROTOCOL = 255

_ADDRESSES = {"saddr": "src", "daddr": "dst"}
_TRANSPORTS = frozenset(("tcp", "udp", "sctp", "dccp", "udplite", "th"))
_META = {"iifname": "iif", "iif": "iif", "oifname": "oif", "oif": "oif", "l4proto": "proto"}
_VERSIONS = {"ip": 4, "ip6": 6, "ipv4": 4, "ipv6": 6}


class Unreadable(ValueError):  # noqa: N818  # a finding that is caught next door, never an error
    """The JSON says something that no limit on a header field can stand for."""


def read_fields(expression: Json, version: int) -> list[tuple[str | None, Headers]]:
    """
    Return the field that each part of a key names, with what naming it implies.

    A part that is no header field (a mark, a counter, a hash) has None. `tcp dport`
    implies the protocol; a field of the other IP version makes the headers empty.
    """
    parts = _get(expression, "concat")
    return [
        _read_field(part, version) for part in (parts if isinstance(parts, list) else [expression])
    ]


def _get(value: Json, key: str) -> Json:
    return value.get(key) if isinstance(value, Mapping) else None


def _read_field(expression: Json, version: int) -> tuple[str | None, Headers]:
    anything = Headers(version)
    meta, payload = _get(expression, "meta"), _get(expression, "payload")
    key = _get(meta, "key")
    if key in ("nfproto", "protocol"):
        return "version", anything
    if isinstance(key, str):
        return _META.get(key), anything
    protocol, field = str(_get(payload, "protocol")), str(_get(payload, "field"))
    if protocol in ("ip", "ip6"):
        implied = anything if _VERSIONS[protocol] == version else Headers(version, proto=())
        if field in ("protocol", "nexthdr"):
            return "proto", implied
        return _ADDRESSES.get(field), implied
    if protocol in _TRANSPORTS:
        number = PROTOCOLS.get(protocol)
        implied = Headers(version, proto=PORT_PROTOCOLS if number is None else ((number, number),))
        return (field if field in ("sport", "dport") else None), implied
    return None, anything


def unwrap(element: Json) -> Json:
    """Return the value of a set's element, which may carry a timeout, counter or comment."""
    inner = _get(element, "elem")
    return _get(inner, "val") if isinstance(inner, Mapping) else element


def read_element(
    fields: Sequence[tuple[str | None, Headers]], element: Json, version: int
) -> Headers:
    """Return the headers whose *fields* have the key that *element* says."""
    element = unwrap(element)
    concat = _get(element, "concat")
    parts = concat if isinstance(concat, list) else [element]
    found = Headers(version)
    for (field, implied), part in zip(fields, parts, strict=False):
        found = found.meet(implied)
        if field is not None and part != "*":
            found = found.meet(_limit(field, [part], version, negated=False))
    return found


def read_match(match: Mapping[str, Json], version: int, sets: Sets) -> list[Headers]:
    """
    Return products that together hold at least the packets that *match* matches.

    No product means that it can match nothing of this IP version.
    """
    fields = read_fields(match.get("left"), version)
    implied = Headers(version)
    for _, narrowed in fields:
        implied = implied.meet(narrowed)
    operator, right = match.get("op"), match.get("right")
    try:
        values = list(_list_values(right, sets))
        if len(fields) == 1:
            boxes = [_compare(fields[0][0], str(operator), values, version)]
        elif operator == "==":
            boxes = [read_element(fields, value, version) for value in values]
        else:
            boxes = [Headers(version)]
    except Unreadable:
        boxes = [Headers(version)]
    found = [box for box in (box.meet(implied) for box in boxes) if not box.is_empty]
    return [hull(found)] if len(found) > MAX_PRODUCTS else found


def _list_values(right: Json, sets: Sets) -> Iterator[Json]:
    if isinstance(right, str) and right.startswith("@"):
        elements = sets.get(right[1:])
        if elements is None:
            raise Unreadable(right)
    else:
        inner = _get(right, "set")
        elements = inner if isinstance(inner, list) else [inner if inner is not None else right]
    for element in elements:
        # A map's element is a pair; as a set it is its key that counts.
        yield unwrap(element)


def _compare(field: str | None, operator: str, values: Sequence[Json], version: int) -> Headers:
    if field is None:
        return Headers(version)
    if operator in ("==", "!="):
        return _limit(field, values, version, negated=operator == "!=")
    number = _read_pair(field, values[0], version)[0] if len(values) == 1 else -1
    top = _top(field, version)
    bounds = {
        "<": (0, number - 1),
        "<=": (0, number),
        ">": (number + 1, top),
        ">=": (number, top),
    }
    if number < 0 or operator not in bounds:
        return Headers(version)
    return _box(field, make_ranges((bounds[operator],)), version)


def _top(field: str, version: int) -> int:
    if field in ("src", "dst"):
        return TOPS[version]
    return _TOP_PROTOCOL if field == "proto" else _TOP_PORT


def _limit(field: str, values: Sequence[Json], version: int, *, negated: bool) -> Headers:
    if field == "version":
        is_ours = any(_VERSIONS.get(str(value)) == version for value in values)
        return Headers(version) if is_ours is not negated else Headers(version, proto=())
    if field in ("iif", "oif"):
        devices = _read_devices(values, negated=negated)
        return Headers(version, **{field: devices})  # type: ignore[arg-type]
    ranges = make_ranges(_read_pair(field, value, version) for value in values)
    return _box(field, complement(ranges, _top(field, version)) if negated else ranges, version)


def _box(field: str, ranges: Ranges, version: int) -> Headers:
    limit: Limit = None if ranges == ((0, _top(field, version)),) else ranges
    return Headers(version, **{field: limit})  # type: ignore[arg-type]


def _read_devices(values: Sequence[Json], *, negated: bool) -> Devices:
    if not all(isinstance(value, str) for value in values):
        return ANY_DEVICE
    names = frozenset(map(str, values))
    return Devices(but_not=names) if negated else Devices(names)


def _read_pair(field: str, value: Json, version: int) -> tuple[int, int]:
    """Return the lowest and highest number of one element; errors: Unreadable."""
    prefix, span = _get(value, "prefix"), _get(value, "range")
    if prefix is not None and field in ("src", "dst"):
        return _read_address(f"{_get(prefix, 'addr')}/{_get(prefix, 'len')}", version)
    if isinstance(span, list) and len(span) == 2:  # noqa: PLR2004
        low, high = (_read_number(field, bound, version) for bound in span)
        return low, high
    number = _read_number(field, value, version)
    return number, number


def _read_number(field: str, value: Json, version: int) -> int:
    if isinstance(value, str) and field in ("src", "dst"):
        return _read_address(value, version)[0]
    number = PROTOCOLS.get(value) if isinstance(value, str) and field == "proto" else value
    if not isinstance(number, int) or not 0 <= number <= _top(field, version):
        raise Unreadable(value)
    return number


def _read_address(text: str, version: int) -> tuple[int, int]:
    try:
        return read_addresses(text, version)[0]
    except ValueError as error:
        raise Unreadable(text) from error


def read_limit(field: str, value: Json, version: int) -> Limit:
    """Return the numbers that a value, prefix, range or set of them says; errors: Unreadable."""
    inner = _get(value, "set")
    values = inner if isinstance(inner, list) else [value]
    return make_ranges(_read_pair(field, unwrap(each), version) for each in values)

"""
What the kernel tells of an ipset: its kind and its members, from the answers to IPSET_CMD_LIST.

iptables' NAT rules may name addresses and ports by a set alone. A member is one value, or
range of values, for each dimension of its set's kind (`hash:ip,port` has two).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracer.core.nat_rules import TOPS
from tracer.errors import MalformedMessageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tracer.core.nat_ranges import Limit

__all__ = ["IpSet", "Member", "decode_set"]

# include/uapi/linux/netfilter/ipset/ip_set.h
_TYPENAME, _FAMILY, _HEADER_DATA, _ADT = 3, 5, 7, 8
_IP, _IP_TO, _CIDR, _PORT, _PORT_TO, _PROTO, _FLAGS, _BITMASK = 1, 2, 3, 4, 5, 7, 8, 12
_NAME, _IP2, _CIDR2, _IP2_TO = 18, 20, 21, 22
_NETMASK = 20  # in a header, where members have IP2
_NOMATCH = 1 << 2

_MESSAGE: Final = "ipset"
_BODY: Final = 20  # nlmsghdr and nfgenmsg
_TYPE_MASK: Final = 0x3FFF  # without the flags for nested attributes and byte order
_VERSIONS: Final = {2: 4, 10: 6}  # PF_INET, PF_INET6
_SIZES: Final = {4: 4, 6: 16}
_TOP_PORT: Final = 65535
_ICMP: Final = frozenset((1, 58))

Attributes = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Member:
    """
    One member: a limit for each dimension of its set, None for what is no header field.

    *proto* is a protocol's number, None for each. What a *nomatch* member holds is taken
    out of the others. *name* is another set's, in a list of sets.
    """

    limits: tuple[Limit, ...] = ()
    proto: int | None = None
    nomatch: bool = False
    name: str | None = None


@dataclass(frozen=True, slots=True)
class IpSet:
    """
    A set as it was when it was read.

    *dimensions* are the words of its kind (ip, net, port, mac, …), `("set",)` for a list;
    *version* is the IP version of its members, None where it has none. *members* is None
    where they could not be read.
    """

    dimensions: tuple[str, ...]
    version: int | None
    members: tuple[Member, ...] | None


def decode_set(messages: Iterable[bytes]) -> IpSet:
    """
    Read one set from the messages that its listing is made of.

    Shape: each message begins at its nlmsghdr; the first has the kind and the header.
    Errors: MalformedMessageError.
    Source: ip_set_dump_do() in net/netfilter/ipset/ip_set_core.c and the `list` functions.
    """
    kind, header, version = "", {}, None
    members: list[Member] = []
    for message in messages:
        found = dict(_walk(message, _BODY))
        if _TYPENAME in found:
            kind = _text(found[_TYPENAME])
            version = _VERSIONS.get(found[_FAMILY][0]) if found.get(_FAMILY) else None
            header = dict(_walk(found.get(_HEADER_DATA, b"")))
        dimensions = tuple(kind.partition(":")[2].split(","))
        for _, data in _walk(found.get(_ADT, b"")):
            members.append(_member(dict(_walk(data)), dimensions, version, header))
    if not kind:
        raise MalformedMessageError(_MESSAGE, 0, "a set without a kind")
    # A mask of any bits is no range; kinds that only newer kernels have.
    is_readable = _BITMASK not in header and set(kind.partition(":")[2].split(",")) <= _DIMENSIONS
    return IpSet(dimensions, version, tuple(members) if is_readable else None)


_DIMENSIONS: Final = frozenset(("ip", "net", "port", "mac", "mark", "iface", "set"))


def _walk(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    end = len(data)
    while end - at >= 4:  # noqa: PLR2004 - an attribute's own header
        size, kind = struct.unpack_from("=HH", data, at)
        if not 4 <= size <= end - at:  # noqa: PLR2004
            raise MalformedMessageError(_MESSAGE, at, "an attribute runs past its end")
        yield kind & _TYPE_MASK, data[at + 4 : at + size]
        at += (size + 3) & ~3


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _member(
    found: Attributes, dimensions: tuple[str, ...], version: int | None, header: Attributes
) -> Member:
    if _NAME in found:
        return Member(name=_text(found[_NAME]))
    proto = found[_PROTO][0] if found.get(_PROTO) else None
    places = [(_IP, _IP_TO, _CIDR), (_IP2, _IP2_TO, _CIDR2)]
    limits: list[Limit] = []
    for word in dimensions:
        if word in ("ip", "net") and places and version is not None:
            limits.append(_addresses(found, places.pop(0), version, header))
        elif word == "port" and proto not in _ICMP:
            limits.append(_ports(found))
        else:
            limits.append(None)  # icmp's "port" is its type and code
    flags = int.from_bytes(found.get(_FLAGS, b""), "big")
    return Member(tuple(limits), proto, bool(flags & _NOMATCH))


def _addresses(
    found: Attributes, places: tuple[int, int, int], version: int, header: Attributes
) -> Limit:
    first, last, prefix = (found.get(place) for place in places)
    low = _address(first, version)
    if last is not None:
        high = _address(last, version)
    else:
        mask = prefix or header.get(_NETMASK)
        length = min(mask[0], _SIZES[version] * 8) if mask else _SIZES[version] * 8
        free = (1 << (_SIZES[version] * 8 - length)) - 1
        low, high = low & ~free, low | free
    return None if (low, high) == (0, TOPS[version]) else ((low, high),)


def _address(nested: bytes | None, version: int) -> int:
    value = next((inner for _, inner in _walk(nested or b"")), b"")
    if len(value) != _SIZES[version]:
        raise MalformedMessageError(_MESSAGE, 0, "an address of a wrong size")
    return int.from_bytes(value, "big")


def _ports(found: Mapping[int, bytes]) -> Limit:
    low, high = (int.from_bytes(found.get(place, b"")[:2], "big") for place in (_PORT, _PORT_TO))
    return ((low, max(low, high)),) if (low, high) != (0, _TOP_PORT) else None

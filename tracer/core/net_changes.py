"""
Routes, addresses, links, neighbours and switches out of rtnetlink's messages.

One message becomes a `Fact`: what the thing is, what names it, and what is true of it now,
in the words of ip(8) and sysctl(8). Two facts with the same key and other words are a change.
Source: include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h, netconf.h.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from tracer.core.attributes import Layout, walk_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Fact", "FactReader"]

_NLMSGHDR: Final = struct.Struct("=IHHII")
_AF_INET, _AF_INET6 = 2, 10
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 16, 17, 20, 21, 24, 25
_NEWNEIGH, _DELNEIGH, _NEWRULE, _DELRULE, _NEWNETCONF = 28, 29, 32, 33, 80
_TABLE_LOCAL, _TABLE_MAIN = 255, 254
_TABLES: Final = {253: "default", _TABLE_MAIN: "main", _TABLE_LOCAL: "local"}
_CLONED: Final = 0x200
_ROUTE_TYPES: Final = {6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_UNICAST: Final = 1
_ROUTE_KINDS: Final = frozenset({_UNICAST, *_ROUTE_TYPES})
_NEIGHBOUR_FAILED, _NEIGHBOUR_WELL = 0x20, 0x02 | 0x04 | 0x40 | 0x80
_UP, _LOWER_UP = 0x1, 0x10000
_ALL, _DEFAULT = -1, -2

_Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """
    One thing and what is true of it: *state* is empty where it is gone.

    *what* is route, rule, address, link, neighbour or sysctl; *key* tells it from all others,
    *subject* is how people call it.
    """

    what: str
    key: _Key
    subject: str
    state: str


class FactReader:
    """Reads messages of one namespace; it knows the devices' names by what it has read."""

    def __init__(self) -> None:
        self.malformed = 0
        self.names: dict[int, str] = {}

    def read(self, datagram: bytes) -> Iterator[Fact]:
        """Yield what *datagram* tells; what is malformed is counted and passed over."""
        offset = 0
        while offset + _NLMSGHDR.size <= len(datagram):
            length, kind, *_ = _NLMSGHDR.unpack_from(datagram, offset)
            if length < _NLMSGHDR.size or offset + length > len(datagram):
                break
            reader = _READERS.get(kind)
            if reader is not None:
                yield from self._read_one(reader, kind, datagram[offset : offset + length])
            offset += (length + 3) & ~3
        self.malformed += offset < len(datagram)

    def _read_one(self, reader: _Reader, kind: int, message: bytes) -> Iterator[Fact]:
        size, layout, read = reader
        body = _NLMSGHDR.size + size
        spots = walk_one(message, layout, body) if len(message) >= body else None
        if spots is None:
            self.malformed += 1
            return
        values = {number: message[slice(*spot)] for number, spot in spots.items()}
        try:
            yield from read(self, kind, message[_NLMSGHDR.size : body], values)
        except ValueError:
            # An address of another length than its family's.
            self.malformed += 1

    def name(self, index: int) -> str:
        """Return a device's name, `ifN` where it was not told."""
        return self.names.get(index, f"if{index}")

    def read_link(self, kind: int, body: bytes, values: Mapping[int, bytes]) -> Iterator[Fact]:
        """Read struct ifinfomsg."""
        family, _, _, index, flags, _ = struct.unpack("=BBHiII", body)
        if family:
            return  # a bridge's port, told beside the device itself
        name = _word(values.get(3, b"")) or self.name(index)
        self.names[index] = name
        if kind == _DELLINK:
            self.names.pop(index, None)
            yield Fact("link", (index,), name, "")
            return
        words = ["up" if flags & _UP else "down"]
        if flags & _UP and not flags & _LOWER_UP:
            words.append("no carrier")
        words.append(f"mtu {_number(values.get(4, b''))}")
        if 10 in values:  # noqa: PLR2004 - IFLA_MASTER
            words.append(f"master {self.name(_number(values[10]))}")
        yield Fact("link", (index,), name, ", ".join(words))

    def read_address(self, kind: int, body: bytes, values: Mapping[int, bytes]) -> Iterator[Fact]:
        """Read struct ifaddrmsg."""
        family, prefix, _, _, index = struct.unpack("=BBBBI", body)
        raw = values.get(2) or values.get(1)
        if family not in {_AF_INET, _AF_INET6} or raw is None:
            return
        text = f"{ipaddress.ip_address(raw)}/{prefix}"
        subject = f"{text} dev {self.name(index)}"
        yield Fact("address", (text, index), subject, "" if kind == _DELADDR else subject)

    def read_route(self, kind: int, body: bytes, values: Mapping[int, bytes]) -> Iterator[Fact]:
        """Read struct rtmsg."""
        family, length, _, tos, table, _, _, type_, flags = struct.unpack("=BBBBBBBBI", body)
        table = _number(values[15]) if 15 in values else table  # noqa: PLR2004 - RTA_TABLE
        if family not in {_AF_INET, _AF_INET6} or type_ not in _ROUTE_KINDS or flags & _CLONED:
            return
        if table == _TABLE_LOCAL:
            return  # what addresses say
        to = f"{ipaddress.ip_address(values[1])}/{length}" if 1 in values else "default"
        priority = _number(values.get(6, b""))
        subject = to if family == _AF_INET or to != "default" else "default (ipv6)"
        if table != _TABLE_MAIN:
            subject += f" table {_TABLES.get(table, table)}"
        key = family, to, table, priority, tos
        way = self._way(family, type_, values)
        state = "" if kind == _DELROUTE else f"{way} metric {priority}" if priority else way
        # IPv6 lists a multipath route's ways one by one.
        yield Fact("route", (*key, way) if family == _AF_INET6 else key, subject, state)

    def _way(self, family: int, type_: int, values: Mapping[int, bytes]) -> str:
        words = [_ROUTE_TYPES[type_]] if type_ in _ROUTE_TYPES else []
        if 5 in values:  # noqa: PLR2004 - RTA_GATEWAY
            words.append(f"via {ipaddress.ip_address(values[5])}")
        if 18 in values:  # noqa: PLR2004 - RTA_VIA: a family, then an address of it
            words.append(f"via {ipaddress.ip_address(values[18][2:])}")
        if 9 in values:  # noqa: PLR2004 - RTA_MULTIPATH
            words.append(f"over {_count_ways(values[9])} ways")
        if 4 in values and (family == _AF_INET or type_ not in _ROUTE_TYPES):  # noqa: PLR2004 - RTA_OIF
            words.append(f"dev {self.name(_number(values[4]))}")
        if 7 in values:  # noqa: PLR2004 - RTA_PREFSRC
            words.append(f"src {ipaddress.ip_address(values[7])}")
        return " ".join(words) or "direct"

    def read_rule(self, kind: int, body: bytes, values: Mapping[int, bytes]) -> Iterator[Fact]:
        """Read struct fib_rule_hdr."""
        family, to_length, from_length, _, table, _, _, action, _ = struct.unpack(
            "=BBBBBBBBI", body
        )
        if family not in {_AF_INET, _AF_INET6}:
            return
        table = _number(values[15]) if 15 in values else table  # noqa: PLR2004 - FRA_TABLE
        words = []
        for word, number, length in (("from", 2, from_length), ("to", 1, to_length)):
            if number in values:
                words.append(f"{word} {ipaddress.ip_address(values[number])}/{length}")
        if 3 in values:  # noqa: PLR2004 - FRA_IIFNAME
            words.append(f"iif {_word(values[3])}")
        if 10 in values:  # noqa: PLR2004 - FRA_FWMARK
            words.append(f"fwmark {_number(values[10]):#x}")
        then = _ROUTE_TYPES.get(action, f"lookup {_TABLES.get(table, table)}")
        words = [*(words or ["from all"]), then]
        text = " ".join(words)
        preference = _number(values.get(6, b""))
        subject = f"rule {preference}: {text}"
        yield Fact("rule", (family, preference, text), subject, "" if kind == _DELRULE else text)

    def read_neighbour(self, kind: int, body: bytes, values: Mapping[int, bytes]) -> Iterator[Fact]:
        """Read struct ndmsg: only what fails, and what is well again."""
        family, _, _, index, state, _, _ = struct.unpack("=BBHiHBB", body)
        if family not in {_AF_INET, _AF_INET6} or 1 not in values or kind == _DELNEIGH:
            return
        address = str(ipaddress.ip_address(values[1]))
        subject = f"{address} dev {self.name(index)}"
        if state & _NEIGHBOUR_FAILED:
            yield Fact("neighbour", (address, index), subject, "failed")
        elif state & _NEIGHBOUR_WELL:
            yield Fact("neighbour", (address, index), subject, "")

    def read_netconf(self, kind: int, body: bytes, values: Mapping[int, bytes]) -> Iterator[Fact]:
        """Read struct netconfmsg."""
        del kind
        (family,) = struct.unpack("=B", body[:1])
        if family not in {_AF_INET, _AF_INET6} or 1 not in values:
            return
        index = int.from_bytes(values[1], "little", signed=True)
        device = {_ALL: "all", _DEFAULT: "default"}.get(index) or self.name(index)
        for number, word in ((2, "forwarding"), (3, "rp_filter")):
            if number in values and (word == "forwarding" or family == _AF_INET):
                version = "ipv4" if family == _AF_INET else "ipv6"
                value = int.from_bytes(values[number], "little", signed=True)
                subject = f"net.{version}.conf.{device}.{word}"
                yield Fact("sysctl", (family, index, word), subject, str(value))


def _count_ways(hops: bytes) -> int:
    """Return how many struct rtnexthop there are."""
    count = offset = 0
    while offset + 8 <= len(hops):
        length = int.from_bytes(hops[offset : offset + 2], "little")
        count += 1
        offset += max(8, (length + 3) & ~3)
    return count


def _number(raw: bytes) -> int:
    return int.from_bytes(raw[:4], "little")


def _word(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")


_Reader: TypeAlias = (
    "tuple[int, Layout, Callable[[FactReader, int, bytes, Mapping[int, bytes]], Iterator[Fact]]]"
)
_LINK = 16, Layout({3: 1, 4: 4, 10: 4}), FactReader.read_link
_ADDRESS = 8, Layout({1: 4, 2: 4}), FactReader.read_address
_ROUTE = 12, Layout({1: 4, 4: 4, 5: 4, 6: 4, 15: 4, 18: 6}), FactReader.read_route
_NEIGHBOUR = 12, Layout({1: 4}), FactReader.read_neighbour
_RULE = 12, Layout({6: 4, 15: 4, 10: 4}), FactReader.read_rule
#: struct netconfmsg is one byte, and its attributes begin at the next multiple of four.
_NETCONF = 4, Layout({1: 4, 2: 4, 3: 4}), FactReader.read_netconf
_READERS: Final[Mapping[int, _Reader]] = {
    _NEWLINK: _LINK,
    _DELLINK: _LINK,
    _NEWADDR: _ADDRESS,
    _DELADDR: _ADDRESS,
    _NEWROUTE: _ROUTE,
    _DELROUTE: _ROUTE,
    _NEWNEIGH: _NEIGHBOUR,
    _DELNEIGH: _NEIGHBOUR,
    _NEWRULE: _RULE,
    _DELRULE: _RULE,
    _NEWNETCONF: _NETCONF,
}

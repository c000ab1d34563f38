"""
Reading ipsets of the calling thread's network namespace, for the NAT rules that match on them.

Asked of the kernel in its own words: the tool need not be installed where somebody else
fills the sets.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from typing import TYPE_CHECKING, Final

from tracer.core.ip_sets import IpSet, decode_set
from tracer.core.nat_sets import MAX_DEPTH
from tracer.errors import MalformedMessageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tracer.core.ruleset import Table

__all__ = ["MAX_SET_BYTES", "find_set_names", "read_ip_sets"]

_NETLINK_NETFILTER: Final = 12
# include/uapi/linux/netlink.h and netfilter/ipset/ip_set.h: NFNL_SUBSYS_IPSET is 6,
# IPSET_CMD_LIST 7. Protocol 6 is what all kernels since 2.6.39 understand.
_LIST: Final = 6 << 8 | 7
_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_PROTOCOL, _SETNAME = 1, 2
_PROTOCOL_VERSION: Final = 6
_DATAGRAM: Final = 1 << 16
_ANSWER_S: Final = 5.0

#: So much of one set's listing is read: 65,536 members of any kind, which is as many as a
#: set holds unless it was made for more.
MAX_SET_BYTES = 4 << 20

_MATCH: Final = re.compile(r" --match-set (\S+) ")
_UNREAD: Final = IpSet((), None, None)


def find_set_names(tables: Iterable[Table]) -> frozenset[str]:
    """Return the names of the sets that rules of nat chains match on, in iptables' words."""
    return frozenset(
        name
        for table in tables
        if table.form == "iptables" and table.name == "nat"
        for chain in table.chains.values()
        for rule in chain.rules
        if " --match-set " in rule.text
        for name in _MATCH.findall(rule.text)
    )


def read_ip_sets(names: Iterable[str]) -> Mapping[str, IpSet]:
    """
    Return the sets with these *names*, and those that lists of sets hold.

    Sets that are gone are left out; one that is too large, or of a kind that we do not
    know, has members None. Does not raise: what is not read is a rule that cannot be
    mapped back, and is said of the rule.
    """
    found: dict[str, IpSet] = {}
    asked = set(names)
    for _ in range(MAX_DEPTH + 1):
        for name in sorted(asked):
            known = _read(name)
            if known is not None:
                found[name] = known
        inner = {each.name for known in found.values() for each in known.members or ()}
        asked = {name for name in inner if name is not None} - found.keys() - asked
    return found


def _read(name: str) -> IpSet | None:
    messages: list[bytes] = []
    left = MAX_SET_BYTES
    try:
        for message in _dump(name):
            messages.append(message)
            left -= len(message)
            if left < 0:
                return _UNREAD
        return decode_set(messages)
    except OSError as exc:
        return None if exc.errno == errno.ENOENT else _UNREAD
    except MalformedMessageError:
        return _UNREAD


def _dump(name: str) -> Iterator[bytes]:
    body = struct.pack(">BBH", 0, 0, 0)
    body += struct.pack("=HHBxxx", 5, _PROTOCOL, _PROTOCOL_VERSION)
    value = name.encode("utf-8", "surrogateescape") + b"\0"
    body += struct.pack("=HH", 4 + len(value), _SETNAME) + value + b"\0" * (-len(value) % 4)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asking:
        asking.settimeout(_ANSWER_S)
        asking.send(struct.pack("=IHHII", 16 + len(body), _LIST, _REQUEST_DUMP, 1, 0) + body)
        while True:
            datagram = asking.recv(_DATAGRAM)
            offset = 0
            while offset + 16 <= len(datagram):
                length, kind = struct.unpack_from("=IH", datagram, offset)
                message = datagram[offset : offset + max(length, 16)]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (number,) = struct.unpack_from("=i", message, 16)
                    raise OSError(-number, "the set was not listed")
                yield message
                offset += (max(length, 16) + 3) & ~3

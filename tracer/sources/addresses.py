"""
The namespace's own addresses by device: what MASQUERADE and REDIRECT write into packets.

Asked of the kernel in its own words: importing a library for this one question takes
longer than all else that `nftrace follow` does to start.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, TypeAlias

from tracer.errors import KernelRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["read_addresses"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# include/uapi/linux/netlink.h, rtnetlink.h and if_addr.h
_NETLINK_ROUTE = 0
_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NLMSGHDR, _IFADDRMSG = struct.Struct("=IHHII"), struct.Struct("=BBBBI")
_BODY = _NLMSGHDR.size + _IFADDRMSG.size

#: The kernel makes a dump's datagrams no larger than 32 KB.
_DATAGRAM = 1 << 16


def read_addresses() -> Mapping[str, tuple[Address, ...]]:
    """
    Return the addresses of the calling thread's namespace, by device name.

    Shape: devices without an address are left out; a device's addresses are in the
    kernel's order, IPv4 first.
    Errors: KernelRefusedError with the kernel's reason.
    """
    names = dict(socket.if_nameindex())
    found: dict[str, list[Address]] = {}
    try:
        for index, address in _dump():
            if index in names:
                found.setdefault(names[index], []).append(address)
    except OSError as exc:
        message = f"the kernel does not tell its addresses ({exc.strerror})"
        raise KernelRefusedError(message) from exc
    return {name: tuple(addresses) for name, addresses in found.items()}


def _dump() -> Iterator[tuple[int, Address]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as asking:
        request = _NLMSGHDR.pack(_BODY, _RTM_GETADDR, _REQUEST_DUMP, 1, 0)
        asking.send(request + _IFADDRMSG.pack(0, 0, 0, 0, 0))
        while True:
            datagram = asking.recv(_DATAGRAM)
            for kind, message in _messages(datagram):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (number,) = struct.unpack_from("=i", message, _NLMSGHDR.size)
                    raise OSError(-number, "a dump was refused")
                if kind == _RTM_NEWADDR:
                    yield from _read(message)


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(datagram):
        length, kind, *_ = _NLMSGHDR.unpack_from(datagram, offset)
        yield kind, datagram[offset : offset + length]
        offset += (length + 3) & ~3


def _read(message: bytes) -> Iterator[tuple[int, Address]]:
    *_, index = _IFADDRMSG.unpack_from(message, _NLMSGHDR.size)
    values: dict[int, bytes] = {}
    offset = _BODY
    while offset < len(message):
        length, kind = struct.unpack_from("=HH", message, offset)
        values[kind] = message[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    # On a link to one peer ADDRESS is the peer's; IPv6 has no LOCAL elsewhere.
    own = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    if own is not None:
        yield index, ipaddress.ip_address(own)

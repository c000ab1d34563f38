"""What nf_tables dumps in the calling thread's namespace: tables, chains, rules."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from tracer.errors import KernelRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NftDumps", "read_dumps"]

_NETLINK_NETFILTER: Final = 12
#: NFNL_SUBSYS_NFTABLES << 8 and NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE.
_GETTABLE, _GETCHAIN, _GETRULE = 0xA01, 0xA04, 0xA07
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
#: The kernel fills at most 32 KB at a time (netlink_dump() in net/netlink/af_netlink.c).
_PART_BYTES: Final = 1 << 16
#: Some 400,000 rules; a namespace with more is not read, so that nobody who may write
#: rules in his own namespace takes our memory.
_DUMP_BYTES_MAX: Final = 128 << 20
_ANSWER_S: Final = 10.0
#: Dumps that rules were changed under.
_TRIES: Final = 8
_REMEDY: Final = "run as root (CAP_NET_ADMIN in the network namespace)"


class NftDumps(NamedTuple):
    """Whole messages in a row, each; all empty where the kernel has no nf_tables."""

    tables: bytes = b""
    chains: bytes = b""
    rules: bytes = b""


def read_dumps() -> NftDumps:
    """
    Ask the kernel for all tables, chains and rules, of all families.

    The last of several interrupted dumps is taken as it is.
    Errors: KernelRefusedError where the kernel does not let us ask, or there are too many.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asking:
            asking.settimeout(_ANSWER_S)
            return NftDumps(*(_dump(asking, one) for one in (_GETTABLE, _GETCHAIN, _GETRULE)))
    except OSError as exc:
        if exc.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
            return NftDumps()
        message = f"the kernel does not show nft's rules ({exc.strerror or exc})"
        raise KernelRefusedError(message, _REMEDY) from exc


def _dump(asking: socket.socket, kind: int) -> bytes:
    for left in reversed(range(_TRIES)):
        asking.send(
            _HEADER.pack(20, kind, _NLM_F_REQUEST | _NLM_F_DUMP, 0, 0)
            + struct.pack("=BBH", 0, 0, 0)
        )
        parts, interrupted = _receive(asking)
        if not interrupted or left == 0:
            break
    return b"".join(parts)


def _receive(asking: socket.socket) -> tuple[list[bytes], bool]:
    """Return an answer's messages, and whether rules were changed meanwhile."""
    parts: list[bytes] = []
    size, interrupted = 0, False
    while True:
        part = asking.recv(_PART_BYTES)
        size += len(part)
        if size > _DUMP_BYTES_MAX:
            message = f"nft's rules are more than {_DUMP_BYTES_MAX >> 20} MB"
            raise KernelRefusedError(message, "leave this namespace out")
        end = None
        for at, kind, flags in _headers(part):
            interrupted |= bool(flags & _NLM_F_DUMP_INTR)
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                end = at
                (number,) = struct.unpack_from("=i", part, at + _HEADER.size)
                if number:
                    raise OSError(-number, os.strerror(-number))
        parts.append(part[:end])
        if end is not None:
            return parts, interrupted


def _headers(part: bytes) -> Iterator[tuple[int, int, int]]:
    at = 0
    while at + _HEADER.size <= len(part):
        size, kind, flags, _, _ = _HEADER.unpack_from(part, at)
        yield at, kind, flags
        at += max((size + 3) & ~3, _HEADER.size)

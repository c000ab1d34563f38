"""
The socket that a namespace's trace events arrive on.

nft's events (multicast group NFNLGRP_NFTRACE), the announcements of ruleset changes
(NFNLGRP_NFTABLES) and the legacy tables' (NFLOG group 0) come on one socket, because only
then is the order between them the kernel's.

Loss. A socket whose buffer is full counts each message that it refuses, and then refuses
all until its reader has emptied it: the messages that were queued all come from before the
hole and what comes after the queue was empty from behind it. So a hole lies where the
queue ran empty for the first time after the count rose. Once the count has risen the
queue is read in small batches, and every batch in which it may have run empty is marked
doubtful. Source: netlink_overrun() and netlink_rcv_wake() in net/netlink/af_netlink.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tracer.errors import KernelRefusedError, KernelUnsupportedError
from tracer.sources.holders import find_nflog_holder, find_nflog_port

if TYPE_CHECKING:
    from tracer.sources.netns import Netns

__all__ = ["Received", "TraceSocket"]

# include/uapi/linux/netlink.h, nfnetlink.h, nfnetlink_log.h, asm-generic/socket.h
_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP, _NETLINK_DROP_MEMBERSHIP = 1, 2
_NFNLGRP_NFTABLES = 7
_NFNLGRP_NFTRACE = 9
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_MEMINFO_RMEM, _MEMINFO_DROPS = 0, 8
_NFULNL_CONFIG = (4 << 8) | 1
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_NFT_TRACE = (_NFTABLES << 8) | 17  # NFT_MSG_TRACE
_NLM_F_REQUEST, _NLM_F_REQUEST_ACK = 0x1, 0x5
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH = 1, 2, 5
_CFG_CMD_BIND, _COPY_PACKET = 1, 2

# A whole header chain with options is shorter; trace messages end at about 1 KB.
_COPY_RANGE = 128
_SLOT_SIZE = 2048  # the longest trace message is about 1 KB; longer announcements are cut
_SLOTS = 4096  # 1,024 to 4,096 slots keep up with the most messages a second
_SMALL_BATCH = 16  # the fewest read at once near a hole: the doubt is no wider than this
_BYTES_QUEUED = 8192  # no trace message costs more of the socket's buffer than this
_MSG_DONTWAIT, _MSG_TRUNC = 0x40, 0x20

DEFAULT_BUFFER = 256 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.recvmmsg.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.c_void_p,
]


@dataclass(frozen=True, slots=True)
class Received:
    """
    What one read brought.

    *words* is the buffer as 32-bit words, valid until the next read; message i is
    *lengths[i]* bytes from word *starts[i]*, in the kernel's order. *announced* holds
    the indexes of datagrams that announce changes. *doubtful*: a hole may lie in
    this batch. *lost* counts the messages lost since the read before, *hole_lost* all
    of the hole that this batch may be at. *received_ns* is the wall clock in nanoseconds.
    """

    words: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    announced: npt.NDArray[np.int64]
    doubtful: bool
    lost: int
    hole_lost: int
    received_ns: int


class TraceSocket:
    """
    One namespace's trace socket.

    It is opened by a thread inside the namespace and read from anywhere.
    """

    def __init__(self, namespace: Netns, *, buffer_bytes: int = DEFAULT_BUFFER) -> None:
        self.namespace = namespace
        self.lost = 0
        self.truncated = 0
        self._overrun = False
        self._hole_lost = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            self._socket.bind((0, 0))
        except OSError as exc:
            message = f"no netfilter netlink socket ({exc.strerror})"
            raise KernelUnsupportedError(
                message, "the kernel needs CONFIG_NETFILTER_NETLINK"
            ) from exc
        try:
            # The kernel doubles what is asked.
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes // 2)
        except PermissionError as exc:
            self._socket.close()
            message = "no permission to size the trace socket's buffer"
            raise KernelRefusedError(message, "run as root (CAP_NET_ADMIN)") from exc
        self._rows = np.zeros((_SLOTS, _SLOT_SIZE), np.uint8)
        self._words = self._rows.reshape(-1).view(np.uint32)
        self._starts = np.arange(_SLOTS, dtype=np.int64) * (_SLOT_SIZE // 4)
        self._vectors, self._headers = _message_headers(self._rows)

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket, which ends its hold on the NFLOG group as well."""
        self._socket.close()

    def join(self) -> None:
        """Begin to receive nft's traces and the announcements of changes."""
        for group in (_NFNLGRP_NFTABLES, _NFNLGRP_NFTRACE):
            try:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
            except OSError as exc:
                message = f"no nft trace events ({exc.strerror})"
                remedy = "run as root, on a kernel with CONFIG_NF_TABLES"
                raise KernelRefusedError(message, remedy) from exc

    def leave_announcements(self) -> None:
        """Receive no more announcements: our own disarming's would count where they are lost."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_DROP_MEMBERSHIP, _NFNLGRP_NFTABLES)

    def leave_traces(self) -> None:
        """Receive no more of nft's; what is queued can still be read, and comes to an end."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_DROP_MEMBERSHIP, _NFNLGRP_NFTRACE)

    def bind_nflog(self) -> None:
        """
        Become the listener of NFLOG group 0, where legacy tables' traces arrive.

        Errors: KernelRefusedError that names the holder where another has the group;
        KernelUnsupportedError where the kernel lacks NFLOG.
        """
        for request in _BIND:
            error = self._configure(request)
            if error in (errno.EPERM, errno.EBUSY):
                raise self._refusal()
            if error:
                message = f"netns {self.namespace.name}: no NFLOG ({os.strerror(error)})"
                raise KernelUnsupportedError(message, "modprobe nfnetlink_log")

    def bind_nflog_late(self) -> None:
        """
        Become that listener while events come in; harmless where it is already.

        The calling thread is in the namespace. Errors: as of `bind_nflog`.
        """
        for request in _BIND:
            # Without an answer: it would have to be looked for among the events.
            self._ask(request, _NLM_F_REQUEST)
        port = find_nflog_port()
        if port is None:
            message = f"netns {self.namespace.name}: no NFLOG"
            raise KernelUnsupportedError(message, "modprobe nfnetlink_log")
        if port != self._socket.getsockname()[0]:
            raise self._refusal()

    def _refusal(self) -> KernelRefusedError:
        holder = find_nflog_holder() or "another process"
        message = f"netns {self.namespace.name}: NFLOG group 0 is held by {holder}"
        remedy = "it takes one listener: end that one, or follow in another namespace"
        return KernelRefusedError(message, remedy)

    def is_empty(self) -> bool:
        """Tell whether all that was sent until now has been received."""
        return self._memory()[0] == 0

    def receive(self) -> Received | None:
        """
        Read what is queued, up to a batch, without waiting; None where nothing is.

        An overrun is not an error: it is in the result.
        """
        wanted = self._next_batch()
        count = self._receive_up_to(wanted)
        if count is None:
            # An overrun is said once, ahead of what is still queued, which is now to be
            # read in batches that do not run past the hole.
            self._overrun = True
            wanted = self._next_batch()
            count = self._receive_up_to(wanted) or 0
        if count == 0 and not self._overrun:
            return None
        received_ns = time.time_ns()
        doubtful = self._overrun and (count < wanted or wanted == _SMALL_BATCH)
        lost, hole_lost = 0, 0
        if doubtful:
            _, now = self._memory()
            lost, self.lost = now - self.lost, now
            hole_lost = self._hole_lost + lost
            # Where the queue ran empty the hole has ended.
            self._overrun = count == wanted
            self._hole_lost = hole_lost if self._overrun else 0
        return self._collect(count, received_ns, (lost, hole_lost), doubtful=doubtful)

    def _next_batch(self) -> int:
        rmem, dropped = self._memory()
        self._overrun = self._overrun or dropped != self.lost
        if not self._overrun:
            return _SLOTS
        return min(_SLOTS, max(_SMALL_BATCH, rmem // _BYTES_QUEUED))

    def _receive_up_to(self, wanted: int) -> int | None:
        """Return how many messages came; None where an overrun was reported instead."""
        count = _libc.recvmmsg(
            self._socket.fileno(), self._headers.ctypes.data, wanted, _MSG_DONTWAIT, None
        )
        if count >= 0:
            return int(count)
        error = ctypes.get_errno()
        if error == errno.ENOBUFS:
            return None
        if error in (errno.EAGAIN, errno.EINTR):
            return 0
        raise KernelRefusedError(f"the trace socket broke ({os.strerror(error)})")

    def _collect(
        self, count: int, received_ns: int, lost: tuple[int, int], *, doubtful: bool
    ) -> Received:
        # Columns of struct mmsghdr: msg_len is word 14, msg_flags word 12.
        lengths = self._headers[:count, 14].astype(np.int64)
        cut = (self._headers[:count, 12] & _MSG_TRUNC) != 0
        starts = self._starts[:count]
        types = self._words[starts + 1] & 0xFFFF if count else np.zeros(0, np.uint32)
        announced = ((types >> 8) == _NFTABLES) & (types != _NFT_TRACE)
        if cut.any():
            self.truncated += int((cut & ~announced).sum())
            # Messages are whole words: no announcement that was cut ends with one.
            lengths[cut] = np.where(announced[cut], _SLOT_SIZE - 1, 0)
        return Received(
            self._words,
            starts,
            lengths,
            np.flatnonzero(announced),
            doubtful,
            *lost,
            received_ns,
        )

    def _memory(self) -> tuple[int, int]:
        words = struct.unpack("=9I", self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))
        return words[_MEMINFO_RMEM], words[_MEMINFO_DROPS]

    def _ask(self, attributes: bytes, flags: int) -> None:
        header = struct.pack("=IHHII", 20 + len(attributes), _NFULNL_CONFIG, flags, 1, 0)
        # nfgenmsg: family unspecified, version 0, the group in the resource id.
        self._socket.send(header + struct.pack(">BBH", 0, 0, 0) + attributes)

    def _configure(self, attributes: bytes) -> int:
        self._ask(attributes, _NLM_F_REQUEST_ACK)
        answer = self._socket.recv(4096)
        (error,) = struct.unpack_from("=i", answer, 16)
        return -int(error)


def _attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


#: What binds a socket to NFLOG group 0.
_BIND = (
    _attribute(_CFG_CMD, struct.pack("B", _CFG_CMD_BIND)),
    _attribute(_CFG_MODE, struct.pack(">IBx", _COPY_RANGE, _COPY_PACKET)),
    # A trace event is never held back to be sent with others.
    _attribute(_CFG_QTHRESH, struct.pack(">I", 1)),
)


def _message_headers(
    rows: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    # struct mmsghdr of a 64-bit kernel is 64 bytes: msg_iov at 16, msg_iovlen at 24.
    count, size = rows.shape
    vectors = np.zeros((count, 2), np.uint64)
    vectors[:, 0] = rows.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(size)
    vectors[:, 1] = size
    headers = np.zeros((count, 16), np.uint32)
    wide = headers.view(np.uint64)
    wide[:, 2] = vectors.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(16)
    wide[:, 3] = 1
    return vectors, headers

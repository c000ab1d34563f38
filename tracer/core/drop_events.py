"""
What befell followed packets, by the kernel's own clock: `SKB_EVENT` rows.

A journey's end is found here by *fingerprint*, *netns* and time: the last of sent,
delivered and dropped that came before the packet's fingerprint was received again.
Delivered says that every table of the input hook let the packet pass; a drop that comes
after it (no socket, a bad checksum) is the end then.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from tracer.core.events import PACKET
from tracer.core.headers import SPAN, read_packets

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["SKB_EVENT", "SkbEventKind", "decode_skb_events", "packets_of"]


class SkbEventKind(IntEnum):
    """What befell the packet: enum nt_event_kind in bpf/records.h."""

    RECEIVED = 1
    SENT = 2
    DELIVERED = 3
    DROPPED = 4


#: *time_ns* is nanoseconds since the epoch. *netns* is the namespace's inode, *ifindex*
#: the device it was received on or sent by. *reason* is the kernel's number for a drop.
SKB_EVENT = np.dtype(
    [
        ("time_ns", "<i8"),
        ("fingerprint", "<u8"),
        ("location", "<u8"),
        ("netns", "<u4"),
        ("ifindex", "<u4"),
        ("reason", "<u4"),
        ("mark", "<u4"),
        ("length", "<u4"),
        ("kind", "u1"),
        ("packet", PACKET),
    ]
)

_NETWORK_WORDS = 10
#: NFPROTO_INET: the packet's own version field says which it is.
_PF_INET = 1


def packets_of(records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """
    Decode the headers that *records* carry.

    Shape: *records* `(n,)` with the members *lengths* and *raw*, the latter on a multiple
    of four bytes; the result `PACKET (n,)`, family 0 where the packet is not IP.
    """
    members = records.dtype.fields
    offset = members["raw"][1] // 4 if members else 0
    words = np.ascontiguousarray(records).view("<u4")
    spans = np.zeros(len(records), SPAN)
    spans["network"] = np.arange(len(records)) * (records.dtype.itemsize // 4) + offset
    spans["transport"] = spans["network"] + _NETWORK_WORDS
    spans["network_size"] = records["lengths"][:, 0]
    spans["transport_size"] = records["lengths"][:, 1]
    spans["pf"] = _PF_INET
    spans["located"] = 1
    has = np.flatnonzero(spans["network_size"])
    packets = np.zeros(len(records), PACKET)
    packets[has] = read_packets(words, spans[has])
    return packets


def decode_skb_events(records: npt.NDArray[np.void], clock_offset_ns: int) -> npt.NDArray[np.void]:
    """
    Turn what the kernel's programs wrote into `SKB_EVENT (n,)`, in the same order.

    Units: *clock_offset_ns* is the epoch's time less CLOCK_MONOTONIC's, nanoseconds.
    """
    events = np.zeros(len(records), SKB_EVENT)
    for name in ("location", "netns", "ifindex", "reason", "mark", "length", "kind"):
        events[name] = records[name]
    events["time_ns"] = records["time_ns"].astype(np.int64) + clock_offset_ns
    events["packet"] = packets_of(records)
    events["fingerprint"] = events["packet"]["fingerprint"]
    return events

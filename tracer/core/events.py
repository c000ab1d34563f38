"""
The columns that trace events are kept in, from the socket to the exporters.

`EVENT` has a row for each event, in the kernel's order; `PACKET` a row for each event
that carried the packet's headers, which an event points at by its index. A batch is the
two arrays together. Nothing here makes an object for each packet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["EVENT", "LEGACY", "NO_PACKET", "PACKET", "TraceBatch"]

#: `EVENT["packet"]` of an event that carried no headers.
NO_PACKET = -1

#: Bit in `EVENT["flags"]`: the event came by NFLOG from a legacy table.
LEGACY = 1

#: *step* is an index into the decoder's step table. *trace_id* is nft's, 0 for legacy:
#: never an identity by itself. *iif* and *oif* are interface indexes, 0 for none.
#: *mark* is the packet's mark, before the target for legacy, after the rule for nft.
EVENT = np.dtype(
    [
        ("step", "<i4"),
        ("packet", "<i4"),
        ("trace_id", "<u4"),
        ("iif", "<u4"),
        ("oif", "<u4"),
        ("mark", "<u4"),
        ("ct_id", "<u4"),
        ("flags", "<u4"),
    ]
)

#: *src* and *dst* are the address's words in network order (IPv4: the first word, rest 0).
#: *family* is 4, 6 or 0 (neither). *sport* and *dport* are 0 for protocols without ports.
#: *length* is the IP total length. *seq* and *ack* are TCP's. *icmp* holds type, code, id
#: and sequence packed as type<<40 | code<<32 | id<<16 | seq for ICMP and ICMPv6, else 0.
#: *raw* holds network header and transport header as traced, *network_length* and
#: *transport_length* bytes of them, the transport header beginning at byte 40.
#: *fingerprint* hashes what NAT leaves alone; see `tracer.core.headers`.
PACKET = np.dtype(
    [
        ("fingerprint", "<u8"),
        ("icmp", "<u8"),
        ("src", "<u4", (4,)),
        ("dst", "<u4", (4,)),
        ("seq", "<u4"),
        ("ack", "<u4"),
        ("length", "<u4"),
        ("sport", "<u2"),
        ("dport", "<u2"),
        ("ip_id", "<u2"),
        ("family", "u1"),
        ("proto", "u1"),
        ("ttl", "u1"),
        ("tcp_flags", "u1"),
        ("network_length", "u1"),
        ("transport_length", "u1"),
        ("raw", "u1", (60,)),
    ]
)


@dataclass(frozen=True, slots=True)
class TraceBatch:
    """
    Events in the kernel's order and the headers they point at.

    *events* is `EVENT (n,)`, *packets* `PACKET (k,)`; `events["packet"]` is below k.
    """

    events: npt.NDArray[np.void]
    packets: npt.NDArray[np.void]

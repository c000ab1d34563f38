"""
Packet headers of many packets at once: from traced bytes to `PACKET` rows.

The two engines tell of headers in two ways. nft gives the network header (40 bytes at
most) and the transport header (20 at most) apart, found by the kernel. NFLOG gives the
packet from its network header on, and the transport header is found here. A row looks
the same whichever way it came, so that one packet can be recognised in both.

In both: a fragment other than the first has no transport header; bytes behind the IP
total length (Ethernet's padding at ingress) are no part of the packet; a packet that is
not what its family claims has family 0.

Source: nf_trace_fill_pkt_info() in net/netfilter/nf_tables_trace.c, RFC 791, RFC 8200.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.core.events import PACKET
from tracer.core.fingerprint import fingerprints
from tracer.core.packet_text import packet_value, render_address, render_addresses
from tracer.core.protocols import (
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    PORTS_SIZE,
    PROTOCOLS_WITH_PORTS,
    TCP,
)
from tracer.core.transport import IPV6_SIZE, SPAN, TRANSPORT_WORDS, TransportHeaders, gather

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["SPAN", "packet_value", "read_packets", "render_address", "render_addresses"]

#: The packet's own version field decides.
_ANY_FAMILY = 10

#: What nft shows of the network header, in words: NFT_TRACETYPE_NETWORK_HSIZE.
_NETWORK_WORDS = 10
_IPV4_WORDS = 5
_ETHERNET_SIZE = 14

#: By pf: NFPROTO_IPV4 (2) and NFPROTO_IPV6 (10) name the packet's family, NFPROTO_ARP (3)
#: excludes both, and the others carry what they carry.
_FAMILY_OF_PF = np.full(256, _ANY_FAMILY, np.uint8)
_FAMILY_OF_PF[[2, 3, 10]] = (4, 0, 6)

#: Ethernet's types as they lie in the low half of a little-endian word.
_ETHERTYPE_FAMILY = {0x0008: 4, 0xDD86: 6}
_ETHERTYPE_VLAN = (0x0081, 0xA888)

_HAS_PORTS = np.zeros(256, np.bool_)
_HAS_PORTS[list(PROTOCOLS_WITH_PORTS)] = True


def read_packets(
    words: npt.NDArray[np.uint32], spans: npt.NDArray[np.void]
) -> npt.NDArray[np.void]:
    """
    Decode the headers that *spans* point at.

    Shape: *words* a flat little-endian view; *spans* `SPAN (k,)` with *network_size* above
    0; the result `PACKET (k,)` in the same order. Only bytes within the spans are read.
    """
    packets = np.zeros(spans.size, PACKET)
    if not spans.size:
        return packets
    first = gather(words, spans["network"], np.minimum(spans["network_size"], 4), 1)[0]
    family = _families(words, spans, first)
    network_size = _network_sizes(spans, family, first)
    network = gather(words, spans["network"], network_size, _NETWORK_WORDS)
    layout = TransportHeaders(words, spans, family, network)
    transport = gather(words, layout.at, layout.size, TRANSPORT_WORDS)

    raw = packets.view("<u4").reshape(spans.size, -1)[:, -(_NETWORK_WORDS + TRANSPORT_WORDS) :]
    raw[:, :_NETWORK_WORDS] = network.T
    raw[:, _NETWORK_WORDS:] = transport.T
    packets["family"] = family
    packets["proto"] = layout.proto
    packets["network_length"] = network_size
    packets["transport_length"] = layout.size
    _fill_network(packets, family, network)
    _fill_transport(packets, transport)
    packets["fingerprint"] = fingerprints(family, network, transport)
    return packets


def _families(
    words: npt.NDArray[np.uint32], spans: npt.NDArray[np.void], first: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint8]:
    """Tell IPv4 and IPv6 from the rest: what the kernel says and the packet's version agree."""
    said = _FAMILY_OF_PF.take(spans["pf"])
    framed = np.flatnonzero((said == _ANY_FAMILY) & (spans["link_size"] >= _ETHERNET_SIZE))
    if framed.size:
        said[framed] = _ethernet_families(words, spans[framed])
    size = spans["network_size"]
    version = (first >> np.uint32(4)) & np.uint32(15)
    ipv4 = (
        (version == IPV4)
        & ((first & np.uint32(15)) >= _IPV4_WORDS)
        & (size >= 4 * _IPV4_WORDS)
        & (said != IPV6)
    )
    ipv6 = (version == IPV6) & (size >= IPV6_SIZE) & (said != IPV4)
    family = np.zeros(size.size, np.uint8)
    family[ipv4 & (said != 0)] = IPV4
    family[ipv6 & (said != 0)] = IPV6
    return family


def _ethernet_families(
    words: npt.NDArray[np.uint32], spans: npt.NDArray[np.void]
) -> npt.NDArray[np.uint8]:
    link = gather(words, spans["link"], spans["link_size"], TRANSPORT_WORDS)
    low = np.uint32(0xFFFF)
    kind = link[3] & low
    kind = np.where(np.isin(kind, _ETHERTYPE_VLAN), link[4] & low, kind)
    family = np.zeros(kind.size, np.uint8)
    for number, value in _ETHERTYPE_FAMILY.items():
        family[kind == number] = value
    return family


def _network_sizes(
    spans: npt.NDArray[np.void], family: npt.NDArray[np.uint8], first: npt.NDArray[np.uint32]
) -> npt.NDArray[np.int64]:
    """Bytes of network header: to the end of IPv4's options, at most 40."""
    ipv4 = (first & np.uint32(15)).astype(np.int64) * 4
    limit = np.where(family == IPV4, np.minimum(ipv4, 4 * _NETWORK_WORDS), 4 * _NETWORK_WORDS)
    sizes: npt.NDArray[np.int64] = np.minimum(spans["network_size"], limit)
    return sizes


def _fill_network(
    packets: npt.NDArray[np.void],
    family: npt.NDArray[np.uint8],
    network: npt.NDArray[np.uint32],
) -> None:
    low, half = np.uint32(0xFFFF), np.uint32(16)
    rows: slice | npt.NDArray[np.int64]
    for number in (IPV4, IPV6):
        rows = np.flatnonzero(family == number)
        if not rows.size:
            continue
        column = network[:, rows]
        if number == IPV4:
            packets["src"][rows, 0], packets["dst"][rows, 0] = column[3], column[4]
            packets["length"][rows] = column[0].byteswap() & low
            packets["ip_id"][rows] = column[1].byteswap() >> half
            packets["ttl"][rows] = column[2] & np.uint32(0xFF)
        else:
            packets["src"][rows], packets["dst"][rows] = column[2:6].T, column[6:10].T
            packets["length"][rows] = (column[1].byteswap() >> half) + np.uint32(IPV6_SIZE)
            packets["ttl"][rows] = column[1] >> np.uint32(24)


def _fill_transport(
    packets: npt.NDArray[np.void],
    transport: npt.NDArray[np.uint32],
) -> None:
    proto, family = packets["proto"], packets["family"]
    low, half = np.uint32(0xFFFF), np.uint32(16)
    rows = np.flatnonzero(_HAS_PORTS.take(proto) & (packets["transport_length"] >= PORTS_SIZE))
    ports = transport[0, rows].byteswap()
    packets["sport"][rows] = ports >> half
    packets["dport"][rows] = ports & low
    rows = np.flatnonzero(proto == TCP)
    packets["seq"][rows] = transport[1, rows].byteswap()
    packets["ack"][rows] = transport[2, rows].byteswap()
    packets["tcp_flags"][rows] = (transport[3, rows] >> np.uint32(8)) & np.uint32(0xFF)
    icmp = ((family == IPV4) & (proto == ICMP)) | ((family == IPV6) & (proto == ICMPV6))
    rows = np.flatnonzero(icmp)
    if rows.size:
        kind = (transport[0, rows].byteswap() >> half).astype(np.uint64)
        kind = ((kind >> np.uint64(8)) << np.uint64(40)) | (
            (kind & np.uint64(0xFF)) << np.uint64(32)
        )
        packets["icmp"][rows] = kind | transport[1, rows].byteswap()

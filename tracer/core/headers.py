"""
Packet headers of many packets at once: from traced bytes to `PACKET` rows.

The two engines tell of headers in two ways. nft gives the network header (40 bytes at
most) and the transport header (20 at most) apart, found by the kernel. NFLOG gives the
packet from its network header on, and the transport header is found here. A row looks
the same whichever way it came, so that one packet can be recognised in both.

In both: a fragment other than the first has no transport header; bytes behind the IP
total length (Ethernet's padding at ingress) are no part of the packet; a packet that is
not what its family claims has family 0.

Source: nf_trace_fill_pkt_info() in net/netfilter/nf_tables_trace.c, RFC 791, RFC 8200,
ipv6_find_hdr() in net/ipv6/exthdrs_core.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.core.events import PACKET
from tracer.core.fingerprint import EXTENSIONS, fingerprints
from tracer.core.packet_text import packet_value, render_address, render_addresses

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["SPAN", "packet_value", "read_packets", "render_address", "render_addresses"]

#: Where one packet's headers lie, in a view of words. *network*, *transport* and *link*
#: are word indexes, the sizes bytes, 0 for absent. *located*: the kernel told the
#: transport header apart (nft); else *network* spans the whole packet as far as it was
#: copied. *pf* is netfilter's number of the packet's family.
SPAN = np.dtype(
    [
        ("network", "<i8"),
        ("network_size", "<i8"),
        ("transport", "<i8"),
        ("transport_size", "<i8"),
        ("link", "<i8"),
        ("link_size", "<i8"),
        ("pf", "<i8"),
        ("located", "<i8"),
    ]
)

#: The packet's own version field decides.
ANY_FAMILY = 10

_NETWORK_WORDS = 10
_TRANSPORT_WORDS = 5
_IPV6_SIZE = 40
_ETHERNET_SIZE = 14

#: By pf: NFPROTO_IPV4 (2) and NFPROTO_IPV6 (10) name the packet's family, NFPROTO_ARP (3)
#: excludes both, and the others carry what they carry.
_FAMILY_OF_PF = np.full(256, ANY_FAMILY, np.uint8)
_FAMILY_OF_PF[[2, 3, 10]] = (4, 0, 6)

#: Ethernet's types as they lie in the low half of a little-endian word.
_ETHERTYPE_FAMILY = {0x0008: 4, 0xDD86: 6}
_ETHERTYPE_VLAN = (0x0081, 0xA888)

#: Protocols whose header begins with two ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
_HAS_PORTS = np.zeros(256, np.bool_)
_HAS_PORTS[[6, 17, 33, 132, 136]] = True

#: Longer chains of IPv6 extension headers are not followed: no protocol is told then.
#: RFC 8200 section 4.1 knows of seven at most.
_EXTENSIONS_FOLLOWED = 8

#: Keeps the first 0 to 4 bytes of a little-endian word.
_KEEP = np.array([0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF], np.uint32)

_FRAGMENT = 44


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
    first = _gather(words, spans["network"], np.minimum(spans["network_size"], 4), 1)[0]
    family = _families(words, spans, first)
    network_size = _network_sizes(spans, family, first)
    network = _gather(words, spans["network"], network_size, _NETWORK_WORDS)
    layout = _Transport(words, spans, family, network)
    transport = _gather(words, layout.at, layout.size, _TRANSPORT_WORDS)

    raw = packets.view("<u4").reshape(spans.size, -1)[:, -(_NETWORK_WORDS + _TRANSPORT_WORDS) :]
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


def _gather(
    words: npt.NDArray[np.uint32],
    at: npt.NDArray[np.int64],
    size: npt.NDArray[np.int64],
    count: int,
) -> npt.NDArray[np.uint32]:
    """Return *count* words of each span as columns `(count, k)`, zero behind its end."""
    columns = np.zeros((count, at.size), np.uint32)
    least, most = int(size.min()), int(size.max())
    for row in range(min(count, (most + 3) // 4)):
        if least >= 4 * row + 4:
            columns[row] = words.take(at + row)
        else:
            left = size - 4 * row
            has = np.flatnonzero(left > 0)
            columns[row, has] = words.take(at[has] + row) & _KEEP.take(np.minimum(left[has], 4))
    return columns


def _families(
    words: npt.NDArray[np.uint32], spans: npt.NDArray[np.void], first: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint8]:
    """Tell IPv4 and IPv6 from the rest: what the kernel says and the packet's version agree."""
    said = _FAMILY_OF_PF.take(spans["pf"])
    framed = np.flatnonzero((said == ANY_FAMILY) & (spans["link_size"] >= _ETHERNET_SIZE))
    if framed.size:
        said[framed] = _ethernet_families(words, spans[framed])
    size = spans["network_size"]
    version = (first >> np.uint32(4)) & np.uint32(15)
    ipv4 = (version == 4) & ((first & np.uint32(15)) >= 5) & (size >= 20) & (said != 6)
    ipv6 = (version == 6) & (size >= _IPV6_SIZE) & (said != 4)
    family = np.zeros(size.size, np.uint8)
    family[ipv4 & (said != 0)] = 4
    family[ipv6 & (said != 0)] = 6
    return family


def _ethernet_families(
    words: npt.NDArray[np.uint32], spans: npt.NDArray[np.void]
) -> npt.NDArray[np.uint8]:
    link = _gather(words, spans["link"], spans["link_size"], _TRANSPORT_WORDS)
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
    limit = np.where(family == 4, np.minimum(ipv4, 4 * _NETWORK_WORDS), 4 * _NETWORK_WORDS)
    sizes: npt.NDArray[np.int64] = np.minimum(spans["network_size"], limit)
    return sizes


class _Transport:
    """Where each packet's transport header is, how much of it there is, and its protocol."""

    def __init__(
        self,
        words: npt.NDArray[np.uint32],
        spans: npt.NDArray[np.void],
        family: npt.NDArray[np.uint8],
        network: npt.NDArray[np.uint32],
    ) -> None:
        self.at = spans["transport"].copy()
        size = spans["transport_size"].copy()
        header = (network[0] & np.uint32(15)).astype(np.int64) * 4
        ipv4, ipv6 = family == 4, family == 6
        self.proto = np.where(ipv4, (network[2] >> np.uint32(8)) & np.uint32(0xFF), 0)
        self.proto = np.where(ipv6, (network[1] >> np.uint32(16)) & np.uint32(0xFF), self.proto)
        whole = spans["located"] == 0
        size[whole] = 0
        rows = np.flatnonzero(whole & ipv4)
        self.at[rows] = spans["network"][rows] + header[rows] // 4
        size[rows] = np.maximum(spans["network_size"][rows] - header[rows], 0)
        rows = np.flatnonzero(whole & ipv6)
        if rows.size:
            self._follow(words, spans, rows, size)
        size[ipv4 & (network[1].byteswap() & np.uint32(0x1FFF) != 0)] = 0
        size = np.minimum(size, _payload_limit(family, network, header))
        size[family == 0] = 0
        self.size = np.minimum(size, 4 * _TRANSPORT_WORDS)

    def _follow(
        self,
        words: npt.NDArray[np.uint32],
        spans: npt.NDArray[np.void],
        rows: npt.NDArray[np.int64],
        size: npt.NDArray[np.int64],
    ) -> None:
        """Skip IPv6's extension headers; every one is a multiple of eight bytes long."""
        at = spans["network"][rows] + _IPV6_SIZE // 4
        left = spans["network_size"][rows] - _IPV6_SIZE
        self.at[rows], size[rows] = at, left
        for turn in range(_EXTENSIONS_FOLLOWED + 1):
            more = EXTENSIONS.take(self.proto[rows])
            rows, at, left = rows[more], at[more], left[more]
            size[rows] = 0
            if turn == _EXTENSIONS_FOLLOWED:
                return
            more = left >= 8
            rows, at, left = rows[more], at[more], left[more]
            if not rows.size:
                return
            header, second = words.take(at), self.proto[rows] == _FRAGMENT
            length = np.where(second, 8, (((header >> np.uint32(8)) & np.uint32(0xFF)) + 1) * 8)
            length = length.astype(np.int64)
            later = second & ((header.byteswap() & np.uint32(0xFFF8)) != 0)
            self.proto[rows] = header & np.uint32(0xFF)
            at, left = at + length // 4, left - length
            self.at[rows], size[rows] = at, np.where(later, 0, np.maximum(left, 0))
            rows, at, left = rows[~later], at[~later], left[~later]


def _payload_limit(
    family: npt.NDArray[np.uint8],
    network: npt.NDArray[np.uint32],
    header: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Bytes that the IP header says follow it; unbounded where it says none (jumbograms)."""
    total = (network[0].byteswap() & np.uint32(0xFFFF)).astype(np.int64)
    payload = (network[1].byteswap() >> np.uint32(16)).astype(np.int64)
    limit = np.where(family == 4, np.maximum(total - header, 0), payload)
    said = np.where(family == 4, total, payload)
    return np.where(said == 0, np.int64(1 << 32), limit)


def _fill_network(
    packets: npt.NDArray[np.void],
    family: npt.NDArray[np.uint8],
    network: npt.NDArray[np.uint32],
) -> None:
    low, half = np.uint32(0xFFFF), np.uint32(16)
    rows: slice | npt.NDArray[np.int64]
    for number in (4, 6):
        rows = np.flatnonzero(family == number)
        if not rows.size:
            continue
        column = network[:, rows]
        if number == 4:
            packets["src"][rows, 0], packets["dst"][rows, 0] = column[3], column[4]
            packets["length"][rows] = column[0].byteswap() & low
            packets["ip_id"][rows] = column[1].byteswap() >> half
            packets["ttl"][rows] = column[2] & np.uint32(0xFF)
        else:
            packets["src"][rows], packets["dst"][rows] = column[2:6].T, column[6:10].T
            packets["length"][rows] = (column[1].byteswap() >> half) + np.uint32(_IPV6_SIZE)
            packets["ttl"][rows] = column[1] >> np.uint32(24)


def _fill_transport(
    packets: npt.NDArray[np.void],
    transport: npt.NDArray[np.uint32],
) -> None:
    proto, family = packets["proto"], packets["family"]
    low, half = np.uint32(0xFFFF), np.uint32(16)
    rows = np.flatnonzero(_HAS_PORTS.take(proto) & (packets["transport_length"] >= 4))
    ports = transport[0, rows].byteswap()
    packets["sport"][rows] = ports >> half
    packets["dport"][rows] = ports & low
    rows = np.flatnonzero(proto == 6)
    packets["seq"][rows] = transport[1, rows].byteswap()
    packets["ack"][rows] = transport[2, rows].byteswap()
    packets["tcp_flags"][rows] = (transport[3, rows] >> np.uint32(8)) & np.uint32(0xFF)
    icmp = ((family == 4) & (proto == 1)) | ((family == 6) & (proto == 58))
    rows = np.flatnonzero(icmp)
    if rows.size:
        kind = (transport[0, rows].byteswap() >> half).astype(np.uint64)
        kind = ((kind >> np.uint64(8)) << np.uint64(40)) | (
            (kind & np.uint64(0xFF)) << np.uint64(32)
        )
        packets["icmp"][rows] = kind | transport[1, rows].byteswap()

"""
Where packets' headers lie in a buffer, and where the transport header begins.

nft's kernel code has found the transport header; in an NFLOG payload it is found here.
A fragment other than the first has none: what nft shows there is payload.

Source: ipv6_find_hdr() in net/ipv6/exthdrs_core.c, RFC 8200 section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.core.fingerprint import EXTENSIONS
from tracer.core.protocols import IPV4, IPV6

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["IPV6_SIZE", "SPAN", "TRANSPORT_WORDS", "TransportHeaders", "gather"]

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

IPV6_SIZE = 40

#: What nft shows of the transport header, in words: NFT_TRACETYPE_TRANSPORT_HSIZE.
TRANSPORT_WORDS = 5

#: Longer chains of IPv6 extension headers are not followed: no protocol is told then.
#: RFC 8200 section 4.1 knows of seven at most.
_EXTENSIONS_FOLLOWED = 8
_EXTENSION_SIZE = 8
_FRAGMENT = 44

#: Keeps the first 0 to 4 bytes of a little-endian word.
_KEEP = np.array([0, 0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF], np.uint32)


def gather(
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


class TransportHeaders:
    """Where each packet's transport header is, how much of it there is, and its protocol."""

    def __init__(
        self,
        words: npt.NDArray[np.uint32],
        spans: npt.NDArray[np.void],
        family: npt.NDArray[np.uint8],
        network: npt.NDArray[np.uint32],
    ) -> None:
        """Find the headers of k packets; *network* is `(10, k)`, their network headers."""
        self.at = spans["transport"].copy()
        size = spans["transport_size"].copy()
        header = (network[0] & np.uint32(15)).astype(np.int64) * 4
        ipv4, ipv6 = family == IPV4, family == IPV6
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
        self.size = np.minimum(size, 4 * TRANSPORT_WORDS)

    def _follow(
        self,
        words: npt.NDArray[np.uint32],
        spans: npt.NDArray[np.void],
        rows: npt.NDArray[np.int64],
        size: npt.NDArray[np.int64],
    ) -> None:
        """Skip IPv6's extension headers; every one is a multiple of eight bytes long."""
        at = spans["network"][rows] + IPV6_SIZE // 4
        left = spans["network_size"][rows] - IPV6_SIZE
        self.at[rows], size[rows] = at, left
        for _ in range(_EXTENSIONS_FOLLOWED):
            more = EXTENSIONS.take(self.proto[rows])
            rows, at, left = rows[more], at[more], left[more]
            size[rows] = 0
            more = left >= _EXTENSION_SIZE
            rows, at, left = rows[more], at[more], left[more]
            if not rows.size:
                break
            header, fragment = words.take(at), self.proto[rows] == _FRAGMENT
            length = np.where(fragment, 8, (((header >> np.uint32(8)) & np.uint32(0xFF)) + 1) * 8)
            length = length.astype(np.int64)
            later = fragment & ((header.byteswap() & np.uint32(0xFFF8)) != 0)
            self.proto[rows] = header & np.uint32(0xFF)
            at, left = at + length // 4, left - length
            self.at[rows], size[rows] = at, np.where(later, 0, np.maximum(left, 0))
            rows, at, left = rows[~later], at[~later], left[~later]
        size[rows[EXTENSIONS.take(self.proto[rows])]] = 0


def _payload_limit(
    family: npt.NDArray[np.uint8],
    network: npt.NDArray[np.uint32],
    header: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Bytes that the IP header says follow it; unbounded where it says none (jumbograms)."""
    total = (network[0].byteswap() & np.uint32(0xFFFF)).astype(np.int64)
    payload = (network[1].byteswap() >> np.uint32(16)).astype(np.int64)
    limit = np.where(family == IPV4, np.maximum(total - header, 0), payload)
    said = np.where(family == IPV4, total, payload)
    return np.where(said == 0, np.int64(1 << 32), limit)

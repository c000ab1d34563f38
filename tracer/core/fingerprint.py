"""
One number that a packet keeps on its way, through NAT and from router to router.

Hashed are: IP version, protocol, IPv4's identification and fragment offset, the length
of the payload, and those of the first 20 transport bytes that no NAT writes to:

- TCP: sequence, acknowledgement, flags;
- UDP, UDP-Lite, DCCP: what follows ports and checksum;
- SCTP: the verification tag and what follows the checksum, which NAT writes to;
- ICMP and ICMPv6: type, code and the sequence of an echo, not its id, which is NAT's
  port; of the packet quoted by an error only the first eight bytes, since NAT rewrites
  the addresses and the header checksum in there too;
- GRE: not the last four bytes of its first eight, where PPTP's call id is;
- anything else: all 20.

Not hashed are addresses, ports, checksums, TTL, TOS, mark and options.

IPv6 with extension headers is the one special case: nft does not say which protocol
its transport header is of, so only bytes are hashed that no NAT of any protocol writes
to, and the protocol hashed is the first header's, whichever engine told.

A fingerprint is not a proof: two packets alike in all of this have the same one, such as
two UDP packets with IP id 0 and equal beginnings. It is looked up in a window of time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.core.mixing import finish, multipliers
from tracer.core.protocols import ICMP, ICMPV6, IPV4, IPV6, TCP

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["EXTENSIONS", "fingerprints"]

#: IPv6's next header values that are extension headers to be skipped: hop-by-hop,
#: routing, fragment, destination options. Source: ipv6_ext_hdr() without AUTH and NONE,
#: at which ipv6_find_hdr() stops as well.
EXTENSIONS = np.zeros(256, np.bool_)
EXTENSIONS[[0, 43, 44, 60]] = True

_MULTIPLIERS = multipliers(0x6E66_7472_6163_65, 14)


def _mask(*spans: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Return the mask over 20 bytes, as five words, that keeps bytes first to last."""
    kept = np.zeros(20, np.uint8)
    for first, last in spans:
        kept[first : last + 1] = 0xFF
    return kept.view("<u4").astype(np.uint32)


_DEFAULT, _TCP, _DATAGRAM, _SCTP, _GRE, _ECHO, _ICMP, _UNKNOWN = range(8)
_MASKS = np.stack(
    [
        _mask((0, 19)),
        _mask((4, 11), (13, 13)),
        _mask((8, 19)),
        _mask((4, 7), (12, 19)),
        _mask((0, 3), (8, 19)),
        _mask((0, 1), (6, 19)),
        _mask((0, 1), (6, 15)),
        _mask((8, 15), (18, 19)),
    ],
    axis=1,
)

_CLASS = np.full(256, _DEFAULT, np.int64)
_CLASS[TCP] = _TCP
_CLASS[[17, 33, 136]] = _DATAGRAM
_CLASS[132] = _SCTP
_CLASS[47] = _GRE

#: Echo and timestamp of ICMP, echo of ICMPv6: what has an id for NAT to change.
_IS_ECHO = {
    IPV4: np.isin(np.arange(256), (0, 8, 13, 14)),
    IPV6: np.isin(np.arange(256), (128, 129)),
}
_ICMP_OF = {IPV4: ICMP, IPV6: ICMPV6}


def fingerprints(
    family: npt.NDArray[np.uint8],
    network: npt.NDArray[np.uint32],
    transport: npt.NDArray[np.uint32],
) -> npt.NDArray[np.uint64]:
    """
    Hash k packets' headers; never 0.

    Shape: *family* `(k,)` of 4, 6 and 0; *network* `(10, k)` and *transport* `(5, k)`
    words as traced, zero behind the header's end. Of family 0 the network header is
    hashed whole: nothing is known to change it.
    """
    low, half, byte = np.uint32(0xFFFF), np.uint32(16), np.uint32(0xFF)
    ipv4, ipv6 = family == IPV4, family == IPV6
    second = network[1].byteswap()
    wire = np.where(ipv4, (network[2] >> np.uint32(8)) & byte, (network[1] >> half) & byte)
    kept = _classes(family, wire, transport)
    identity = np.where(ipv4, second & np.uint32(0xFFFF1FFF), 0).astype(np.uint64)
    total = (network[0].byteswap() & low).astype(np.int64)
    header = (network[0] & np.uint32(15)).astype(np.int64) * 4
    payload = np.where(ipv4, total - header, (second >> half).astype(np.int64))
    offset = ((transport[3] >> np.uint32(4)) & np.uint32(15)).astype(np.int64) * 4
    payload = payload - np.where(kept == _TCP, offset, 0)

    sums = identity * _MULTIPLIERS[0] + payload.astype(np.uint64) * _MULTIPLIERS[1]
    sums += ((family.astype(np.uint64) << np.uint64(8)) | wire) * _MULTIPLIERS[2]
    for row in range(5):
        word = transport[row] & _MASKS[row].take(kept)
        sums += word * _MULTIPLIERS[3 + row]
    other = np.flatnonzero(~(ipv4 | ipv6))
    if other.size:
        sums[other] = (network[:, other] * _MULTIPLIERS[:10, None]).sum(0, dtype=np.uint64)
    mixed = finish(sums)
    mixed[mixed == 0] = 1
    return mixed


def _classes(
    family: npt.NDArray[np.uint8],
    wire: npt.NDArray[np.uint32],
    transport: npt.NDArray[np.uint32],
) -> npt.NDArray[np.int64]:
    """Choose each packet's mask by its protocol as the IP header names it."""
    kept = _CLASS.take(wire)
    kept[(family == IPV6) & EXTENSIONS.take(wire)] = _UNKNOWN
    for number, protocol in _ICMP_OF.items():
        rows = np.flatnonzero((family == number) & (wire == protocol))
        if rows.size:
            echo = _IS_ECHO[number].take(transport[0, rows] & np.uint32(0xFF))
            kept[rows] = np.where(echo, _ECHO, _ICMP)
    return kept

"""Headers out of the log's columns: of drops only these were kept, not the bytes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from tracer.core.protocols import PROTOCOLS_WITH_PORTS, TCP

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["rebuild_headers"]

_UDP: Final = 17
_ICMPS: Final = frozenset({(4, 1), (6, 58)})
_IPV6_BYTES: Final = 40


def rebuild_headers(row: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """
    Return network and transport header as far as `DROPS`' columns say; empty if not IP.

    What they do not say is 0: TOS, fragment offset, options, window, the transport's
    checksum. The IPv4 header's checksum is right.
    """
    src, dst = (_packed(row["family"], row[f"{n}_high"], row[f"{n}_low"]) for n in ("src", "dst"))
    transport = _transport(row)
    length = min(row["length"], 0xFFFF)
    if row["family"] == 4:  # noqa: PLR2004 - an IP version
        head = struct.pack(
            ">BBHHHBBH", 0x45, 0, length, row["ip_id"], 0, row["ttl"], row["proto"], 0
        )
        network = head + src + dst
        return network[:10] + _checksum(network) + network[12:], transport
    if row["family"] == 6:  # noqa: PLR2004 - the other
        payload = max(length - _IPV6_BYTES, 0)
        head = struct.pack(">IHBB", 6 << 28, payload, row["proto"], row["ttl"])
        return head + src + dst, transport
    return b"", b""


def _packed(family: int, high: int, low: int) -> bytes:
    whole = struct.pack(">QQ", high, low)
    return whole[12:] if family == 4 else whole  # noqa: PLR2004 - an IP version


def _transport(row: Mapping[str, Any]) -> bytes:
    ports = struct.pack(">HH", row["sport"], row["dport"])
    proto: int = row["proto"]
    if proto == TCP:
        numbers = struct.pack(">II", row["tcp_seq"], row["tcp_ack"])
        return ports + numbers + struct.pack(">BBHHH", 0x50, row["tcp_flags"], 0, 0, 0)
    if row["proto"] == _UDP:
        header = _IPV6_BYTES if row["family"] == 6 else 20  # noqa: PLR2004 - an IP version
        return ports + struct.pack(">HH", max(min(row["length"], 0xFFFF) - header, 8), 0)
    if row["proto"] in PROTOCOLS_WITH_PORTS:
        return ports
    if (row["family"], row["proto"]) in _ICMPS:
        icmp: int = row["icmp"]
        return struct.pack(">BBHI", icmp >> 40 & 0xFF, icmp >> 32 & 0xFF, 0, icmp & 0xFFFF_FFFF)
    return b""


def _checksum(header: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", 0xFFFF ^ total)

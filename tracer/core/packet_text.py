"""`PACKET` rows as people read them: addresses, protocol names, TCP flags."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tracer.core.journey import Packet
from tracer.core.protocols import (
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    PORTS_SIZE,
    PROTOCOL_NAMES,
    PROTOCOLS_WITH_PORTS,
    TCP,
)

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "PROTOCOL_NAMES",
    "packet_value",
    "render_address",
    "render_addresses",
    "render_family",
    "render_protocol",
    "render_tcp_flags",
]

_FAMILY_NAMES = {IPV4: "ipv4", IPV6: "ipv6"}

#: Rendered addresses that are remembered: a busy second's peers at some 150 bytes each.
_ADDRESSES = 65_536

_FLAG_LETTERS = "FSRPAUEC"
_FLAGS = [
    "".join(letter for bit, letter in enumerate(_FLAG_LETTERS) if value >> bit & 1)
    for value in range(256)
]

_ICMP = {(IPV4, ICMP), (IPV6, ICMPV6)}
#: Types whose second word is an id and a sequence: echo and timestamp, echo of ICMPv6.
_HAS_ID = {(4, 0), (4, 8), (4, 13), (4, 14), (6, 128), (6, 129)}

#: Transport bytes up to the TCP flags, to an ICMP message's checksum, and to its sequence.
_TCP_FLAGS_SIZE = 14
_ICMP_KIND_SIZE = 4
_ICMP_ECHO_SIZE = 8


@lru_cache(maxsize=_ADDRESSES)
def _render_packed(family: int, packed: bytes) -> str:
    if family == IPV4:
        return ".".join(map(str, packed[:4]))
    if family == IPV6:
        return ipaddress.IPv6Address(packed).compressed
    return ""


def render_address(family: int, words: npt.NDArray[np.uint32]) -> str:
    """Return an address of `PACKET` (four words) as text; empty for family 0."""
    return _render_packed(int(family), words.tobytes())


def render_addresses(
    families: npt.NDArray[np.uint8], addresses: npt.NDArray[np.uint32]
) -> list[str]:
    """
    Return many addresses as text, in order; empty for family 0.

    Shape: *families* `(k,)`, *addresses* `(k, 4)`: two columns of `PACKET`. Repeated
    addresses are looked up (0.15 us each).
    """
    packed = np.ascontiguousarray(addresses).view("V16").reshape(-1).tolist()
    return [_render_packed(*pair) for pair in zip(families.tolist(), packed, strict=True)]


def render_family(family: int) -> str:
    """Return ipv4, ipv6 or other."""
    return _FAMILY_NAMES.get(family, "other")


def render_protocol(number: int) -> str:
    """Return a protocol's name, or its number as text."""
    return PROTOCOL_NAMES.get(number) or str(number)


def render_tcp_flags(value: int) -> str:
    """Return a subset of FSRPAUEC, in that order, for the header's flags byte."""
    return _FLAGS[value]


def packet_value(row: np.void) -> Packet:
    """
    Return one `PACKET` row as a value; what its protocol does not have is None.

    Fields of headers that were cut off before them are None as well. For family 0
    only the family is known, and its *proto* is the text 0.
    """
    family, proto = int(row["family"]), int(row["proto"])
    if family == 0:
        return Packet(family="other", proto="0")
    fields: dict[str, int | str | None] = {}
    traced = int(row["transport_length"])
    if proto in PROTOCOLS_WITH_PORTS and traced >= PORTS_SIZE:
        fields |= {"sport": int(row["sport"]), "dport": int(row["dport"])}
    if proto == TCP and traced >= _TCP_FLAGS_SIZE:
        fields |= {
            "tcp_flags": render_tcp_flags(int(row["tcp_flags"])),
            "tcp_seq": int(row["seq"]),
        }
    if (family, proto) in _ICMP and traced >= _ICMP_KIND_SIZE:
        fields |= _icmp_fields(family, int(row["icmp"]), traced)
    return Packet(
        family=render_family(family),
        proto=render_protocol(proto),
        src=render_address(family, row["src"]),
        dst=render_address(family, row["dst"]),
        length=int(row["length"]),
        ttl=int(row["ttl"]),
        ip_id=int(row["ip_id"]) if family == IPV4 else None,
        **fields,  # type: ignore[arg-type]
    )


def _icmp_fields(family: int, icmp: int, traced: int) -> dict[str, int | str | None]:
    kind = icmp >> 40
    fields: dict[str, int | str | None] = {"icmp_type": kind, "icmp_code": icmp >> 32 & 0xFF}
    if (family, kind) in _HAS_ID and traced >= _ICMP_ECHO_SIZE:
        fields |= {"icmp_id": icmp >> 16 & 0xFFFF, "icmp_seq": icmp & 0xFFFF}
    return fields

"""
Addresses made strange for who must not know them, with what they have in common kept.

Two addresses that share their first n bits and differ in the next still do so afterwards,
equal ones are equal, and with one key this holds over all exports. Each bit is flipped or
not as a keyed hash of the bits before it says: the scheme of Xu, Fan, Ammar and Moon,
"Prefix-Preserving IP Address Anonymization" (ICNP 2002), with BLAKE2 in the place of AES.

What is hidden are IPv4 and IPv6 addresses, wherever they stand in a text (chains are often
named after them), and MAC addresses, of which only equality is kept. Not hidden: ports, the
names of hosts, namespaces and devices, and what the traffic's pattern itself gives away.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import struct
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["KEY_BYTES", "Anonymizer"]

KEY_BYTES: Final = 32
_CACHE: Final = 65_536
_ADDRESS: Final = re.compile(
    r"(?<![0-9A-Fa-f:])(?P<mac>(?:[0-9A-Fa-f]{2}:){5,}[0-9A-Fa-f]{2})(?![0-9A-Fa-f:])"
    r"|(?<![0-9.])(?P<v4>(?:\d{1,3}\.){3}\d{1,3})(?P<length4>/\d{1,2}(?![0-9.]))?(?![0-9]|\.\d)"
    r"|(?<![0-9A-Za-z:.])(?P<v6>(?=[0-9A-Fa-f]*:[0-9A-Fa-f]*:)[0-9A-Fa-f:]+(?:\.\d+){0,3})"
    r"(?P<length6>/\d{1,3}(?!\d))?(?![0-9A-Za-z:])"
)
_IPV4_HEADER, _IPV6_HEADER = 20, 40
#: What may stand behind: ICMP quotes packets, whose addresses are not ours to find there.
_ICMP, _ICMPV6, _TCP, _UDP = 1, 58, 6, 17
_ICMP_KEPT = 8
_CHECKSUM_AT: Final = {_TCP: 16, _UDP: 6}
#: In a journey's line: what holds no address, and looks like one in part.
_NO_TEXT: Final = frozenset({"schema", "id", "fingerprint", "start", "host"})


class Anonymizer:
    """Maps addresses by one key; the same key gives the same addresses again."""

    def __init__(self, key: bytes | None = None) -> None:
        """
        Take *key*, 32 bytes, or one of chance that nobody knows afterwards.

        Errors: ValueError for a key of another length.
        """
        key = secrets.token_bytes(KEY_BYTES) if key is None else key
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key
        self._bits = lru_cache(maxsize=_CACHE)(self._bit)
        self._numbers = lru_cache(maxsize=_CACHE)(self._number)

    def _bit(self, width: int, length: int, prefix: int) -> int:
        """Return whether the bit behind the first *length* bits of an address is flipped."""
        block = struct.pack("<BB16s", width, length, prefix.to_bytes(16, "little"))
        return blake2b(block, key=self._key, digest_size=1).digest()[0] & 1

    def _number(self, width: int, number: int) -> int:
        mapped = 0
        for length in range(width):
            bit = number >> (width - 1 - length) & 1
            flipped = self._bits(width, length, number >> (width - length))
            mapped = mapped << 1 | (bit ^ flipped)
        return mapped

    def address(self, text: str) -> str:
        """
        Return another address in the place of *text*, an IPv4 or IPv6 address.

        Errors: ValueError for what is none.
        """
        address = ipaddress.ip_address(text)
        mapped = self._numbers(address.max_prefixlen, int(address))
        return str(type(address)(mapped))

    def text(self, text: str) -> str:
        """Return *text* with all addresses in it replaced; a prefix stays a prefix."""
        return _ADDRESS.sub(self._replace, text) if ":" in text or "." in text else text

    def _replace(self, found: re.Match[str]) -> str:
        if mac := found["mac"]:
            digest = blake2b(mac.lower().encode(), key=self._key, digest_size=len(mac) // 3 + 1)
            return ":".join(f"{byte:02x}" for byte in digest.digest())
        word = found["v4"] or found["v6"]
        length = found["length4"] or found["length6"] or ""
        try:
            mapped = self.address(word)
            if length:
                return str(ipaddress.ip_network(mapped + length, strict=False))
        except ValueError:
            return found[0]
        return mapped

    def line(self, told: Any) -> Any:  # noqa: ANN401 - what JSON holds
        """Return what a JSON line holds with the addresses in all its texts replaced."""
        if isinstance(told, str):
            return self.text(told)
        if isinstance(told, list):
            return [self.line(one) for one in told]
        if isinstance(told, dict):
            return {
                self.text(name): value if name in _NO_TEXT else self.line(value)
                for name, value in told.items()
            }
        return told

    def halves(
        self,
        family: npt.NDArray[np.uint8],
        high: npt.NDArray[np.uint64],
        low: npt.NDArray[np.uint64],
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Return the log's two columns of an address, mapped; `(n,)` each."""
        table = np.stack([family.astype(np.uint64), high, low], axis=1)
        there, of = np.unique(table, axis=0, return_inverse=True)
        mapped = np.array([self._halves(*row) for row in there.tolist()], np.uint64)
        rows = mapped.reshape(-1, 2)[of.reshape(-1)]
        return rows[:, 0].copy(), rows[:, 1].copy()

    def _halves(self, family: int, high: int, low: int) -> tuple[int, int]:
        if family == 4:  # noqa: PLR2004 - an IP version
            upper = low >> 32 << 32
            return high, upper | self._numbers(32, low & 0xFFFF_FFFF)
        if family != 6:  # noqa: PLR2004 - the other
            return high, low
        number = self._numbers(128, high << 64 | low)
        return number >> 64, number & (1 << 64) - 1

    def headers(self, network: bytes, transport: bytes) -> tuple[bytes, bytes]:
        """
        Return a packet's headers with other addresses, and checksums to match.

        IPv4's options and what ICMP quotes can hold addresses: they are left out.
        """
        version = network[0] >> 4 if network else 0
        if version == 4 and len(network) >= _IPV4_HEADER:  # noqa: PLR2004 - an IP version
            return self._ipv4(bytearray(network), transport)
        if version == 6 and len(network) >= _IPV6_HEADER:  # noqa: PLR2004 - the other
            after = b"".join(self._packed(network[at : at + 16]) for at in (8, 24))
            proto, before = network[6], network[8:40]
            return network[:8] + after, _transport(transport, proto, before, after)
        return b"", b""

    def _ipv4(self, network: bytearray, transport: bytes) -> tuple[bytes, bytes]:
        proto, before = network[9], bytes(network[12:20])
        after = b"".join(self._packed(before[at : at + 4]) for at in (0, 4))
        network[12:20] = after
        for at in range(_IPV4_HEADER, len(network)):
            network[at] = 0  # End of options, to the header's end.
        network[10:12] = b"\0\0"
        network[10:12] = _checksum(bytes(network)).to_bytes(2, "big")
        return bytes(network), _transport(transport, proto, before, after)

    def _packed(self, address: bytes) -> bytes:
        number = self._numbers(len(address) * 8, int.from_bytes(address, "big"))
        return number.to_bytes(len(address), "big")


def _transport(transport: bytes, proto: int, before: bytes, after: bytes) -> bytes:
    """Return the transport header as it is with other addresses in the pseudo header."""
    if proto in {_ICMP, _ICMPV6}:
        return transport[:_ICMP_KEPT]
    at = _CHECKSUM_AT.get(proto)
    if at is None or len(transport) < at + 2 or transport[at : at + 2] == b"\0\0":
        return transport
    # RFC 1624, equation 3, over all the words that changed.
    total = 0xFFFF ^ int.from_bytes(transport[at : at + 2], "big")
    for word in struct.unpack(f">{len(before) // 2}H", before):
        total += 0xFFFF ^ word
    for word in struct.unpack(f">{len(after) // 2}H", after):
        total += word
    return transport[:at] + (0xFFFF ^ _fold(total)).to_bytes(2, "big") + transport[at + 2 :]


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _checksum(header: bytes) -> int:
    header += bytes(len(header) % 2)
    return 0xFFFF ^ _fold(sum(struct.unpack(f">{len(header) // 2}H", header)))

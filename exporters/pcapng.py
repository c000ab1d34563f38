"""
Packets that were traced as a pcapng file, for Wireshark and tcpdump.

A trace message carries a packet's headers and not its payload, so that is what the file
holds: the length on the wire is the real one, the captured bytes are the headers. Each
namespace is an interface of the file, and the journey in one line is the packet's comment.

Source: draft-ietf-opsawg-pcapng; link type 101 is LINKTYPE_RAW, which begins with the IP
header.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from tracer.core.journey import Journey

__all__ = ["PcapngWriter"]

_LINKTYPE_RAW: Final = 101
_SECTION_HEADER: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_ENHANCED_PACKET: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_END_OF_OPTIONS: Final = b"\0\0\0\0"
_COMMENT: Final = 1
_IF_NAME: Final = 2
_USER_APPLICATION: Final = 4
_IF_TIMESTAMP_RESOLUTION: Final = 9
_MICROSECONDS: Final = b"\x06"
#: An option's length is 16 bits wide; longer text is cut.
_OPTION_BYTES: Final = 0xFFFF
#: Interfaces written; namespaces beyond share the last, so that readers, who keep a table
#: of them, and we stay bounded where namespaces come and go all year.
INTERFACES_MAX: Final = 4096
_IP_VERSIONS: Final = frozenset({4, 6})


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def _option(code: int, content: bytes) -> bytes:
    return struct.pack("<HH", code, len(content)) + _padded(content)


def _text_option(code: int, text: str) -> bytes:
    content = text.encode("utf-8", "backslashreplace")[:_OPTION_BYTES]
    # A character that the cut went through is left out.
    return _option(code, content.decode("utf-8", "ignore").encode())


class PcapngWriter:
    """
    Writes packets to *file* as they come.

    The file can be read at any time after `flush`; closing it is the caller's.
    Errors: OSError of *file* passes through.
    """

    def __init__(self, file: BinaryIO, application: str = "nftrace") -> None:
        """Write the file's header."""
        self._file = file
        self._interfaces: dict[str, int] = {}
        #: Packets that were not written because they are not IP.
        self.passed_over = 0
        head = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
        options = _text_option(_USER_APPLICATION, application) + _END_OF_OPTIONS
        file.write(_block(_SECTION_HEADER, head + options))

    def write(self, journey: Journey, network: bytes, transport: bytes, comment: str = "") -> bool:
        """
        Write one packet as it was when *journey* began; return whether it was written.

        *network* is the IP header with what follows up to *transport*, which is as much of
        the packet behind it as was seen. What is not IP, as on a bridge, is counted in
        `passed_over`: readers refuse files whose interfaces differ in their link type.
        """
        captured = network + transport
        if not captured or captured[0] >> 4 not in _IP_VERSIONS:
            self.passed_over += 1
            return False
        interface = self._interface(journey.netns)
        stamp = journey.start_ns // 1000
        length = max(journey.packet.length or 0, len(captured))
        head = struct.pack(
            "<IIIII", interface, stamp >> 32, stamp & 0xFFFFFFFF, len(captured), length
        )
        options = _text_option(_COMMENT, comment) + _END_OF_OPTIONS if comment else b""
        self._file.write(_block(_ENHANCED_PACKET, head + _padded(captured) + options))
        return True

    def flush(self) -> None:
        """Make what was written visible to readers."""
        self._file.flush()

    def _interface(self, netns: str) -> int:
        number = self._interfaces.get(netns)
        if number is not None:
            return number
        number = len(self._interfaces)
        if number >= INTERFACES_MAX:
            return INTERFACES_MAX - 1
        name = netns if number < INTERFACES_MAX - 1 else "other namespaces"
        options = (
            _text_option(_IF_NAME, name)
            + _option(_IF_TIMESTAMP_RESOLUTION, _MICROSECONDS)
            + _END_OF_OPTIONS
        )
        # No snapshot length: 0 is none.
        self._file.write(_block(_INTERFACE, struct.pack("<HHI", _LINKTYPE_RAW, 0, 0) + options))
        self._interfaces[netns] = number
        return number

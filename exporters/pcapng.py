"""
Packets that were traced as a pcapng file, for Wireshark and tcpdump.

A trace message carries a packet's headers and not its payload, so that is what the file
holds: the length on the wire is the real one, the captured bytes are the headers. The
journey in one line is the packet's comment.

There is one interface for all namespaces, and each packet's comment says which it was: libpcap
compares the link type of a second interface, 101, with what it made of the first one's, 12
(DLT_RAW), so that tcpdump would stop reading where the second namespace begins.

Source: draft-ietf-opsawg-pcapng; link type 101 is LINKTYPE_RAW, which begins with the IP
header; pcap_ng_next_packet() in libpcap's sf-pcapng.c (seen with 1.10.3).
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
_IF_DESCRIPTION: Final = 3
_USER_APPLICATION: Final = 4
_IF_TIMESTAMP_RESOLUTION: Final = 9
_MICROSECONDS: Final = b"\x06"
#: An option's length is 16 bits wide; longer text is cut.
_OPTION_BYTES: Final = 0xFFFF
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
        """Write the file's header and its one interface."""
        self._file = file
        #: Packets that were not written because they are not IP.
        self.passed_over = 0
        head = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
        options = _text_option(_USER_APPLICATION, application) + _END_OF_OPTIONS
        file.write(_block(_SECTION_HEADER, head + options))
        # No snapshot length: 0 is none.
        interface = struct.pack("<HHI", _LINKTYPE_RAW, 0, 0)
        options = (
            _text_option(_IF_NAME, application)
            + _text_option(_IF_DESCRIPTION, "headers of traced packets; comments say where")
            + _option(_IF_TIMESTAMP_RESOLUTION, _MICROSECONDS)
            + _END_OF_OPTIONS
        )
        file.write(_block(_INTERFACE, interface + options))

    def write(self, journey: Journey, network: bytes, transport: bytes, comment: str = "") -> bool:
        """
        Write one packet as it was when *journey* began; return whether it was written.

        *network* is the IP header with what follows up to *transport*, which is as much of
        the packet behind it as was seen. *comment* is the journey in one line; empty, it is
        the namespace. What is not IP, as on a bridge, has no place under this link type and is
        counted in `passed_over`.
        """
        length = journey.packet.length or 0
        headers = network + transport
        return self.write_packet(journey.start_ns, length, headers, comment or journey.netns)

    def write_packet(self, time_ns: int, length: int, headers: bytes, comment: str) -> bool:
        """
        Write a packet of *length* bytes, of which *headers* were seen, as `write` does.

        Units: *time_ns* is nanoseconds since the epoch.
        """
        if not headers or headers[0] >> 4 not in _IP_VERSIONS:
            self.passed_over += 1
            return False
        stamp = time_ns // 1000
        length = max(length, len(headers))
        head = struct.pack("<IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(headers), length)
        options = _text_option(_COMMENT, comment) + _END_OF_OPTIONS
        self._file.write(_block(_ENHANCED_PACKET, head + _padded(headers) + options))
        return True

    def flush(self) -> None:
        """Make what was written visible to readers."""
        self._file.flush()

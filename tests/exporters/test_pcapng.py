"""pcapng files: what an independent reader and tcpdump make of them."""

from __future__ import annotations

import io
import struct
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from exporters.pcapng import PcapngWriter
from tests.journeys import START_NS, article
from tracer.cli.render_compact import render_compact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The SYN of the case: an IPv4 header and a TCP header with eight bytes of options missing.
NETWORK = bytes.fromhex("45000034bcf040003e06000bb73e0f76ac111569")
TRANSPORT = bytes.fromhex("57b100163e948e3a000000005002ffff00000000")
IPV6 = bytes.fromhex("6000000000081140" + "fd" + "00" * 14 + "01" + "fd" + "00" * 14 + "02")
UDP = bytes.fromhex("0035006300080000")


@dataclass
class Block:
    """One block as a reader sees it."""

    kind: int
    body: bytes

    def options(self, offset: int) -> dict[int, bytes]:
        """Return the options that begin at *offset* of the body."""
        found: dict[int, bytes] = {}
        while offset < len(self.body):
            code, length = struct.unpack_from("<HH", self.body, offset)
            found[code] = self.body[offset + 4 : offset + 4 + length]
            offset += 4 + (length + 3) // 4 * 4
            if code == 0:
                assert offset == len(self.body)
        return found


def blocks(content: bytes) -> Iterator[Block]:
    """Yield the blocks, checking both lengths of each."""
    offset = 0
    while offset < len(content):
        kind, length = struct.unpack_from("<II", content, offset)
        assert length % 4 == 0
        assert length == struct.unpack_from("<I", content, offset + length - 4)[0]
        yield Block(kind, content[offset + 8 : offset + length - 4])
        offset += length


def test_file_has_section_interface_and_packets() -> None:
    """One section, one interface, a packet a journey with the bytes as they were."""
    out = io.BytesIO()
    writer = PcapngWriter(out)
    for after in range(7):
        for journey in article(after * 1000):
            assert writer.write(journey, NETWORK, TRANSPORT, "a comment")
    section, interface, *packets = blocks(out.getvalue())

    assert (0x0A0D0D0A, b"nftrace") == (section.kind, section.options(16)[4])
    assert (1, 101) == (interface.kind, struct.unpack_from("<H", interface.body)[0])
    assert (b"nftrace", b"\x06") == (interface.options(8)[2], interface.options(8)[9])
    assert [6] * 14 == [packet.kind for packet in packets]
    number, high, low, captured, length = struct.unpack_from("<IIIII", packets[0].body)
    assert (0, START_NS // 1000) == (number, (high << 32) + low)
    assert (40, 52) == (captured, length)
    assert packets[0].body[20:60] == NETWORK + TRANSPORT
    assert packets[0].options(60)[1] == b"a comment"


def test_packet_without_comment_names_its_namespace() -> None:
    """Where a packet was is never missing from the file."""
    out = io.BytesIO()
    PcapngWriter(out).write(article()[1], NETWORK, TRANSPORT)
    *_, last = blocks(out.getvalue())

    assert last.options(60)[1] == b"vr2"


def test_tcpdump_reads_it(tmp_path: Path) -> None:
    """The real tcpdump prints every packet, IPv4 and IPv6, with its time and true length."""
    path = tmp_path / "out.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        for after in range(11):
            for journey in article(after * 1_000_000):
                writer.write(journey, NETWORK, TRANSPORT, render_compact(journey))
        writer.write(replace(article()[0], netns="six"), IPV6, UDP)
        writer.flush()
        shown = subprocess.run(
            ["tcpdump", "-nn", "-tt", "-r", str(path)], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    assert len(shown) == 23
    first = "183.62.15.118.22449 > 172.17.21.105.22: Flags [S], seq 1049923130"
    assert shown[0].startswith(f"1795454534.030955 IP {first}")
    assert "IP6 fd00::1.53 > fd00::2.99" in shown[-1]


def test_what_is_not_ip_is_counted() -> None:
    """A frame without an IP header would make readers refuse the file: it is left out."""
    out = io.BytesIO()
    writer = PcapngWriter(out)
    header = len(out.getvalue())

    assert not writer.write(article()[0], b"\x00\x01\x08\x00", b"")
    assert not writer.write(article()[0], b"", b"")
    assert writer.passed_over == 2
    assert len(out.getvalue()) == header


def test_original_length_is_never_below_the_captured() -> None:
    """A packet of unknown length has at least what was seen of it."""
    out = io.BytesIO()
    journey = article()[0]
    packet = replace(journey.packet, length=None)
    PcapngWriter(out).write(replace(journey, packet=packet), NETWORK, TRANSPORT)
    *_, last = blocks(out.getvalue())

    assert (40, 40) == struct.unpack_from("<II", last.body, 12)


@given(st.text(st.characters(), max_size=50), st.integers(0, 44), st.integers(1, 3000))
def test_any_comment_and_length_keeps_the_blocks(text: str, cut: int, times: int) -> None:
    """Comments of any text and size and headers of any length are read back."""
    out = io.BytesIO()
    headers = (NETWORK + TRANSPORT)[: cut + 1]
    PcapngWriter(out).write(article()[0], headers, b"", text * times)
    *_, last = blocks(out.getvalue())
    padded = (len(headers) + 3) // 4 * 4
    comment = last.options(20 + padded)[1]

    assert last.body[20 : 20 + len(headers)] == headers
    whole = (text * times or "vr1").encode("utf-8", "backslashreplace")
    assert whole.startswith(comment)
    assert len(comment) >= min(len(whole), 0xFFFF - 3)

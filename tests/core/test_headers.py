"""Headers become columns, a packet is the same by either engine, and NAT leaves its mark alone."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.trace_messages import (
    Said,
    decode,
    ipv4,
    ipv6,
    nflog_message,
    nft_message,
    recorded,
    tcp,
    udp,
)
from tracer.core.decode import TraceDecoder
from tracer.core.headers import packet_value, render_address, render_addresses
from tracer.core.journey import Packet

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Callable

ECHO = struct.pack(">BBHHH", 8, 0, 1, 77, 3) + b"0123456789abcdef"
V4, V6 = 2, 10


def by_nft(packet: bytes, transport_at: int | None = None, **given: Said) -> np.void:
    """Return the row of a packet that nft's kernel code split at *transport_at*."""
    size = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    at = size if transport_at is None else transport_at
    pf = V4 if packet[0] >> 4 == 4 else V6
    said = {"network": packet[: min(at, 40)], "transport": packet[at : at + 20], "nfproto": pf}
    row: np.void = decode(TraceDecoder(), [nft_message(**(said | given))]).packets[0]
    return row


def by_nflog(packet: bytes, **given: Said) -> np.void:
    """Return the row of a packet that NFLOG copied."""
    family = V4 if packet[0] >> 4 == 4 else V6
    message = nflog_message(**({"payload": packet, "family": family} | given))
    row: np.void = decode(TraceDecoder(), [message]).packets[0]
    return row


PACKETS = {
    "udp": ipv4(udp(53, 1024, b"payload of some length")),
    "udp_empty": ipv4(udp(53, 1024, b"")),
    "udp_short": ipv4(udp(53, 1024, b"abc")),
    "tcp": ipv4(tcp(80, 1024, 99), 6),
    "icmp": ipv4(ECHO, 1),
    "options": ipv4(tcp(80, 1024, 99), 6, options=bytes(8)),
    "long_options": ipv4(udp(1, 2, b"x" * 30), options=b"\1" * 40),
    "fragment": ipv4(b"the middle of it", 17, fragment=0x2005),
    "first_fragment": ipv4(udp(1, 2, b"x" * 16), 17, fragment=0x2000),
    "sctp": ipv4(struct.pack(">HHII", 1, 2, 3, 4) + b"chunk...", 132),
    "gre": ipv4(bytes(range(30)), 47),
    "esp": ipv4(bytes(range(30)), 50),
    "empty": ipv4(b"", 99),
    "udp6": ipv6(udp(53, 1024, b"payload")),
    "tcp6": ipv6(tcp(80, 1024, 99), 6),
    "icmp6": ipv6(b"\x80" + ECHO[1:], 58),
}


@pytest.mark.parametrize("name", PACKETS)
def test_a_packet_is_the_same_by_either_engine(name: str) -> None:
    """Nft's two headers and NFLOG's copy of a packet make the same row, fingerprint and all."""
    row = by_nft(PACKETS[name])

    assert row.tobytes() == by_nflog(PACKETS[name]).tobytes()
    assert row["fingerprint"] != 0


def test_recorded_packets_have_one_fingerprint_by_both_engines() -> None:
    """A packet that nft and then legacy tables traced has one fingerprint throughout."""
    decoder = TraceDecoder()
    batch = decode(decoder, recorded("loopback"))
    seen: dict[int, set[str]] = {}
    for event in batch.events[batch.events["packet"] >= 0]:
        packet = batch.packets[event["packet"]]
        engine = decoder.table.steps[event["step"]].engine
        seen.setdefault(int(packet["fingerprint"]), set()).add(engine)

    alone = [engines for engines in seen.values() if engines == {"legacy"}]
    both = [engines for engines in seen.values() if engines == {"legacy", "nft"}]
    # Of later IPv6 fragments nft shows no headers at all: there are three.
    assert (3, 45) == (len(alone), len(both))
    assert len(seen) == len(alone) + len(both)


EXTENDED = [
    (0, bytes([17, 0, 1, 4, 0, 0, 0, 0]), 1),
    (60, bytes([43, 1]) + bytes(14) + bytes([17, 0]) + bytes(6), 2),
    (44, struct.pack(">BBHI", 17, 0, 1, 5), 1),
    (0, b"".join(bytes([n, 0]) + bytes(6) for n in [60] * 7 + [17]), 8),
]


@pytest.mark.parametrize(("first", "extensions", "count"), EXTENDED)
def test_extension_headers_are_skipped(first: int, extensions: bytes, count: int) -> None:
    """The upper protocol is found behind them, and the fingerprint does not need it."""
    packet = ipv6(extensions + udp(7, 8, b"0123456789ab"), first)

    found = by_nflog(packet)
    told = by_nft(packet, 40 + len(extensions))

    assert count <= len(extensions) // 8
    assert (17, 7, 8, 20) == tuple(
        found[n] for n in ("proto", "sport", "dport", "transport_length")
    )
    assert (first, 0, 0, 20) == tuple(
        told[n] for n in ("proto", "sport", "dport", "transport_length")
    )
    assert found["fingerprint"] == told["fingerprint"]
    assert found["raw"].tobytes() == told["raw"].tobytes()


@pytest.mark.parametrize(
    ("first", "extensions", "proto"),
    [
        (44, struct.pack(">BBHI", 17, 0, 0x0101, 5), 17),
        (0, b"".join(bytes([0, 0]) + bytes(6) for _ in range(9)), 0),
        (0, bytes([17, 200]) + bytes(6), 17),
        (60, b"\x11", 60),
        (59, b"", 59),
    ],
)
def test_no_transport_header_is_made_up(first: int, extensions: bytes, proto: int) -> None:
    """Later fragments, chains too long, cut or past the end have no transport header."""
    row = by_nflog(ipv6(extensions, first))

    assert (6, proto, 0, 0) == tuple(
        row[n] for n in ("family", "proto", "transport_length", "sport")
    )


@pytest.mark.parametrize("engine", [by_nft, by_nflog])
def test_padding_behind_the_total_length_is_no_payload(engine: Callable[[bytes], np.void]) -> None:
    """Ethernet's padding changes neither the headers nor the fingerprint."""
    packet = ipv4(udp(1, 2, b"ab"))

    assert engine(packet).tobytes() == engine(packet + b"\xee" * 20).tobytes()


def test_a_packet_without_total_length_keeps_its_headers() -> None:
    """A packet that segmentation left without a length still has its ports."""
    row = by_nft(ipv4(tcp(80, 1024, 99), 6, total=0))

    assert (80, 1024, 0) == (row["sport"], row["dport"], row["length"])


NATTED = {
    "udp": lambda a, p, t: ipv4(udp(p, p + 1, b"same payload", p), src=a, dst=a, ttl=t),
    "tcp": lambda a, p, t: ipv4(tcp(p, p + 1, 99, checksum=p), 6, src=a, dst=a, ttl=t),
    "icmp": lambda a, p, t: ipv4(
        struct.pack(">BBHHH", 8, 0, p, p, 3) + b"stays", 1, src=a, dst=a, ttl=t
    ),
    "unreachable": lambda a, p, t: ipv4(
        struct.pack(">BBHI", 3, 3, p, 0) + ipv4(udp(p, p, b""), src=a, dst=a)[:10]
        + struct.pack(">H", p) + a + a, 1, src=a, dst=a, ttl=t,
    ),
    "sctp": lambda a, p, t: ipv4(
        struct.pack(">HHII", p, p, 3, p) + b"chunk...", 132, src=a, dst=a, ttl=t
    ),
    "gre": lambda a, p, t: ipv4(
        b"\x20\x01\x88\x0b" + struct.pack(">HH", 9, p) + b"inner packet", 47, src=a, ttl=t
    ),
    "other": lambda a, _, t: ipv4(b"anything", 200, src=a, dst=a, ttl=t),
    "udp6": lambda _, p, t: ipv6(udp(p, p + 1, b"same", p), src=p, dst=t),
    "tcp6": lambda _, p, t: ipv6(tcp(p, p, 5, checksum=p), 6, src=p, dst=t),
}  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(sorted(NATTED)), st.binary(min_size=4, max_size=4), st.integers(0, 65534),
    st.integers(0, 255),
)  # fmt: skip
def test_nat_leaves_the_fingerprint_alone(name: str, address: bytes, port: int, ttl: int) -> None:
    """Other addresses, ports, checksums and TTL, the same fingerprint."""
    packet = NATTED[name]

    before, after = by_nft(packet(b"\1\2\3\4", 1, 64)), by_nflog(packet(address, port, ttl))

    assert before["fingerprint"] == after["fingerprint"]


def test_packets_that_differ_have_different_fingerprints() -> None:
    """Identification, sequence, flags, length, payload, protocol and version each count."""
    packets = [
        # IP options may be written to on the way, so they do not count.
        *[packet for name, packet in PACKETS.items() if name != "options"],
        ipv4(udp(53, 1024, b"payload of some length"), ip_id=4712),
        ipv4(udp(53, 1024, b"Payload of some length")),
        ipv4(udp(53, 1024, b"payload of some lengths")),
        ipv4(tcp(80, 1024, 98), 6),
        ipv4(tcp(80, 1024, 99, flags=18), 6),
        ipv4(ECHO[:7] + b"\4" + ECHO[8:], 1),
        ipv4(b"the middle of it", 17, fragment=0x2006),
        ipv6(tcp(80, 1024, 98), 6),
    ]

    prints = {int(by_nflog(packet)["fingerprint"]) for packet in packets}

    assert len(packets) == len(prints)


def test_fingerprints_stay_what_they_are() -> None:
    """Hosts of different versions compare them: these numbers must never change."""
    golden = {
        "udp": 4940220617830419222,
        "tcp": 12667957534836941006,
        "icmp6": 16215136142878902402,
    }

    assert golden == {name: int(by_nft(PACKETS[name])["fingerprint"]) for name in golden}


ETHERNET = bytes(12)
FAMILIES = [
    ({"family": 1, "nfproto": 2}, 4),
    ({"family": 1, "nfproto": 10}, 0),
    ({"family": 2, "nfproto": None}, 4),
    ({"family": 7, "nfproto": 7}, 4),
    ({"family": 5, "nfproto": 70_000}, 4),
    ({"family": 7, "nfproto": 7, "link": ETHERNET + b"\x08\x00"}, 4),
    ({"family": 7, "nfproto": 7, "link": ETHERNET + b"\x81\0\0\1\x08\0"}, 4),
    ({"family": 7, "nfproto": 7, "link": ETHERNET + b"\x86\xdd"}, 0),
    ({"family": 7, "nfproto": 7, "link": ETHERNET + b"\x88\x47"}, 0),
    ({"family": 7, "nfproto": 7, "link": ETHERNET}, 4),
    ({"family": 3, "nfproto": 3}, 0),
]


@pytest.mark.parametrize(("given", "family"), FAMILIES)
def test_a_packet_is_of_the_family_that_all_agree_on(given: dict[str, Any], family: int) -> None:
    """The kernel's family, the frame's type and the packet's version decide together."""
    assert family == by_nft(PACKETS["udp"], **given)["family"]


def test_ipv6_in_a_frame_is_ipv6() -> None:
    """A bridge's IPv6 packet is told by its frame."""
    row = by_nft(PACKETS["udp6"], family=7, nfproto=7, link=ETHERNET + b"\x86\xdd")

    assert 6 == row["family"]


ARP = struct.pack(">HHBBH", 1, 0x800, 6, 4, 1) + bytes(20)


@pytest.mark.parametrize(
    "network", [ARP, b"\x45", PACKETS["udp"][:19], PACKETS["udp6"][:39], b"\x44" + bytes(30)]
)
def test_what_is_no_ip_is_of_no_family(network: bytes) -> None:
    """ARP, cut headers and impossible ones keep their bytes and have a fingerprint."""
    row = by_nft(b"\0", family=7, nfproto=7, network=network, transport=b"x" * 20)

    assert (0, 0, len(network), 0) == tuple(
        row[n] for n in ("family", "proto", "network_length", "transport_length")
    )
    assert network.ljust(60, b"\0") == row["raw"].tobytes()
    assert row["fingerprint"] != 0
    assert Packet("other", "0") == packet_value(row)


TCP_FIELDS = {"sport": 80, "dport": 1024, "tcp_flags": "S", "tcp_seq": 99}
VALUES = [
    (
        PACKETS["tcp"],
        Packet("ipv4", "tcp", "10.0.0.1", "10.0.0.2", length=40, ttl=64, ip_id=4711, **TCP_FIELDS),
    ),
    (PACKETS["tcp6"], Packet("ipv6", "tcp", "::1", "::2", length=60, ttl=63, **TCP_FIELDS)),
    (
        PACKETS["icmp"],
        Packet(
            "ipv4", "icmp", "10.0.0.1", "10.0.0.2", length=44, ttl=64, ip_id=4711,
            icmp_type=8, icmp_code=0, icmp_id=77, icmp_seq=3,
        ),
    ),
    (
        ipv4(b"\3\1" + bytes(26), 1),
        Packet(
            "ipv4", "icmp", "10.0.0.1", "10.0.0.2", length=48, ttl=64, ip_id=4711,
            icmp_type=3, icmp_code=1,
        ),
    ),
    (
        ipv4(b"\0\1", 6),
        Packet("ipv4", "tcp", "10.0.0.1", "10.0.0.2", length=22, ttl=64, ip_id=4711),
    ),
    (
        ipv4(b"", 253),
        Packet("ipv4", "253", "10.0.0.1", "10.0.0.2", length=20, ttl=64, ip_id=4711),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("packet", "expected"), VALUES)
def test_a_row_has_a_value(packet: bytes, expected: Packet) -> None:
    """What the protocol has is there, what it has not or what was cut off is None."""
    assert expected == packet_value(by_nflog(packet))


def test_flags_come_in_one_order() -> None:
    """Every combination of TCP flags is a subset of FSRPAUEC in that order."""
    for flags in range(256):
        told = packet_value(by_nft(ipv4(tcp(1, 2, 3, flags=flags), 6))).tcp_flags

        assert [c for bit, c in enumerate("FSRPAUEC") if flags >> bit & 1] == list(told or "")


@given(st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), max_size=9))
def test_addresses_read_as_the_standard_library_writes_them(
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    """One by one and all at once, an address is its canonical text; no family, no text."""
    packed = [address.packed.ljust(16, b"\0") for address in addresses] + [bytes(16)]
    words = np.frombuffer(b"".join(packed), "<u4").reshape(-1, 4)
    families = np.array([address.version for address in addresses] + [0], np.uint8)

    texts = render_addresses(families, words)

    assert [*map(str, addresses), ""] == texts
    assert texts == [render_address(int(f), w) for f, w in zip(families, words, strict=True)]


def test_a_value_has_every_field_of_its_row() -> None:
    """Ports, lengths and addresses of a UDP packet are those of the wire."""
    value = dataclasses.asdict(packet_value(by_nft(PACKETS["udp6"])))

    assert {"src": "::1", "dst": "::2", "sport": 53, "dport": 1024, "length": 55, "ttl": 63} == {
        name: value[name] for name in ("src", "dst", "sport", "dport", "length", "ttl")
    }

"""Trace messages for tests: recorded ones, ones made to order, and a plain second reading."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.core.decode import TraceDecoder
    from tracer.core.events import TraceBatch

#: What the makers of messages take: a number, bytes, or None to leave it out.
Said = int | bytes | None

FIXTURES = Path(__file__).parent / "fixtures"
RECORDINGS = (
    *("nft_drops", "nft_router", "legacy_drops", "mixed", "loopback"),
    *("linux-6.1", "linux-6.12", "linux-6.18"),
)


def recorded(name: str) -> list[bytes]:
    """Return the messages of one recording."""
    lengths = struct.iter_unpack("<H", (FIXTURES / f"{name}.len").read_bytes())
    raw, at, messages = (FIXTURES / f"{name}.raw").read_bytes(), 0, []
    for (length,) in lengths:
        messages.append(raw[at : at + length])
        at += length + -length % 4
    return messages


def lay_out(messages: Iterable[bytes], gap: bytes = b"") -> tuple[Any, Any, Any]:
    """Return words, starts and lengths of messages in one buffer, *gap* (words) around each."""
    buffer, starts, lengths = bytearray(gap), [], []
    for message in messages:
        starts.append(len(buffer) // 4)
        lengths.append(len(message))
        buffer += message + (gap or bytes(4))[: -len(message) % 4] + gap
    words = np.frombuffer(bytes(buffer), "<u4")
    return words, np.array(starts, np.int64), np.array(lengths, np.int64)


def decode(decoder: TraceDecoder, messages: Iterable[bytes], gap: bytes = b"") -> TraceBatch:
    """Decode messages laid out in one buffer."""
    return decoder.decode(*lay_out(messages, gap))


def attribute(kind: int, value: bytes, size: int | None = None) -> bytes:
    """Return one attribute; *size* lies about its size."""
    size = len(value) + 4 if size is None else size
    return struct.pack("<HH", size & 0xFFFF, kind) + value + bytes(-len(value) % 4)


def message(kind: int, family: int, attributes: Iterable[tuple[int, bytes]]) -> bytes:
    """Return a whole nfnetlink message."""
    body = struct.pack("<BBH", family, 0, 0) + b"".join(attribute(*each) for each in attributes)
    return struct.pack("<IHHII", 16 + len(body), kind, 0, 0, 0) + body


def be32(value: int) -> bytes:
    """Return a number as netlink's netfilter attributes have it."""
    return struct.pack(">I", value & 0xFFFFFFFF)


def nft_message(**given: Said) -> bytes:
    """
    Return an nft trace in the kernel's order; what is None is left out.

    By default a rule with handle 7 of `ip filter INPUT` that accepts.
    """
    said = {
        "family": 2, "nfproto": 2, "type": 3, "id": 99, "chain": b"INPUT\0", "table": b"filter\0",
        "handle": 7, "verdict": 1, "target": None, "policy": None, "mark": None, "iif": None,
        "oif": None, "link": None, "network": None, "transport": None, "ct_id": None,
    } | given  # fmt: skip
    attributes: list[tuple[int, bytes]] = []
    verdict = None
    if said["verdict"] is not None:
        verdict = attribute(1, be32(said["verdict"]))
        if said["target"] is not None:
            verdict += attribute(2, said["target"])
    numbers = {"nfproto": 15, "type": 4, "id": 6}
    attributes += [(k, be32(said[n])) for n, k in numbers.items() if said[n] is not None]
    attributes += [(k, said[n]) for n, k in (("chain", 2), ("table", 1)) if said[n] is not None]
    if said["handle"] is not None:
        attributes.append((3, struct.pack(">Q", said["handle"])))
    if verdict is not None:
        attributes.append((5, verdict))
    numbers = {"policy": 16, "mark": 14, "iif": 10, "oif": 12}
    attributes += [(k, be32(said[n])) for n, k in numbers.items() if said[n] is not None]
    headers = (("link", 7), ("network", 8), ("transport", 9))
    attributes += [(k, said[n]) for n, k in headers if said[n] is not None]
    if said["ct_id"] is not None:
        attributes.append((18, be32(said["ct_id"])))
    return message((10 << 8) | 17, said["family"], attributes)


def nflog_message(**given: Said) -> bytes:
    """Return an NFLOG packet in the kernel's order; what is None is left out."""
    said = {
        "family": 2, "hook": 1, "prefix": b"TRACE: filter:INPUT:rule:7 \0", "iif": None,
        "oif": None, "mark": None, "sequence": None, "global_sequence": None, "payload": None,
    } | given  # fmt: skip
    attributes: list[tuple[int, bytes]] = []
    if said["hook"] is not None:
        attributes.append((1, struct.pack(">HBB", 0x800, said["hook"], 0)))
    if said["prefix"] is not None:
        attributes.append((10, said["prefix"]))
    numbers = {"iif": 4, "oif": 5, "mark": 2, "sequence": 12, "global_sequence": 13}
    attributes += [(k, be32(said[n])) for n, k in numbers.items() if said[n] is not None]
    if said["payload"] is not None:
        attributes.append((9, said["payload"]))
    return message(4 << 8, said["family"], attributes)


def parse(whole: bytes) -> dict[int, bytes]:
    """Read a sound message's attributes, last ones winning: a second, plain reading."""
    at, found = 20, {}
    while at + 4 <= len(whole):
        size, kind = struct.unpack_from("<HH", whole, at)
        found[kind & 0x3FFF] = whole[at + 4 : at + size]
        at += (size + 3) // 4 * 4
    return found


def ipv4(payload: bytes, proto: int = 17, options: bytes = b"", **given: Said) -> bytes:
    """Return an IPv4 packet around *payload*; *given* are src, dst, ip_id, fragment, ttl, total."""
    words = 5 + len(options) // 4
    said = {"total": 4 * words + len(payload), "ip_id": 4711, "fragment": 0, "ttl": 64} | given
    lengths = (said["total"], said["ip_id"], said["fragment"])
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, *lengths, said["ttl"], proto, 0xBEEF)
    addresses = said.get("src", b"\x0a\0\0\1") + said.get("dst", b"\x0a\0\0\2")
    return head + addresses + options + payload


def ipv6(payload: bytes, proto: int = 17, *, src: int = 1, dst: int = 2) -> bytes:
    """Return an IPv6 packet around *payload*, extension headers in it."""
    head = struct.pack(">IHBB", 0x6000_0000, len(payload), proto, 63)
    return head + src.to_bytes(16, "big") + dst.to_bytes(16, "big") + payload


def tcp(sport: int, dport: int, seq: int, *, flags: int = 2, checksum: int = 0) -> bytes:
    """Return a TCP header without options."""
    return struct.pack(">HHIIBBHHH", sport, dport, seq, 77, 0x50, flags, 512, checksum, 0)


def udp(sport: int, dport: int, payload: bytes, checksum: int = 0) -> bytes:
    """Return a UDP datagram."""
    return struct.pack(">HHHH", sport, dport, 8 + len(payload), checksum) + payload

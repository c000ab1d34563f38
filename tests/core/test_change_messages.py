"""Messages about changes, whole and broken: read right, or counted and passed over."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tracer.core.net_changes import Fact, FactReader
from tracer.core.nft_transactions import TransactionReader

if TYPE_CHECKING:
    from collections.abc import Callable


def _attribute(kind: int, value: bytes) -> bytes:
    body = struct.pack("=HH", 4 + len(value), kind) + value
    return body + b"\0" * (-len(body) % 4)


def _message(kind: int, body: bytes, *attributes: bytes) -> bytes:
    payload = body + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload


def _nft(kind: int, *attributes: bytes, family: int = 2) -> bytes:
    return _message(10 << 8 | kind, struct.pack("=BBH", family, 0, 0), *attributes)


def _name(kind: int, word: str) -> bytes:
    return _attribute(kind, word.encode() + b"\0")


_NEWGEN = _nft(
    15,
    _attribute(1, struct.pack(">I", 17)),
    _attribute(2, struct.pack(">I", 4711)),
    _name(3, "nft"),
    family=0,
)
_TRANSACTION = (
    _nft(0, _name(1, "filter"))
    + _nft(6, _name(1, "filter"), _name(2, "INPUT"))
    + _nft(12, _name(1, "t"), _name(2, "bad"), family=1)
    + _NEWGEN
)
_LINK = _message(
    16,
    struct.pack("=BBHiII", 0, 0, 1, 7, 0x10001, 0),
    _name(3, "eth0"),
    _attribute(4, b"\xdc\5\0\0"),
)
_ROUTE = _message(
    24,
    struct.pack("=BBBBBBBBI", 2, 16, 0, 0, 254, 3, 0, 1, 0),
    _attribute(1, socket.inet_aton("10.9.0.0")),
    _attribute(5, socket.inet_aton("10.1.0.2")),
    _attribute(4, struct.pack("=I", 7)),
    _attribute(6, struct.pack("=I", 100)),
)
_ROUTE6 = _message(
    24,
    struct.pack("=BBBBBBBBI", 10, 0, 0, 0, 254, 3, 0, 1, 0),
    _attribute(5, socket.inet_pton(socket.AF_INET6, "2001:db8::1")),
)
_ADDRESS = _message(
    20, struct.pack("=BBBBI", 2, 24, 0, 0, 7), _attribute(2, socket.inet_aton("10.1.0.9"))
)
_NEIGHBOUR = _message(
    28,
    struct.pack("=BBHiHBB", 2, 0, 0, 7, 0x20, 0, 1),
    _attribute(1, socket.inet_aton("10.1.0.77")),
)
_RULE = _message(
    32,
    struct.pack("=BBBBBBBBI", 2, 0, 24, 0, 100, 0, 0, 1, 0),
    _attribute(2, socket.inet_aton("10.1.0.0")),
    _attribute(6, struct.pack("=I", 500)),
)
_NETCONF = _message(
    80, b"\2\0\0\0", _attribute(1, struct.pack("=i", -1)), _attribute(3, struct.pack("=i", 1))
)
_NETWORK = _LINK + _ROUTE + _ROUTE6 + _ADDRESS + _NEIGHBOUR + _RULE + _NETCONF


def test_a_transaction_names_its_process_and_its_tables() -> None:
    """What came before a generation belongs to it; the next one begins with nothing."""
    reader = TransactionReader()
    (first,) = reader.read(_TRANSACTION)
    (second,) = reader.read(_NEWGEN)

    assert (17, 4711, "nft") == (first.generation, first.pid, first.process)
    assert {("ip", "filter")} == first.tables
    assert {("inet", "t", "bad", "+"): 1} == first.elements
    assert (set(), 0) == (second.tables, reader.malformed)


def test_our_own_tables_are_no_change() -> None:
    """What the trace arms and disarms is left out, and only that."""
    own = _nft(0, _name(1, "nftrace_watch_17")) + _nft(6, _name(1, "nftrace_watch_17"))
    (told,) = TransactionReader().read(own + _nft(6, _name(1, "nat")) + _NEWGEN)

    assert {("ip", "nat")} == told.tables


def test_facts_are_told_in_the_words_of_ip() -> None:
    """Each message is one fact; a device has the name that was told before."""
    reader = FactReader()
    facts = list(reader.read(_NETWORK))

    assert [
        ("link", "eth0", "up, mtu 1500"),
        ("route", "10.9.0.0/16", "via 10.1.0.2 dev eth0 metric 100"),
        ("route", "default (ipv6)", "via 2001:db8::1"),
        ("address", "10.1.0.9/24 dev eth0", "10.1.0.9/24 dev eth0"),
        ("neighbour", "10.1.0.77 dev eth0", "failed"),
        ("rule", "rule 500: from 10.1.0.0/24 lookup 100", "from 10.1.0.0/24 lookup 100"),
        ("sysctl", "net.ipv4.conf.all.rp_filter", "1"),
    ] == [(one.what, one.subject, one.state) for one in facts]
    assert 0 == reader.malformed


def _facts(datagram: bytes) -> tuple[list[Fact], int]:
    reader = FactReader()
    return list(reader.read(datagram)), reader.malformed


def _transactions(datagram: bytes) -> tuple[list[object], int]:
    reader = TransactionReader()
    return list(reader.read(datagram)), reader.malformed


def _check_cuts(read: Callable[[bytes], tuple[list[object], int]], whole: bytes) -> None:
    told, _ = read(whole)
    for end in range(len(whole)):
        found, malformed = read(whole[:end])
        assert len(found) <= len(told)
        # A datagram that ends within a message is counted, and what stood before is told.
        assert malformed or found == told[: len(found)]


def test_datagrams_cut_at_every_offset_are_passed_over() -> None:
    """Nothing raises, and nothing is told that was not there."""
    _check_cuts(_facts, _NETWORK)  # type: ignore[arg-type]
    _check_cuts(_transactions, _TRANSACTION)


@given(st.data())
def test_lying_lengths_and_any_bytes_do_not_raise(data: st.DataObject) -> None:
    """Any bytes may change to any others: the readers end, and count what they cannot read."""
    whole = data.draw(st.sampled_from([_NETWORK, _TRANSACTION]))
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(whole) - 1))
        broken[at] = data.draw(st.integers(0, 255))
    facts, malformed = _facts(bytes(broken))
    transactions, _ = _transactions(bytes(broken))

    assert len(facts) <= len(whole) // 16
    assert len(transactions) <= len(whole) // 20
    assert malformed >= 0
    assert all(isinstance(fact.state, str) for fact in facts)

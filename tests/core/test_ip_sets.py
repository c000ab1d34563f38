"""What the kernel says of an ipset, and what a match on it says of a header."""

from __future__ import annotations

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.ip_sets import IpSet, Member, decode_set
from tracer.core.nat_headers import PORT_PROTOCOLS, Headers
from tracer.core.nat_iptables import read_iptables_rule
from tracer.core.nat_sets import read_match_set
from tracer.errors import MalformedMessageError

IP, IP_TO, CIDR, PORT, PORT_TO, PROTO, FLAGS, NAME, IP2 = 1, 2, 3, 4, 5, 7, 8, 18, 20


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _address(text: str) -> bytes:
    packed = ipaddress.ip_address(text).packed
    return _attribute(0x4001 if len(packed) == 4 else 0x4002, packed)


def _number(text: str) -> int:
    return int(ipaddress.ip_address(text))


def _message(kind: str, members: list[dict[int, bytes]], header: bytes = b"", pf: int = 2) -> bytes:
    """Return the first message of a set's listing, as ip_set_dump_do() makes it."""
    body = _attribute(1, b"\x07") + _attribute(2, b"doors\0")
    body += _attribute(3, kind.encode() + b"\0") + _attribute(5, bytes((pf,)))
    body += _attribute(0x8007, header)
    nested = b"".join(
        _attribute(0x8007, b"".join(_attribute(key, value) for key, value in member.items()))
        for member in members
    )
    body += _attribute(0x8008, nested)
    return struct.pack("=IHHIIBBH", 20 + len(body), 6 << 8 | 7, 2, 1, 0, pf, 0, 0) + body


HTTP = {IP: _address("10.8.0.7"), PORT: b"\0\x50", PROTO: b"\x06"}

CASES = [
    ("hash:ip", {IP: _address("10.8.0.7")}, b"", (((_number("10.8.0.7"),) * 2,),), None),
    (
        "hash:net",
        {IP: _address("10.8.0.0"), CIDR: b"\x18"},
        b"",
        (((_number("10.8.0.0"), _number("10.8.0.255")),),),
        None,
    ),
    (
        "hash:ip",
        {IP: _address("10.8.0.16")},
        _attribute(20, b"\x1c"),
        (((_number("10.8.0.16"), _number("10.8.0.31")),),),
        None,
    ),
    (
        "bitmap:ip",
        {IP: _address("10.8.0.1"), IP_TO: _address("10.8.0.9")},
        b"",
        (((_number("10.8.0.1"), _number("10.8.0.9")),),),
        None,
    ),
    ("bitmap:port", {PORT: b"\0\x50", PORT_TO: b"\0\x5a"}, b"", (((80, 90),),), None),
    ("hash:ip,port", HTTP, b"", (((_number("10.8.0.7"),) * 2,), ((80, 80),)), 6),
    (
        "hash:ip,port",
        {IP: _address("10.8.0.7"), PORT: b"\x08\0", PROTO: b"\x01"},
        b"",
        (((_number("10.8.0.7"),) * 2,), None),
        1,
    ),
    (
        "hash:ip,port,ip",
        {**HTTP, IP2: _address("10.9.0.1")},
        b"",
        (((_number("10.8.0.7"),) * 2,), ((80, 80),), ((_number("10.9.0.1"),) * 2,)),
        6,
    ),
    ("hash:net", {IP: _address("128.0.0.0"), CIDR: b"\0"}, b"", (None,), None),
]


@pytest.mark.parametrize(("kind", "member", "header", "limits", "proto"), CASES)
def test_reads_each_kind_of_member(
    kind: str,
    member: dict[int, bytes],
    header: bytes,
    limits: tuple[object, ...],
    proto: int | None,
) -> None:
    """A member has one limit for each dimension of its kind, and its protocol."""
    found = decode_set([_message(kind, [member], header)])

    assert found.members == (Member(limits, proto),)


def test_goes_on_from_message_to_message() -> None:
    """Later messages of a listing, which have no kind, add members."""
    first = _message("hash:ip", [{IP: _address("10.8.0.7")}])
    nested = _attribute(0x8007, _attribute(IP, _address("10.8.0.9")))
    body = _attribute(1, b"\x07") + _attribute(2, b"doors\0") + _attribute(0x8008, nested)
    more = struct.pack("=IHHIIBBH", 20 + len(body), 6 << 8 | 7, 2, 1, 0, 2, 0, 0) + body

    found = decode_set([first, more])

    assert [_number("10.8.0.7"), _number("10.8.0.9")] == [m.limits[0][0][0] for m in found.members]


@pytest.mark.parametrize("kind", ["hash:ip,future", "hash:ip"])
def test_what_cannot_be_understood_has_no_members(kind: str) -> None:
    """A dimension that nobody knows, or a mask of any bits, leaves the set unread."""
    header = _attribute(12, _address("255.0.255.0")) if kind == "hash:ip" else b""

    assert decode_set([_message(kind, [{IP: _address("10.8.0.7")}], header)]).members is None


@pytest.mark.parametrize("cut", range(len(_message("hash:ip,port", [HTTP]))))
def test_a_message_cut_anywhere_is_refused_or_read(cut: int) -> None:
    """A listing that ends too early has fewer members, or is said to be malformed."""
    with contextlib.suppress(MalformedMessageError):
        members = decode_set([_message("hash:ip,port", [HTTP])[:cut]]).members
        assert members is None or len(members) == 0


@given(st.binary(max_size=200), st.sampled_from(["hash:ip,port", "list:set", "bitmap:port"]))
def test_any_bytes_are_read_or_refused(noise: bytes, kind: str) -> None:
    """Whatever stands behind a header, nothing but MalformedMessageError comes of it."""
    message = _message(kind, [])[:-4] + noise

    with contextlib.suppress(MalformedMessageError):
        assert decode_set([message]).dimensions == tuple(kind.partition(":")[2].split(","))


@given(st.integers(20, 99), st.integers(0, 65535))
def test_lying_lengths_do_no_harm(at: int, length: int) -> None:
    """A length field that lies is refused or leaves less to read."""
    message = bytearray(_message("hash:ip,port", [HTTP]))
    struct.pack_into("=H", message, at // 4 * 4, length)

    with contextlib.suppress(MalformedMessageError):
        assert len(decode_set([bytes(message)]).members or ()) <= 2


SINGLE = IpSet(("ip",), 4, (Member((((7, 7),),)), Member((((9, 12),),))))
PAIRS = IpSet(
    ("ip", "port"),
    4,
    (Member((((7, 7),), ((80, 80),)), 6), Member((((9, 9),), ((80, 80),)), 6)),
)
NETS = IpSet(("net",), 4, (Member((((0, 255),),)), Member((((3, 3),),), nomatch=True)))
PORTS = IpSet(("port",), None, (Member((((80, 80),),)),))
LIST = IpSet(("set",), None, (Member(name="single"), Member(name="ports")))
GONE = IpSet(("set",), None, (Member(name="missing"),))
SETS = {"single": SINGLE, "pairs": PAIRS, "nets": NETS, "ports": PORTS, "list": LIST, "gone": GONE}


@pytest.mark.parametrize(
    ("name", "ways", "negated", "expected"),
    [
        ("single", "dst", False, [Headers(4, dst=((7, 7), (9, 12)))]),
        ("single", "src", False, [Headers(4, src=((7, 7), (9, 12)))]),
        (
            "single",
            "dst",
            True,
            [Headers(4, dst=((0, 6), (8, 8), (13, 2**32 - 1)))],
        ),
        (
            "pairs",
            "dst,src",
            False,
            [Headers(4, dst=((7, 7), (9, 9)), sport=((80, 80),), proto=((6, 6),))],
        ),
        ("pairs", "dst", False, []),
        ("pairs", "dst,dst", True, [Headers(4)]),
        ("nets", "dst", False, [Headers(4, dst=((0, 255),))]),
        ("nets", "dst", True, [Headers(4)]),
        ("ports", "dst", False, [Headers(4, dport=((80, 80),), proto=PORT_PROTOCOLS)]),
        (
            "list",
            "dst",
            False,
            [
                Headers(4, dst=((7, 7), (9, 12))),
                Headers(4, dport=((80, 80),), proto=PORT_PROTOCOLS),
            ],
        ),
        ("gone", "dst", False, [Headers(4)]),
        ("no such set", "dst", False, [Headers(4)]),
    ],
)
def test_a_match_holds_at_least_the_packets_of_its_set(
    name: str, ways: str, negated: object, expected: list[Headers]
) -> None:
    """Each dimension limits the side that the rule names; what is not known limits nothing."""
    found = read_match_set(SETS, name, ways.split(","), 4, negated=bool(negated))

    assert sorted(map(repr, expected)) == sorted(map(repr, found))


def test_a_set_of_the_other_version_matches_nothing() -> None:
    """A set of IPv4 addresses picks no IPv6 packet."""
    assert [] == read_match_set(SETS, "single", ["dst"], 6, negated=False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-p tcp -m set --match-set single dst", [((7, 7), (9, 12))]),
        ("-d 0.0.0.9/32 -m set --match-set single dst", [((9, 9),)]),
        ("-d 0.0.0.8/32 -m set --match-set single dst", []),
        ("-m set --match-set single dst -m set --match-set nets dst", [((7, 7), (9, 12))]),
        ("-m set --match-set nets dst --return-nomatch", [None]),
        ("-m set --match-set pairs dst,dst -m comment --comment x", [((7, 7), (9, 9))]),
    ],
)
def test_a_rule_is_limited_by_all_its_matches(words: str, expected: list[object]) -> None:
    """A rule's packets are those of its addresses and of its sets together."""
    text = f"-A PREROUTING {words} -j DNAT --to-destination 10.2.0.2"
    branches = read_iptables_rule(text, 4, SETS)

    assert expected == [branch.headers.dst for branch in branches]
    assert all(branch.translations for branch in branches)

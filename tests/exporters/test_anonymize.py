"""Addresses made strange: prefixes and equality are kept, and no address stays."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.anonymize import KEY_BYTES, Anonymizer
from tracer.core.log_rows import address_halves, render_halves

KEY = bytes(range(KEY_BYTES))
HIDDEN = Anonymizer(KEY)
SYN = bytes.fromhex("45000034bcf040003e06cc1ab73e0f76ac111569")
TCP = bytes.fromhex("57b100163e948e3a000000005002ffff12340000")
SYN6 = bytes.fromhex("6000000000140640" + "20010db8" + "00" * 11 + "01" + "fd" + "00" * 14 + "02")


def common_bits(one: str, other: str) -> int:
    """Return how many leading bits two addresses of one family share."""
    left, right = ipaddress.ip_address(one), ipaddress.ip_address(other)
    return left.max_prefixlen - (int(left) ^ int(right)).bit_length()


@given(
    st.one_of(
        st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
        st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
    )
)
def test_two_addresses_share_as_much_afterwards(pair: tuple[object, object]) -> None:
    """The length of the common prefix of any two addresses is what it was."""
    one, other = map(str, pair)

    assert common_bits(one, other) == common_bits(HIDDEN.address(one), HIDDEN.address(other))


@given(st.integers(0, (1 << 32) - 1), st.integers(0, 31))
def test_near_addresses_share_as_much_afterwards(number: int, bit: int) -> None:
    """The same for addresses that differ in the lower bits only, which chance seldom draws."""
    one, other = (str(ipaddress.IPv4Address(n)) for n in (number, number ^ 1 << bit))

    assert 31 - bit == common_bits(HIDDEN.address(one), HIDDEN.address(other))


@given(st.ip_addresses(), st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_one_key_gives_one_address(address: object, key: bytes) -> None:
    """Two anonymizers of one key agree."""
    assert Anonymizer(key).address(str(address)) == Anonymizer(key).address(str(address))


def test_keys_differ() -> None:
    """Another key, and each one of chance, gives other addresses; a short one is refused."""
    seen = {Anonymizer().address("172.17.21.105") for _ in range(7)}

    assert len(seen) > 1
    with pytest.raises(ValueError, match="32 bytes, not 3"):
        Anonymizer(b"abc")


@pytest.mark.parametrize(
    "text",
    [
        "-A PREROUTING -d 172.17.21.105/32 -j FIREWALL_172.17.21.105",
        "-s 10.0.0.0/8 -m iprange --src-range 10.0.0.1-10.0.0.9",
        "ip6 saddr 2001:db8::/32 dnat to [fd00::2]:22",
        "--to-destination 172.17.21.105:22",
        "-m mac --mac-source 02:42:ac:11:00:02 -j DROP",
    ],
)
def test_no_address_stays_in_a_text(text: str) -> None:
    """Each address in a rule is replaced where it stands, a prefix by one as long."""
    hidden = HIDDEN.text(text).split()
    lengths = [word.partition("/")[2] for word in text.split()]

    assert lengths == [word.partition("/")[2] for word in hidden]
    for address in ("172.17.21.105", "10.0.0.1", "10.0.0.9", "2001:db8", "fd00::2", "02:42:ac"):
        assert address not in HIDDEN.text(text)
    assert len(text.split()) == len(hidden)


@given(st.text(alphabet="0123456789abcdef:./ -_[]XYZ", max_size=60))
def test_any_text_can_be_hidden(text: str) -> None:
    """No text makes it fail, and what holds no address stays as it is."""
    hidden = HIDDEN.text(text)

    assert (":" in text or "." in text) or hidden == text


@pytest.mark.parametrize("text", ["rule 5", "17:22:14.030955", "1.2.3", "v1.0", "eth0", "a:b", ""])
def test_what_is_no_address_stays(text: str) -> None:
    """Times, versions and names are left alone."""
    assert text == HIDDEN.text(text)


def test_columns_are_hidden_as_texts_are() -> None:
    """The log's two numbers of an address mean the address that texts get."""
    families = np.array([4, 6, 0, 4], np.uint8)
    addresses = ["172.17.21.105", "2001:db8::1", "", "172.17.21.106"]
    pairs = [address_halves(ipaddress.ip_address(a)) if a else (0, 0) for a in addresses]
    high, low = (np.array(part, np.uint64) for part in zip(*pairs, strict=True))
    mapped = HIDDEN.halves(families, high, low)
    shown = [
        render_halves(int(f), int(h), int(lo)) for f, h, lo in zip(families, *mapped, strict=True)
    ]

    assert [HIDDEN.address(a) if a else "" for a in addresses] == shown


def checksum(data: bytes) -> int:
    """Return the Internet checksum's sum: 0xffff for what holds a right checksum."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("network", [SYN, SYN6])
def test_headers_get_other_addresses_and_checksums_to_match(network: bytes) -> None:
    """Addresses are mapped in the bytes as in texts; the checksums hold as much as before."""
    at = 12 if network[0] >> 4 == 4 else 8
    size = (len(network) - at) // 2
    hidden, transport = HIDDEN.headers(network, TCP)
    before = [str(ipaddress.ip_address(network[at + n * size :][:size])) for n in (0, 1)]
    after = [str(ipaddress.ip_address(hidden[at + n * size :][:size])) for n in (0, 1)]

    assert [HIDDEN.address(one) for one in before] == after
    assert checksum(network[at:] + TCP) == checksum(hidden[at:] + transport)
    if network is SYN:
        assert 0xFFFF == checksum(hidden)


@given(st.binary(max_size=40), st.binary(max_size=20))
def test_any_headers_can_be_hidden(network: bytes, transport: bytes) -> None:
    """Whatever bytes a packet has, hiding gives bytes no longer than them, or none."""
    hidden = HIDDEN.headers(network, transport)

    assert len(hidden[0]) in {0, len(network)}
    assert len(hidden[1]) <= len(transport)

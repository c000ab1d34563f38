"""Native nft NAT, read from what nft really printed, mapped back rule by rule."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tracer.core.filters import Filter
from tracer.core.nat_chains import NatChains, read_nat_chains
from tracer.core.nat_headers import Headers, read_filter
from tracer.core.nat_map import LocalAddresses, Mapped, map_filter
from tracer.core.nat_nft import read_nft_rule
from tracer.core.nat_rules import Side
from tracer.core.ruleset import Chain, Ruleset, Table

OBJECTS = json.loads((Path(__file__).parent / "nat" / "native.json").read_text())["nftables"]
LOCAL = LocalAddresses(
    {
        "eth0": (ipaddress.ip_address("10.99.0.1"), ipaddress.ip_address("fd00::1")),
        "x": (ipaddress.ip_address("10.99.1.1"),),
    }
)


def _chains(version: int, objects: list[dict[str, object]] | None = None) -> list[NatChains]:
    nat = Chain("pre", hook="prerouting", priority=-100, type="nat")
    tables = [
        Table("nft", family, name, "nft", {"pre": nat})
        for family, name in (("ip", "n"), ("inet", "i"))
    ]
    ruleset = Ruleset({(t.engine, t.family, t.name): t for t in tables})
    return read_nat_chains(ruleset, OBJECTS if objects is None else objects, version)


def _map(version: int = 4, **words: object) -> Mapped:
    for name in ("src", "dst"):
        if name in words:
            words[name] = ipaddress.ip_network(str(words[name]))
    return map_filter(read_filter(Filter(**words), version), _chains(version), LOCAL)


def _covers(found: Mapped, **fields: object) -> bool:
    """Tell whether the map looks for exactly one packet, given by its fields."""
    version = 6 if ":" in str(fields.get("dst")) else 4
    words = {"src": "1.2.3.4" if version == 4 else "fd00::99", "sport": 40000, **fields}
    iif = words.pop("iif", "eth0")
    packet = read_filter(
        Filter(
            src=ipaddress.ip_network(str(words["src"])),
            dst=ipaddress.ip_network(str(words["dst"])),
            sport=int(str(words["sport"])),
            dport=int(str(words["dport"])),
            proto=int(str(words.get("proto", 6))),
        ),
        version,
    )
    bare = (
        Headers(version, b.src, b.dst, b.sport, b.dport, b.proto)
        for b in found.boxes
        if b.iif.has(str(iif))
    )
    return any(box.covers(packet) for box in bare)


@pytest.mark.parametrize(
    ("wanted", "before", "others"),
    [
        # dnat ip to ip daddr . tcp dport map @m
        (("10.0.0.1", 8080), [("1.1.1.1", 80)], [("1.1.1.2", 81), ("1.1.1.1", 81)]),
        # dnat ip prefix to ip daddr map @mi
        (("10.5.0.7", 9), [("5.1.1.7", 9)], [("5.1.1.8", 9), ("5.1.1.7", 10)]),
        # … dnat to 10.2.0.0-10.2.0.255:1000-2000 random,persistent
        (("10.2.0.9", 1500), [("9.9.9.9", 80), ("9.9.9.9", 150)], [("9.9.9.9", 81)]),
        # ip daddr 1.1.1.1 … dnat ip to 2.2.2.2:80 in an inet table
        (("2.2.2.2", 80), [("1.1.1.1", 7)], [("1.1.1.2", 7)]),
        # a map with the protocol in its key
        (("5.5.5.5", 81), [("4.4.4.4", 80)], [("4.4.4.4", 81)]),
        # ct state, a source range and a map by port
        (("10.8.0.2", 95), [("7.7.7.7", 95)], [("7.7.7.7", 80)]),
        # a verdict map's element, a chain, a numgen verdict map, a chain
        (("10.9.9.1", 8080), [("8.8.8.8", 80), ("8.8.8.8", 443)], []),
        # an address masked, a port alone
        (("10.6.0.9", 99), [("10.6.0.9", 5)], [("10.7.0.9", 5)]),
        # fib and mark are left out
        (("10.7.0.1", 99), [("6.6.6.6", 99)], [("6.6.6.6", 98)]),
    ],
)
def test_the_header_before_each_kind_of_native_dnat_is_found(
    wanted: tuple[str, int], before: list[tuple[str, int]], others: list[tuple[str, int]]
) -> None:
    """What is translated into the filter's address is looked for, and its neighbours not."""
    src = {"src": "1.1.1.3"}
    found = _map(dst=wanted[0], dport=wanted[1], proto=6, **src)

    assert [_covers(found, dst=dst, dport=dport, **src) for dst, dport in before] == [True] * len(
        before
    )
    if wanted != ("10.9.9.1", 8080):
        assert not any(_covers(found, dst=dst, dport=dport, **src) for dst, dport in others)


def test_redirect_gives_the_address_of_the_device_that_a_packet_came_in_by() -> None:
    """Device, port and named-set conditions of a redirect stand in what is looked for."""
    found = _map(dst="10.99.0.1", dport=8080)

    assert _covers(found, dst="44.0.0.1", dport=81)
    assert not _covers(found, dst="44.0.0.1", dport=81, iif="x")
    assert not _covers(found, dst="44.0.0.1", dport=22)
    assert not _covers(found, dst="10.1.0.7", dport=81)
    assert not _covers(_map(dst="10.98.0.1", dport=8080), dst="44.0.0.1", dport=81)


def test_sources_are_mapped_back_through_snat_and_masquerade() -> None:
    """A prefix keeps its host part; a masquerading device has its own address only."""
    assert _covers(_map(src="192.168.2.7"), src="10.141.11.7", dst="8.8.8.8", dport=53)
    assert not _covers(_map(src="192.168.2.7"), src="10.141.11.8", dst="8.8.8.8", dport=53)
    fixed = _map(src="1.2.3.4", sport=500, dst="8.8.8.8")
    assert _covers(fixed, src="10.0.0.1", sport=7, dst="8.8.8.8", dport=1)
    own = _map(src="10.99.1.1", sport=1500, dst="8.8.8.8")
    assert _covers(own, src="172.16.0.1", sport=7, dst="8.8.8.8", dport=1)
    assert not _covers(
        _map(src="10.99.0.1", sport=15, dst="8.8.8.8"),
        src="1.1.1.1",
        sport=7,
        dst="8.8.8.8",
        dport=1,
    )


def test_the_other_ip_version_of_an_inet_table_is_read_by_itself() -> None:
    """IPv6 rules of an inet table are seen with IPv6 only."""
    assert _covers(_map(6, dst="2001:db8::5", dport=8080), dst="fe80::1", dport=80)
    assert not _covers(_map(6, dst="2001:db8::5", dport=8081), dst="fe80::1", dport=80)
    assert _covers(_map(6, dst="2001:db8::7", dport=5), dst="fd00::8", dport=5)
    redirected = {"dst": "8.8.8.8", "dport": 53, "proto": 17}
    assert _covers(_map(4, dst="10.99.0.1", dport=5353), **redirected)


def test_what_has_no_json_is_named() -> None:
    """A rule with an anonymous chain, which nft prints as text, is told to the user."""
    found = _map(dst="10.77.0.1", dport=5)

    assert (Side.DST, "table ip n chain pre rule 17") in found.unreadable


def test_a_table_without_its_json_is_named() -> None:
    """A native nat table that could not be read is a hole, and said to be one."""
    found = map_filter(read_filter(Filter(dport=5), 4), _chains(4, []), LOCAL)

    assert {name for _, name in found.unreadable} == {"table ip n", "table inet i"}


WORDS = [
    *("match", "left", "right", "op", "payload", "protocol", "field", "concat", "set", "prefix"),
    *("addr", "len", "range", "dnat", "port", "map", "key", "data", "vmap", "jump", "target"),
    *("elem", "val", "meta", "flags"),
]
VALUES = ["@m", "10.0.0.1", "tcp", "x", "*", "ip", "daddr", "dport", "==", "<", "netmap"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.sampled_from(VALUES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)
RULES = [each["rule"]["expr"] for each in OBJECTS if "rule" in each]
SETS = {"m": None}


@st.composite
def _spoilt(draw: st.DrawFn) -> object:
    """Draw a real rule in which one value, however deep, is another."""

    def spoil(value: object) -> object:
        inner = (
            list(value.items() if isinstance(value, dict) else enumerate(value))
            if (isinstance(value, (dict, list)) and value)
            else []
        )
        if not inner or draw(st.integers(0, 5)) == 0:
            return draw(JSON)
        key, chosen = draw(st.sampled_from(inner))
        changed = dict(value) if isinstance(value, dict) else list(value)
        changed[key] = spoil(chosen)
        return changed

    return spoil(draw(st.sampled_from(RULES)))


@given(_spoilt(), st.sampled_from([4, 6]))
@example([{"dnat": {"addr": {"map": {"key": {"numgen": {"mod": 2}}, "data": {"set": False}}}}}], 4)
def test_no_spoilt_rule_makes_the_reader_fail(rule: object, version: int) -> None:
    """A real rule with another value in any place is read, left out or named."""
    for branch in read_nft_rule(rule if isinstance(rule, list) else [rule], version, SETS):
        assert branch.headers.version == version


@given(st.lists(JSON, max_size=4), st.sampled_from([4, 6]))
def test_no_json_makes_the_reader_fail(expressions: list[object], version: int) -> None:
    """Whatever a future nft prints, what cannot be read is left out or named."""
    for branch in read_nft_rule(expressions, version, {"m": None}):
        assert branch.headers.version == version

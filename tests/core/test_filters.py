"""What the filter words match, held against a reading of one packet at a time."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.journeys import article
from tracer.core.events import PACKET
from tracer.core.filters import Filter, IPNetwork

#: Few enough for matches to be frequent.
ADDRESSES = [
    *map(ipaddress.ip_address, ("10.0.0.1", "10.0.0.129", "10.0.1.1", "0.0.0.1", "255.0.0.1")),
    *map(ipaddress.ip_address, ("::", "2001:db8::1", "2001:db8::8000:0:0:1", "fe80::a00:1")),
]  # fmt: skip
PORTS = st.sampled_from([0, 22, 80, 65535])
PROTOS = st.sampled_from([0, 1, 6, 17, 58, 255])
#: source, destination, source port, destination port, protocol, family
Plain = tuple[object, object, int, int, int, int]


@st.composite
def _networks(draw: st.DrawFn) -> IPNetwork | None:
    address = draw(st.sampled_from([None, *ADDRESSES]))
    if address is None:
        return None
    length = draw(st.integers(0, address.max_prefixlen))
    return ipaddress.ip_network((address, length), strict=False)


@st.composite
def _packets(draw: st.DrawFn) -> Plain:
    version = draw(st.sampled_from([0, 4, 6]))
    same = [address for address in ADDRESSES if address.version == (version or 4)]
    src, dst = draw(st.sampled_from(same)), draw(st.sampled_from(same))
    return (src, dst, draw(PORTS), draw(PORTS), draw(PROTOS), version)


def _rows(plain: list[Plain]) -> np.ndarray:
    rows = np.zeros(len(plain), PACKET)
    for row, (src, dst, sport, dport, proto, family) in zip(rows, plain, strict=True):
        if family:
            for name, address in (("src", src), ("dst", dst)):
                words = np.frombuffer(address.packed, "<u4")  # type: ignore[attr-defined]
                row[name][: len(words)] = words
        row["sport"], row["dport"], row["proto"], row["family"] = sport, dport, proto, family
    return rows


def _meets(wanted: Filter, packet: Plain) -> bool:
    src, dst, sport, dport, proto, family = packet
    for network, address in ((wanted.src, src), (wanted.dst, dst)):
        if network is not None and (family != network.version or address not in network):
            return False
    return (
        wanted.sport in (None, sport)
        and wanted.dport in (None, dport)
        and wanted.proto in (None, proto)
    )


FILTERS = st.builds(
    Filter,
    src=_networks(),
    dst=_networks(),
    sport=st.none() | PORTS,
    dport=st.none() | PORTS,
    proto=st.none() | PROTOS,
)


@settings(deadline=None)
@given(FILTERS, st.lists(_packets(), max_size=23))
def test_packets_match_as_one_by_one(wanted: Filter, plain: list[Plain]) -> None:
    """The columns say of each packet what reading its words one by one says."""
    expected = [_meets(wanted, packet) for packet in plain]

    assert expected == wanted.match_packets(_rows(plain)).tolist()


@settings(deadline=None)
@given(FILTERS, _packets())
def test_replies_match_the_reversed_filter(wanted: Filter, packet: Plain) -> None:
    """A packet's reply meets the reversed filter exactly when the packet meets the filter."""
    src, dst, sport, dport, proto, family = packet
    reply = (dst, src, dport, sport, proto, family)
    met = wanted.match_packets(_rows([packet]))

    assert met.tolist() == wanted.reversed.match_packets(_rows([reply])).tolist()


def test_the_reverse_of_the_reverse_is_the_filter() -> None:
    """Turned twice, the words about packets are the same again."""
    wanted = Filter(
        src=ipaddress.ip_network("10.0.0.0/8"),
        dst=ipaddress.ip_network("10.1.0.0/16"),
        sport=1,
        dport=2,
        proto=6,
    )

    assert wanted == wanted.reversed.reversed


@pytest.mark.parametrize(
    ("words", "family"),
    [({}, None), ({"src": "10.0.0.0/8"}, 4), ({"dst": "2001:db8::/32"}, 6)],
)
def test_the_family_is_that_of_the_addresses(words: dict[str, str], family: int | None) -> None:
    """Either address names the IP version; without one it is both."""
    networks = {name: ipaddress.ip_network(word) for name, word in words.items()}

    assert family == Filter(**networks).family  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "needs"), [({}, False), ({"sport": 0}, True), ({"dport": 0}, True)]
)
def test_port_zero_is_a_port(words: dict[str, int], *, needs: bool) -> None:
    """A port that was named is needed, also port 0."""
    assert needs == Filter(**words).needs_ports  # type: ignore[arg-type]


STEPS = article()[0].steps


@pytest.mark.parametrize(
    ("words", "met"),
    [
        ({}, True),
        ({"table": "nat"}, True),
        ({"table": "raw"}, False),
        ({"chain": "FORWARD", "table": "filter"}, True),
        ({"chain": "FORWARD", "table": "nat"}, False),
        ({"hook": "postrouting"}, True),
        ({"hook": "postrouting", "table": "nat"}, False),
        ({"verdict": "return"}, True),
        ({"verdict": "drop"}, False),
        ({"verdict": "return", "chain": "PREROUTING"}, False),
    ],
)
def test_one_step_meets_all_words(words: dict[str, str], *, met: bool) -> None:
    """Words about tables, chains, hooks and verdicts hold together for one and the same step."""
    wanted = replace(Filter(), **words)  # type: ignore[arg-type]

    assert met == wanted.match_steps(STEPS)
    assert bool(words) == wanted.chooses_steps


def test_no_step_meets_no_word() -> None:
    """A journey without steps meets a filter only when nothing was said of steps."""
    assert Filter().match_steps(())
    assert not Filter(table="nat").match_steps(())

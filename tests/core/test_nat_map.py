"""The map of NAT against a small kernel that translates every packet of a small world."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.core.filters import Filter
from tracer.core.iptables import parse_iptables_save
from tracer.core.nat_chains import NatChains, read_nat_chains
from tracer.core.nat_headers import Headers, read_filter
from tracer.core.nat_map import LocalAddresses, Mapped, map_filter
from tracer.core.nat_rules import Side
from tracer.core.ruleset import Ruleset

if TYPE_CHECKING:
    import random

ADDRESSES = [int(ipaddress.ip_address("10.0.0.0")) + number for number in range(8)]
PORTS = [1, 2, 3]
PROTOCOLS = [6, 17]
NAMES = {6: "tcp", 17: "udp"}
#: The router's own addresses in the small world.
OWN = {"eth0": ADDRESSES[1], "eth1": ADDRESSES[2]}
LOCAL = LocalAddresses({name: (ipaddress.ip_address(a),) for name, a in OWN.items()})


@dataclass(frozen=True)
class Wire:
    """A packet of the small world."""

    iif: str
    oif: str
    proto: int
    src: int
    dst: int
    sport: int
    dport: int


@dataclass(frozen=True)
class MadeRule:
    """A rule of the small world: allowed values by field, and what it does."""

    text: str
    limits: dict[str, frozenset[int | str]]
    target: str
    addresses: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()


def _run(
    chains: dict[str, list[MadeRule]], chain: str, wire: Wire, side: str
) -> tuple[set[Wire], bool]:
    """Return what can become of *wire*, and whether it can come out of *chain* undecided."""
    found: set[Wire] = set()
    for rule in chains[chain]:
        if any(getattr(wire, name) not in allowed for name, allowed in rule.limits.items()):
            continue
        if rule.target in chains:
            inner, goes_on = _run(chains, rule.target, wire, side)
            found |= inner
            if not goes_on:
                return found, False
        elif rule.target == "RETURN":
            return found, True
        else:
            return found | _results(rule, wire, side), False
    return found, True


def _results(rule: MadeRule, wire: Wire, side: str) -> set[Wire]:
    port = "dport" if side == "dst" else "sport"
    own = {"REDIRECT": OWN[wire.iif], "MASQUERADE": OWN[wire.oif]}.get(rule.target)
    addresses = [own] if own else rule.addresses
    if rule.target == "NETMAP":
        addresses = [rule.addresses[0] | (getattr(wire, side) & (len(rule.addresses) - 1))]
    return {
        replace(wire, **{side: address, port: number})
        for address in addresses
        for number in rule.ports or [getattr(wire, port)]
    }


def _ip(number: int) -> str:
    return str(ipaddress.IPv4Address(number))


@st.composite
def _matches(draw: st.DrawFn, side: str) -> tuple[str, dict[str, frozenset[int | str]]]:
    """Draw matches in iptables' words, and the values that they allow."""
    words, limits = [], {}
    for option, name in (("-s", "src"), ("-d", "dst")):
        length = draw(st.sampled_from([None, 32, 31, 30]))
        if length is not None:
            network = ipaddress.ip_network((draw(st.sampled_from(ADDRESSES)), length), strict=False)
            inside = {int(a) for a in network}
            negated = draw(st.booleans())
            words.append(f"{'! ' if negated else ''}{option} {network}")
            limits[name] = frozenset(set(ADDRESSES) - inside if negated else inside)
    device = draw(st.sampled_from([None, "eth0", "eth1", "eth+"]))
    if device is not None:
        negated = device != "eth+" and draw(st.booleans())
        words.append(f"{'! ' if negated else ''}{'-i' if side == 'dst' else '-o'} {device}")
        names = set(OWN) if device == "eth+" else {device}
        limits["iif" if side == "dst" else "oif"] = frozenset(
            set(OWN) - names if negated else names
        )
    proto = draw(st.sampled_from(PROTOCOLS))
    words.append(f"-p {NAMES[proto]}")
    limits["proto"] = frozenset((proto,))
    if draw(st.booleans()):
        words.append('-m comment --comment "-d 9.9.9.9 -j \\"x\\""')
    for name in ("sport", "dport"):
        ports = draw(st.sampled_from([None, None, (1,), (2,), (1, 2), (1, 3)]))
        if ports == (1, 3):
            words.append(f"-m multiport --{name}s 1,3")
        elif ports is not None:
            words.append(f"-m {NAMES[proto]} --{name} {ports[0]}:{ports[-1]}")
        if ports is not None:
            limits[name] = frozenset(ports)
    return " ".join(words), limits


@st.composite
def _rules(draw: st.DrawFn, side: str, below: list[str]) -> list[MadeRule]:
    rules = []
    for _ in range(draw(st.integers(0, 3))):
        text, limits = draw(_matches(side))
        kinds = ["address", "own", "NETMAP", "RETURN", *below, *below]
        kind = draw(st.sampled_from(kinds))
        ports = draw(st.sampled_from([(), (), (1,), (2, 3)]))
        spread = f"{ports[0]}-{ports[-1]}" if ports else ""
        if kind == "address":
            target, option = ("DNAT", "destination") if side == "dst" else ("SNAT", "source")
            low = draw(st.integers(0, 6))
            addresses = tuple(ADDRESSES[low : low + draw(st.integers(1, 2))])
            to = f"{_ip(addresses[0])}-{_ip(addresses[-1])}{':' if ports else ''}{spread}"
            rules.append(
                MadeRule(f"{text} -j {target} --to-{option} {to}", limits, target, addresses, ports)
            )
        elif kind == "own":
            target = "REDIRECT" if side == "dst" else "MASQUERADE"
            option = f" --to-ports {spread}" if ports else ""
            rules.append(MadeRule(f"{text} -j {target}{option}", limits, target, (), ports))
        elif kind == "NETMAP":
            addresses = tuple(ADDRESSES[4:8])
            rules.append(
                MadeRule(f"{text} -j NETMAP --to {_ip(addresses[0])}/30", limits, kind, addresses)
            )
        else:
            rules.append(MadeRule(f"{text} -j {kind}", limits, kind))
    return rules


@st.composite
def _worlds(draw: st.DrawFn) -> tuple[str, dict[str, list[MadeRule]]]:
    """Draw a nat table, as text and as rules."""
    chains = {}
    for side, base, names in (
        ("dst", "PREROUTING", ["DA", "DB"]),
        ("src", "POSTROUTING", ["SA", "SB"]),
    ):
        below: list[str] = []
        for name in [*names, base]:
            chains[name] = draw(_rules(side, list(below)))
            below.append(name)
    lines = ["*nat"]
    lines += [f":{name} {'ACCEPT' if len(name) > 2 else '-'} [0:0]" for name in chains]
    lines += [f"-A {name} {rule.text}" for name, rules in chains.items() for rule in rules]
    return "\n".join([*lines, "COMMIT", ""]), chains


def _nat(text: str, family: str = "ip") -> list[NatChains]:
    tables = parse_iptables_save(text, "legacy", family)
    ruleset = Ruleset({(t.engine, t.family, t.name): t for t in tables})
    return read_nat_chains(ruleset, [], 6 if family == "ip6" else 4)


def _holds(box: Headers, wire: Wire) -> bool:
    return box.iif.has(wire.iif) and all(
        limit is None or any(low <= getattr(wire, name) <= high for low, high in limit)
        for name in ("src", "dst", "sport", "dport", "proto")
        for limit in [getattr(box, name)]
    )


WIRES = [
    Wire(*fields)
    for fields in itertools.product(OWN, OWN, PROTOCOLS, ADDRESSES, ADDRESSES, PORTS, PORTS)
]


@st.composite
def _filters(draw: st.DrawFn) -> Filter:
    def network() -> ipaddress.IPv4Network | None:
        length = draw(st.sampled_from([None, 32, 30]))
        start = draw(st.sampled_from(ADDRESSES))
        return None if length is None else ipaddress.IPv4Network((start, length), strict=False)

    return Filter(
        src=network(),
        dst=network(),
        sport=draw(st.sampled_from([None, None, 1, 2])),
        dport=draw(st.sampled_from([None, 1, 3])),
        proto=draw(st.sampled_from([None, 6])),
    )


@settings(max_examples=150, deadline=None)
@given(_worlds(), _filters(), st.randoms(use_true_random=False))
def test_no_packet_that_will_meet_the_filter_is_missed(
    world: tuple[str, dict[str, list[MadeRule]]], wanted: Filter, chance: random.Random
) -> None:
    """Whatever NAT can turn into what the filter names is looked for at the first hook."""
    text, chains = world
    asked = read_filter(wanted, 4)
    mapped = map_filter(asked, _nat(text), LOCAL)

    for wire in chance.sample(WIRES, 300):
        stages = {wire}
        between, goes_on = _run(chains, "PREROUTING", wire, "dst")
        between |= {wire} if goes_on else set()
        for each in between:
            after, goes_on = _run(chains, "POSTROUTING", each, "src")
            stages |= {each} | after
        if any(_holds(asked, each) for each in stages) and not mapped.wide:
            assert any(_holds(box, wire) for box in mapped.boxes), (text, wire)


def _map(text: str, family: str = "ip", **words: object) -> Mapped:
    for name in ("src", "dst"):
        if name in words:
            words[name] = ipaddress.ip_network(str(words[name]))
    asked = read_filter(Filter(**words), 6 if family == "ip6" else 4)
    return map_filter(asked, _nat(text, family), LOCAL)


def _table(*rules: str) -> str:
    return "\n".join(
        ("*nat", ":PREROUTING ACCEPT [0:0]", ":POSTROUTING ACCEPT [0:0]", *rules, "COMMIT", "")
    )


def _at(box: Headers) -> tuple[str | None, int | None, str | None, int | None]:
    kind = ipaddress.IPv4Address if box.version == 4 else ipaddress.IPv6Address
    return (
        *(None if box.src is None else str(kind(box.src[0][0])), box.sport and box.sport[0][0]),
        *(None if box.dst is None else str(kind(box.dst[0][0])), box.dport and box.dport[0][0]),
    )


FORWARD = _table(
    "-A PREROUTING -d 9.9.9.9/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8080"
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"dst": "10.0.0.5", "dport": 8080}, (None, None, "9.9.9.9", 80)),
        ({"dst": "10.0.0.0/29"}, (None, None, "9.9.9.9", 80)),
        ({"src": "1.1.1.1", "dport": 8080}, ("1.1.1.1", None, "9.9.9.9", 80)),
        ({"src": "9.9.9.9", "sport": 80}, ("10.0.0.5", 8080, None, None)),
        ({"src": "9.9.9.9", "dport": 5}, ("10.0.0.5", 8080, None, 5)),
    ],
)
def test_a_translation_is_mapped_back_and_its_replies_forward(
    words: dict[str, object], expected: tuple[str | None, int | None, str | None, int | None]
) -> None:
    """The filter's other words stay, and those about the translated side are replaced."""
    assert [expected] == [_at(box) for box in _map(FORWARD, **words).boxes[1:]]


@pytest.mark.parametrize(
    "words",
    [{"dst": "10.0.0.6"}, {"dst": "10.0.0.5", "dport": 80}, {"dst": "10.0.0.5", "proto": 17}],
)
def test_what_the_translation_does_not_give_is_not_mapped(words: dict[str, object]) -> None:
    """Another address, port or protocol than the result's needs the filter alone."""
    assert len(_map(FORWARD, **words).boxes) == 1


def test_brackets_hold_ip6_addresses() -> None:
    """An IPv6 target with a port, and one with a range of addresses."""
    text = _table(
        "-A PREROUTING -d fd00::9/128 -p tcp --dport 80 -j DNAT --to-destination [fd00::5]:8080",
        "-A PREROUTING -d fd00::8/128 -p tcp -j DNAT --to-destination [fd00::5-fd00::6]:8080-8090",
    )

    found = _map(text, "ip6", dst="fd00::5", dport=8080).boxes

    assert [(None, None, "fd00::9", 80), (None, None, "fd00::8", None)] == [
        _at(b) for b in found[1:]
    ]


def test_a_match_of_everything_is_not_used_but_named() -> None:
    """A rule that names neither address nor port would have all traffic traced."""
    text = _table("-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.5:1-9")

    found = _map(text, dst="10.0.0.5", dport=8)

    assert len(found.boxes) == 1
    assert found.wide == {(Side.DST, "table ip nat chain PREROUTING rule 1")}


def test_many_ways_to_one_target_are_all_found() -> None:
    """Each of a thousand service addresses that lead to one endpoint is looked for."""
    rules = [
        f"-A KS -d 10.{n >> 8}.{n & 255}.1/32 -p tcp -m tcp --dport 80 -j SEP" for n in range(1009)
    ]
    text = _table(
        ":KS - [0:0]",
        ":SEP - [0:0]",
        "-A PREROUTING -j KS",
        *rules,
        "-A SEP -p tcp -m tcp -j DNAT --to-destination 172.16.0.1:8080",
    )

    assert len(_map(text, dst="172.16.0.1", dport=8080).boxes) == 1 + 1009


def test_masquerading_routers_replies_are_left_to_conntrack() -> None:
    """Replies to an address that many share are not looked for by that address."""
    text = _table("-A POSTROUTING -s 10.0.0.0/29 -o eth1 -j MASQUERADE")

    assert [_at(b) for b in _map(text, dst="10.0.0.5").boxes] == [(None, None, "10.0.0.5", None)]
    public = _map(text, src="10.0.0.2", dst="8.8.8.8").boxes
    assert ("10.0.0.0", None, "8.8.8.8", None) == _at(public[1])


@pytest.mark.parametrize("name", ["kube-proxy", "docker", "article-vr1"])
def test_rulesets_of_others_leave_no_hole(name: str) -> None:
    """Every translation of a ruleset that programs made is read."""
    text = (Path(__file__).parent / "rulesets" / f"{name}.legacy.txt").read_text()

    tables = _nat(text)
    sites = [site for table in tables for site in table.translations]

    assert sites
    assert all(branch.translations for site in sites for branch in site.branches)

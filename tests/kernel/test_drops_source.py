"""Every drop is counted once, at its place, on each rung of the ladder."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from bpf.layout import Mode
from tests.kernel import nets
from tracer.core.drop_events import packets_of
from tracer.core.drops import Rung
from tracer.core.filters import Filter
from tracer.sources.drops import DropSource
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracer.core.drops import DropCount

_TO_B = "10.1.0.2"
_LEGACY = """*mangle
:FIREWALL - [0:0]
-A PREROUTING -p udp -j FIREWALL
-A FIREWALL -p tcp -j DROP
-A FIREWALL -p udp --dport 7001 -j ACCEPT
-A FIREWALL -p udp --dport 7002 -j DROP
-A FIREWALL -p udp --dport 7003 -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
-A INPUT -p udp --dport 7005 -j REJECT
-A INPUT -p udp --dport 7020:7029 -j ACCEPT
COMMIT
"""
_NFT = """table inet t {
  chain sub {
    udp dport 7010 drop
  }
  chain c {
    type filter hook prerouting priority 5
    udp dport 7010 jump sub
    udp dport 7011 drop
  }
}
table ip p {
  chain strict {
    type filter hook input priority 20; policy drop
    udp dport != 7020 accept
  }
}
"""


@pytest.fixture
def ruled(netns: Callable[..., str]) -> str:
    """Lay a cable from a to b, which drops in legacy and nft tables alike."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{_TO_B}/24")
    nets.load_rules("b", "legacy", _LEGACY)
    nets.load_rules("b", "nftables", _NFT)
    return "b"


@contextlib.contextmanager
def _opened(rung: Rung | None = None) -> Iterator[DropSource]:
    source = DropSource([find_namespace("b")], rung)
    source.open()
    with contextlib.closing(source):
        yield source


def _in_b(source: DropSource) -> list[DropCount]:
    inode = find_namespace("b").inode
    return [row for row in source.counts() if row.netns == inode]


def _place(row: DropCount) -> tuple[object, ...]:
    return (row.engine, row.hook, row.table, row.chain, row.rule, row.kind)


def test_the_whole_ladder_stands_here(ruled: str) -> None:
    """The highest rung proves itself where legacy and nft rules can be made."""
    with _opened() as source:
        assert (Rung.RULE, {}) == (source.rung, source.why), ruled


def test_every_drop_is_named_to_the_rule(ruled: str) -> None:
    """Legacy rules, policies, nft rules and policies: prime numbers, each at its place."""
    with _opened() as source:
        sent = {7002: 13, 7003: 17, 7004: 19, 7005: 5, 7010: 23, 7011: 29, 7020: 31}
        for port, count in sent.items():
            nets.send_udp("a", _TO_B, port, count)
        rows = _in_b(source)
        losses = source.losses()

    expected = {
        ("legacy", "prerouting", "mangle", "FIREWALL", 3, "rule"): 13,
        ("legacy", "prerouting", "mangle", "FIREWALL", 4, "rule"): 17,
        ("legacy", "input", "filter", "INPUT", None, "policy"): 19,
        ("legacy", "input", "filter", "INPUT", 1, "rule"): 5,
        ("nft", "input", "p", "strict", None, "policy"): 31,
    }
    assert expected == {
        _place(row): row.packets for row in rows if row.handle is None and row.table
    }
    assert {23, 29} == {row.packets for row in rows if row.handle is not None}
    assert {True} == {row.certain for row in rows}
    assert (0, 0, 0) == (losses.uncounted, losses.unlocated, losses.stale), ruled


def test_the_handle_is_the_rules_own(ruled: str) -> None:
    """What nft lists as the handle of the rule behind the jump is what the drop says."""
    with _opened() as source:
        nets.send_udp("a", _TO_B, 7010, 7)
        handles = {row.handle for row in _in_b(source) if row.engine == "nft"}

    listed = nets.ip_netns_exec(ruled, "nft", "-a", "list", "chain", "inet", "t", "sub").stdout
    (line,) = [line for line in listed.splitlines() if "udp dport 7010" in line]
    assert {int(line.split()[-1])} == handles


@pytest.mark.parametrize("rung", [Rung.REASON, Rung.HOOK, Rung.RULE])
def test_a_forced_rung_knows_what_it_promises(ruled: str, rung: Rung) -> None:
    """Below a rung's knowledge nothing is claimed; the packets are counted all the same."""
    with _opened(rung) as source:
        nets.send_udp("a", _TO_B, 7002, 11)
        (row,) = _in_b(source)

    known = {
        Rung.REASON: (None, None, None, None, None, "other"),
        Rung.HOOK: ("legacy", "prerouting", "mangle", None, None, "table"),
        Rung.RULE: ("legacy", "prerouting", "mangle", "FIREWALL", 3, "rule"),
    }
    assert (rung, known[rung], 11, "NETFILTER_DROP") == (
        source.rung,
        _place(row),
        row.packets,
        row.reason,
    ), ruled


def test_a_replaced_ruleset_is_read_again(ruled: str) -> None:
    """After iptables changed the table, drops name the rule's new number."""
    with _opened() as source:
        nets.send_udp("a", _TO_B, 7002, 3)
        nets.ip_netns_exec(ruled, "iptables-legacy", "-t", "mangle", "-I", "FIREWALL")
        source.counts()
        nets.send_udp("a", _TO_B, 7002, 7)
        rows = {row.rule: row.packets for row in _in_b(source)}

    assert {3: 3, 4: 7} == rows


def test_kinds_that_are_over_make_room(ruled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken out of the kernel's tables while packets die, kinds keep every packet and name."""
    # As if there were never room: what did not move between two looks is taken out.
    monkeypatch.setattr("tracer.sources.drops._CROWDED", 0)
    with _opened() as source:
        for _ in range(3):
            nets.send_udp("a", _TO_B, 7002, 13)
            nets.send_udp("a", _TO_B, 7011, 7)
            for _ in range(3):
                source.counts()
        rows = {(row.table, row.chain): row.packets for row in _in_b(source)}
        assert source._places is not None  # noqa: SLF001 - that the places went is the matter
        places = len(source._places.names)  # noqa: SLF001

    assert {("mangle", "FIREWALL"): 39, ("t", "c"): 21} == rows, ruled
    assert 0 == places


def test_sampled_rules_keep_the_totals_exact(ruled: str) -> None:
    """With one look in five, each rule has its share of what nobody looked at, and says so."""
    with _opened() as source:
        source.set_mode(Mode.COUNT, rules=5)
        nets.send_udp("a", _TO_B, 7003, 101)
        rows = [(row.rule, row.packets, row.sampled) for row in _in_b(source)]

    assert [(4, 101, True)] == rows, ruled


def test_few_drops_are_all_looked_at_and_many_in_a_sample(ruled: str) -> None:
    """Up to the rate that is set every rule is certain; above it all packets stay counted."""
    with _opened() as source:
        source.set_rule_rate(1_000_000)
        nets.send_udp("a", _TO_B, 7002, 103)
        few = [(row.rule, row.packets, row.sampled) for row in _in_b(source)]
        source.set_rule_rate(10, sample=7)
        nets.flood("a", _TO_B, 7002, 10_007)
        many = [(row.rule, row.packets, row.sampled) for row in _in_b(source)]

    assert [(3, 103, False)] == few, ruled
    assert [(3, 10_110, True)] == many


def test_records_say_what_sample_their_rule_is_of(ruled: str) -> None:
    """One record in five has a rule, and stands for five in that; the others have none."""
    with _opened() as source:
        source.set_mode(Mode.RECORD, rules=5)
        nets.send_udp("a", _TO_B, 7003, 101)
        records = source.read()
        records = records[records["key"]["netns"] == find_namespace(ruled).inode]

    looked = records[records["key"]["rule"] != 0]
    assert 101 == len(records)
    assert len(looked) in {20, 21} or len(looked) == 101 // 5
    assert {5} == set(looked["rule_weight"].tolist())


@pytest.mark.parametrize("only", ["netns", "flow"])
def test_what_is_recorded_can_be_chosen(ruled: str, only: str) -> None:
    """Another namespace's drops, or another port's, are counted and not recorded."""
    with _opened() as source:
        source.set_mode(Mode.RECORD)
        if only == "netns":
            source.record_only([find_namespace("a").inode])
        else:
            source.record_only(None, [Filter(dport=7003, proto=17)])
        nets.send_udp("a", _TO_B, 7002, 7)
        nets.send_udp("a", _TO_B, 7003, 11)
        records = source.read()
        counted = sum(row.packets for row in _in_b(source))
        records = records[records["key"]["netns"] == find_namespace(ruled).inode]

    assert 18 == counted
    assert {"netns": 0, "flow": 11}[only] == len(records)


def test_records_carry_the_packet(ruled: str) -> None:
    """Every drop that is recorded has its addresses, ports, device and place."""
    with _opened() as source:
        source.set_mode(Mode.RECORD)
        nets.send_udp("a", _TO_B, 7002, 37, payload=b"abc")
        records = source.read()
        records = records[records["key"]["netns"] == find_namespace(ruled).inode]
        packets = packets_of(records)

    assert 37 == len(records)
    assert {(7002, 17, 31)} == {
        (int(p["dport"]), int(p["proto"]), int(p["length"])) for p in packets
    }
    assert 37 == len(set(packets["fingerprint"].tolist()))
    assert (records["time_ns"][1:] >= records["time_ns"][:-1]).all()
    assert {1} == set(records["weight"].tolist())


def test_other_drops_have_the_kernels_reason(ruled: str) -> None:
    """A closed port is no netfilter drop, and has the kernel's word for it."""
    nets.load_rules(ruled, "nftables", "flush ruleset\n")
    with _opened() as source:
        nets.send_udp("a", _TO_B, 7021, 41)
        (row,) = _in_b(source)

    assert ("NO_SOCKET", 41, None, "other") == (row.reason, row.packets, row.engine, row.kind)


def test_nothing_is_left_behind(ruled: str) -> None:
    """After close() the source answers no more, and closing again does no harm."""
    with _opened(Rung.REASON) as source:
        pass
    source.close()
    with pytest.raises(ValueError, match="not open"):
        source.counts()
    assert ruled

"""Each rung of the ladder places drops, proves itself, and is stepped down from."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bpf.layout import Mode
from tests.kernel import nets
from tracer.core.drops import Rung
from tracer.errors import KernelUnsupportedError
from tracer.sources.bpf_retry import LATER
from tracer.sources.drops import CALIBRATE_S, DropSource
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracer.core.drops import DropCount
    from tracer.sources.bpf_retry import Retry

_TO_B, _TO_C = "10.1.0.2", "10.2.0.2"
#: What a rung needs of the kernel, as tests/kernel/probes.py has it.
_NEEDS = {Rung.FEXIT: "kprobes", Rung.KPROBE: "kprobes", Rung.LINKS: "bpf_netfilter"}
_LEGACY = """*raw
-A PREROUTING -p udp --dport 7001 -j DROP
COMMIT
*mangle
:FIREWALL - [0:0]
-A PREROUTING -p udp -j FIREWALL
-A FIREWALL -p udp --dport 9999 -j DROP
-A FIREWALL -p udp --dport 7002 -j DROP
-A FORWARD -p udp --dport 7003 -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
-A INPUT -p udp --dport 7005 -j REJECT
-A INPUT -p udp --dport 7020:7029 -j ACCEPT
-A FORWARD -p udp --dport 7006 -j DROP
COMMIT
"""
_NFT = """table inet t {
  chain sub {
    udp dport 7010 drop
  }
  chain pre {
    type filter hook prerouting priority 5
    udp dport 7010 jump sub
    udp dport 7011 drop
  }
  chain past {
    type filter hook forward priority 5; policy drop
    udp dport != 7012 accept
  }
}
table ip p {
  chain strict {
    type filter hook input priority 20; policy drop
    udp dport != 7020 accept
  }
}
"""
#: Destination, port, and how many: all numbers are prime and differ.
_SENT = (
    *((_TO_B, 7001, 11), (_TO_B, 7002, 13), (_TO_B, 7004, 17), (_TO_B, 7005, 19)),
    *((_TO_B, 7010, 23), (_TO_B, 7011, 29), (_TO_B, 7020, 31)),
    *((_TO_C, 7003, 37), (_TO_C, 7006, 41), (_TO_C, 7012, 43)),
)
_LEGACY_ROWS = {
    ("legacy", "prerouting", "raw", "PREROUTING", 1, "rule"): 11,
    ("legacy", "prerouting", "mangle", "FIREWALL", 2, "rule"): 13,
    ("legacy", "input", "filter", "INPUT", None, "policy"): 17,
    ("legacy", "input", "filter", "INPUT", 1, "rule"): 19,
    ("legacy", "forward", "mangle", "FORWARD", 1, "rule"): 37,
    ("legacy", "forward", "filter", "FORWARD", 1, "rule"): 41,
}
#: nft's rows by what else is known: the base chain, and the port of the rule that drops.
_NFT_ROWS = {
    ("prerouting", "t", "pre", "rule", 7010): 23,
    ("prerouting", "t", "pre", "rule", 7011): 29,
    ("input", "p", "strict", "policy", None): 31,
    ("forward", "t", "past", "policy", None): 43,
}
_EXPECTED_BELOW = {
    Rung.HOOK: {
        ("legacy", "prerouting", "raw", None, None, "table"): 11,
        ("legacy", "prerouting", "mangle", None, None, "table"): 13,
        ("legacy", "input", "filter", None, None, "table"): 17 + 19,
        ("legacy", "forward", "mangle", None, None, "table"): 37,
        ("legacy", "forward", "filter", None, None, "table"): 41,
        ("nft", "prerouting", "t", "pre", None, "rule"): 23 + 29,
        ("nft", "input", "p", "strict", None, "policy"): 31,
        ("nft", "forward", "t", "past", None, "policy"): 43,
    },
    Rung.REASON: {
        (None, None, None, None, None, "other"): sum(count for _, _, count in _SENT),
    },
}


@pytest.fixture
def ruled(netns: Callable[..., str]) -> str:
    """Lay cables from a through b to c; b drops in legacy and nft tables alike."""
    for name in ("a", "b", "c"):
        netns(name, forward=name == "b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{_TO_B}/24")
    nets.veth("b", "b1", "10.2.0.1/24", "c", "c0", f"{_TO_C}/24")
    nets.route("a", "10.2.0.0/24", "via", _TO_B)
    nets.load_rules("b", "legacy", _LEGACY)
    nets.load_rules("b", "nftables", _NFT)
    return "b"


@contextlib.contextmanager
def _opened(rung: Rung | None = None, calibrate_s: float = 240.0) -> Iterator[DropSource]:
    source = DropSource([find_namespace("b")], rung, calibrate_s)
    source.open()
    with contextlib.closing(source):
        yield source


def _in_b(source: DropSource) -> list[DropCount]:
    inode = find_namespace("b").inode
    return [row for row in source.counts() if row.netns == inode]


def _handles() -> dict[int, int]:
    """Map the handles of b's dropping nft rules to their ports."""
    listed = nets.ip_netns_exec("b", "nft", "-a", "list", "ruleset").stdout
    lines = [line.split() for line in listed.splitlines() if " drop # handle" in line]
    return {int(words[-1]): int(words[2]) for words in lines if words[0] == "udp"}


@pytest.mark.parametrize("rung", [Rung.HOOK, Rung.REASON])
def test_a_rung_claims_no_more_than_it_knows(ruled: str, rung: Rung) -> None:
    """By `hook` legacy drops have their table and no rule, by `reason` none has a place."""
    with _opened(rung) as source:
        for address, port, count in _SENT:
            nets.send_udp("a", address, port, count)
        rows = _in_b(source)

    found: dict[tuple[object, ...], int] = {}
    for row in rows:
        key = (row.engine, row.hook, row.table, row.chain, row.rule, row.kind)
        found[key] = found.get(key, 0) + row.packets
    assert (rung, {"NETFILTER_DROP"}) == (source.rung, {row.reason for row in rows}), ruled
    assert _EXPECTED_BELOW[rung] == found


@pytest.mark.parametrize("rung", [Rung.RULE, Rung.FEXIT, Rung.KPROBE, Rung.LINKS])
def test_each_rung_places_every_drop(ruled: str, rung: Rung) -> None:
    """Three tables of each engine at a hook, rules and policies: each number at its place."""
    nets.require(_NEEDS.get(rung, "btf"))
    with _opened(rung) as source:
        for address, port, count in _SENT:
            nets.send_udp("a", address, port, count)
        rows = _in_b(source)

    assert rung == source.rung, ruled
    legacy = [row for row in rows if row.engine == "legacy"]
    assert _LEGACY_ROWS == {
        (r.engine, r.hook, r.table, r.chain, r.rule, r.kind): r.packets for r in legacy
    }
    ports = _handles()
    found: dict[tuple[object, ...], int] = {}
    for row in rows:
        if row.engine == "nft":
            port = ports[row.handle] if row.handle is not None else None
            key = (row.hook, row.table, row.chain, row.kind, port)
            found[key] = found.get(key, 0) + row.packets
    assert _expected_nft(rung) == found
    assert {True} == {row.certain for row in rows}
    assert [] == [row for row in rows if row.table is None]


def _expected_nft(rung: Rung) -> dict[tuple[object, ...], int]:
    if rung is not Rung.LINKS:
        return dict(_NFT_ROWS)
    # A link sees a packet go into a chain, not by which rule it dies there.
    expected: dict[tuple[object, ...], int] = {}
    for key, count in _NFT_ROWS.items():
        without = (*key[:4], None)
        expected[without] = expected.get(without, 0) + count
    return expected


def _links(source: DropSource) -> int:
    """Return how many netfilter links stand."""
    assert source.ladder is not None
    return source.ladder.links


def test_one_table_that_can_drop_needs_no_link(netns: Callable[..., str]) -> None:
    """A namespace with one dropping table has no link, and its drops are placed all the same."""
    nets.require("bpf_netfilter")
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{_TO_B}/24")
    rules = (
        "*mangle\n-A INPUT -p tcp\nCOMMIT\n*filter\n-A INPUT -p udp --dport 7001 -j DROP\nCOMMIT\n"
    )
    nets.load_rules("b", "legacy", rules)
    with _opened(Rung.LINKS) as source:
        nets.send_udp("a", _TO_B, 7001, 47)
        (row,) = _in_b(source)

        assert 0 == _links(source)
    assert ("input", "filter", "INPUT", 1, 47, True) == (
        *(row.hook, row.table, row.chain, row.rule, row.packets, row.certain),
    )


def test_links_follow_the_rules(netns: Callable[..., str]) -> None:
    """A table that begins to drop gets its link at the next look, and one that ends loses it."""
    nets.require("bpf_netfilter")
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{_TO_B}/24")
    nets.load_rules("b", "legacy", "*filter\n-A INPUT -p udp --dport 7001 -j DROP\nCOMMIT\n")
    with _opened(Rung.LINKS) as source:
        before = _links(source)
        nets.load_rules("b", "legacy", "*mangle\n-A INPUT -p udp --dport 7002 -j DROP\nCOMMIT\n")
        source.counts()
        between = _links(source)
        nets.send_udp("a", _TO_B, 7001, 53)
        nets.send_udp("a", _TO_B, 7002, 59)
        rows = {(row.table, row.hook): row.packets for row in _in_b(source)}
        nets.load_rules("b", "legacy", "*mangle\nCOMMIT\n")
        source.counts()

        assert (0, 2, 0) == (before, between, _links(source))
    assert {("filter", "input"): 53, ("mangle", "input"): 59} == rows


def test_links_go_with_the_source(ruled: str) -> None:
    """What is closed leaves no link: another source links at the same places."""
    nets.require("bpf_netfilter")
    counts = []
    for _ in range(2):
        with _opened(Rung.LINKS) as source:
            counts.append(_links(source))
            assert source.why == {}

    # raw, mangle, t at prerouting; filter, p at input; mangle, filter, t at forward; and
    # t twice in IPv6
    assert [10, 10] == counts, ruled


def test_calibration_ends_in_its_time(ruled: str) -> None:
    """Where known drops take too long the lowest rung stands, says so, and counts all."""
    with _opened(calibrate_s=0.001) as source:
        nets.send_udp("a", _TO_B, 7002, 61)
        (row,) = _in_b(source)

    assert (Rung.REASON, 61, None) == (source.rung, row.packets, row.table), ruled
    assert all("took longer than 0.001 s" in why for why in source.why.values())
    assert {Rung.RULE, Rung.HOOK} == set(source.why)
    assert [LATER] == source.notes


def test_a_rung_that_had_no_time_is_proved_later(ruled: str) -> None:
    """What stands for lack of time alone gives way, and known drops are counted as nobody's."""
    seen: list[set[int]] = []

    def is_proved(source: DropSource, retry: Retry) -> bool:
        netns = {row.netns for row in source.counts()}
        seen.append(netns & set(retry.ranges))
        return source.rung is Rung.RULE

    with _opened(calibrate_s=0.001) as source:
        assert source.retry is not None
        nets.send_udp("a", _TO_B, 7002, 73)
        source.retry.limit_s = 240.0
        source.retry.hurry()
        nets.wait_until(lambda: is_proved(source, source.retry), 120)
        held = set(source.retry.ranges)
        nets.send_udp("a", _TO_B, 7002, 79)
        rows = {(r.table, r.chain, r.rule): r.packets for r in _in_b(source)}

        assert {} == source.retry.ranges, ruled
    assert (1, {0}) == (len(held), {len(shown) for shown in seen})
    assert {(None, None, None): 73, ("mangle", "FIREWALL", 2): 79} == rows
    assert [LATER, "hook was proved later"] == [note.split(";")[0] for note in source.notes]
    assert {} == source.why


def test_rungs_are_proved_on_a_busy_machine(ruled: str) -> None:
    """Twelve busy loops take our turns on the processors, and the highest rung stands."""
    # Each ends by itself after so many seconds of a processor.
    loop = ("sh", "-c", "ulimit -t 20; while :; do :; done")
    with contextlib.ExitStack() as load:
        for _ in range(12):
            load.enter_context(nets.spawn("a", *loop))
        with _opened(calibrate_s=CALIBRATE_S) as source:
            rung = source.rung

    assert (Rung.RULE, {}) == (rung, source.why), ruled


def test_a_forced_rung_that_does_not_hold_is_refused(ruled: str) -> None:
    """Forcing what the time does not suffice for is an error with its reason and remedy."""
    source = DropSource([find_namespace(ruled)], Rung.RULE, 0.001)
    with pytest.raises(KernelUnsupportedError, match=r"took longer.*leave out --rung"):
        source.open()


def _spoil(source: DropSource) -> None:
    """Let the program at the drop look at words where no register lies."""
    assert source.ladder is not None
    for layouts in source.ladder.found.layouts.values():
        layouts[:] = [replace(one, location=one.location + 1) for one in layouts]
    source.set_mode(Mode.COUNT)


def test_a_rung_that_fails_is_stepped_down_from(ruled: str) -> None:
    """Drops without a place lead to a new proof, and that to the next rung that holds."""
    nets.require("bpf_netfilter" if not nets.has_capability("kprobes") else "kprobes")
    with _opened() as source:
        before = source.rung
        _spoil(source)
        nets.send_udp("a", _TO_B, 7002, 67)
        source.counts()
        after = source.rung
        nets.send_udp("a", _TO_B, 7002, 71)
        rows = {(r.table, r.chain, r.rule): r.packets for r in _in_b(source)}

    below = Rung.FEXIT if nets.has_capability("kprobes") else Rung.LINKS
    assert (Rung.RULE, below) == (before, after), ruled
    assert {(None, None, None): 67, ("mangle", "FIREWALL", 2): 71} == rows
    assert any(note.startswith(f"stepped down from hook to {below}") for note in source.notes)

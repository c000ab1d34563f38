"""What was attributed changes who is blamed, and never how much was lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.drops import DropCount, Rung
from tracer.core.flow_classes import RuleAnswer
from tracer.daemon.naming_counts import Amount, move_attributed, needs_name

_TABLE = DropCount(7, "NETFILTER_DROP", 0, 0, "table", "input", "legacy", "ip", "filter")
_ELSEWHERE = DropCount(7, "NO_SOCKET", 5, 500)
_NFT = DropCount(7, "NETFILTER_DROP", 0, 0, "rule", "input", "nft", "inet", "t", "c")


def _answer(rule: int | None) -> RuleAnswer:
    return RuleAnswer("legacy", "ip", "input", "filter", "INPUT", rule, None, None)


@given(
    st.integers(0, 100),
    st.dictionaries(st.none() | st.integers(1, 4), st.integers(0, 60), max_size=4),
)
def test_the_sums_stay_what_they_are(packets: int, named: dict[int | None, int]) -> None:
    """Whatever was attributed, even too much, all rows together have the same packets."""
    row = DropCount(7, "NETFILTER_DROP", packets, packets * 10, *_TABLE_REST)
    attributed = {(_TABLE, _answer(rule)): Amount(n, n * 10) for rule, n in named.items()}
    told = move_attributed([row, _ELSEWHERE], attributed)

    assert packets + 5 == sum(one.packets for one in told)
    assert packets * 10 + 500 == sum(one.octets for one in told)
    assert all(one.packets >= 0 for one in told)
    by_rule = {one.rule: one.packets for one in told if one.kind == "rule"}
    assert all(by_rule[rule] <= named[rule] for rule in by_rule)


_TABLE_REST = ("table", "input", "legacy", "ip", "filter")


def test_what_is_moved_is_not_certain() -> None:
    """A rule that was found for a class says so, and a policy is one."""
    row = DropCount(7, "NETFILTER_DROP", 9, 90, *_TABLE_REST)
    attributed = {
        (_TABLE, _answer(3)): Amount(5, 50),
        (_TABLE, _answer(None)): Amount(4, 40),
    }
    told = {(one.kind, one.rule): one for one in move_attributed([row], attributed)}

    assert (5, False) == (told["rule", 3].packets, told["rule", 3].certain)
    assert (4, False) == (told["policy", None].packets, told["policy", None].certain)
    assert 0 == told["table", None].packets


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (_TABLE, {Rung.REASON, Rung.HOOK}),
        (_NFT, set(Rung)),
        (DropCount(7, "NETFILTER_DROP", 0, 0), set(Rung)),
        (DropCount(7, "NO_SOCKET", 0, 0), set()),
        (DropCount(7, "NETFILTER_DROP", 0, 0, "rule", "input", "legacy", "ip", "t", "c", 3), set()),
        (DropCount(7, "NETFILTER_DROP", 0, 0, "policy", "input", "nft", "inet", "t", "c"), set()),
        (DropCount(7, "NETFILTER_DROP", 0, 0, "rule", "ingress", "nft", "netdev", "t", "c"), set()),
        (DropCount(7, "NETFILTER_DROP", 0, 0, "hook", "input", "hook", "ip"), set()),
    ],
)
def test_only_what_the_rung_does_not_name_is_asked_for(kind: DropCount, asked: set[Rung]) -> None:
    """Rules that eBPF names, policies, and what no rule did are not."""
    assert asked == {rung for rung in Rung if needs_name(kind, rung)}

"""Laws of drops by labels: what is added where, and what is not told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.drop_totals import OTHER, DropLabels, DropTotals
from tracer.core.drops import DropCount
from tracer.core.expected import Expected, parse_expected
from tracer.core.journey import Verdict
from tracer.core.rule_counts import RuleCounts, TableKey
from tracer.core.rule_ids import CountedRule, policy_id
from tracer.core.rule_reading import NetnsCounters, TableCounters

NAMES = {7: "n"}
KEY = TableKey("n", "nft", "inet", "t")
RULE = DropCount(7, "NETFILTER_DROP", 5, 500, "rule", "input", "nft", "inet", "t", "in", None, 4)
NO_SOCKET = DropCount(7, "NO_SOCKET", 3, 300)
LABELS = DropLabels("n", "nft", "inet", "input", "t", "NETFILTER_DROP", expected=False)


def rules_with(*rules: CountedRule, counted: bool = False, version: int = 1) -> RuleCounts:
    """Give counts of one table with these rules, that the kernel counts or not."""
    counts = RuleCounts()
    read(counts, *rules, counted=counted, version=version)
    return counts


def read(counts: RuleCounts, *rules: CountedRule, counted: bool, version: int = 1) -> None:
    """Let *counts* see the table with these rules."""
    zeros = np.zeros(len(rules), np.uint64)
    has = np.full(len(rules), counted)
    table = TableCounters("nft", "inet", "t", rules, zeros, zeros, has, 1)
    counts.update(NetnsCounters("n", 7, version, (table,), exact=True, elapsed_ns=1))


DROPPING = CountedRule("in", 1, 4, "drop", "noise", Verdict.DROP, "id4")
MAPPED = CountedRule("in", 2, 5, "tcp dport vmap @m", "", None, "id5")
POLICY = CountedRule("in", None, None, None, "", Verdict.DROP, policy_id(Verdict.DROP))


def attributed(counts: RuleCounts) -> list[int]:
    """Give the packets attributed to each rule of the table."""
    found: list[int] = counts.tables[KEY].attributed[0].tolist()
    return found


def test_only_what_is_new_is_added() -> None:
    """Counts since the start are added once, and one that began anew is added whole."""
    drops, rules = DropTotals(), rules_with(DROPPING)
    for packets in (5, 5, 12, 2):
        row = replace(RULE, packets=packets, octets=packets * 100)
        drops.update([row], NAMES, rules, Expected())

    assert {LABELS: [14, 1400]} == drops.totals
    assert [14] == attributed(rules)


def test_a_rule_with_a_counter_is_given_no_drops() -> None:
    """What the kernel counts is not counted again beside it."""
    drops, rules = DropTotals(), rules_with(DROPPING, counted=True)
    drops.update([RULE], NAMES, rules, Expected())

    assert [0] == attributed(rules)
    assert {LABELS: [5, 500]} == drops.totals


def test_a_map_is_given_its_drops_counter_or_not() -> None:
    """A counter of a rule that not always drops does not say how many it dropped."""
    drops, rules = DropTotals(), rules_with(DROPPING, MAPPED, counted=True)
    drops.update([replace(RULE, handle=5)], NAMES, rules, Expected())

    assert [0, 5] == attributed(rules)


def test_a_policy_is_found_by_its_chain() -> None:
    """A policy's drops go to it, and to no rule of its chain."""
    drops, rules = DropTotals(), rules_with(DROPPING, POLICY)
    drops.update([replace(RULE, kind="policy", handle=None)], NAMES, rules, Expected())

    assert [0, 5] == attributed(rules)


def test_a_drop_below_the_rung_of_rules_is_nobodys() -> None:
    """Where only the table is known no rule is guessed, and nothing is called unresolved."""
    drops, rules = DropTotals(), rules_with(DROPPING, POLICY)
    drops.update([replace(RULE, handle=None, kind="rule")], NAMES, rules, Expected())

    assert [0, 0] == attributed(rules)
    assert {} == drops.unresolved


def test_a_rule_that_is_gone_is_said_to_be() -> None:
    """Drops by a rule that is not known the next time either are counted as unresolved."""
    drops, rules = DropTotals(), rules_with(DROPPING)
    drops.update([replace(RULE, handle=99)], NAMES, rules, Expected())
    at_first = dict(drops.totals)
    for _ in range(2):
        drops.update([replace(RULE, handle=99)], NAMES, rules, Expected())

    assert {} == at_first
    assert {"n": 5} == drops.unresolved
    assert {LABELS: [5, 500]} == drops.totals


def test_a_rule_that_is_read_later_has_its_drops() -> None:
    """A rule that came between the readings of rules and of drops is waited for."""
    drops, rules = DropTotals(), rules_with(MAPPED)
    expected = parse_expected([{"comment": "noise"}])
    drops.update([RULE], NAMES, rules, expected)
    read(rules, MAPPED, DROPPING, counted=False, version=2)
    drops.update([replace(RULE, packets=7, octets=700)], NAMES, rules, expected)

    assert [0, 7] == attributed(rules)
    assert {} == drops.unresolved
    assert {LABELS._replace(expected=True): [7, 700]} == drops.totals


def test_what_was_added_stays_when_the_rule_goes() -> None:
    """An expected rule's drops stay expected when it is gone; later ones are not."""
    expected = parse_expected([{"comment": "noise"}])
    drops, rules = DropTotals(), rules_with(DROPPING)
    drops.update([RULE], NAMES, rules, expected)
    read(rules, MAPPED, counted=False, version=2)
    for _ in range(2):
        drops.update([replace(RULE, packets=9, octets=900)], NAMES, rules, expected)

    assert {LABELS._replace(expected=True): [5, 500], LABELS: [4, 400]} == drops.totals


def test_reasons_can_be_expected() -> None:
    """A kernel reason that the configuration names is expected, others are not."""
    drops = DropTotals()
    rows = [NO_SOCKET, replace(NO_SOCKET, reason="NOMEM")]
    drops.update(rows, NAMES, RuleCounts(), parse_expected([{"reason": "NO_*"}]))

    assert {"NO_SOCKET": True, "NOMEM": False} == {
        labels.reason: labels.expected for labels in drops.totals
    }


def test_namespaces_that_are_not_watched_are_left_out() -> None:
    """Nothing is told of them, and when one is watched later its past is not either."""
    drops = DropTotals()
    drops.update([NO_SOCKET], {}, RuleCounts(), Expected())
    drops.update([replace(NO_SOCKET, packets=8, octets=800)], NAMES, RuleCounts(), Expected())
    told = dict(drops.totals)
    drops.keep_only(())

    assert [[5, 500]] == list(told.values())
    assert {} == drops.totals


@given(
    st.lists(st.dictionaries(st.sampled_from("ABCDEF"), st.integers(0, 9)), max_size=12),
    st.integers(1, 4),
)
def test_no_kind_falls_and_none_is_lost(steps: list[dict[str, int]], kinds_max: int) -> None:
    """Whatever comes, goes or begins anew, all labels together have what was counted."""
    drops = DropTotals(kinds_max)
    before: dict[DropLabels, int] = {}
    last: dict[str, int] = {}
    truth = 0
    for step in steps:
        rows = [replace(NO_SOCKET, reason=name, packets=n, octets=n) for name, n in step.items()]
        drops.update(rows, NAMES, RuleCounts(), Expected())
        for name, n in step.items():
            truth += n - last.get(name, 0) if n >= last.get(name, 0) else n
        last = step
        now = {labels: total[0] for labels, total in drops.totals.items()}
        assert all(now[labels] >= value for labels, value in before.items())
        before = now

    assert truth == sum(before.values())
    assert len(before) <= kinds_max + 1
    assert drops.folded == sum(n for labels, n in before.items() if labels.reason == OTHER)


def test_a_namespace_that_is_gone_has_nothing_unresolved() -> None:
    """What could not be told of it is not told on."""
    drops, rules = DropTotals(), rules_with(DROPPING)
    for _ in range(2):
        drops.update([replace(RULE, handle=99)], NAMES, rules, Expected())
    drops.keep_only(())

    assert {} == drops.unresolved

"""Recorded drops against the entries: by the text of the rule as it stands then."""

from __future__ import annotations

from dataclasses import replace

from tests.timelines import BEFORE, CHAIN, FIXED, INSTALLED, ruleset, table
from tracer.core.drops import DropCount
from tracer.core.expected import Expected, parse_expected
from tracer.core.expected_drops import ExpectedDrops
from tracer.core.journey import Verdict
from tracer.core.ruleset import Chain, Rule, Table
from tracer.core.timeline_rules import render_table

_BY_RULE = DropCount(
    7, "NETFILTER_DROP", 3, 300, "rule", "prerouting", "legacy", "ip", "mangle", CHAIN, 5
)
_POLICY = replace(_BY_RULE, kind="policy", hook="input", chain="INPUT", rule=None)
_NO_SOCKET = DropCount(7, "NO_SOCKET", 2, 200)


def _told(entry: dict[str, object], *changes: str) -> ExpectedDrops:
    told = ExpectedDrops(parse_expected([entry]))
    for after in changes:
        told.note(ruleset(1, "", after))
    return told


def test_a_rule_is_known_by_the_text_it_has_now() -> None:
    """Number 5 is meant while it is that rule; before and after its table has it, it is not."""
    told = _told({"text": "-A C -j DROP"})
    seen = [told.are_meant("vr2", [_BY_RULE])]
    for after in (INSTALLED, BEFORE, INSTALLED, FIXED):
        told.note(ruleset(1, "", after))
        seen.append(told.are_meant("vr2", [_BY_RULE]))

    assert [[False], [True], [False], [True], [False]] == seen
    assert [False] == told.are_meant("vr1", [_BY_RULE])


def test_a_policy_and_a_reason_are_meant_as_well() -> None:
    """A policy has the text `policy`; the kernel's own drops have their reason."""
    policies = _told({"text": "policy"}, table({"INPUT": ([], "input", "drop")}))
    reasons = _told({"reason": "NO_*"})

    assert [True, False] == policies.are_meant("vr2", [_POLICY, _BY_RULE])
    assert [False, True] == reasons.are_meant("vr2", [_BY_RULE, _NO_SOCKET])


def test_an_nft_rule_is_found_by_its_handle_and_its_comment() -> None:
    """The kernel tells a handle and no number; the chain is the rule's."""
    rule = Rule(2, 'udp dport 9 drop comment "noise"', "nft", Verdict.DROP, None, 14)
    text = render_table(Table("nft", "inet", "t", "nft", {"in": Chain("in", (rule,), "input")}))
    told = ExpectedDrops(parse_expected([{"chain": "in", "comment": "noise"}]))
    told.note(replace(ruleset(1, "", text), engine="nft", subject="inet t"))
    kind = replace(_BY_RULE, engine="nft", family="inet", table="t", chain=None, rule=None)

    assert [True, False] == told.are_meant(
        "vr2", [replace(kind, handle=14), replace(kind, handle=15)]
    )


def test_other_entries_hold_from_then_on_and_what_is_gone_is_forgotten() -> None:
    """Reading the configuration anew changes the answers; a namespace that went has no rules."""
    told = _told({"text": "-A C -j DROP"}, INSTALLED)
    before = told.are_meant("vr2", [_BY_RULE])
    told.use(Expected())
    none = told.are_meant("vr2", [_BY_RULE])
    told.use(parse_expected([{"text": "-A C -j DROP"}]))
    again = told.are_meant("vr2", [_BY_RULE])
    told.note(ruleset(2, INSTALLED, "", "gone"))
    gone = told.are_meant("vr2", [_BY_RULE])
    told.note(ruleset(3, "", INSTALLED))
    told.forget("vr2")

    assert [[True], [False], [True], [False]] == [before, none, again, gone]
    assert [False] == told.are_meant("vr2", [_BY_RULE])

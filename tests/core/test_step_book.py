"""What steps mean under a version of the ruleset."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.core.trace_kernel import OWN, RULESETS, make_chain, make_ruleset
from tracer.core.journey import Verdict
from tracer.core.ruleset import Ruleset, Table
from tracer.core.step_book import NO_RANK, StepBook
from tracer.core.trace_steps import StepTable, TraceStep

if TYPE_CHECKING:
    from tracer.core.resolve import ResolvedStep

DROP, ACCEPT, QUEUE = 0, 1, 3
V = Verdict


def _nft(  # noqa: PLR0913 - an event's words
    table: str,
    chain: str,
    handle: int | None,
    verdict: int | None,
    *,
    kind: str = "rule",
    family: str = "ip",
) -> TraceStep:
    return TraceStep("nft", family, None, table, chain, kind, None, handle, verdict, None)


def _legacy(table: str, chain: str, kind: str, number: int | None) -> TraceStep:
    return TraceStep("legacy", "ip", "prerouting", table, chain, kind, number, None, None, None)


def _book(*steps: TraceStep, ruleset: Ruleset = RULESETS["mixed"], **versions: object) -> StepBook:
    table = StepTable()
    for step in steps:
        table.find_or_add(step)
    book = StepBook(table, ruleset, **versions)  # type: ignore[arg-type]
    book.refresh()
    return book


def _resolve(step: TraceStep, **words: object) -> ResolvedStep:
    return _book(step, **words).resolve(0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "kind", "number", "verdict"),
    [
        (_nft("one", "fwd", 12, DROP), "rule", 2, V.DROP),
        (_nft("two", "fwd", 11, DROP), "rule", 1, V.REJECT),
        (_nft("one", "fwd", None, ACCEPT, kind="policy"), "policy", None, V.ACCEPT),
        (_nft("one", "fwd", None, -1), "end", None, V.CONTINUE),
        (_nft("one", "fwd", 99, -2), "rule", None, V.CONTINUE),
        (_nft("one", "fwd", 11, -5), "rule", 1, V.RETURN),
        (_nft("one", "fwd", 11, 2), "rule", 1, V.STOLEN),
        (_nft("one", "fwd", 11, None), "rule", 1, V.CONTINUE),
        (_nft("one", "fwd", 11, 200), "rule", 1, V.CONTINUE),
        (_nft("gone", "fwd", 11, DROP), "rule", None, V.DROP),
        (_legacy("filter", "FORWARD", "rule", 2), "rule", 2, V.REJECT),
        (_legacy("filter", "FORWARD", "policy", 3), "rule", 3, V.DROP),
        (_legacy("filter", "FORWARD", "policy", 4), "policy", None, V.ACCEPT),
        (_legacy("mangle", "TWICE", "return", 4), "end", None, V.RETURN),
        (_legacy("mangle", "TWICE", "return", 99), "rule", 99, V.CONTINUE),
        (_legacy("mangle", "TWICE", "rule", None), "rule", None, V.CONTINUE),
        (_legacy("gone", "TWICE", "rule", 1), "rule", 1, V.CONTINUE),
    ],
)
def test_steps_mean_what_the_ruleset_says(
    step: TraceStep, kind: str, number: int | None, verdict: Verdict
) -> None:
    """A rule has its number and verdict, REJECT by its text; unknown ones have what was said."""
    resolved = _resolve(step)

    assert (kind, number, verdict) == (resolved.kind, resolved.number, resolved.verdict)


def test_a_deleted_rule_is_named_from_before() -> None:
    """A rule that only a former version has, and its chain, are found there."""
    step = _nft("one", "fwd", 12, DROP)
    resolved = _resolve(step, ruleset=Ruleset(), earlier=(Ruleset(), RULESETS["nft"]))

    assert resolved.rule is not None
    assert ("forward", 2) == (resolved.hook, resolved.number)


def test_a_table_made_anew_has_no_rule_from_before() -> None:
    """A handle that only the former table of that name had names nothing in the new one."""
    key = ("nft", "ip", "one")
    before = RULESETS["nft"]
    anew = Ruleset({key: Table(*key, form="nft", handle=18)})
    former = Ruleset({key: replace(before.tables[key], handle=17)})
    same = Ruleset({key: replace(before.tables[key], handle=18)})
    step = _nft("one", "fwd", 12, DROP)

    assert _resolve(step, ruleset=anew, earlier=(former,)).rule is None
    assert 2 == _resolve(step, ruleset=anew, earlier=(former, same)).number


def test_rules_that_two_versions_disagree_on_have_no_name() -> None:
    """While a legacy table changes, only what both versions say is said."""
    one = make_ruleset(("legacy", "mangle", [
        make_chain("C", ("-a -j DROP", V.DROP), ("-b -j DROP", V.DROP), ("-c -j ACCEPT", V.ACCEPT),
                   ("-e -j DROP", V.DROP), legacy=True)]))  # fmt: skip
    two = make_ruleset(("legacy", "mangle", [
        make_chain("C", ("-a -j DROP", V.DROP), ("-x -j DROP", V.DROP), ("-y -j ACCEPT", V.ACCEPT),
                   ("-e -j ACCEPT", V.ACCEPT), legacy=True)]))  # fmt: skip
    steps = [_legacy("mangle", "C", "rule", number) for number in (1, 2, 3, 4)]
    steps += [_legacy("mangle", "C", "return", number) for number in (5, 6)]
    book = _book(*steps, ruleset=one, rival=two)
    found = [book.resolve(number) for number in range(6)]

    assert ["-A C -a -j DROP", None] == [one.rule and one.rule.text for one in found[:2]]
    assert [V.DROP, V.DROP, V.CONTINUE, V.CONTINUE] == [one.verdict for one in found[:4]]
    assert ["end", "rule"] == [one.kind for one in found[4:]]


def test_what_one_version_alone_can_say_is_right() -> None:
    """A chain that only one of two versions has is named by that."""
    resolved = _resolve(
        _legacy("mangle", "TWICE", "rule", 1), ruleset=Ruleset(), rival=RULESETS["legacy"]
    )

    assert 1 == resolved.number
    assert resolved.rule is not None


@pytest.mark.parametrize(
    ("code", "queue", "bypass"),
    [(QUEUE, 0, False), (7 << 16 | QUEUE, 7, False), (5 << 16 | 0x8003, 5, True)],
)
def test_queues_have_numbers_in_nft(code: int, queue: int, *, bypass: bool) -> None:
    """The verdict holds the queue's number and whether nobody listening lets packets go."""
    resolved = _resolve(_nft("one", "fwd", 11, code))

    assert (V.QUEUE, queue, bypass) == (resolved.verdict, resolved.queue, resolved.queue_bypass)


@pytest.mark.parametrize(
    ("text", "queue", "bypass"),
    [
        ("-m a -j NFQUEUE", 0, False),
        ("-m a -j NFQUEUE --queue-num 7", 7, False),
        ("-m a -j NFQUEUE --queue-balance 3:5 --queue-bypass", 3, True),
    ],
)
def test_queues_have_numbers_in_legacy(text: str, queue: int, *, bypass: bool) -> None:
    """The same, by the rule's text."""
    chain = make_chain("C", (text, V.QUEUE), legacy=True)
    resolved = _resolve(
        _legacy("mangle", "C", "rule", 1), ruleset=make_ruleset(("legacy", "mangle", [chain]))
    )

    assert (V.QUEUE, queue, bypass) == (resolved.verdict, resolved.queue, resolved.queue_bypass)


def test_ranks_follow_the_packets_way() -> None:
    """Ours, then hooks in their order, then priorities; both engines on one scale."""
    bridge = Ruleset(
        {
            **RULESETS["mixed"].tables,
            ("nft", "bridge", "b"): Table("nft", "bridge", "b", "nft", {
                "pre": make_chain("pre", hook="prerouting", priority=0),
                "post": make_chain("post", hook="postrouting", priority=0),
            }),
        }
    )  # fmt: skip
    way = [
        TraceStep("nft", "bridge", None, OWN, "armed", "rule", None, 3, 1, None),
        _nft("b", "pre", None, ACCEPT, kind="policy", family="bridge"),
        _nft(OWN, "armed", 3, ACCEPT),
        _legacy("raw", "PREROUTING", "policy", 2),
        _legacy("mangle", "PREROUTING", "rule", 1),
        _legacy("nat", "PREROUTING", "rule", 1),
        _legacy("gone", "PREROUTING", "rule", 1),
        _nft("one", "fwd", 11, ACCEPT),
        TraceStep(
            "legacy", "ip", "postrouting", "nat", "POSTROUTING", "policy", 2, None, None, None
        ),
        _nft("b", "post", None, ACCEPT, kind="policy", family="bridge"),
    ]
    book = _book(*way, ruleset=bridge)

    assert sorted(set(book.rank.tolist())) == book.rank.tolist()


def test_user_chains_have_no_rank() -> None:
    """Chains without a hook, and unknown ones, stand nowhere in the order."""
    book = _book(_nft("early", "inner", 11, -5), _nft("gone", "x", 1, -1), _nft(OWN, "old_x", 3, 1))

    assert [NO_RANK] * 3 == book.rank.tolist()
    assert [False] * 3 == book.is_placed.tolist()


def test_our_chains_are_known_by_name() -> None:
    """Our chains begin and end journeys, have the hook of their names, and are not shown."""
    book = _book(
        _nft(OWN, "armed", 3, 1),
        _nft(OWN, "first_output", 3, 1),
        _nft(OWN, "last_input", 3, 1),
        _nft(OWN, "last_nowhere", 3, 1),
        _nft("mine", "last_input", 3, 1),
    )

    assert [True, True, False, False, False] == book.is_first.tolist()
    assert [False, False, True, True, False] == book.is_last.tolist()
    assert [False, False, False, False, True] == book.is_shown.tolist()
    assert [None, "output", "input", None, None] == [book.resolve(i).hook for i in range(5)]


@pytest.mark.parametrize(("family", "hook"), [("bridge", "forward"), ("netdev", "egress")])
def test_what_comes_behind_postrouting_moves_the_end(family: str, hook: str) -> None:
    """With chains of a bridge or at egress our mark at postrouting ends no journey."""
    behind = Ruleset(
        {("nft", family, "t"): Table("nft", family, "t", "nft", {
            "c": make_chain("c", hook=hook, priority=0), "u": make_chain("u")})}
    )  # fmt: skip
    steps = [_nft(OWN, "last_postrouting", 3, 1), _nft(OWN, "last_input", 3, 1)]

    assert [False, True] == _book(*steps, ruleset=behind).is_last.tolist()
    assert [True, True] == _book(*steps).is_last.tolist()


def test_nat_is_known_by_text() -> None:
    """A rule is NAT's by its statement in nft and by its target in legacy tables."""
    book = _book(
        _nft("nat", "dst", 11, ACCEPT),
        _nft("one", "fwd", 11, ACCEPT),
        _legacy("nat", "PREROUTING", "rule", 1),
        _legacy("nat", "PREROUTING", "policy", 2),
    )

    assert [True, False, True, False] == [book.resolve(number).is_nat for number in range(4)]


def test_steps_are_taken_in_as_they_come() -> None:
    """What the decoder adds later is appended; nothing new changes nothing."""
    table = StepTable()
    book = StepBook(table, RULESETS["nft"])
    book.refresh()
    table.find_or_add(_nft("one", "fwd", 11, ACCEPT))
    book.refresh()
    book.refresh()
    table.find_or_add(_nft("one", "fwd", 12, DROP))
    book.refresh()

    assert [False, True] == book.is_final.tolist()
    assert RULESETS["nft"] is book.ruleset


def test_forms_are_the_tables() -> None:
    """A rule that is gone is in its table's language; of a table that is gone, in nft's."""
    iptables = Ruleset({("nft", "ip", "filter"): Table("nft", "ip", "filter", "iptables", {})})
    book = _book(_nft("filter", "X", 5, 0), _nft("gone", "X", 5, 0), ruleset=iptables)

    assert ["iptables", "nft"] == [book.resolve(number).form for number in (0, 1)]

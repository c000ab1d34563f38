"""Which chains can drop, and the fewest marks that tell them apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.droppers import Entry, can_drop, has_foreign_droppers, plan_marks
from tracer.core.journey import Verdict
from tracer.core.ruleset import Chain, Rule, Ruleset, Table


def _rule(text: str, verdict: Verdict | None, target: str | None = None) -> Rule:
    return Rule(1, text, "nft", verdict, target)


def _table(*chains: Chain, family: str = "ip") -> Table:
    return Table("nft", family, "t", "nft", {chain.name: chain for chain in chains})


_BASE = Chain("base", (_rule("accept", Verdict.ACCEPT),), "input", 0, "filter", Verdict.ACCEPT)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (_rule("accept", Verdict.ACCEPT), False),
        (_rule("drop", Verdict.DROP), True),
        (_rule("reject", Verdict.REJECT), True),
        (_rule("tcp dport vmap @ports", None), True),
        (_rule("synproxy mss 1460", Verdict.CONTINUE), True),
        (_rule("-j TPROXY --on-port 1", Verdict.CONTINUE), True),
        (_rule('comment "synproxyless"', Verdict.CONTINUE), False),
    ],
)
def test_what_a_rule_says_decides(rule: Rule, expected: bool) -> None:  # noqa: FBT001
    """Drops, rejects, open verdicts and targets that drop at times can end a packet."""
    assert expected is can_drop(_table(Chain("base", (rule,), "input", 0)), "base")


def test_a_policy_drops() -> None:
    """A chain without a dropping rule can drop by its policy."""
    assert can_drop(_table(Chain("base", (), "input", 0, "filter", Verdict.DROP)), "base")


def test_jumps_are_gone_after_once_each() -> None:
    """A drop behind two jumps is found, also where chains name each other in a ring."""
    one = Chain("one", (_rule("jump two", Verdict.JUMP, "two"),), "input", 0)
    two = Chain("two", (_rule("jump one", Verdict.JUMP, "one"), _rule("j", Verdict.JUMP, "gone")))
    end = Chain("gone", (_rule("drop", Verdict.DROP),))

    assert not can_drop(_table(one, two), "one")
    assert can_drop(_table(one, two, end), "one")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (_table(_BASE), False),
        (_table(Chain("c", (), "ingress", 0, "filter", Verdict.DROP), family="netdev"), True),
        (_table(Chain("c", (), "forward", 0, "filter", Verdict.DROP), family="bridge"), True),
        (_table(Chain("c", (_rule("drop", Verdict.DROP),), "output", 0, "nat")), True),
        (_table(Chain("c", (), "forward", 0, "filter", Verdict.DROP)), False),
        (_table(Chain("c", (_rule("drop", Verdict.DROP),)), family="bridge"), False),
    ],
)
def test_where_no_mark_can_be_is_known(table: Table, expected: bool) -> None:  # noqa: FBT001
    """Droppers on bridges, at devices and in nat chains are foreign, others are not."""
    assert expected is has_foreign_droppers(Ruleset({("nft", table.family, "t"): table}))


def _entry(hook: int, priority: int, private: int, *, is_nft: bool = False) -> Entry:
    return Entry(hook, priority, 1, private, is_nft)


def test_one_dropper_needs_no_link() -> None:
    """A single entry that can drop has a mark without a link."""
    (mark,) = plan_marks([_entry(1, 0, 7)], {1: [-150, 0]}, 12)

    assert (None, 7, False) == (mark.priority, mark.entry.private, mark.doubtful)


def test_no_droppers_need_nothing() -> None:
    """Where nothing can drop there is no mark."""
    assert [] == plan_marks([], {0: [0]}, 12)


def test_engines_of_one_priority_share_a_link_and_are_told_apart() -> None:
    """A legacy table and a chain beside it are sure, two chains of one priority are not."""
    entries = [_entry(1, 0, 1), _entry(1, 0, 2, is_nft=True), _entry(1, 0, 3, is_nft=True)]
    marks = plan_marks(entries, {1: [0, 0, 0]}, 12)

    assert {(0, -1)} == {(mark.ordinal, mark.priority) for mark in marks}
    assert {1: False, 2: True} == {mark.entry.private: mark.doubtful for mark in marks}


def test_neighbours_leave_no_room_for_a_link() -> None:
    """A chain right behind another one shares its link, and both are doubtful."""
    entries = [_entry(1, 0, 1, is_nft=True), _entry(1, 1, 2, is_nft=True)]
    (mark,) = plan_marks(entries, {1: [0, 1]}, 12)

    assert (-1, True) == (mark.priority, mark.doubtful)


def test_more_than_the_programs_leave_doubt() -> None:
    """Beyond the last program the last mark stands for all that follow."""
    entries = [_entry(1, 10 * n, n) for n in range(5)]
    marks = plan_marks(entries, {1: [10 * n for n in range(5)]}, 3)

    assert [(0, False), (1, False), (2, True)] == [(m.ordinal, m.doubtful) for m in marks]


_ENTRIES = st.lists(
    st.builds(
        Entry,
        st.integers(0, 4),
        st.integers(-400, 400),
        st.just(1),
        st.integers(1, 1 << 40),
        st.booleans(),
    ),
    max_size=20,
)


@given(_ENTRIES, st.lists(st.integers(-400, 400), max_size=20))
def test_every_dropper_has_a_mark_before_it(entries: list[Entry], others: list[int]) -> None:
    """
    Whatever stands at the hooks, the last link before an entry is its mark's.

    No link has a priority that is taken, and where the mark is sure, no other entry of
    the engine is between that link and the next.
    """
    priorities = {h: [*others, *(e.priority for e in entries if e.hook == h)] for h in range(5)}
    marks = plan_marks(entries, priorities, 64)
    links = {(m.entry.hook, m.priority) for m in marks if m.priority is not None}

    assert all(at not in priorities[hook] for hook, at in links)
    if len(entries) < 2:
        assert not links
        return
    for entry in entries:
        before = max(at for hook, at in links if hook == entry.hook and at < entry.priority)
        (mark,) = [
            m
            for m in marks
            if (m.entry.hook, m.priority, m.entry.is_nft) == (entry.hook, before, entry.is_nft)
        ]
        assert mark.doubtful or mark.entry == entry

"""Versions of tables: told and read back, and what differs between two of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.journey import Verdict
from tracer.core.ruleset import Chain, Rule, Table
from tracer.core.timeline_rules import NO_TABLE, diff_tables, parse_table, render_table

_TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
_VERDICTS = st.sampled_from([None, Verdict.DROP, Verdict.ACCEPT, Verdict.JUMP])


@st.composite
def _tables(draw: st.DrawFn) -> Table:
    """Make a table of a few chains with any words in it."""
    chains = {}
    for name in draw(st.lists(st.sampled_from("ABCD"), unique=True)):
        rules = draw(st.lists(st.tuples(st.sampled_from(["x", "y", "z"]) | _TEXTS, _VERDICTS)))
        chains[name] = Chain(
            name,
            tuple(
                Rule(number, text, "nft", verdict, None, number + 100)
                for number, (text, verdict) in enumerate(rules, start=1)
            ),
            draw(st.sampled_from([None, "input"])),
            draw(st.sampled_from([None, -150])),
            draw(st.sampled_from([None, "filter"])),
            draw(st.sampled_from([None, Verdict.DROP, Verdict.ACCEPT])),
        )
    return Table("nft", "inet", draw(_TEXTS), "nft", chains)


@given(_tables())
def test_a_version_is_read_back_as_it_was(table: Table) -> None:
    """What was written is what is read, whatever the names and texts are."""
    assert table == parse_table(render_table(table))


@given(_tables(), st.integers(0, 5000))
def test_a_version_that_is_cut_raises_or_is_a_part(table: Table, at: int) -> None:
    """A text cut short at any place is refused, or is the table's first chains and rules."""
    text = render_table(table)[:at]
    try:
        read = parse_table(text)
    except ValueError:
        return

    assert set(read.chains) <= set(table.chains)


@pytest.mark.parametrize("text", ["{}", "[]", "1", "null", '{"rule":1}', "x", '{"engine":1}\n{}'])
def test_what_is_no_version_is_refused(text: str) -> None:
    """Any other text is a ValueError and nothing else."""
    with pytest.raises(ValueError, match=r".*"):
        parse_table(text)


@given(_tables(), _tables())
def test_a_diff_is_exact(before: Table, after: Table) -> None:
    """Rules taken out and put in make the one table's chains into the other's, no more."""
    diff = diff_tables(before, after)

    for name in {*before.chains, *after.chains}:
        rules = [one.chains[name].rules if name in one.chains else () for one in (before, after)]
        counts = [Counter(rule.text for rule in each) for each in rules]
        for line in diff.lines:
            if line.chain == name:
                counts[0][line.text] += 1 if line.sign == "+" else -1
        assert +counts[0] == +counts[1]
    assert set(diff.chains_added) == set(after.chains) - set(before.chains)
    assert not diff_tables(before, before)


def test_handles_and_numbers_are_no_difference() -> None:
    """A reload gives the same rules other handles; a rule on top gives all others a number."""
    one, two = (
        Table("nft", "ip", "t", "nft", {"c": Chain("c", tuple(_numbered(texts, handle)))})
        for texts, handle in ((("a", "b"), 1), (("new", "a", "b"), 11))
    )

    assert [("+", 1, "new")] == [(o.sign, o.number, o.text) for o in diff_tables(one, two).lines]


def test_long_chains_are_compared_as_bags() -> None:
    """Beyond the limit a rule that only moved is no difference, and all others are."""
    texts = [f"rule {number}" for number in range(1501)]
    before = Table("nft", "ip", "t", "nft", {"c": Chain("c", tuple(_numbered(texts, 1)))})
    turned = ["first", *reversed(texts[1:]), "last"]
    after = Table("nft", "ip", "t", "nft", {"c": Chain("c", tuple(_numbered(turned, 1)))})

    assert [("-", "rule 0"), ("+", "first"), ("+", "last")] == [
        (one.sign, one.text) for one in diff_tables(before, after).lines
    ]


def test_a_policy_that_drops_is_a_difference() -> None:
    """A policy that changed is told with both, one of a new chain if it drops."""
    accept, drop = (
        Table("nft", "ip", "t", "nft", {"c": Chain("c", (), "input", policy=policy)})
        for policy in (Verdict.ACCEPT, Verdict.DROP)
    )

    assert {"c": ("accept", "drop")} == diff_tables(accept, drop).policies
    assert {"c": ("", "drop")} == diff_tables(NO_TABLE, drop).policies
    assert {} == diff_tables(NO_TABLE, accept).policies


def _numbered(texts: object, handle: int) -> list[Rule]:
    assert isinstance(texts, list | tuple)
    return [
        Rule(number, text, "nft", None, None, handle + number)
        for number, text in enumerate(texts, start=1)
    ]

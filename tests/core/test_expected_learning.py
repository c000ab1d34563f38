"""Laws of the list of expected drops that is made from what a host drops."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tracer.core.drops import DropCount
from tracer.core.expected import (
    ENTRIES_MAX,
    PATTERN_LENGTH_MAX,
    DropFeatures,
    parse_expected,
)
from tracer.core.expected_learning import learn_expected
from tracer.core.journey import Verdict
from tracer.core.rule_ids import CountedRule, policy_id
from tracer.core.rule_reading import NetnsCounters, TableCounters

POLICY = CountedRule("in", None, None, None, "", Verdict.DROP, policy_id(Verdict.DROP))


def reading_of(rules: dict[CountedRule, int | None]) -> NetnsCounters:
    """Give a reading of rules with their packets, None where they are not counted."""
    packets = np.array([value or 0 for value in rules.values()], np.uint64)
    has = np.array([value is not None for value in rules.values()], np.bool_)
    table = TableCounters("nft", "inet", "t", tuple(rules), packets, packets, has)
    return NetnsCounters("n", 7, 1, (table,), exact=True, elapsed_ns=1)


def rule_of(text: str, number: int = 1, chain: str = "in") -> CountedRule:
    """Give a dropping rule."""
    return CountedRule(chain, number, number, text, "", Verdict.DROP, f"{number:x}")


def test_worst_come_first_and_what_does_not_drop_is_not_named() -> None:
    """Rules and policies by their packets; none that dropped nothing, none that lets pass."""
    accept = CountedRule("in", 4, 4, "accept", "", Verdict.ACCEPT, "4")
    reading = reading_of({rule_of("a"): 3, rule_of("b", 2): 0, accept: 99, POLICY: 7})
    drops = [DropCount(7, "NO_SOCKET", 5, 5), DropCount(8, "NOMEM", 5, 5)]

    learned = learn_expected([reading], drops, {7: "n"})

    assert ["policy", None, "a"] == [entry.get("text") for entry in learned.entries]
    assert {"netns": "n", "reason": "NO_SOCKET"} == learned.entries[1]
    assert 0 == learned.left_out


def test_drops_without_a_counter_are_found_by_handle_and_chain() -> None:
    """A rule's drops name it, a policy's the policy; one that has a counter is named once."""
    reading = reading_of({rule_of("a"): None, rule_of("b", 2): 3, POLICY: None})
    of_rule = DropCount(7, "NETFILTER_DROP", 5, 5, "rule", "input", "nft", "inet", "t", "in")
    drops = [
        DropCount(7, "R", 5, 5, "rule", "input", "nft", "inet", "t", "in", None, 1),
        DropCount(7, "R", 6, 6, "rule", "input", "nft", "inet", "t", "in", None, 2),
        DropCount(7, "R", 2, 2, "policy", "input", "nft", "inet", "t", "in"),
        of_rule,
    ]

    learned = learn_expected([reading], drops, {7: "n"})

    assert ["a", "b", "policy"] == [entry["text"] for entry in learned.entries]


def test_no_more_are_named_than_are_taken() -> None:
    """What is too much is left out, the least first, and counted."""
    rules = {rule_of(f"rule {n}", n): n for n in range(1, ENTRIES_MAX + 8)}

    learned = learn_expected([reading_of(rules)], [], {7: "n"})

    assert (ENTRIES_MAX, 7) == (len(learned.entries), learned.left_out)
    assert f"rule {ENTRIES_MAX + 7}" == learned.entries[0]["text"]


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
@example("~c[", "~.*")
def test_what_is_learned_fits_what_it_was_learned_from(chain: str, text: str) -> None:
    """Whatever characters a rule has, tildes and stars included."""
    learned = learn_expected([reading_of({rule_of(text, 1, chain): 3})], [], {7: "n"})

    drop = DropFeatures("n", "nft", "inet", "t", chain, text)
    assert parse_expected(learned.entries).fits(drop)


def test_a_text_that_is_too_long_is_known_by_its_beginning() -> None:
    """A rule of a set of thousands has an entry that the configuration takes."""
    text = "x" * (PATTERN_LENGTH_MAX + 1)
    learned = learn_expected([reading_of({rule_of(text): 3})], [], {7: "n"})

    assert parse_expected(learned.entries).fits(DropFeatures("n", "nft", "inet", "t", "in", text))

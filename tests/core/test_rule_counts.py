"""Laws of totals: they never fall, and say what was counted as far as it can be known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.core.journey import Verdict
from tracer.core.rule_counts import Key, RuleCounts, TableKey
from tracer.core.rule_ids import CountedRule, policy_id
from tracer.core.rule_reading import NetnsCounters, TableCounters

if TYPE_CHECKING:
    from collections.abc import Callable

TABLE = TableKey("n", "nft", "inet", "t")
NAMES = ("a", "b", "c", "d")


def rule_named(name: str, handle: int | None = None) -> CountedRule:
    """Give a dropping rule of chain c."""
    return CountedRule("c", 1, handle, name, "", Verdict.DROP, name)


@dataclass
class Firewall:
    """A kernel's table as it counts, and what truly passed each rule since it was first read."""

    rules: tuple[CountedRule, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    truth: dict[str, int] = field(default_factory=dict)
    version: int = 1
    handle: int = 1
    inode: int = 7

    def load(self, *names: str, counts: dict[str, int] | None = None) -> None:
        """Replace the rules; they begin at *counts*, or at nothing."""
        first = self.version * 100
        self.rules = tuple(rule_named(name, first + at) for at, name in enumerate(names))
        self.counts = {name: (counts or {}).get(name, 0) for name in names}
        self.version += 1

    def meet(self, name: str, packets: int) -> None:
        """Let packets meet a rule."""
        self.counts[name] += packets
        self.truth[name] = self.truth.get(name, 0) + packets

    def read(self) -> NetnsCounters:
        """Give a reading."""
        packets = np.array([self.counts[rule.rule_id] for rule in self.rules], np.uint64)
        return NetnsCounters(
            TABLE.netns,
            self.inode,
            self.version,
            (
                TableCounters(
                    *TABLE[1:],
                    self.rules,
                    packets,
                    packets * np.uint64(100),
                    np.ones(len(self.rules), np.bool_),
                    self.handle,
                ),
            ),
            exact=True,
            elapsed_ns=1,
        )


def totals_of(counts: RuleCounts) -> dict[str, int]:
    """Give the packets of the table's rules by id."""
    table = counts.tables.get(TABLE)
    if table is None:
        return {}
    columns = zip(table.rules, table.totals[0].tolist(), strict=True)
    return {rule.rule_id: total for rule, total in columns}


def followed(firewall: Firewall) -> RuleCounts:
    """Give counts that have read *firewall* once."""
    counts = RuleCounts()
    counts.update(firewall.read())
    return counts


def test_the_first_reading_is_the_kernels_own() -> None:
    """What the kernel counted before us is told as it says, so that numbers agree."""
    firewall = Firewall()
    firewall.load("a")
    firewall.meet("a", 13)

    assert {"a": 13} == totals_of(followed(firewall))


def test_a_reload_goes_on_from_the_last_value() -> None:
    """7, a reload and 11 are 18, although the new counter is above the old; it is counted."""
    firewall = Firewall()
    firewall.load("a")
    firewall.meet("a", 7)
    counts = followed(firewall)
    firewall.load("a")
    firewall.meet("a", 11)
    counts.update(firewall.read())

    assert {"a": 18} == totals_of(counts)
    assert {TABLE: 1} == counts.resets
    assert {"n": 1} == counts.changes


def test_zeroed_counters_go_on() -> None:
    """After a zeroing the same rule counts on, and the table's resets say so once."""
    firewall = Firewall()
    firewall.load("a", "b")
    firewall.meet("a", 7)
    firewall.meet("b", 5)
    counts = followed(firewall)
    firewall.counts = {"a": 0, "b": 0}
    firewall.meet("a", 3)
    counts.update(firewall.read())

    assert {"a": 10, "b": 5} == totals_of(counts)
    assert {TABLE: 1} == counts.resets
    assert {"n": 0} == counts.changes


def test_a_legacy_rule_goes_on_when_another_is_added() -> None:
    """Counters are carried over by iptables: without handles, what did not fall went on."""
    firewall = Firewall()
    firewall.load("a")
    firewall.rules = tuple(replace(rule, handle=None) for rule in firewall.rules)
    firewall.meet("a", 7)
    counts = followed(firewall)
    firewall.load("b", "a", counts=firewall.counts)
    firewall.rules = tuple(replace(rule, handle=None) for rule in firewall.rules)
    firewall.meet("a", 11)
    counts.update(firewall.read())

    assert {"b": 0, "a": 18} == totals_of(counts)
    assert {} == counts.resets


def test_rules_loaded_with_their_counters_are_not_counted_twice() -> None:
    """A dump that is loaded again, counters and all, adds only what came since."""
    firewall = Firewall()
    firewall.load("a", "b")
    firewall.meet("a", 700)
    firewall.meet("b", 500)
    counts = followed(firewall)
    firewall.load("a", "b", counts=firewall.counts)
    firewall.meet("a", 11)
    counts.update(firewall.read())

    assert {"a": 711, "b": 500} == totals_of(counts)
    assert {} == counts.resets


def test_a_rule_that_comes_back_goes_on() -> None:
    """Deleted, seen to be gone, and added again, a rule has its former total."""
    firewall = Firewall()
    firewall.load("a", "b")
    firewall.meet("a", 7)
    counts = followed(firewall)
    firewall.load("b")
    counts.update(firewall.read())
    firewall.load("a", "b")
    firewall.meet("a", 3)
    counts.update(firewall.read())

    assert {"a": 10, "b": 0} == totals_of(counts)


def test_a_table_that_comes_back_goes_on() -> None:
    """The same for a whole table, and for a namespace that is left and watched again."""
    firewall = Firewall()
    firewall.load("a")
    firewall.meet("a", 7)
    counts = followed(firewall)
    counts.update(replace(firewall.read(), tables=()))
    gone = totals_of(counts)
    firewall.load("a")
    counts.update(firewall.read())
    counts.keep_only(())
    left = totals_of(counts)
    firewall.load("a")
    firewall.meet("a", 3)
    counts.update(firewall.read())

    assert ({}, {}) == (gone, left)
    assert {"a": 10} == totals_of(counts)


def test_another_namespace_of_the_name_counts_from_nothing() -> None:
    """Equal handles in a namespace with another inode are other counters."""
    firewall = Firewall()
    firewall.load("a")
    firewall.meet("a", 7)
    counts = followed(firewall)
    firewall.inode = 8
    firewall.counts = {"a": 0}
    firewall.meet("a", 11)
    counts.update(firewall.read())

    assert {"a": 18} == totals_of(counts)


def test_a_policy_that_turns_to_drop_has_not_dropped_what_it_let_pass() -> None:
    """One counter serves both policies of a chain: each has what came in its time."""
    accept, drop = (
        CountedRule("c", None, None, None, "", verdict, policy_id(verdict))
        for verdict in (Verdict.ACCEPT, Verdict.DROP)
    )
    firewall = Firewall(rules=(accept,), counts={accept.rule_id: 100})
    counts = followed(firewall)
    firewall.rules, firewall.counts = (drop,), {drop.rule_id: 113}
    counts.update(firewall.read())

    assert {drop.rule_id: 13} == totals_of(counts)


def test_a_counter_that_was_not_found_for_once_is_not_counted_twice() -> None:
    """A rule read while it changed, without its counter, goes on when it has it again."""
    firewall = Firewall()
    firewall.load("a")
    firewall.meet("a", 7)
    counts = followed(firewall)
    reading = firewall.read()
    table = replace(reading.tables[0], rules=(firewall.rules[0],), counted=np.zeros(1, np.bool_))
    counts.update(replace(reading, tables=(table,)))
    without = totals_of(counts)
    firewall.rules = (replace(firewall.rules[0]),)
    firewall.meet("a", 3)
    counts.update(firewall.read())

    assert {"a": 7} == without
    assert {"a": 10} == totals_of(counts)
    assert {} == counts.resets


def test_what_was_attributed_stays_with_its_rule() -> None:
    """Drops given to a rule are kept when others come above it, apart from its counter."""
    firewall = Firewall()
    firewall.load("a")
    counts = followed(firewall)
    counts.attribute(TABLE, 0, 5, 500)
    firewall.load("b", "a")
    counts.update(firewall.read())

    table = counts.tables[TABLE]
    assert [[0, 5], [0, 500]] == table.attributed.tolist()
    assert 1 == table.find("x", None, table.rules[1].handle)
    assert table.find("c", 9, None) is None


def test_new_is_told_once() -> None:
    """What was added since the last taking is taken once."""
    firewall = Firewall()
    firewall.load("a")
    firewall.meet("a", 7)
    counts = followed(firewall)
    table = counts.tables[TABLE]
    counts.attribute(TABLE, 0, 2, 3)

    assert [[7], [700], [2], [3]] == table.take_new().tolist()
    assert not table.take_new().any()


def test_of_too_many_that_are_gone_the_oldest_is_forgotten() -> None:
    """Memory of rules that are gone is bounded, and what is lost of it is counted."""
    firewall = Firewall()
    firewall.load(*NAMES)
    for name in NAMES:
        firewall.meet(name, 7)
    counts = RuleCounts(remembered_max=3)
    counts.update(firewall.read())
    counts.update(replace(firewall.read(), tables=()))

    assert 1 == counts.forgotten
    assert {Key("c", name) for name in NAMES[1:]} == {key for _, key, _ in counts.remembered()}


def test_a_total_stops_where_it_would_turn_over() -> None:
    """Counters that someone set near their end neither make a total fall nor overflow."""
    firewall = Firewall()
    firewall.load("a")
    firewall.counts = {"a": (1 << 64) - 1}
    counts = followed(firewall)
    once = totals_of(counts)
    firewall.counts = {"a": 5}
    counts.update(firewall.read())

    assert {"a": 1 << 63} == once == totals_of(counts)


def _set(firewall: Firewall, _: RuleCounts, name: str, packets: int) -> None:
    if name in firewall.counts:
        firewall.counts[name] = packets


def _load(firewall: Firewall, _: RuleCounts, names: list[str], *, keep: bool) -> None:
    firewall.load(*names, counts=firewall.counts if keep else None)


def _replace(firewall: Firewall, _: RuleCounts, tables: int, namespaces: int) -> None:
    firewall.handle += tables
    firewall.inode += namespaces


def _attribute(_: Firewall, counts: RuleCounts, at: int, packets: int) -> None:
    table = counts.tables.get(TABLE)
    if table is not None and at < len(table.rules):
        counts.attribute(TABLE, at, packets, 1)


_LISTS = st.lists(st.sampled_from(NAMES), unique=True)
_COUNTS = st.integers(0, (1 << 64) - 1)
_ACTS = st.one_of(
    st.builds(partial, st.just(_set), name=st.sampled_from(NAMES), packets=_COUNTS),
    st.builds(partial, st.just(_load), names=_LISTS, keep=st.booleans()),
    st.builds(partial, st.just(_replace), tables=st.integers(0, 1), namespaces=st.integers(0, 1)),
    st.builds(partial, st.just(_attribute), at=st.integers(0, 3), packets=_COUNTS),
    st.just(lambda _, counts: counts.keep_only(())),
    st.just(lambda firewall, counts: counts.update(firewall.read())),
)


@settings(max_examples=300)
@given(st.lists(_ACTS, max_size=40))
def test_no_total_ever_falls(acts: list[Callable[[Firewall, RuleCounts], None]]) -> None:
    """Whatever is reloaded, zeroed, set, inserted, deleted or left, in whatever order."""
    firewall, counts = Firewall(), RuleCounts()
    highest: dict[str, list[int]] = {}
    for act in acts:
        act(firewall, counts)
        table = counts.tables.get(TABLE)
        if table is None:
            continue
        rows = np.concatenate((table.totals, table.attributed)).T.tolist()
        for rule, row in zip(table.rules, rows, strict=True):
            known = highest.get(rule.rule_id, [0] * 4)
            assert all(now >= before for now, before in zip(row, known, strict=True))
            highest[rule.rule_id] = row


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 1000)), max_size=30), st.data())
def test_read_at_each_change_totals_are_the_truth(
    meetings: list[tuple[str, int]], data: st.DataObject
) -> None:
    """With a reading before and after each reload nothing is missed or counted twice."""
    firewall = Firewall()
    firewall.load(*NAMES)
    counts = followed(firewall)
    for name, packets in meetings:
        firewall.meet(name, packets)
        counts.update(firewall.read())
        if data.draw(st.booleans()):
            firewall.load(*data.draw(st.permutations(NAMES)))
            counts.update(firewall.read())

    assert {name: firewall.truth.get(name, 0) for name in NAMES} == totals_of(counts)


def test_another_namespaces_tables_stay() -> None:
    """Leaving one namespace ends its changes and resets, and no other's."""
    firewall, other = Firewall(), Firewall()
    for one in (firewall, other):
        one.load("a")
        one.meet("a", 7)
    counts = followed(firewall)
    counts.update(replace(other.read(), netns="other"))
    for one in (firewall, other):
        one.load("a")
    counts.update(firewall.read())
    counts.update(replace(other.read(), netns="other"))
    counts.keep_only(["n"])

    assert {"a": 7} == totals_of(counts)
    assert {"n": 1} == counts.changes
    assert {TABLE: 1} == counts.resets

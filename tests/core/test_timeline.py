"""From drops and changes to a story: the rule as it stood, who brought it, and if it is over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.timelines import (
    BEFORE,
    CHAIN,
    FIXED,
    INSTALLED,
    JUMP,
    S,
    Story,
    drops,
    route,
    ruleset,
    story,
    table,
)
from tracer.core.timeline import build_timeline
from tracer.core.timeline_blame import find_blame
from tracer.core.timeline_events import State, doer
from tracer.core.timeline_rules import NO_TABLE
from tracer.core.timeline_words import change_words

if TYPE_CHECKING:
    from tracer.core.log_rows import Change
    from tracer.core.ruleset import Table


def test_the_change_that_brought_the_rule_is_the_cause() -> None:
    """Two unrelated changes nearer to the first drop come after it, in order of their fit."""
    told = build_timeline(
        story(
            [
                ruleset(1, "", BEFORE, "stands"),
                ruleset(100, BEFORE, INSTALLED, pid=4711),
                route(3000, "10.77.0.0/16"),
                route(3599, "10.78.0.0/16"),
            ],
            [drops(3600, 3610, 7)],
        )
    )
    (killer,) = told.killers

    assert killer.cause is not None
    assert (True, 4711) == (killer.cause.brought, killer.cause.change.pid)
    assert ["10.78.0.0/16", "10.77.0.0/16"] == [one.change.subject for one in killer.others]
    assert (CHAIN,) == killer.cause.diff.chains_added
    assert not killer.stood


@pytest.mark.parametrize(("late_ns", "is_cause"), [(50_000_000, True), (S, False)])
def test_a_change_may_be_read_a_moment_after_its_first_drop(
    late_ns: int,
    is_cause: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Its reader waits for a processor while packets meet the rule; a second is no moment."""
    brought = replace(ruleset(100, BEFORE, INSTALLED, pid=4711), time_ns=100 * S + late_ns)
    changes = [ruleset(1, "", BEFORE, "stands"), brought]
    (killer,) = build_timeline(story(changes, [drops(100, 110, 7)])).killers

    assert is_cause == (killer.cause is not None)


def test_what_changed_while_nobody_watched_is_a_change() -> None:
    """A daemon that begins again finds another table: it brought the rule, by whom is unknown."""
    changes = [ruleset(1, "", BEFORE, "stands"), ruleset(50, INSTALLED, INSTALLED, "stands")]
    evidence = story(changes, [drops(60, 70, 7)])
    (killer,) = build_timeline(evidence).killers
    (*_, last) = find_blame(evidence, "mangle", CHAIN)

    assert killer.cause is not None
    assert (True, "changed", BEFORE) == (
        killer.cause.brought,
        killer.cause.change.action,
        killer.cause.change.before,
    )
    assert "nobody watched" in doer(killer.cause.change)
    assert 50 * S == last.since_ns


def test_the_rule_is_the_one_that_stood_then() -> None:
    """Number 3 of the later version is not what killed as number 5 of the earlier one."""
    told = build_timeline(
        story(
            [ruleset(1, "", INSTALLED, "stands"), ruleset(50, INSTALLED, FIXED)],
            [drops(10, 20, 7, rule=5)],
        )
    )
    (killer,) = told.killers

    assert killer.rule is not None
    assert (5, "-A C -j DROP", 4) == (killer.rule.number, killer.rule.text, len(killer.before))
    assert ("PREROUTING", CHAIN) == (killer.base, killer.chain)


def test_one_rule_under_two_numbers_is_one_killer() -> None:
    """A rule that moved up in its chain goes on killing: its drops are added up."""
    told = build_timeline(
        story(
            [ruleset(1, "", INSTALLED, "stands"), ruleset(50, INSTALLED, FIXED)],
            [drops(10, 20, 7, rule=5), drops(60, 70, 11, rule=3)],
        )
    )

    assert [18] == [killer.packets for killer in told.killers]


def test_it_is_over_with_the_change_that_took_the_rule_out_of_the_way() -> None:
    """The first change of the chain behind the last drop is the fix; a route is none."""
    told = build_timeline(
        story(
            [
                ruleset(1, "", INSTALLED, "stands"),
                route(30, "10.77.0.0/16"),
                ruleset(50, INSTALLED, FIXED, pid=17),
            ],
            [drops(10, 20, 7)],
        )
    )
    (killer,) = told.killers

    assert killer.fix is not None
    assert (State.OVER, 17) == (killer.state, killer.fix.change.pid)
    assert killer.stood


def test_what_changed_long_after_the_last_drop_did_not_end_it() -> None:
    """The chain that is changed an hour later, with the rule still in it, is no fix."""
    told = build_timeline(
        story(
            [ruleset(1, "", INSTALLED, "stands"), ruleset(3600, INSTALLED, FIXED)],
            [drops(10, 20, 7)],
            seen=4000,
        )
    )
    (killer,) = told.killers

    assert (None, State.QUIET) == (killer.fix, killer.state)


def test_a_rule_that_went_and_came_again_is_not_over() -> None:
    """A reload in two steps takes the rule away and brings it back: that ended nothing."""
    changes = [
        ruleset(1, "", INSTALLED, "stands"),
        ruleset(30, INSTALLED, BEFORE),
        ruleset(31, BEFORE, INSTALLED),
    ]
    (killer,) = build_timeline(story(changes, [drops(10, 20, 7)])).killers
    (gone,) = build_timeline(story(changes[:2], [drops(10, 20, 7)])).killers

    assert (None, State.OVER) == (killer.fix, gone.state)


@pytest.mark.parametrize(
    ("seen", "state"), [(30, State.GOING_ON), (79, State.GOING_ON), (200, State.QUIET)]
)
def test_without_a_fix_it_goes_on_or_is_quiet(seen: int, state: str) -> None:
    """Only a pause longer than a minute, and than ten usual ones, is called quiet."""
    told = build_timeline(
        story([ruleset(1, "", INSTALLED, "stands")], [drops(10, 20, 11)], seen=seen)
    )

    assert [state] == [killer.state for killer in told.killers]


def test_a_rule_that_was_removed_and_brought_again_was_brought_the_last_time() -> None:
    """The earlier bringer is not to blame for what died after the later one."""
    told = build_timeline(
        story(
            [
                ruleset(1, "", BEFORE, "stands"),
                ruleset(10, BEFORE, INSTALLED, pid=1),
                ruleset(20, INSTALLED, BEFORE, pid=2),
                ruleset(30, BEFORE, INSTALLED, pid=3),
            ],
            [drops(40, 41, 2)],
        )
    )
    (killer,) = told.killers

    assert killer.cause is not None
    assert 3 == killer.cause.change.pid
    assert [2] == [one.change.pid for one in killer.others]


def test_drops_of_an_unnamed_rule_go_to_the_only_one_that_kills() -> None:
    """Of a table that has just come the rule is not recorded: it is inferred, and counted so."""
    told = build_timeline(
        story(
            [ruleset(1, "", BEFORE, "stands"), ruleset(10, BEFORE, INSTALLED)],
            [drops(11, 11, 1, rule=0, kind="table"), drops(12, 14, 2)],
        )
    )
    (killer,) = told.killers

    assert (3, 1) == (killer.packets, killer.inferred)


def test_of_several_rules_that_kill_the_one_that_just_came_is_inferred() -> None:
    """Beside a rule that stood, the first drops behind a change are those of what it brought."""
    other = "-A PREROUTING -s 10.9.9.9/32 -j DROP"
    before = table({"PREROUTING": ([other], "prerouting", "accept")})
    after = table(
        {
            "PREROUTING": ([other, JUMP], "prerouting", "accept"),
            CHAIN: (["-A C -j DROP"], None, None),
        }
    )
    told = build_timeline(
        story(
            [ruleset(1, "", before, "stands"), ruleset(10, before, after, pid=4711)],
            [drops(11, 11, 3, rule=0, kind="table")],
        )
    )
    (killer,) = told.killers

    assert ("-A C -j DROP", 3) == (killer.rule and killer.rule.text, killer.inferred)
    assert killer.cause is not None
    assert (True, 4711) == (killer.cause.brought, killer.cause.change.pid)


def test_of_several_that_killed_it_is_the_one_that_just_came() -> None:
    """The rule that stood has killed as well: the unnamed drops still go to what was brought."""
    other = "-A PREROUTING -s 10.9.9.9/32 -j DROP"
    before = table({"PREROUTING": ([other], "prerouting", "accept")})
    after = table({"PREROUTING": ([other, "-A PREROUTING -j DROP"], "prerouting", "accept")})
    killed = [drops(at, at, n, rule=n, chain="PREROUTING") for at, n in ((5, 1), (12, 2))]
    told = build_timeline(
        story(
            [ruleset(1, "", before, "stands"), ruleset(10, before, after)],
            [*killed, drops(11, 11, 3, rule=0, kind="table")],
        )
    )

    assert [(5, 3), (1, 0)] == [(one.packets, one.inferred) for one in told.killers]


def test_a_rule_that_the_log_does_not_have_is_not_said_to_have_stood() -> None:
    """Without the changes, or with texts that cannot be read, nothing is claimed of the rule."""
    nothing = build_timeline(story([], [drops(10, 20, 7)]))
    unread = replace(story([ruleset(1, "", "x", "stands")], [drops(10, 20, 7)]), read=_no_table)
    known = build_timeline(story([ruleset(1, "", INSTALLED, "stands")], [drops(10, 20, 7)]))

    told = (nothing, build_timeline(unread), known)
    assert [False, False, True] == [one.killers[0].stood for one in told]


def _no_table(_: str) -> Table:
    return NO_TABLE


def test_drops_of_an_unknown_table_go_to_the_only_killer_there() -> None:
    """Where a chain took another's address the first drop may name nothing: it is inferred."""
    unplaced = drops(11, 11, 1, kind="other", rule=0)
    changes = [ruleset(1, "", BEFORE, "stands"), ruleset(10, BEFORE, INSTALLED)]
    alone = build_timeline(story(changes, [unplaced]))
    (killer,) = build_timeline(story(changes, [unplaced, drops(12, 14, 2)])).killers

    assert (3, 1, 5) == (killer.packets, killer.inferred, killer.rule and killer.rule.number)
    assert [(None, 0)] == [(one.rule, one.inferred) for one in alone.killers]


def test_what_is_meant_to_kill_comes_last() -> None:
    """However many die by it; of a rule that had just come, the first drops do not say so."""
    meant = replace(drops(10, 20, 7), expected=6)
    told = build_timeline(
        story(
            [ruleset(1, "", INSTALLED, "stands")],
            [meant, drops(11, 12, 2, kind="other", rule=0, reason="NO_SOCKET")],
        )
    )

    assert [(2, False), (7, True)] == [(one.packets, one.is_expected) for one in told.killers]
    assert [0, 6] == [one.expected for one in told.killers]


def test_a_reversed_path_filter_is_explained_by_its_switch() -> None:
    """A drop for IP_RPFILTER goes to the sysctl, not to rules that changed just before."""
    told = build_timeline(
        story(
            [
                ruleset(1, "", BEFORE, "stands"),
                Story.change(5, "sysctl", "net.ipv4.conf.eth0.rp_filter", "0", "1"),
                ruleset(9, BEFORE, FIXED),
            ],
            [drops(10, 20, 7, kind="other", rule=0, reason="IP_RPFILTER")],
        )
    )
    (killer,) = told.killers

    assert killer.cause is not None
    assert "sysctl" == killer.cause.change.what


def test_a_policy_is_brought_by_who_set_it() -> None:
    """Policy accept became drop: that change is the cause, and its way back the fix."""
    dropping = table({"INPUT": ([], "input", "drop")})
    accepting = table({"INPUT": ([], "input", "accept")})
    told = build_timeline(
        story(
            [
                ruleset(1, "", accepting, "stands"),
                ruleset(5, accepting, dropping, pid=7),
                ruleset(50, dropping, accepting, pid=8),
            ],
            [drops(10, 20, 7, kind="policy", rule=0, hook="input", chain="INPUT")],
        )
    )
    (killer,) = told.killers

    assert killer.cause is not None
    assert killer.fix is not None
    assert (7, 8) == (killer.cause.change.pid, killer.fix.change.pid)


def test_a_change_in_another_namespace_explains_less() -> None:
    """The same route change counts for more where the packets died."""
    here, there = route(5, "10.77.0.0/16"), route(6, "10.78.0.0/16", netns="vr1")
    told = build_timeline(
        story([ruleset(1, "", INSTALLED, "stands"), here, there], [drops(10, 20, 7)])
    )
    (killer,) = told.killers

    assert 1 == len(killer.others)
    assert ["vr2", "vr1"] == [
        one.change.netns for one in (killer.cause, *killer.others) if one is not None
    ]


def test_blame_names_who_brought_each_rule_and_what_it_dropped() -> None:
    """Rules that stood have nobody; a replaced rule's former text is told with its change."""
    evidence = story(
        [
            ruleset(1, "", BEFORE, "stands"),
            ruleset(10, BEFORE, INSTALLED, pid=4711),
            ruleset(50, INSTALLED, FIXED, pid=17),
        ],
        [drops(20, 30, 13, rule=5)],
    )
    told = find_blame(evidence, "mangle", CHAIN)

    brought = [one.brought.pid if one.brought else None for one in told]
    assert [4711, 17, 4711] == brought
    assert [0, 0, 13] == [one.packets for one in told]
    assert 3 == len(told[1].was)
    assert [3] == [one.rule.number for one in find_blame(evidence, "ip mangle", CHAIN, 3)]
    assert [] == find_blame(evidence, "ip6 mangle")


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from([BEFORE, INSTALLED, FIXED]))))
def test_no_order_of_changes_loses_a_drop(versions: list[tuple[int, str]]) -> None:
    """Whatever was loaded when, every packet is somewhere, and causes come before drops."""
    changes: list[Change] = []
    before = ""
    for at, text in sorted(versions, key=lambda one: one[0]):
        changes.append(ruleset(at, before, text, "changed" if before else "stands"))
        before = text
    told = build_timeline(story(changes, [drops(40, 50, 7), drops(60, 70, 11, rule=3)]))

    assert 18 == sum(killer.packets for killer in told.killers)
    for killer in told.killers:
        for cause in (killer.cause, *killer.others):
            assert cause is None or cause.change.time_ns <= killer.first_ns + 2 * S
        if killer.fix is not None:
            assert killer.fix.change.time_ns >= killer.last_ns - 2 * S


def test_nothing_makes_no_killer() -> None:
    """A window without drops has changes only, and without both nothing."""
    told = build_timeline(story([route(5, "10.77.0.0/16")], []))

    assert ((), 1) == (told.killers, len(told.changes))


def test_a_step_of_the_clock_is_told_with_its_size() -> None:
    """Whoever reads times must know where they do not join; a broken row is told as well."""
    step = Story.change(5, "clock", "", str(7200 * S), str(3600 * S))
    broken = Story.change(5, "clock", "", "x", "")

    assert "the clock was set back by 3600.0 s" in change_words(step)
    assert "the clock was set" == change_words(broken)

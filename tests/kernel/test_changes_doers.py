"""Whose door a change of legacy tables is laid at, in whatever order looks and runs meet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.sources.changes_lock import Locker
from tracer.sources.changes_process import Who, WhoReader
from tracer.sources.changes_rules import RuleChanges
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RULES = """*filter
-A INPUT -p udp -m udp --dport 7001 -j DROP
COMMIT
"""
_FIRST, _SECOND = Who(7001, "iptables-restor"), Who(7013, "iptables-restor")
#: Long enough for whatever is due, by the clock that the looks are given.
_LATER_S = 1000.0


@pytest.fixture
def watched(netns: Callable[..., str]) -> Iterator[RuleChanges]:
    """Give the rules of a namespace with a legacy table, read once."""
    nets.load_rules(netns("a"), "legacy", _RULES)
    rules = RuleChanges(find_namespace("a"), WhoReader())
    rules.look(time.monotonic(), _hear_nothing)
    yield rules
    rules.close()


def _hear_nothing() -> None:
    pass


def _run(rules: RuleChanges, who: Who, port: int) -> None:
    """Change the table while *who* holds the lock, which is noted at once."""
    rules.note_lock(Locker(who, 0, is_done=False), time.time_ns())
    nets.load_rules("a", "legacy", _RULES.replace("7001", str(port)))
    rules.note_lock(Locker(who, 0, is_done=True), time.time_ns())


def test_a_run_is_remembered_until_its_change_was_read(watched: RuleChanges) -> None:
    """A change that was found, and is not due to be read, is not compared away."""
    _run(watched, _FIRST, 7002)
    soon_s = time.monotonic() - 1
    found = watched.look(soon_s, _hear_nothing)
    watched.note_lock(Locker(_FIRST, 0, is_done=True), time.time_ns())
    again = watched.look(soon_s, _hear_nothing)
    (change,) = watched.look(soon_s + _LATER_S, _hear_nothing)

    assert [] == found == again
    assert (_FIRST.pid, _FIRST.process) == (change.pid, change.process)
    assert "7002" in change.after


def test_a_run_that_ends_while_rules_are_read_is_remembered(watched: RuleChanges) -> None:
    """What it changed behind our back is found by the next look, and is its."""
    _run(watched, _FIRST, 7002)
    now_s = time.monotonic() + _LATER_S
    (first,) = watched.look(now_s, lambda: _run(watched, _SECOND, 7003))
    (second,) = watched.look(now_s + _LATER_S, _hear_nothing)

    assert ("7002" in first.after, "7003" in first.after) == (True, False)
    assert (_SECOND.pid, True) == (second.pid, "7003" in second.after)


def test_a_run_that_changed_nothing_is_forgotten(watched: RuleChanges) -> None:
    """It was over before the tables were looked at: what moves later is not its."""
    watched.note_lock(Locker(_FIRST, 0, is_done=False), time.time_ns())
    watched.note_lock(Locker(_FIRST, 0, is_done=True), time.time_ns())
    now_s = time.monotonic() + _LATER_S
    unmoved = watched.look(now_s, _hear_nothing)
    nets.load_rules("a", "legacy", _RULES.replace("7001", "7002"))
    (change,) = watched.look(now_s + _LATER_S, _hear_nothing)

    assert [] == unmoved
    assert 0 == change.pid

"""
What a timeline is made from, and what it says: drops by place, flows, changes; who killed.

Times are nanoseconds since the epoch. All is plain values: where they come from, a log of
this machine or of another, nothing here knows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tracer.core.timeline_rules import TableDiff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracer.core.log_rows import Change, Loss
    from tracer.core.ruleset import Rule, Table

__all__ = [
    "UNSEEN",
    "Cause",
    "DropGroup",
    "Evidence",
    "FlowDrops",
    "Killer",
    "Marked",
    "Place",
    "State",
    "Survivors",
    "Timeline",
    "doer",
    "doer_parents",
]


#: `detail` of a change that happened while nobody watched; its time is when it was found.
UNSEEN: Final = '{"unseen":true}'


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where drops were recorded, as `tracer.core.log_schema.DROPS` says it.

    Words are empty, and *rule* and *handle* 0, where there is none.
    """

    netns: str
    kind: str
    hook: str = ""
    engine: str = ""
    family: str = ""
    table: str = ""
    chain: str = ""
    rule: int = 0
    handle: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DropGroup:
    """
    Drops of one place while one version of the rules was in force.

    *series* maps a bucket of time, counted from the window's beginning, to packets; *syns*
    are those that began a TCP connection, *expected* those that are meant to die.
    """

    place: Place
    packets: int
    syns: int
    first_ns: int
    last_ns: int
    series: Mapping[int, int] = field(default_factory=dict)
    expected: int = 0


@dataclass(frozen=True, slots=True)
class FlowDrops:
    """One flow's drops at one place; without the source port, which every try has anew."""

    place: Place
    src: str
    dst: str
    dport: int
    proto: str
    packets: int
    first_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class Survivors:
    """Journeys of the same kind that did not die: *ending*, and how many of which flow."""

    src: str
    dst: str
    dport: int
    proto: str
    ending: str
    packets: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """
    All that a timeline is told.

    *since_ns* to *until_ns* is the window that was looked at, *width_ns* one bucket of it;
    *seen_until_ns* is when the log was last heard of: what ended just before is not over.
    *groups* and *flows* are of what was asked for; *is_cut*: there were more flows. *changes*
    are all that are known until then, also those before the window, in the order of time.
    *read* returns the version of a table by the name that a change has it under.
    """

    since_ns: int
    until_ns: int
    width_ns: int
    seen_until_ns: int
    groups: Sequence[DropGroup]
    flows: Sequence[FlowDrops]
    changes: Sequence[Change]
    read: Callable[[str], Table]
    is_cut: bool = False
    survivors: Sequence[Survivors] = ()
    losses: Sequence[Loss] = ()


@dataclass(frozen=True, slots=True)
class Cause:
    """
    A change that may explain why drops began or ended.

    *fit* is between 0 and 1; *why* says what the change has to do with the rule that kills.
    *brought*: the rule came with it. *diff* is of a change of rules.
    """

    change: Change
    fit: float
    why: str
    brought: bool = False
    diff: TableDiff = field(default_factory=TableDiff)


class State:
    """How it stands at the end of what was seen."""

    OVER = "over"
    GOING_ON = "going on"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Killer:
    """
    One rule, policy or other reason that killed, and its story.

    *chain* is the rule's, *rule* the rule as it stood when it first killed; *before* are the
    rules of its chain in front of it; *base* is the base chain that led there. Of *inferred*
    packets only the table is recorded, and that it was this rule follows; *expected* are meant
    to die by the configuration. *cause* is the change
    that explains it best, *others* are further candidates, best first; *stood* says that the
    rule was there already when the log begins. *clients* are different sources, and
    *has_more_clients* where not all flows were looked at. *fix* is the change after which it
    was over.
    """

    place: Place
    chain: str
    rule: Rule | None
    base: str
    before: tuple[Rule, ...]
    packets: int
    syns: int
    first_ns: int
    last_ns: int
    series: tuple[int, ...]
    flows: tuple[FlowDrops, ...]
    clients: int
    has_more_clients: bool
    inferred: int
    cause: Cause | None
    others: tuple[Cause, ...]
    stood: bool
    state: str
    fix: Cause | None
    expected: int = 0

    @property
    def is_expected(self) -> bool:
        """Whether it is meant: of rules that just came the first drops may not say so."""
        return 2 * self.expected > self.packets


@dataclass(frozen=True, slots=True)
class Marked:
    """A change in the window; *diff* is of rules, None where it was not looked at."""

    change: Change
    diff: TableDiff | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """
    What happened: killers with most packets first, changes in the order of time.

    What is meant to kill comes behind what is not.
    """

    since_ns: int
    until_ns: int
    width_ns: int
    seen_until_ns: int
    killers: tuple[Killer, ...]
    changes: tuple[Marked, ...]
    survivors: tuple[Survivors, ...]
    losses: tuple[Loss, ...]
    is_cut: bool


def doer_parents(change: Change) -> list[str]:
    """Return the command lines of those that started who made a change, the nearest first."""
    told = _detail(change).get("parents")
    return [str(one) for one in told] if isinstance(told, list) else []


def doer(change: Change) -> str:
    """Say who made a change; empty where it is not known."""
    if change.detail == UNSEEN:
        return "somebody, while nobody watched: it was found then"
    if not change.pid and not change.process:
        return ""
    command = change.command or change.process or "a process"
    text = f"{command} (pid {change.pid})" if change.pid else command
    by = next((one for one in doer_parents(change) if " " in one), "")
    return f"{text}, run by {by}" if by else text


def _detail(change: Change) -> dict[str, object]:
    try:
        told = json.loads(change.detail) if change.detail else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}

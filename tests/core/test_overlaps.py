"""Packets that look alike, taken apart one event at a time; and the walk that this asks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.core.trace_kernel import RULESETS, Header, Said, batch_of
from tracer.core.journey import Verdict
from tracer.core.legacy_walk import LegacyWalk
from tracer.core.overlaps import MAX_ALIKE, take_apart
from tracer.core.resolve import ResolvedStep
from tracer.core.ruleset import Rule
from tracer.core.step_book import StepBook
from tracer.core.trace_steps import StepTable, TraceStep

NEVER = 1 << 62
RULE = Rule(1, "-A X -m y", "iptables", Verdict.CONTINUE)


def _step(  # noqa: PLR0913 - an event's words
    chain: str,
    number: int | None,
    verdict: Verdict = Verdict.CONTINUE,
    target: str | None = None,
    *,
    table: str = "mangle",
    kind: str = "rule",
    rule: Rule | None = RULE,
) -> ResolvedStep:
    return ResolvedStep(
        engine="legacy", family="ip", table=table, chain=chain, kind=kind, form="iptables",
        verdict=verdict, target=target, rule=rule, number=number, hook="prerouting",
        is_base=chain == "PREROUTING",
    )  # fmt: skip


def _jump(chain: str, number: int, target: str, verdict: Verdict = Verdict.JUMP) -> ResolvedStep:
    return _step(chain, number, verdict, target)


def _end(chain: str) -> ResolvedStep:
    return _step(chain, None, Verdict.RETURN, kind="end")


def _policy(table: str = "mangle") -> ResolvedStep:
    return _step("PREROUTING", None, Verdict.ACCEPT, kind="policy", table=table, rule=None)


BASE = "PREROUTING"
INTO_A = _jump(BASE, 2, "A")
GOTO_A = _jump(BASE, 2, "A", Verdict.GOTO)


@pytest.mark.parametrize(
    ("taken", "step", "allowed"),
    [
        ([], _step(BASE, 1), True),
        ([], _policy(), True),
        ([], _step("A", 1), False),
        ([_step(BASE, 2)], _step(BASE, 3), True),
        ([_step(BASE, 2)], _step(BASE, 2), False),
        ([_step(BASE, 2)], _step("A", 1), False),
        ([_step(BASE, 2)], _policy(), True),
        ([_step(BASE, 2)], _policy("nat"), False),
        ([INTO_A], _step("A", 1), True),
        ([INTO_A], _end("A"), True),
        ([INTO_A], _step(BASE, 3), False),
        ([INTO_A, _end("A")], _step(BASE, 3), True),
        ([INTO_A, _end("A")], _step(BASE, 1), False),
        ([INTO_A, _end("A")], _step("A", 9), False),
        ([INTO_A, _jump("A", 1, "B"), _end("B")], _step("A", 2), True),
        ([INTO_A, _jump("A", 1, "B", Verdict.GOTO), _end("B")], _step("A", 2), False),
        ([INTO_A, _jump("A", 1, "B", Verdict.GOTO), _end("B")], _step(BASE, 3), True),
        ([GOTO_A, _end("A")], _step(BASE, 3), False),
        ([GOTO_A, _end("A")], _policy(), True),
        ([_step(BASE, 1, Verdict.RETURN)], _step(BASE, 2), False),
        ([_step(BASE, 1, Verdict.RETURN)], _policy(), True),
        ([INTO_A, _step("A", 1, Verdict.ACCEPT)], _step(BASE, 3), False),
        ([INTO_A, _step("A", 1, Verdict.ACCEPT)], _policy("nat"), True),
        ([_policy()], _step(BASE, 1), False),
        ([_policy()], _policy("nat"), True),
        ([_step(BASE, 1, rule=None)], _step("C", 1), True),
        ([_step(BASE, 1, rule=None)], _policy("nat"), True),
        ([_step(BASE, 1, rule=None)], _step("C", 1, table="nat"), False),
        ([_step(BASE, 1, rule=None), _policy("nat")], _step("C", 1, table="nat"), False),
        ([_step(BASE, 1, rule=None), _step("C", 1, Verdict.ACCEPT)], _policy(), True),
    ],
)
def test_a_walk_goes_as_the_tables_do(
    taken: list[ResolvedStep], step: ResolvedStep, *, allowed: bool
) -> None:
    """Numbers rise in a chain, jumps enter, ends go back, accept and policy leave the table."""
    walk = LegacyWalk()
    for one in taken:
        walk.take(one)

    assert allowed == walk.allows(step)


# --- events ----------------------------------------------------------------------------------


class Events:
    """Events of one fingerprint, each with its nft journey or -1."""

    def __init__(self) -> None:
        self._table = StepTable()
        self._rows: list[tuple[Said, int]] = []
        self._owner: list[int] = []

    def add(self, step: TraceStep, header: Header | None, owner: int) -> Events:
        """Add one event."""
        number = self._table.find_or_add(step)
        assert number is not None
        self._rows.append((Said(number, header, step.engine == "legacy", 0, 2, 0), owner + 1))
        self._owner.append(owner)
        return self

    def armed(self, owner: int, header: Header | None) -> Events:
        """Add the beginning of an nft journey."""
        step = TraceStep("nft", "ip", None, "nftrace_x", "armed", "rule", None, 3, 1, None)
        return self.add(step, header, owner)

    def legacy(
        self,
        table: str,
        number: int,
        header: Header | None,
        hook: str = "prerouting",
        kind: str = "rule",
    ) -> Events:
        """Add a legacy event."""
        step = TraceStep("legacy", "ip", hook, table, hook.upper(), kind, number, None, None, None)
        return self.add(step, header, -1)

    def apart(self, until: list[int]) -> list[int]:
        """Take them apart."""
        batch = batch_of(self._rows)
        book = StepBook(self._table, RULESETS["mixed"])
        book.refresh()
        count = len(self._rows)
        return take_apart(
            batch.events, batch.packets, np.array(self._owner), np.arange(count),
            np.array(until, np.int64), book,
        ).tolist()  # fmt: skip


ONE = Header(5, src=0x0100000A)
TWO = Header(5, src=0x0200000A)


def test_the_addresses_choose() -> None:
    """Of two open packets that look alike, the one with the event's addresses gets it."""
    events = Events().armed(0, ONE).armed(1, TWO)
    events.legacy("raw", 1, TWO).legacy("raw", 1, ONE)

    assert [0, 1, 1, 0] == events.apart([NEVER, NEVER])


def test_a_translated_end_leaves_the_other() -> None:
    """An event whose destination, or at postrouting source, NAT has changed is recognized."""
    there = Header(5, src=ONE.src, dst=0x0909090A, dport=22)
    back = Header(5, src=0x0707070A, dst=0x0909090A, dport=22, sport=9)
    events = Events().armed(0, TWO).armed(1, ONE)
    events.legacy("filter", 1, there, "forward").legacy("nat", 1, back, "postrouting")

    assert [0, 1, 1, 1] == events.apart([NEVER, NEVER])


@pytest.mark.parametrize("header", [Header(5, src=0x0707070A, sport=9), None])
def test_other_addresses_are_another_packet(header: Header | None) -> None:
    """No journey gets an event of foreign addresses, or one that has no headers."""
    events = Events().armed(0, ONE).legacy("raw", 1, header)

    assert [0, 1] == events.apart([NEVER])


def test_events_without_headers_go_together() -> None:
    """A journey without any headers takes events without headers."""
    events = Events().armed(0, None).legacy("raw", 1, None)

    assert [0, 0] == events.apart([NEVER])


def test_a_dead_packets_id_was_used_again() -> None:
    """A packet whose trace id began anew takes no more events."""
    events = Events().armed(0, ONE).legacy("raw", 1, ONE).legacy("raw", 2, ONE, kind="policy")

    assert [0, 0, 1] == events.apart([2])


def test_the_one_that_needs_it_first_gets_it() -> None:
    """Of two equal packets the one whose id is used again sooner takes the step."""
    events = Events().armed(0, ONE).armed(1, ONE)
    events.legacy("raw", 1, ONE).legacy("raw", 2, ONE, kind="policy")
    events.legacy("raw", 1, ONE).legacy("raw", 2, ONE, kind="policy")

    assert [0, 1, 1, 1, 0, 0] == events.apart([9, 8])
    assert [0, 1, 0, 0, 1, 1] == events.apart([NEVER, NEVER])


def test_a_drop_closes_a_journey() -> None:
    """Behind a drop a packet takes nothing."""
    events = Events().armed(0, ONE)
    events.legacy("filter", 3, ONE, "forward").legacy("nat", 1, ONE, "postrouting")

    assert [0, 0, 1] == events.apart([NEVER])


def test_the_open_ones_are_bounded() -> None:
    """Beyond the bound the oldest takes no more legacy events, and keeps its nft ones."""
    events = Events()
    for number in range(MAX_ALIKE + 1):
        events.armed(number, ONE)
    events.legacy("raw", 1, ONE).armed(0, ONE)

    assert [1, 0] == events.apart([NEVER] * (MAX_ALIKE + 1))[-2:]

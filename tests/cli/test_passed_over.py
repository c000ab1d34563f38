"""The rules that a packet was compared with and did not meet, step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.core.trace_kernel import LEGACY_TABLES, make_chain, make_ruleset
from tests.journeys import lone, step, syn
from tracer.cli.passed_over import PassedOver
from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from tracer.core.journey import Step
    from tracer.core.ruleset import Ruleset


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class _Trace:
    namespace: _Named
    ruleset: Ruleset


@dataclass(frozen=True)
class _Session:
    traces: list[_Trace]


RULESET = make_ruleset(
    *LEGACY_TABLES,
    (
        "nft",
        "filter",
        [make_chain("FORWARD", *[("x", Verdict.CONTINUE)] * 5, hook="forward", priority=1)],
    ),
)
SESSION = _Session([_Trace(_Named("vr1"), make_ruleset()), _Trace(_Named("vr2"), RULESET)])
PRE = "prerouting mangle PREROUTING"


def _passed(*steps: Step, netns: str = "vr2") -> dict[int, list[int]]:
    journey = replace(lone(syn("10.0.0.1", 22), *steps), netns=netns)
    found = PassedOver(SESSION)(journey)  # type: ignore[arg-type]
    return {index: [rule.number for rule in rules] for index, rules in found.items()}


def _into(number: int, target: str, verdict: Verdict = Verdict.JUMP) -> Step:
    return replace(step(PRE, number, None, verdict), target=target)


def test_rules_between_two_steps_were_passed() -> None:
    """From the beginning to the first step, and on to the next; for a policy to the end."""
    steps = [step(PRE, number, None, Verdict.CONTINUE) for number in (2, 4, None)]

    assert {0: [1], 1: [3], 2: [5]} == _passed(*steps)


def test_a_chain_called_twice_begins_twice() -> None:
    """The second call of a chain passes its rules from the first one on."""
    inner = step("prerouting mangle TWICE", 3, None, Verdict.CONTINUE)
    steps = [_into(1, "TWICE"), inner, _into(3, "TWICE"), inner]

    assert {0: [], 1: [1, 2], 2: [2], 3: [1, 2]} == _passed(*steps)


def test_a_step_back_begins_anew() -> None:
    """A number that does not rise, with no jump seen, is another visit."""
    steps = [step(PRE, number, None, Verdict.CONTINUE) for number in (3, 2)]

    assert {0: [1, 2], 1: [1]} == _passed(*steps)


def test_behind_a_return_nothing_is_tried() -> None:
    """From a return or a goto in a base chain to its policy, no rule is compared."""
    policy = step(PRE, None, None, Verdict.ACCEPT)
    inner = step("prerouting mangle AWAY", 2, None, Verdict.CONTINUE)

    assert {0: [1, 2], 1: []} == _passed(step(PRE, 3, None, Verdict.RETURN), policy)
    assert {0: [1, 2, 3], 1: [1], 2: []} == _passed(_into(4, "AWAY", Verdict.GOTO), inner, policy)


def test_engines_with_equal_names_are_apart() -> None:
    """Tables and chains of one name in both engines are two."""
    legacy = step("forward filter FORWARD", 2, None, Verdict.CONTINUE)
    nft = replace(step("forward filter FORWARD", 4, None, Verdict.CONTINUE), engine="nft")

    assert {0: [1], 1: [1, 2, 3]} == _passed(legacy, nft)


def test_what_is_not_known_is_not_told() -> None:
    """A chain or a namespace that is not there, or not any more, has no rules."""
    gone = step("prerouting mangle GONE", 3, None, Verdict.CONTINUE)

    assert {1: [1]} == _passed(gone, step(PRE, 2, None, Verdict.CONTINUE))
    assert {} == _passed(step(PRE, 2, None, Verdict.CONTINUE), netns="vr1")
    assert {} == _passed(step(PRE, 2, None, Verdict.CONTINUE), netns="vr3")

"""The rules that a packet passed without matching, for `follow -v`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracer.core.journey import Journey, Step
    from tracer.core.ruleset import Rule, Ruleset
    from tracer.sources.follow import Follow

__all__ = ["PassedOver"]

# Engine, family, table, chain, and the hook that led there.
_Visit: TypeAlias = tuple[str, str, str, str, str | None]

_LEAVING = (Verdict.RETURN, Verdict.GOTO)


class PassedOver:
    """Finds them in the ruleset in hand; called with a journey, it answers by step."""

    def __init__(self, session: Follow) -> None:
        self._session = session

    def __call__(self, journey: Journey) -> Mapping[int, Sequence[Rule]]:
        """
        Return, for each step's index, the rules of its chain that were passed before it.

        Shape: rules between the last step in the same visit of the chain, or the chain's
        beginning, and the step; for a policy, those to the chain's end.
        """
        ruleset = self._find_ruleset(journey.netns)
        if ruleset is None:
            return {}
        found: dict[int, Sequence[Rule]] = {}
        reached: dict[_Visit, int] = {}
        for index, step in enumerate(journey.steps):
            key = (step.engine, step.family, step.table, step.chain)
            visit = (*key, step.hook)
            chain = ruleset.find_chain(*key)
            if chain is None:
                continue
            last = len(chain.rules) + 1
            end = last if step.rule is None else step.rule
            start = reached.get(visit, 0)
            if end <= start and step.rule is not None:
                start = 0
            found[index] = chain.rules[start : end - 1]
            # Behind a return or a goto comes the chain's end; the rules between are not tried.
            reached[visit] = last if step.verdict in _LEAVING else end
            _forget_target(step, reached)
        return found

    def _find_ruleset(self, netns: str) -> Ruleset | None:
        for trace in self._session.traces:
            if trace.namespace.name == netns:
                return trace.ruleset
        return None


def _forget_target(step: Step, reached: dict[_Visit, int]) -> None:
    # A chain that is jumped to is walked from its beginning, also the second time.
    if step.target is not None:
        reached.pop((step.engine, step.family, step.table, step.target, step.hook), None)

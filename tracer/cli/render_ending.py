"""The end of a journey in words: what a reader looks for first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracer.cli import theme
from tracer.cli.render_packet import rule_text, table_text
from tracer.cli.render_safe import Part, escape
from tracer.core.journey import EndingKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.cli.theme import Symbols
    from tracer.core.journey import Ending, Journey, Step

__all__ = ["chain_path", "ending_parts", "last_seen"]

#: What the kernel says of every drop that a verdict made: no news to the reader.
NETFILTER_DROP: Final = "NETFILTER_DROP"
_NOT_OBSERVED: Final = "not observed"
_INWARD: Final = frozenset({Verdict.JUMP, Verdict.GOTO})


@dataclass(frozen=True, slots=True)
class _Place:
    engine: str
    family: str
    table: str
    hook: str | None

    @staticmethod
    def of(step: Step) -> _Place:
        return _Place(step.engine, step.family, step.table, step.hook)


def chain_path(steps: Sequence[Step]) -> list[str]:
    """
    Return the chains from the base chain down to the last step's, as they were jumped through.

    A step in a chain that nothing jumped to begins a new base chain.
    """
    path: list[str] = []
    place: _Place | None = None
    before: Step | None = None
    for step in steps:
        jumped = before is not None and before.verdict in _INWARD and before.target == step.chain
        if _Place.of(step) != place:
            path = [step.chain]
        elif jumped:
            path.append(step.chain)
        elif step.chain in path:
            del path[path.index(step.chain) + 1 :]
        else:
            path = [step.chain]
        place, before = _Place.of(step), step
    return path


def ending_parts(journey: Journey, symbols: Symbols) -> list[Part]:
    """Return the ending's line."""
    ending = journey.ending
    style = theme.ENDING_STYLES[ending.kind]
    words = _Words(journey, symbols)
    shown: list[Part] = [(f"{symbols.endings[ending.kind]} ", style)]
    match ending.kind:
        case EndingKind.SENT:
            device = ending.device or journey.out_device
            shown.append((f"sent out {words.safe(device)}" if device else "sent", style))
        case EndingKind.DELIVERED:
            shown.append((f"delivered in {words.netns}", style))
        case EndingKind.UNKNOWN:
            shown += [(last_seen(journey, symbols), style), words.unknown()]
        case EndingKind.QUEUED:
            shown += [(f"queued to user space in {words.netns}", style), *words.place()]
        case _:
            shown += [(f"{ending.kind.value.upper()} in {words.netns}", style), *words.place()]
    return shown


def last_seen(journey: Journey, symbols: Symbols) -> str:
    """Return where an unknown ending was last seen."""
    step = journey.steps[-1] if journey.steps else None
    device = journey.out_device or journey.ending.device
    if step is None or step.verdict is Verdict.ACCEPT:
        if journey.ending.hook == "postrouting":
            towards = f" towards {_safe(device, symbols)}" if device else ""
            return f"last seen leaving postrouting{towards}"
        if journey.ending.hook == "input":
            return "last seen leaving input towards a local process"
    if step is None:
        return "no rule was seen"
    table = table_text(step.family, _safe(step.table, symbols))
    rule = "policy" if step.rule is None else f"rule {step.rule}"
    return f"last seen in {table} {_safe(step.chain, symbols)}, {rule}"


def _safe(text: str | None, symbols: Symbols) -> str:
    return escape(text or "?", ascii_only=symbols.ascii_only)


class _Words:
    """The pieces of one journey's ending."""

    def __init__(self, journey: Journey, symbols: Symbols) -> None:
        self._journey = journey
        self._ending: Ending = journey.ending
        self._symbols = symbols
        self.netns = self.safe(journey.netns)

    def safe(self, text: str | None) -> str:
        return _safe(text, self._symbols)

    def unknown(self) -> Part:
        reason = self._ending.reason
        if reason in {None, _NOT_OBSERVED}:
            return " (what became of it then was not observed)", theme.QUIET
        return f" ({self.safe(reason)})", theme.QUIET

    def place(self) -> list[Part]:
        ending = self._ending
        if ending.table is None or ending.chain is None:
            return self._by_the_kernel()
        parts: list[Part] = [(f", {table_text(ending.family, self.safe(ending.table))} ", "")]
        between = f" {self._symbols.inside} "
        parts.append((between.join(self.safe(chain) for chain in self._path()), ""))
        if ending.rule is None and ending.handle is None:
            parts.append((", by the policy of the chain", theme.STRONG))
        else:
            parts += self._rule()
        if ending.reason not in {None, NETFILTER_DROP, _NOT_OBSERVED}:
            parts.append((f" ({self.safe(ending.reason)})", theme.WARNING))
        return parts

    def _path(self) -> list[str]:
        """Return the way to the chain where the steps end there, else the chain alone."""
        path = chain_path(self._journey.steps)
        chain = self._ending.chain or "?"
        return path if path and path[-1] == chain else [chain]

    def _rule(self) -> list[Part]:
        ending = self._ending
        named = [] if ending.rule is None else [f"rule {ending.rule}"]
        steps = self._journey.steps
        # iptables knows no handles: only those who would write nft get one to delete by.
        in_nft = not steps or steps[-1].form == "nft"
        if ending.handle is not None and (in_nft or ending.rule is None):
            named.append(f"handle {ending.handle}")
        text = "(gone before it could be read)"
        if ending.text is not None:
            text = self.safe(rule_text(ending.text, ending.chain))
        return [(f", {', '.join(named)}: ", ""), (text, theme.STRONG)]

    def _by_the_kernel(self) -> list[Part]:
        parts: list[Part] = [(" by the kernel, by no rule", "")]
        hook = self._ending.hook or (self._journey.steps[-1].hook if self._journey.steps else None)
        if hook is not None:
            parts.append((f", after {self.safe(hook)}", ""))
        if self._ending.reason is not None:
            parts.append((f": {self.safe(self._ending.reason)}", theme.STRONG))
        return parts

"""A timeline for the terminal: the first ten lines hold the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracer.cli.render_safe import escape
from tracer.cli.theme import PLACE, QUIET, STRONG, WARNING
from tracer.core.journey import EndingKind
from tracer.core.timeline_events import State, doer
from tracer.core.timeline_words import (
    Clock,
    change_words,
    diff_lines,
    end_words,
    expected_words,
    killer_words,
    loss_words,
    place_words,
    sparkline,
    what_happened,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tracer.cli.theme import Symbols
    from tracer.core.timeline_events import Cause, Killer, Timeline

__all__ = ["TimelinePrinter"]

_DROPPED: Final = "bold red"
_OVER: Final = "green"
#: Lines of the diff beside the cause: with the others, the answer is in ten.
_DIFF: Final = 4
_KILLERS: Final = 5
_FLOWS: Final = 5
_OTHERS: Final = 4
_CHANGES: Final = 12
_LABEL: Final = 10


class TimelinePrinter:
    """Prints one timeline; *asked* is what it is about, in words."""

    def __init__(
        self, console: Console, symbols: Symbols, timeline: Timeline, clock: Clock
    ) -> None:
        self._console = console
        self._symbols = symbols
        self._timeline = timeline
        self._clock = clock

    def show(self) -> None:
        """Print it: the worst killer whole, the others shorter, then what else there was."""
        timeline = self._timeline
        for number, killer in enumerate(timeline.killers[:_KILLERS]):
            if number:
                self._say("")
            self._show_killer(killer)
        more = timeline.killers[_KILLERS:]
        if more:
            packets = sum(one.packets for one in more)
            self._say(f"\n{len(more)} more places, {packets:,} packets: narrow it, or ask for json")
        for killer in timeline.killers[:1]:
            self._show_more(killer)
        self._show_changes()
        for step in (one.change for one in timeline.changes if one.change.what == "clock"):
            self._line("clock", f"{self._clock.time(step.time_ns)}  {change_words(step)}", WARNING)
        for loss in timeline.losses:
            text = f"{loss_words(loss)} ({loss.source}, {self._clock.time(loss.time_ns)})"
            self._line("not told", text, WARNING)

    def _show_killer(self, killer: Killer) -> None:
        place = place_words(killer, self._symbols.inside)
        sign = self._symbols.endings[EndingKind.DROPPED]
        style = QUIET if killer.is_expected else _DROPPED
        self._say(f"{sign} {killer_words(killer)} died in {escape(place)}", style)
        if killer.is_expected:
            self._line("expected", expected_words(killer))
        if killer.rule is not None:
            self._line("", killer.rule.text, STRONG)
        clock = self._clock
        last = f", last {clock.time(killer.last_ns)}" if killer.packets > 1 else ""
        bars = sparkline(killer.series, ascii_only=self._symbols.ascii_only)
        self._line("began", f"{clock.time(killer.first_ns)}{last}  |{bars}|")
        self._show_cause(killer)
        style = _OVER if killer.state == State.OVER else WARNING
        self._line("", end_words(killer, clock, self._timeline.seen_until_ns), style)

    def _show_cause(self, killer: Killer) -> None:
        cause = killer.cause
        if cause is None or not cause.brought:
            if killer.stood:
                self._line("because", "of a rule that stood when the log begins")
            if cause is not None:
                self._line("perhaps", self._candidate(cause, killer))
                self._diff(cause, killer)
            elif not killer.stood:
                self._line("because", "of nothing that the log knows: no change came before it")
            return
        by = doer(cause.change)
        when = self._clock.time(cause.change.time_ns)
        said = what_happened(cause, killer.chain)
        self._line("because", f"{said} at {when}" + (f" by {by}" if by else ""), PLACE)
        self._diff(cause, killer)

    def _diff(self, cause: Cause, killer: Killer) -> None:
        text = None if killer.rule is None else killer.rule.text
        for line in diff_lines(cause.diff, killer.chain, text, _DIFF):
            self._line("", line, QUIET if line.startswith("…") else "")

    def _candidate(self, cause: Cause, killer: Killer) -> str:
        by = doer(cause.change)
        when = self._clock.time(cause.change.time_ns)
        said = what_happened(cause, killer.chain)
        return f"{when} {said}" + (f" by {by}" if by else "") + f" ({cause.why})"

    def _show_more(self, killer: Killer) -> None:
        """Print what does not belong to the answer, but to its understanding."""
        self._say("")
        for cause in killer.others[:_OTHERS]:
            self._line("or else", f"{self._candidate(cause, killer)}")
        if killer.before:
            several = f"rules 1 to {len(killer.before)} of its chain have"
            which = several if len(killer.before) > 1 else "rule 1 of its chain has"
            self._line("the rule", f"drops what {which} not taken out:")
            for rule in killer.before[-_OTHERS:]:
                self._line("", f"{rule.number}  {rule.text}")
        if killer.inferred:
            text = "died by the same table; that it was this rule is inferred"
            self._line("of these", f"{killer.inferred:,} {text}")
        self._show_flows(killer)

    def _show_flows(self, killer: Killer) -> None:
        for number, flow in enumerate(killer.flows[:_FLOWS]):
            to = f"{flow.dst}:{flow.dport}" if flow.dport else flow.dst
            text = f"{flow.proto} {flow.src} {self._symbols.arrow} {to}  {flow.packets:,}"
            self._line("" if number else "hurt", text)
        if len(killer.flows) > _FLOWS:
            self._line("", f"… and {len(killer.flows) - _FLOWS:,} more")
        if self._timeline.is_cut:
            self._line("", "there are more flows than were looked at, so of clients as well")
        for number, one in enumerate(self._timeline.survivors[:_FLOWS]):
            to = f"{one.dst}:{one.dport}" if one.dport else one.dst
            text = f"{one.proto} {one.src} {self._symbols.arrow} {to}  {one.packets:,} {one.ending}"
            self._line("" if number else "not hurt", text)

    def _show_changes(self) -> None:
        changes = [one for one in self._timeline.changes if one.change.what != "clock"]
        if not changes:
            return
        self._say("")
        for number, one in enumerate(changes[-_CHANGES:]):
            change = one.change
            by = doer(change)
            where = f"{change.netns}: " if change.netns else ""
            text = f"{self._clock.time(change.time_ns)}  {where}{change_words(change, one.diff)}"
            self._line("" if number else "changes", text + (f" by {by}" if by else ""))
        if len(changes) > _CHANGES:
            self._line("", f"and {len(changes) - _CHANGES:,} before these")

    def _line(self, label: str, text: str, style: str = "") -> None:
        safe = escape(text, ascii_only=self._symbols.ascii_only)
        self._console.print(f"  {label:<{_LABEL}}", style=QUIET, end="")
        self._console.print(safe, style=style)

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style)

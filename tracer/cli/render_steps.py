"""The rows of a journey: hook headings, rules, policies and what they changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text

from tracer.cli import theme
from tracer.cli.render_packet import peer, rule_text, shorten_rule, table_text
from tracer.cli.render_safe import Part, cells, escape, pad, shorten_middle, wrap
from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracer.cli.theme import Symbols
    from tracer.core.journey import Change, Journey, Step
    from tracer.core.ruleset import Rule

__all__ = ["StepRows", "deciding_step"]

_HEADING_INDENT: Final = 3
_STEP_INDENT: Final = 5
# Where a table's name is long and the screen narrow, it gets a line of its own.
_LONG_TABLE: Final = 8
_NARROW: Final = 100
_VERY_NARROW: Final = 70
_SHORTEST_TEXT: Final = 4
#: Rules listed as passed over before one step; a chain may hold tens of thousands, and
#: nobody reads more than a screen of them.
PASSED_OVER_SHOWN: Final = 40
_POLICY: Final = "policy"
_PORT_OF: Final = {"src": "sport", "dst": "dport"}
_ADDRESS_OF: Final = {port: address for address, port in _PORT_OF.items()}
#: The chain that these go to stands in the next row.
_JUMPS: Final = frozenset({Verdict.JUMP, Verdict.GOTO})
_GONE: Final = "(gone before it could be read)"


def deciding_step(journey: Journey) -> int:
    """Return the index of the step that is always shown whole, -1 without steps."""
    return len(journey.steps) - 1


@dataclass(frozen=True, slots=True)
class _Columns:
    table: int
    place: int
    text: int
    verdict: int
    stacked: bool


class StepRows:
    """Rows of the journeys of one packet, in columns that fit all of them."""

    def __init__(
        self,
        journeys: Sequence[Journey],
        width: int,
        symbols: Symbols,
        passed_over: Sequence[Mapping[int, Sequence[Rule]]],
    ) -> None:
        """Find the columns; *passed_over* is what `show` gets for each journey."""
        self._symbols = symbols
        self._width = width
        steps = [step for journey in journeys for step in journey.steps]
        self._mixed = len({step.engine for step in steps}) > 1
        others = [rule for by_step in passed_over for rules in by_step.values() for rule in rules]
        self._columns = self._measure(steps, others)

    def _measure(self, steps: Sequence[Step], others: Sequence[Rule]) -> _Columns:
        table = max((cells(self._table(step)) for step in steps), default=0)
        stacked = self._width < (_NARROW if table > _LONG_TABLE else _VERY_NARROW)
        table = min(table, self._width // 4)
        verdict = max((cells(self._verdict(step)) for step in steps), default=0)
        places = [cells(self._word(step.chain)) + len(self._number(step)) for step in steps]
        places += [len(str(rule.number)) for rule in others]
        place = min(max(places, default=0) + 2, self._width * 2 // 5)
        left = _STEP_INDENT + (2 if stacked else table + 1) + place + 2
        texts = [self._text(step) for step in steps] + [self._word(rule.text) for rule in others]
        longest = max(map(cells, texts), default=0)
        room = max(self._width - left - verdict - 1, _SHORTEST_TEXT)
        return _Columns(table, place, min(longest, room), verdict, stacked)

    def _word(self, text: str) -> str:
        return escape(text, ascii_only=self._symbols.ascii_only)

    def _table(self, step: Step) -> str:
        name = table_text(step.family, self._word(step.table))
        return f"legacy {name}" if self._mixed and step.engine == "legacy" else name

    def _verdict(self, step: Step) -> str:
        return f"{self._symbols.verdicts[step.verdict]} {step.verdict.value}"

    @staticmethod
    def _number(step: Step) -> str:
        if step.kind == _POLICY:
            return _POLICY
        return "?" if step.rule is None else str(step.rule)

    def _text(self, step: Step) -> str:
        if step.text is None:
            return "" if step.kind == _POLICY else _GONE
        return self._word(rule_text(step.text, step.chain))

    def show(self, journey: Journey, passed_over: Mapping[int, Sequence[Rule]]) -> Iterator[Text]:
        """
        Yield the lines of *journey*'s steps.

        *passed_over* maps the index of a step to the rules that did not match before it.
        """
        hook: str | None = ""
        table = ""
        last = deciding_step(journey)
        for index, step in enumerate(journey.steps):
            if step.hook != hook:
                hook, table = step.hook, ""
                yield from self._heading(journey, step)
            name = self._table(step)
            if self._columns.stacked and name != table:
                yield self._fit(Text(" " * _STEP_INDENT).append(name, theme.PLACE))
            shown = "" if self._columns.stacked or name == table else name
            others = passed_over.get(index, ())
            yield from self._passed_over(others, step.chain, shown)
            # The table stands in its first row, which may be of a rule that was passed over.
            yield from self._row(step, "" if others else shown, whole=index == last)
            table = name
            yield from self._changes(step.changes)
        yield from self._passed_over(passed_over.get(last + 1, ()), "", "")
        if journey.changes:
            words = "no rule passed; as its connection is translated:"
            yield from wrap([(words, theme.QUIET)], self._width, _STEP_INDENT, first=_STEP_INDENT)
            yield from self._changes(journey.changes)

    def _heading(self, journey: Journey, step: Step) -> Iterator[Text]:
        hook = "HOOK NOT KNOWN" if step.hook is None else self._word(step.hook).upper()
        parts: list[Part] = [(hook, theme.STRONG)]
        devices = [journey.in_device, journey.out_device or journey.ending.device]
        if step.hook == "forward" and all(devices):
            into, out = (self._word(device or "") for device in devices)
            parts.append((f"  {into} {self._symbols.arrow} {out}", theme.PLACE))
        elif step.hook == "output" and devices[1]:
            parts.append((f"  {self._symbols.arrow} {self._word(devices[1])}", theme.PLACE))
        parts[0] = (" " * _HEADING_INDENT + parts[0][0], parts[0][1])
        yield from wrap(parts, self._width, _STEP_INDENT)

    def _start(self, table: str, chain: str, number: str) -> Text:
        columns, more = self._columns, self._symbols.more
        indent = _STEP_INDENT + (2 if columns.stacked else 0)
        line = Text(" " * indent)
        if not columns.stacked:
            line.append(pad(shorten_middle(table, columns.table, more), columns.table + 1))
            line.stylize(theme.PLACE, indent)
        room = columns.place - len(number) - 1
        line.append(pad(shorten_middle(chain, room, more), room + 1))
        return line.append(number, theme.STRONG).append("  ")

    def _row(self, step: Step, table: str, *, whole: bool) -> Iterator[Text]:
        columns = self._columns
        text = self._text(step)
        start = self._start(table, self._word(step.chain), self._number(step))
        hang = cells(start.plain)
        if whole:
            lines = wrap([(text, theme.STRONG)], hang + columns.text, hang, first=hang)
        else:
            jumps = step.verdict in _JUMPS
            lines = [Text(shorten_rule(text, columns.text, self._symbols.more, jumps=jumps))]
        first = start.append(lines[0])
        first.append(" " * (hang + columns.text + 1 - cells(first.plain)))
        yield self._fit(first.append(self._verdict(step), theme.VERDICT_STYLES[step.verdict]))
        yield from lines[1:]

    def _passed_over(self, rules: Sequence[Rule], chain: str, table: str) -> Iterator[Text]:
        shown = rules
        if len(rules) > PASSED_OVER_SHOWN:
            shown = rules[-PASSED_OVER_SHOWN:]
            left_out = f"({len(rules) - len(shown):,} more above)"
            yield self._fit(self._quiet(table, "", self._symbols.more, left_out))
            table = ""
        for rule in shown:
            text = self._word(rule_text(rule.text, chain or None))
            yield self._fit(self._quiet(table, self._word(chain), str(rule.number), text))
            table = ""

    def _quiet(self, table: str, chain: str, number: str, text: str) -> Text:
        room = self._columns.text + self._columns.verdict + 1
        line = self._start(table, chain, number)
        line.append(shorten_rule(text, room, self._symbols.more))
        line.stylize(theme.QUIET)
        return line

    def _changes(self, changes: Mapping[str, Change]) -> Iterator[Text]:
        columns = self._columns
        hang = _STEP_INDENT + (2 if columns.stacked else columns.table + 1) + columns.place + 2
        for name, before, after in _joined(changes):
            parts = [
                (f"{self._word(name)} ", theme.QUIET),
                (f"{self._word(before)} {self._symbols.becomes} {self._word(after)}", theme.CHANGE),
            ]
            size = sum(cells(text) for text, _ in parts)
            indent = max(min(hang, self._width - size), _STEP_INDENT)
            yield from (
                Text(" " * indent).append(line) if number == 0 else line
                for number, line in enumerate(wrap(parts, self._width, indent, first=indent))
            )

    def _fit(self, line: Text) -> Text:
        """Return *line* cut to the width: the last resort of a very narrow screen."""
        if cells(line.plain) > self._width:
            line.truncate(self._width, overflow="crop")
        return line


def _joined(changes: Mapping[str, Change]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, before, after), an address and its port in one."""
    for name, (before, after) in changes.items():
        port = changes.get(_PORT_OF.get(name, ""))
        if port is not None:
            old, new = (int(value) for value in port)
            yield name, peer(str(before), old), peer(str(after), new)
        elif _ADDRESS_OF.get(name) in changes:
            continue
        elif "mark" in name:
            yield name, _mark(before), _mark(after)
        else:
            yield name, str(before), str(after)


def _mark(value: str | int) -> str:
    return hex(value) if isinstance(value, int) else value

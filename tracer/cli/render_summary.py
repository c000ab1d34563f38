"""The last lines of a run: where the packets ended, worst first, and what was not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracer.cli import theme
from tracer.cli.render_packet import rule_text, table_text
from tracer.cli.render_safe import Part, escape, wrap
from tracer.core.journey import EndingKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from tracer.cli.theme import Symbols
    from tracer.core.summary import EndingCount, Summary

__all__ = ["render_summary_text"]

#: Endings listed; the rest is counted in one line.
ENDINGS_SHOWN: Final = 20
#: Why a run ends that nobody needs to be told: they did it, or everything was shown.
_EXPECTED_REASONS: Final = frozenset({None, "count reached", "reader gone"})


def render_summary_text(summary: Summary, width: int, symbols: Symbols) -> Iterator[Text]:
    """Yield the lines of the summary, none wider than *width* cells."""
    missing = _missing(summary)
    seen = [(_count(summary.packets, "packet"), theme.STRONG)]
    if not summary.packets:
        seen = [("no packet was seen", theme.STRONG)]
    if len(summary.endings) == 1 and not summary.other_endings:
        counted = summary.endings[0]
        seen += [(f": {counted.count:,} ", ""), *_ending(counted, symbols, whole=False)]
        yield from wrap([*seen, (". ", ""), *missing], width, 3)
    elif summary.endings:
        yield from wrap([*seen, (":", "")], width, 3)
        yield from _list(summary, width, symbols)
        yield from wrap(missing, width, 3)
    else:
        yield from wrap([*seen, (". ", ""), *missing], width, 3)
    for note in summary.notes:
        text = escape(note, ascii_only=symbols.ascii_only)
        yield from wrap([("note: ", theme.WARNING), (text, "")], width, 6)


def _list(summary: Summary, width: int, symbols: Symbols) -> Iterator[Text]:
    shown = summary.endings[:ENDINGS_SHOWN]
    rest = summary.endings[ENDINGS_SHOWN:]
    others = sum(counted.count for counted in rest) + summary.other_endings
    column = max(len(f"{count:,}") for count in [others, *(counted.count for counted in shown)])
    indent = 3 + column + 2
    for counted in shown:
        parts = _ending(counted, symbols, whole=True)
        yield from wrap([(f"   {counted.count:>{column},}  ", ""), *parts], width, indent)
    if others:
        parts = [(f"   {others:>{column},}  ended elsewhere", theme.QUIET)]
        yield from wrap(parts, width, indent)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _ending(counted: EndingCount, symbols: Symbols, *, whole: bool) -> list[Part]:
    ending = counted.ending
    style = theme.ENDING_STYLES[ending.kind]

    def safe(text: str | None) -> str:
        return escape(text or "?", ascii_only=symbols.ascii_only)

    netns = safe(counted.netns)
    if ending.kind is EndingKind.SENT:
        out = f" out {safe(ending.device)}" if ending.device else ""
        return [("sent", style), (f"{out} of {netns}", "")]
    if ending.kind is EndingKind.DELIVERED:
        return [("delivered", style), (f" in {netns}", "")]
    word = {EndingKind.UNKNOWN: "last seen in", EndingKind.QUEUED: "queued by"}
    parts: list[Part] = [(word.get(ending.kind, f"{ending.kind.value} by"), style)]
    if ending.table is None or ending.chain is None:
        return [*parts, (f" {netns}{_kernel(counted, safe(ending.reason))}", "")]
    place = f" {netns} {table_text(ending.family, safe(ending.table))} {safe(ending.chain)}"
    parts.append((place, ""))
    if ending.rule is not None:
        parts.append((f" rule {ending.rule}", ""))
    elif ending.handle is not None:
        parts.append((f" handle {ending.handle}", ""))
    else:
        parts.append((" policy", ""))
    if whole and ending.text is not None:
        parts.append((f": {safe(rule_text(ending.text, ending.chain))}", ""))
    return parts


def _kernel(counted: EndingCount, reason: str) -> str:
    ending = counted.ending
    if ending.kind is EndingKind.UNKNOWN:
        return f"{f', {ending.hook}' if ending.hook else ''} ({reason})"
    return f" itself ({reason})" if ending.reason else " itself"


def _missing(summary: Summary) -> list[Part]:
    """Return what was not seen; answering over a hole would be a lie."""
    told: list[str] = []
    if summary.lost:
        told.append(f"{_count(summary.lost, 'event')} lost")
    if summary.incomplete:
        told.append(f"{_count(summary.incomplete, 'journey')} may have a hole")
    if summary.over_limit:
        told.append(f"{_count(summary.over_limit, 'packet')} not traced because of the rate limit")
    if summary.evicted:
        told.append(f"{_count(summary.evicted, 'journey')} given up: too many were open at once")
    if summary.malformed:
        told.append(f"{_count(summary.malformed, 'message')} not understood")
    parts: list[Part] = (
        [(f"{'; '.join(told)}.", theme.WARNING)] if told else [("Nothing lost.", "")]
    )
    if summary.over_limit is None:
        parts.append((" How many packets the rate limit left out is not known.", theme.WARNING))
    if summary.began_late:
        late = f" {_count(summary.began_late, 'journey')} not seen from the first hook on."
        parts.append((late, theme.WARNING))
    if summary.reason not in _EXPECTED_REASONS:
        parts.append((f" Ended: {escape(summary.reason or '')}.", theme.QUIET))
    return parts

"""Rules and who brought them, for the terminal: one line a rule, and one for its story."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracer.cli.render_safe import escape
from tracer.cli.theme import QUIET, STRONG
from tracer.core.timeline_events import doer
from tracer.core.timeline_words import Clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from tracer.core.timeline_blame import Blame

__all__ = ["show_blame"]

_WAS: Final = 3


def show_blame(console: Console, found: Sequence[Blame]) -> None:
    """Print the rules, those of one chain together."""
    times = [one.since_ns for one in found] + [one.last_ns for one in found if one.last_ns]
    clock = Clock(None, min(times), max(times))
    place: tuple[object, ...] = ()
    for one in found:
        netns, engine, family, table = one.key
        if place != (one.key, one.chain):
            console.print(
                escape(f"{netns}, {engine} table {family} {table}, {one.chain}"), style=STRONG
            )
            place = (one.key, one.chain)
        console.print(escape(f"  {one.rule.number:>3}  {one.rule.text}"))
        console.print(escape(f"       {_story(one, clock)}"), style=QUIET)
        for was in one.was[:_WAS]:
            console.print(escape(f"       - {was}"), style=QUIET)
        if len(one.was) > _WAS:
            console.print(f"       … and {len(one.was) - _WAS} more that went with it", style=QUIET)


def _story(one: Blame, clock: Clock) -> str:
    if one.brought is None:
        text = f"stood when the log begins, {clock.day(one.since_ns)}"
    else:
        by = doer(one.brought)
        text = f"since {clock.day(one.since_ns)}" + (
            f", by {by}" if by else ", by whom is not known"
        )
    if one.packets:
        text += f"; dropped {one.packets:,}, the last at {clock.time(one.last_ns)}"
    return text

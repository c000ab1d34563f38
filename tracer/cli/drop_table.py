"""How drops are told: a table for people, one JSON object a row for programs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracer.cli.drop_words import words_of
from tracer.cli.render_safe import escape
from tracer.cli.theme import PLACE, QUIET, STRONG, WARNING, symbols_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from tracer.cli.drop_names import RuleName
    from tracer.cli.drop_words import DropWords
    from tracer.cli.theme import Symbols
    from tracer.core.drop_talkers import Talker
    from tracer.core.drops import DropCount
    from tracer.sources.drops import DropLosses, Standing

__all__ = ["DropRow", "Seen", "render_json", "render_table"]

#: From here on each thing has a column; below, all that is no number shares one.
_WIDE = 140
_DEAD = "bold red"
_SMALL = 10


@dataclass(frozen=True, slots=True)
class DropRow:
    """
    One line of the table: a kind of drop, its namespace's name, and what is known of it.

    Units: *rate* packets a second over the last interval. *function* is the kernel's at
    the drop's location, where it is known.
    """

    count: DropCount
    netns: str
    rate: float
    rule: RuleName
    talker: Talker | None
    function: str | None = None

    @property
    def words(self) -> DropWords:
        """The row in words."""
        return words_of(self.count, self.rule, self.talker, self.function)


@dataclass(frozen=True, slots=True)
class Seen:
    """
    What there is to say of all rows.

    *filtered*: some may have been left out on request; *here_only*: those of namespaces that
    nobody named. *more* are there for which the terminal has no room.
    """

    losses: DropLosses
    standing: Standing
    filtered: bool = False
    here_only: bool = False
    more: int = 0


def render_json(out: IO[str], rows: Sequence[DropRow], seen: Seen) -> None:
    """
    Write `nftrace.drops/1`, one object a line, and flush.

    *losses* in it are of all drops, as below the table: those that are not 0.
    """
    standing = seen.standing
    losses = {name: n for name, n in seen.losses._asdict().items() if n and name != "seen"}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for row in rows:
        count, words, talker = row.count, row.words, row.talker
        record = {
            "schema": "nftrace.drops/1",
            "time": now,
            "netns": row.netns,
            "reason": count.reason,
            "what": words.what,
            "look_at": words.look_at or None,
            "kind": count.kind,
            "engine": count.engine,
            "family": count.family,
            "hook": count.hook,
            "table": count.table,
            "chain": row.rule.chain,
            "rule": row.rule.number,
            "handle": count.handle,
            "text": row.rule.text,
            "certain": count.certain,
            "rung": standing.rung,
            "notes": list(standing.notes),
            "losses": losses,
            "candidates": list(row.rule.candidates),
            "function": row.function,
            "packets": count.packets,
            "bytes": count.octets,
            "estimated": count.sampled,
            "rate": round(row.rate, 1),
            "top": None if talker is None else _pair(talker, "→"),
            "top_source": None if talker is None else talker.source,
            "top_destination": None if talker is None else talker.destination,
            "top_share": None if talker is None else round(talker.share, 3),
        }
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
    out.flush()


def render_table(rows: Sequence[DropRow], seen: Seen, console: Console) -> RenderableType:
    """Return the table, and below it what is not in it."""
    symbols = symbols_for(console)
    if not rows:
        which = " that was asked for" if seen.filtered else ""
        return Group(Text(f"nothing was dropped yet{which}", style=QUIET), _foot(rows, seen))
    table = Table(box=None, pad_edge=False, header_style=STRONG, padding=(0, 2, 0, 0))
    table.add_column("per s", justify="right", no_wrap=True)
    table.add_column("total", justify="right", no_wrap=True)
    if console.width >= _WIDE:
        _add_wide(table, rows, symbols)
    else:
        table.expand = True
        _add_narrow(table, rows, symbols)
    return Group(table, _foot(rows, seen))


def _add_wide(table: Table, rows: Sequence[DropRow], symbols: Symbols) -> None:
    for name in ("netns", "hook", "table", "chain"):
        table.add_column(name, style=PLACE if name != "netns" else "", overflow="fold")
    table.add_column("what dropped them", ratio=1, overflow="fold")
    table.add_column("from most", overflow="fold")
    table.add_column("to most", overflow="fold")
    for row in rows:
        count, words, talker = row.count, row.words, row.talker
        place = (count.hook, count.table, row.rule.chain)
        table.add_row(
            *_numbers(row),
            escape(row.netns),
            *(escape(part or "") for part in place),
            _what(words, count, symbols),
            "" if talker is None else f"{talker.source}{_percent(talker)}",
            "" if talker is None else f"{talker.destination} {talker.proto}",
        )


def _add_narrow(table: Table, rows: Sequence[DropRow], symbols: Symbols) -> None:
    table.add_column("netns", overflow="fold")
    table.add_column("where and why", ratio=1, overflow="fold")
    for row in rows:
        count, parts = row.count, list[Any]()
        place = [part for part in (count.hook, count.table, row.rule.chain) if part]
        if place:
            parts.append(Text(escape(f" {symbols.inside} ".join(place)), style=PLACE))
        lines = [_what(row.words, count, symbols)]
        if row.talker is not None:
            pair = f"{_pair(row.talker, symbols.arrow)}{_percent(row.talker)}"
            lines.append(Text(pair, style=QUIET))
        told = Text("\n").join(lines)
        # Below a place, so that long rules stay apart from the next place.
        parts.append(Padding(told, (0, 0, 0, 2)) if place else told)
        table.add_row(*_numbers(row), escape(row.netns), Group(*parts))


def _numbers(row: DropRow) -> tuple[str, str]:
    # What is estimated says so; the table's sum is exact all the same.
    about = "~" if row.count.sampled and row.rule.number is not None else ""
    rate = f"{row.rate:,.0f}" if row.rate >= _SMALL or not row.rate else f"{row.rate:.1f}"
    return f"{about}{rate}", f"{about}{row.count.packets:,}"


def _what(words: DropWords, count: DropCount, symbols: Symbols) -> Text:
    text = Text()
    if words.rule:
        text.append(words.rule, style=_DEAD)
        text.append(f"  {words.text}" if words.text else f"  {words.what}")
    else:
        text.append(words.what, style=_DEAD)
    if count.table is None:
        text.append(f"  {count.reason}", style=QUIET)
    if words.doubt:
        text.append(f"  ({words.doubt})", style=WARNING)
    for line in words.candidates:
        text.append(f"\nperhaps {line}", style=WARNING)
    if words.look_at:
        text.append(f"\n{symbols.arrow} {words.look_at}")
    return text


def _pair(talker: Talker, arrow: str) -> str:
    return f"{talker.proto} {talker.source} {arrow} {talker.destination}"


def _percent(talker: Talker) -> str:
    return f" {talker.share:.0%}" if talker.share < 0.995 else ""  # noqa: PLR2004 - rounds to all


def _foot(rows: Sequence[DropRow], seen: Seen) -> Text:
    losses = seen.losses
    missing = [
        f"{number:,} {what}"
        for number, what in (
            (losses.missed, "not seen"),
            (losses.uncounted, "not told apart: too many kinds"),
            (losses.unlocated, "by netfilter at a place that is not known"),
            (losses.stale, "by a table that had just changed"),
            (losses.unplaced, "kinds without a name: too many places"),
            (losses.coarse, "long ago, told less exactly"),
            (losses.unrecorded, "without addresses: too fast to record"),
        )
        if number
    ]
    standing = seen.standing
    text = Text(f"{losses.seen:,} drops on this machine, named by {standing.rung}", style=QUIET)
    if seen.more:
        text = Text(f"{seen.more:,} more kinds of drop, in a higher window or with --once\n") + text
    if not rows and seen.here_only and losses.seen:
        text.append("; of every namespace: --netns all", style=QUIET)
    if any(row.count.sampled for row in rows):
        text.append("; ~ is estimated from a sample", style=QUIET)
    for rung, why in standing.why.items():
        text.append(f"\nnot {rung}: {escape(why)}", style=QUIET)
    for note in standing.notes:
        text.append(f"\n{escape(note)}", style=WARNING)
    if missing:
        text.append(f"\n{'; '.join(missing)}", style=WARNING)
    return text

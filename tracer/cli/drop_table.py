"""How drops are told: a table for people, one JSON object a row for programs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tracer.cli.render_safe import escape
from tracer.core.drop_reasons import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from tracer.cli.drop_names import RuleName
    from tracer.core.drops import DropCount
    from tracer.sources.drops import DropLosses, Standing

__all__ = ["DropRow", "render_json", "render_table"]


@dataclass(frozen=True, slots=True)
class DropRow:
    """
    One line of the table: a kind of drop, its namespace's name, and what is known of it.

    Units: *rate* packets a second over the last interval, *since* packets in it.
    """

    count: DropCount
    netns: str
    rate: float
    since: int
    rule: RuleName
    talkers: str | None


def render_json(out: IO[str], rows: Sequence[DropRow], standing: Standing) -> None:
    """Write `nftrace.drops/1`, one object a line, and flush."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for row in rows:
        count, words = row.count, explain(row.count.reason)
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
            "candidates": list(row.rule.candidates),
            "packets": count.packets,
            "bytes": count.octets,
            "rate": round(row.rate, 1),
            "top": row.talkers,
        }
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
    out.flush()


def render_table(
    rows: Sequence[DropRow], losses: DropLosses, standing: Standing, console: Console
) -> RenderableType:
    """Return the table, and below it what is not in it."""
    if not rows:
        return Group(Text("nothing was dropped yet", style="dim"), _foot(losses, standing))
    table = Table(box=None, pad_edge=False, header_style="bold", expand=console.width < 100)  # noqa: PLR2004 - columns of a wide terminal
    table.add_column("per s", justify="right", no_wrap=True)
    table.add_column("total", justify="right", no_wrap=True)
    table.add_column("netns", no_wrap=True)
    table.add_column("where and why", ratio=1, overflow="fold")
    for row in rows:
        rate = f"{row.rate:,.0f}" if row.rate >= 10 or not row.rate else f"{row.rate:.1f}"  # noqa: PLR2004
        table.add_row(rate, f"{row.count.packets:,}", escape(row.netns), _where(row))
    return Group(table, _foot(losses, standing))


def _where(row: DropRow) -> Text:
    count, text = row.count, Text()
    words = explain(count.reason)
    if count.table is not None:
        place = [count.hook or "", count.table, row.rule.chain or ""]
        text.append(escape(" ".join(part for part in place if part)), style="cyan")
        text.append(_which(row), style="bold red")
        for line in row.rule.candidates:
            text.append(f"\n  perhaps {escape(line)}", style="yellow")
    elif count.engine == "hook":
        text.append(f"{count.hook}, a netfilter hook that is no table's", style="cyan")
        text.append("\n  connection tracking full? sysctl net.netfilter.nf_conntrack_max")
    else:
        text.append(words.what, style="bold red")
        text.append(f"  {count.reason}", style="dim")
        if words.look_at:
            text.append(f"\n  look at: {words.look_at}")
    if row.talkers:
        text.append(f"\n  {row.talkers}", style="dim")
    return text


def _which(row: DropRow) -> str:
    if row.count.kind == "policy":
        return "  policy"
    if row.rule.number is None:
        handle = row.count.handle
        return "  one of its rules" if handle is None else f"  the rule with handle {handle}"
    doubt = "" if row.count.certain else " (or another that dropped at that moment)"
    return f"  rule {row.rule.number}  {escape(row.rule.text or '')}{doubt}"


def _foot(losses: DropLosses, standing: Standing) -> Text:
    missing = [
        f"{number} {what}"
        for number, what in (
            (losses.missed, "not seen"),
            (losses.uncounted, "not told apart: too many kinds"),
            (losses.unlocated, "by netfilter at a place that is not known"),
        )
        if number
    ]
    said = f"; {', '.join(missing)}" if missing else ""
    lines = [
        f"{losses.seen:,} drops on this machine, named by {standing.rung}{said}",
        *(f"not {rung}: {why}" for rung, why in standing.why.items()),
        *standing.notes,
    ]
    return Text("\n".join(map(escape, lines)), style="dim")

"""
A timeline as one page that needs nothing else: no network, no scripts, no fonts of its own.

It reads on a phone and in a dark room: its widths are relative and its colours follow what
the reader's system says. Whatever comes from rules, commands and names is text and never
markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exporters.html_parts import Mark, bars, flow_rows, safe, way
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
    what_happened,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.core.timeline_events import Cause, Killer, Timeline

__all__ = ["render_page"]

_KILLERS: Final = 10
_FLOWS: Final = 12
_DIFF: Final = 40
_CHANGES: Final = 200
_OTHERS: Final = 4

_STYLE: Final = """
:root{color-scheme:light dark;--back:#fff;--text:#1c1e21;--quiet:#5c6370;--line:#d5d9e0;
--box:#f5f6f8;--bad:#b3261e;--good:#17692f;--cause:#1b5fc4}
@media (prefers-color-scheme:dark){:root{--back:#121417;--text:#e4e6ea;--quiet:#9aa2ae;
--line:#343a43;--box:#1c2026;--bad:#ff8a80;--good:#6bd48a;--cause:#8ab4f8}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--back);color:var(--text);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.1rem;margin:0}h2{font-size:1.25rem;line-height:1.3;margin:1.5rem 0 .5rem}
h3{font-size:.95rem;margin:1.25rem 0 .25rem;color:var(--quiet)}
p{margin:.25rem 0}.quiet{color:var(--quiet)}
.bad{color:var(--bad)}.good{color:var(--good)}.cause{color:var(--cause)}
pre,code,.flow{font:.875rem/1.5 ui-monospace,monospace}
pre{background:var(--box);border:1px solid var(--line);border-radius:.4rem;padding:.5rem .75rem;
margin:.5rem 0;white-space:pre-wrap}
.add{color:var(--good)}.del{color:var(--bad)}
.chart{position:relative;height:10rem;margin-top:2rem;border-bottom:1px solid var(--line)}
.chart svg{width:100%;height:100%;display:block;fill:var(--bad)}
.mark{position:absolute;top:0;bottom:0;border-left:2px dashed var(--quiet)}
.mark.cause{border-color:var(--cause)}.mark.fix{border-color:var(--good)}
.mark b{position:absolute;top:-1.6rem;left:-.7rem;min-width:1.4rem;text-align:center;
font-size:.8rem;line-height:1.4rem;border-radius:.7rem;background:var(--quiet);color:var(--back)}
.mark.cause b{background:var(--cause)}.mark.fix b{background:var(--good)}
p>b{display:inline-block;min-width:1.4rem;text-align:center;font-size:.8rem;line-height:1.4rem;
border-radius:.7rem;background:currentColor}p>b>span{color:var(--back)}
.ends{display:flex;justify-content:space-between;font-size:.8rem;color:var(--quiet)}
ol.way{list-style:none;display:flex;flex-wrap:wrap;gap:.5rem;padding:0;margin:.5rem 0;
align-items:flex-start}
.way>li{flex:1 1 8rem;border:1px solid var(--line);border-radius:.4rem;padding:.5rem .75rem}
.way>.died{flex:4 1 16rem;border:2px solid var(--bad)}.way .died>b{color:var(--bad)}
.way .passed>b{color:var(--good)}.way .unreached{border-style:dashed;color:var(--quiet)}
@media (max-width:40rem){.way>li,.way>.died{flex-basis:100%}}
.way i{display:block;font-size:.8rem}
ol.rules{margin:.25rem 0 0;padding-left:2rem}.rules .kills{color:var(--bad);font-weight:700}
ul.flows{list-style:none;padding:0;margin:.5rem 0}
.flows li{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr) auto;gap:.75rem;
align-items:center;padding:.15rem 0}
.bar{height:.7rem;background:var(--bad);border-radius:.2rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}
td{border-top:1px solid var(--line);padding:.3rem .5rem .3rem 0;vertical-align:top}
td:first-child{white-space:nowrap}
"""


def render_page(timeline: Timeline, asked: str) -> str:
    """Return the page; *asked* is what the timeline is about, in words."""
    clock = Clock(None, timeline.since_ns, timeline.until_ns)
    span = f"{clock.day(timeline.since_ns)} to {clock.day(timeline.until_ns)}"
    parts = [f'<h1>nftrace timeline</h1><p class="quiet">{safe(asked)}, {safe(span)}</p>']
    if not timeline.killers:
        parts.append("<h2>No drop in this time</h2>")
    parts += [_killer(one, timeline, clock) for one in timeline.killers[:_KILLERS]]
    if len(timeline.killers) > _KILLERS:
        parts.append(f"<p>{len(timeline.killers) - _KILLERS} more places are not shown.</p>")
    parts.append(_survivors(timeline))
    parts.append(_changes(timeline, clock))
    parts += [f'<p class="bad">Not told: {safe(loss_words(one))}</p>' for one in timeline.losses]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>nftrace: {safe(asked)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _killer(killer: Killer, timeline: Timeline, clock: Clock) -> str:
    title = f"{killer_words(killer)} died in {place_words(killer)}"
    last = f", last {clock.time(killer.last_ns)}" if killer.packets > 1 else ""
    tone = "good" if killer.state == State.OVER else "bad"
    bucket_s = timeline.width_ns / 1e9
    ended = _sentence(end_words(killer, clock, timeline.seen_until_ns))
    parts = [
        f'<section><h2 class="{"quiet" if killer.is_expected else "bad"}">✗ {safe(title)}</h2>',
        f"<p>{safe(_sentence(expected_words(killer)))}</p>" * killer.is_expected,
        f"<p>Began {safe(clock.time(killer.first_ns) + last)}.</p>",
        _cause(killer, clock),
        f'<p class="{tone}">{_number(2) if killer.fix else ""}{safe(ended)}</p>',
        f"<h3>Drops over time, {max(killer.series):,} at most in {bucket_s:.3g} s</h3>",
        bars(
            killer.series,
            _marks(killer, timeline, clock),
            (clock.time(timeline.since_ns), clock.time(timeline.until_ns)),
            title,
        ),
        "<h3>Where on its way</h3>",
        way(killer.place.hook, _inner(killer)),
        _flows(killer, timeline),
    ]
    if killer.inferred:
        parts.append(
            f'<p class="quiet">Of these, {killer.inferred:,} died by the same table; '
            "that it was this rule is inferred.</p>"
        )
    return "".join([*parts, "</section>"])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _cause(killer: Killer, clock: Clock) -> str:
    cause = killer.cause
    parts = []
    if killer.stood and (cause is None or not cause.brought):
        parts.append("<p>The rule stood when the log begins.</p>")
    if cause is None:
        return "".join(parts) or "<p>No change came before it.</p>"
    word = "Because" if cause.brought else "Perhaps because"
    said = safe(_candidate(cause, killer, clock))
    parts.append(f'<p class="cause">{_number(1)}{word} {said}.</p>')
    text = None if killer.rule is None else killer.rule.text
    lines = [_diff_line(one) for one in diff_lines(cause.diff, killer.chain, text, _DIFF)]
    parts += [f"<pre>{chr(10).join(lines)}</pre>"] * bool(lines)
    others = [f"<li>{safe(_candidate(o, killer, clock))}</li>" for o in killer.others[:_OTHERS]]
    if others:
        parts.append(
            f"<details><summary>Other changes</summary><ul>{''.join(others)}</ul></details>"
        )
    return "".join(parts)


def _number(number: int) -> str:
    """Return the number that a change has in the picture."""
    return f"<b><span>{number}</span></b> "


def _candidate(cause: Cause, killer: Killer, clock: Clock) -> str:
    by = doer(cause.change)
    said = what_happened(cause, killer.chain)
    return f"{said} at {clock.time(cause.change.time_ns)}{f' by {by}' if by else ''}"


def _diff_line(line: str) -> str:
    kind = {"+": "add", "-": "del"}.get(line[:1])
    return f'<span class="{kind}">{safe(line)}</span>' if kind else safe(line)


def _marks(killer: Killer, timeline: Timeline, clock: Clock) -> Iterable[Mark]:
    span = max(1, timeline.until_ns - timeline.since_ns)
    listed = [("other", "", one) for one in killer.others[:_OTHERS]]
    listed += [("cause", "1", killer.cause)] if killer.cause else []
    listed += [("fix", "2", killer.fix)] if killer.fix else []
    for kind, label, cause in listed:
        time_ns = cause.change.time_ns
        if timeline.since_ns <= time_ns <= timeline.until_ns:
            at = (time_ns - timeline.since_ns) / span
            yield Mark(at, kind, label or "·", _candidate(cause, killer, clock))


def _inner(killer: Killer) -> str:
    place = killer.place
    if not place.table:
        return f"<p>{safe(place.reason)}</p>"
    names = [one for one in dict.fromkeys((killer.base, killer.chain)) if one]
    where = f"{place.netns}, table {place.table}: {' › '.join(names)}"  # noqa: RUF001 - meant
    rules = [f"<li><code>{safe(rule.text)}</code></li>" for rule in killer.before]
    if killer.rule is not None:
        rules.append(f'<li class="kills"><code>{safe(killer.rule.text)}</code></li>')
    listed = f'<ol class="rules">{"".join(rules)}</ol>' if rules else ""
    policy = "<p>its policy</p>" if place.kind == "policy" else ""
    return f"<p>{safe(where)}</p>{listed}{policy}"


def _flows(killer: Killer, timeline: Timeline) -> str:
    rows = []
    for flow in killer.flows[:_FLOWS]:
        to = f"{flow.dst}:{flow.dport}" if flow.dport else flow.dst
        rows.append((f"{flow.proto} {flow.src} → {to}", flow.packets))
    if not rows:
        return ""
    left = len(killer.flows) - len(rows)
    more = f'<p class="quiet">and {left:,} more</p>' if left > 0 else ""
    if timeline.is_cut:
        more += '<p class="quiet">There are more flows than were looked at.</p>'
    return f"<h3>Flows that were hurt</h3>{flow_rows(rows)}{more}"


def _survivors(timeline: Timeline) -> str:
    rows = []
    for one in timeline.survivors[:_FLOWS]:
        to = f"{one.dst}:{one.dport}" if one.dport else one.dst
        rows.append((f"{one.proto} {one.src} → {to}, {one.ending}", one.packets))
    return f"<h3>Flows of the same kind that were not</h3>{flow_rows(rows)}" if rows else ""


def _changes(timeline: Timeline, clock: Clock) -> str:
    rows = []
    for one in timeline.changes[-_CHANGES:]:
        change = one.change
        by = doer(change)
        where = f"{change.netns}: " if change.netns else ""
        said = safe(f"{where}{change_words(change, one.diff)}")
        who = f'<br><span class="quiet">{safe(by)}</span>' if by else ""
        tone = ' class="bad"' if change.what == "clock" else ""
        when = safe(clock.time(change.time_ns))
        rows.append(f"<tr{tone}><td>{when}</td><td>{said}{who}</td></tr>")
    return f"<h3>What changed</h3><table>{''.join(rows)}</table>" if rows else ""

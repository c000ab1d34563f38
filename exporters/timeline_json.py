"""A timeline as one line of JSON: `nftrace.timeline/1`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tracer.core.timeline_events import doer, doer_parents
from tracer.core.timeline_words import Clock, killer_words, place_words, what_happened

if TYPE_CHECKING:
    from tracer.core.log_rows import Change
    from tracer.core.timeline_blame import Blame
    from tracer.core.timeline_events import Cause, FlowDrops, Killer, Survivors, Timeline

__all__ = ["render_blame", "render_change", "render_timeline"]


def render_timeline(timeline: Timeline) -> str:
    """Return the timeline as one line; times are RFC 3339 in UTC."""
    clock = Clock(None, timeline.since_ns, timeline.until_ns)
    told = {
        "schema": "nftrace.timeline/1",
        "since": clock.date_time(timeline.since_ns),
        "until": clock.date_time(timeline.until_ns),
        "seen_until": clock.date_time(timeline.seen_until_ns),
        "bucket_s": timeline.width_ns / 1e9,
        "killers": [_killer(killer, clock) for killer in timeline.killers],
        "changes": [render_change(one.change) for one in timeline.changes],
        "survivors": [_survivors(one, clock) for one in timeline.survivors],
        "losses": [
            {"source": one.source, "what": one.what, "count": one.count, "unit": one.unit}
            for one in timeline.losses
        ],
        "flows_complete": not timeline.is_cut,
    }
    # Names come from whoever could give them: what was no UTF-8 stays an escape.
    return json.dumps(told, separators=(",", ":"))


def render_change(change: Change) -> dict[str, Any]:
    """Return a change; of a ruleset *before* and *after* are the names of its versions."""
    clock = Clock(None, change.time_ns, change.time_ns)
    return {
        "time": clock.date_time(change.time_ns),
        "netns": change.netns or None,
        "what": change.what,
        "action": change.action,
        "engine": change.engine or None,
        "subject": change.subject,
        "before": change.before or None,
        "after": change.after or None,
        "pid": change.pid or None,
        "process": change.process or None,
        "command": change.command or None,
        "parents": doer_parents(change),
        "by": doer(change) or None,
    }


def render_blame(blame: Blame) -> dict[str, Any]:
    """Return one rule and who brought it, `nftrace.blame/1`."""
    netns, engine, family, table = blame.key
    clock = Clock(None, blame.since_ns, blame.since_ns)
    return {
        "schema": "nftrace.blame/1",
        "netns": netns,
        "engine": engine,
        "family": family,
        "table": table,
        "chain": blame.chain,
        "rule": blame.rule.number,
        "handle": blame.rule.handle,
        "text": blame.rule.text,
        "since": clock.date_time(blame.since_ns),
        "brought": None if blame.brought is None else render_change(blame.brought),
        "was": list(blame.was),
        "packets": blame.packets,
        "last": clock.date_time(blame.last_ns) if blame.last_ns else None,
    }


def _killer(killer: Killer, clock: Clock) -> dict[str, Any]:
    place = killer.place
    return {
        "said": f"{killer_words(killer)} died in {place_words(killer)}",
        "netns": place.netns,
        "kind": place.kind,
        "hook": place.hook or None,
        "engine": place.engine or None,
        "family": place.family or None,
        "table": place.table or None,
        "base_chain": killer.base or None,
        "chain": killer.chain or None,
        "rule": killer.rule.number if killer.rule else place.rule or None,
        "handle": killer.rule.handle if killer.rule else place.handle or None,
        "text": killer.rule.text if killer.rule else None,
        "reason": place.reason or None,
        "packets": killer.packets,
        "syns": killer.syns,
        "clients": killer.clients,
        "inferred": killer.inferred,
        "expected": killer.expected,
        "first": clock.date_time(killer.first_ns),
        "last": clock.date_time(killer.last_ns),
        "series": list(killer.series),
        "flows": [_flow(flow, clock) for flow in killer.flows],
        "rules_before": [rule.text for rule in killer.before],
        "stood": killer.stood,
        "cause": _cause(killer.cause, killer),
        "others": [_cause(one, killer) for one in killer.others],
        "state": killer.state,
        "fix": _cause(killer.fix, killer),
    }


def _cause(cause: Cause | None, killer: Killer) -> dict[str, Any] | None:
    if cause is None:
        return None
    return {
        **render_change(cause.change),
        "said": what_happened(cause, killer.chain),
        "why": cause.why,
        "fit": cause.fit,
        "brought": cause.brought,
        "diff": {
            "chains_added": list(cause.diff.chains_added),
            "chains_removed": list(cause.diff.chains_removed),
            "policies": {name: list(both) for name, both in cause.diff.policies.items()},
            "rules": [
                {"sign": o.sign, "chain": o.chain, "rule": o.number, "text": o.text}
                for o in cause.diff.lines
            ],
        },
    }


def _flow(flow: FlowDrops, clock: Clock) -> dict[str, Any]:
    return {
        "proto": flow.proto,
        "src": flow.src or None,
        "dst": flow.dst or None,
        "dport": flow.dport or None,
        "packets": flow.packets,
        "first": clock.date_time(flow.first_ns),
        "last": clock.date_time(flow.last_ns),
    }


def _survivors(one: Survivors, clock: Clock) -> dict[str, Any]:
    return {
        "proto": one.proto,
        "src": one.src or None,
        "dst": one.dst or None,
        "dport": one.dport or None,
        "ending": one.ending,
        "packets": one.packets,
        "last": clock.date_time(one.last_ns),
    }

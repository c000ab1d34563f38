"""
What wakes people, and what it says to them: the one source of all alert rules.

An alert's value is a number that its summary tells. In summaries and descriptions
`{value}` is that number and any other `{word}` the label of that name; each writer puts
its own template language there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dashboards.promql import DROPPING, TARGET, as_sum, count_new, with_text

__all__ = ["ALERTS", "Alert", "Pace", "make_alerts"]

_RULE: Final = "nftrace_rule_packets_total"
_POLICY: Final = "nftrace_policy_drops_total"
_DROPS: Final = "nftrace_drops_total"
_UNEXPECTED: Final = 'expected="false"'
#: Reasons that busy hosts have all day and that no packet of a connection died from:
#: frames to others, what nobody listens to, a TCP that tidies up.
_EVERYDAY: Final = "OTHERHOST|NO_SOCKET|SOCKET_FILTER|UNHANDLED_PROTO|TCP_.*"
#: Outside a rule or policy: engine is hook where another hook, as conntrack's, dropped.
_OUTSIDE: Final = f'engine=~"|hook", {_UNEXPECTED}, reason!~"{_EVERYDAY}"'


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How far alerts look back, in Prometheus' words.

    *window* is now, *fresh* how long a rule that drops is called new, *quiet* how long it
    must have been silent before that, *past* what is usual, *wait* how long a state must
    last.
    """

    window: str = "5m"
    fresh: str = "15m"
    quiet: str = "1h"
    past: str = "1d"
    wait: str = "2m"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule; it fires for each series that *expr* returns; *wait* is its `for`."""

    name: str
    expr: str
    wait: str
    severity: str
    summary: str
    description: str

    @property
    def runbook(self) -> str:
        """The section of the runbook, as a link within the repository."""
        return f"docs/alerts.md#{self.name.lower()}"


_AT_RULE: Final = "{table} {chain}, rule {rule}: {text}"


def make_alerts(pace: Pace) -> tuple[Alert, ...]:
    """Return all alerts at *pace*."""
    return (
        _unexpected_in_mangle(pace),
        _new_dropping_rule(pace),
        _far_above_its_past(pace),
        _policy_drops(pace),
        _outside_netfilter(pace),
        *_blind(pace),
    )


def _rise(selector: str, window: str) -> str:
    return as_sum(_RULE, count_new(_RULE, f"{selector}, {DROPPING}", window))


def _there_since(ago: str) -> str:
    """Demand that the daemon was scraped that long *ago*: what it saw first is not new."""
    return f"and on ({TARGET}) last_over_time(nftrace_build_info[1m] offset {ago})"


def _unexpected_in_mangle(pace: Pace) -> Alert:
    rise = _rise(f'table="mangle", {_UNEXPECTED}', pace.window)
    return Alert(
        "NftraceUnexpectedDropInMangle",
        with_text(f"{rise} > 0"),
        "0s",
        "critical",
        f"{{instance}}, netns {{netns}}: packets dropped by {_AT_RULE}"
        f" ({{value}} in {pace.window})",
        "mangle is for marking; packets that die there die before NAT and routing, and"
        " nobody looks for them there. No [[expected]] entry names this rule.",
    )


def _new_dropping_rule(pace: Pace) -> Alert:
    chosen = f"{_RULE}{{{_UNEXPECTED}, {DROPPING}}}"
    rise = f"{_rise(_UNEXPECTED, pace.fresh)} > 0"
    # Values never fall: what was 0 in the window was 0 ever before.
    at_zero = as_sum(_RULE, f"min_over_time({chosen}[{pace.fresh}])")
    began = as_sum(_RULE, f"{chosen} unless ignoring (expected) {_RULE} offset {pace.fresh}")
    first = f"(\n{rise}\n) and (\n{at_zero} == 0 or {began} {_there_since(pace.fresh)}\n)"
    lately = as_sum(_RULE, f"increase({_RULE}{{{DROPPING}}}[{pace.quiet}] offset {pace.fresh})")
    changed = f"increase(nftrace_ruleset_changes_total[{pace.fresh}]) > 0"
    long_ago = f"{_seconds(pace.fresh) + _seconds(pace.quiet)}s"
    again = (
        f"(\n{rise} unless {lately} > 0\n)"
        f" and on ({TARGET}, netns) {changed} {_there_since(long_ago)}"
    )
    return Alert(
        "NftraceNewDroppingRule",
        with_text(f"{first}\nor {again}"),
        "0s",
        "warning",
        f"{{instance}}, netns {{netns}}: a rule that did not drop before does: {_AT_RULE}"
        f" ({{value}} in {pace.fresh})",
        "The rule never dropped before, or not in the hour before the ruleset changed and"
        " does since.",
    )


def _far_above_its_past(pace: Pace) -> Alert:
    chosen = f"{_RULE}{{{_UNEXPECTED}, {DROPPING}}}"
    now = as_sum(_RULE, f"rate({chosen}[{pace.window}])")
    past = as_sum(_RULE, "\nor\n".join(_mean(chosen, share, pace) for share in (1, 24)))
    return Alert(
        "NftraceDropRateFarAbovePast",
        with_text(f"(\n{now} > 10 * {past}\n) > 1"),
        pace.wait,
        "warning",
        f"{{instance}}, netns {{netns}}: far more dropped than usual by {_AT_RULE} ({{value}}/s)",
        "That is more than ten times what this rule dropped over the day before, or over the"
        " hour before where a day is not known.",
    )


def _mean(chosen: str, share: int, pace: Pace) -> str:
    """
    Return the rate over one *share*th of the past, where that long is known.

    By two values instead of `rate()`, which would read every sample of a day. Values fall
    only where counters began anew, and that is no past to be compared with.
    """
    span_s = _seconds(pace.past) // share
    ago_s = _seconds(pace.window)
    return f"({chosen} offset {ago_s}s - {chosen} offset {ago_s + span_s}s >= 0) / {span_s}"


def _policy_drops(pace: Pace) -> Alert:
    rise = as_sum(_POLICY, count_new(_POLICY, _UNEXPECTED, pace.window))
    return Alert(
        "NftracePolicyDrops",
        f"{rise} > 0",
        "0s",
        "warning",
        "{instance}, netns {netns}: packets dropped by the policy of {table} {chain}"
        f" ({{value}} in {pace.window})",
        "No rule of the chain took them. Where that is meant, an [[expected]] entry with"
        ' text = "policy" says so.',
    )


def _outside_netfilter(pace: Pace) -> Alert:
    sides = ("engine", "family", "hook", "table", "expected")
    now = as_sum(_DROPS, count_new(_DROPS, _OUTSIDE, pace.window), aside=sides)
    past = as_sum(
        _DROPS,
        f"rate({_DROPS}{{{_OUTSIDE}}}[{pace.quiet}] offset {pace.window})",
        aside=sides,
    )
    usual = f"{past} * {_seconds(pace.window)}"
    return Alert(
        "NftraceDropsOutsideNetfilterRose",
        f"(\n{now} > 10\n) unless (\n{now} <= 3 * {usual}\n) {_there_since(pace.window)}",
        "0s",
        "warning",
        "{instance}, netns {netns}: packets dropped by the kernel itself: {reason}"
        f" ({{value}} in {pace.window})",
        "No rule did this: no route, the reverse path filter, a full conntrack table, an"
        " unanswered neighbour. More than three times as many as in the hour before.",
    )


def _blind(pace: Pace) -> tuple[Alert, ...]:
    known = "last_over_time(nftrace_build_info[1d])"
    return (
        Alert(
            "NftraceDown",
            f"up == 0 and on ({TARGET}) {known}",
            pace.wait,
            "critical",
            "{instance}: nftrace does not answer; nobody watches what dies there",
            "Prometheus cannot scrape a daemon that it scraped within the last day.",
        ),
        Alert(
            "NftraceSourceDown",
            "nftrace_source_up == 0",
            pace.wait,
            "critical",
            "{instance}: nftrace sees nothing of {source} (netns {netns}; none: all)",
            "The daemon runs, but one of its sources does not tell what it should.",
        ),
        Alert(
            "NftraceEventsLost",
            f"increase(nftrace_events_lost_total[{pace.window}]) > 0",
            "0s",
            "warning",
            "{instance}: nftrace lost {value} events of {source} (netns {netns}; none: all)",
            "Drops may be missing from the metrics and from what is told of them.",
        ),
        Alert(
            "NftraceTablesNotTold",
            "nftrace_tables_skipped > 0",
            pace.wait,
            "warning",
            "{instance}: nftrace tells nothing of the rules of {value} tables: there are too many",
            "A drop in one of them is counted by place and reason only.",
        ),
    )


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(duration: str) -> int:
    return int(duration[:-1]) * _UNITS[duration[-1]]


#: As they are committed.
ALERTS: Final = make_alerts(Pace())

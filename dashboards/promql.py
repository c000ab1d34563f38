"""
Expressions of Prometheus that alerts and panels have in common.

A series that begins at 3 has no increase: Prometheus saw no 0 before it. Drops of a kind
that never occurred have no series, so what is new is worth the most and `increase()` tells
nothing of it. Here such a beginning is an increase from 0, where the daemon was scraped
before it: `count_new()` demands that at the window's start and is for alerts; `count_in()`
at any time in it and is for panels, whose window may be longer than the daemon's life.
"""

from __future__ import annotations

from typing import Final

from exporters.prometheus_metrics import BY_NAME

__all__ = ["DROPPING", "TARGET", "as_sum", "count_in", "count_new", "rate_in", "with_text"]

#: What tells one daemon from another.
TARGET: Final = "job, instance"
#: What a rule that drops says of itself.
DROPPING: Final = 'verdict=~"drop|reject"'

#: Labels that say how a number was come by, or what is thought of it: not what it is about.
_ASIDE: Final = ("source", "verdict", "expected", "family", "hook")
_RULE_ASIDE: Final = ("source", "verdict", "expected")
_READABLE: Final = "rule, text, comment"
_NO_TEXT: Final = "(gone, or counted together with others)"


def as_sum(metric: str, inner: str, *, aside: tuple[str, ...] | None = None) -> str:
    """Sum *inner*, made from *metric*, over the labels that say nothing of the place."""
    if aside is None:
        aside = _ASIDE if metric.startswith("nftrace_drop") else _RULE_ASIDE
    labels = [label for label in BY_NAME[metric].labels if label in aside]
    return f"sum without ({', '.join(labels)}) (\n{_indent(inner)}\n)"


def count_new(metric: str, selector: str, window: str) -> str:
    """
    Return what *metric* counted in *window*, series that began in it from 0 on.

    `expected` may change with the configuration: that is no beginning.
    """
    chosen = f"{metric}{{{selector}}}"
    seen_before = f"nftrace_build_info offset {window}"
    return (
        f"(\n  {chosen} unless ignoring (expected) {metric} offset {window}\n)"
        f" and on ({TARGET}) {seen_before}\nor\nincrease({chosen}[{window}])"
    )


def count_in(metric: str, selector: str, window: str) -> str:
    """Return what *metric* counted in *window*, or in as much of it as was scraped."""
    chosen = f"{metric}{{{selector}}}"
    scrapes = f"sum by ({TARGET}) (count_over_time(nftrace_build_info[{window}]))"
    began = (
        f"(\n  min_over_time({chosen}[{window}])"
        f" unless ignoring (expected) {metric} offset {window}\n)"
        f" and (\n  count_over_time({chosen}[{window}])"
        f" < on ({TARGET}) group_left () {scrapes}\n)"
    )
    rose = f"increase({chosen}[{window}])"
    return f"{rose} + (\n{_indent(began)}\n)\nor\n{rose}"


def rate_in(metric: str, selector: str) -> str:
    """Return the same as a rate, packets or bytes a second, over Grafana's rate interval."""
    counted = count_in(metric, selector, "$__rate_interval")
    return f"(\n{_indent(counted)}\n) / ($__rate_interval_ms / 1000)"


def with_text(value: str, readable: str = _READABLE) -> str:
    """
    Join *value*, one series a rule, with what people read of the rule: labels *readable*.

    Over time a rule's number changes, where another is put above it, and its text does not.

    Where the last scrape has no text, as it was not answered or the rule is gone, it is
    the last one of five minutes; a rule that is counted together with others has none, and
    stays, with a text that says so.
    """
    info = "nftrace_rule_info"
    aside = f"{_READABLE}, verdict, expected"
    without = f"ignoring ({aside})"
    last = f"topk without ({aside}) (1, last_over_time({info}[5m]))"
    known = f"(\n  {info} or {last} unless {without} {info}\n)"
    inner = _indent(value)
    return (
        f"(\n{inner}\n)\n"
        f"* {without} group_left ({readable}) {known}\n"
        f"or label_replace(\n  (\n{_indent(inner)}\n  ) unless {without} {known},\n"
        f'  "text", "{_NO_TEXT}", "", ""\n)'
    )


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())

"""
Expressions of Prometheus that alerts and panels have in common.

A series that begins at 3 has no increase: Prometheus saw no 0 before it. Drops of a kind
that never occurred have no series, so what is new is worth the most and `increase()` tells
nothing of it. `count_new()` takes such a beginning as an increase from 0, where nftrace
was scraped there before.
"""

from __future__ import annotations

from typing import Final

from exporters.prometheus_metrics import BY_NAME

__all__ = ["DROPPING", "TARGET", "as_sum", "count_new", "with_text"]

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


def with_text(value: str) -> str:
    """
    Join *value*, one series a rule, with what people read of the rule.

    A rule that is gone, or counted together with others, stays, with a text that says so.
    """
    without = f"ignoring ({_READABLE}, verdict, expected)"
    inner = _indent(value)
    return (
        f"(\n{inner}\n)\n"
        f"* {without} group_left ({_READABLE}) nftrace_rule_info\n"
        f"or label_replace(\n  (\n{_indent(inner)}\n  ) unless {without} nftrace_rule_info,\n"
        f'  "text", "{_NO_TEXT}", "", ""\n)'
    )


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())

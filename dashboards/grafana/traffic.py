"""The dashboard "Where traffic dies"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.grafana.diagram import make_diagram
from dashboards.grafana.model import HERE, PLACE, layout, make_dashboard, query
from dashboards.grafana.panels import COUNT, GREEN, ORANGE, RED, stat, table, time_series
from dashboards.promql import DROPPING, as_sum, count_in, rate_in, with_text

if TYPE_CHECKING:
    from dashboards.grafana.model import Json

__all__ = ["UID", "make_traffic"]

UID: Final = "nftrace-traffic"
RULE_UID: Final = "nftrace-rule"
_PACKETS: Final = "nftrace_rule_packets_total"
_POLICY: Final = "nftrace_policy_drops_total"
_DROPS: Final = "nftrace_drops_total"
_BYTES: Final = "nftrace_drop_bytes_total"
_DROPPING_HERE: Final = f"{PLACE}, {DROPPING}"
_RULE: Final = f"{_PACKETS}{{{_DROPPING_HERE}}}"
_UNEXPECTED: Final = f'{_DROPPING_HERE}, expected="false"'
_RANGE: Final = "$__range"
_WORST: Final = 50

_COLUMNS: Final = {
    "instance": "Host",
    "netns": "Namespace",
    "table": "Table",
    "chain": "Chain",
    "rule": "Rule",
    "text": "Text",
    "Value #Q1": "Packets",
    "Value #Q2": "Dropped since",
    "Value #Q3": "Last seen dropping",
    "rule_id": "Id",
}
#: In pixels; the text takes what is left.
_WIDTHS: Final = {
    "Host": 100,
    "Namespace": 100,
    "Table": 75,
    "Chain": 195,
    "Rule": 55,
    "Packets": 90,
    "Dropped since": 170,
    "Last seen dropping": 160,
    "Id": 80,
}


def _to_rule() -> Json:
    chosen = "&".join(
        f"var-{name}=${{__data.fields.{label}:percentencode}}"
        for name, label in (
            ("host", "Host"),
            ("netns", "Namespace"),
            ("table", "Table"),
            ("chain", "Chain"),
            ("rule", "Id"),
        )
    )
    return {
        "title": "Show this rule",
        "url": f"/d/{RULE_UID}?${{__url_time_range}}&var-datasource=${{datasource}}&{chosen}",
        "targetBlank": False,
    }


def _seen(edge: str) -> str:
    """Return when in the time shown a rule dropped first (min) or last (max), in ms."""
    dropping = f"timestamp(increase({_RULE}[$__rate_interval]) > 0)"
    times = f"{edge}_over_time(({dropping})[$__range:$__rate_interval])"
    return with_text(f"1000 * {edge} without (source, verdict, expected) (\n  {times}\n)")


def _worst() -> Json:
    counted = as_sum(_PACKETS, count_in(_PACKETS, _DROPPING_HERE, _RANGE))
    return table(
        "Worst rules",
        [
            query(with_text(f"topk({_WORST}, {counted} > 0)"), instant=True, table=True),
            query(_seen("min"), instant=True, table=True),
            query(_seen("max"), instant=True, table=True),
        ],
        _COLUMNS,
        units={
            "Packets": COUNT,
            "Dropped since": "dateTimeAsIso",
            "Last seen dropping": "dateTimeFromNow",
        },
        widths=_WIDTHS,
        sort_by="Packets",
        links={"Text": _to_rule(), "Id": _to_rule()},
        description=(
            "Rules that dropped in the time shown, with when they did first and last in it."
            " The text leads to the rule's own dashboard."
        ),
    )


def _sum_in(metric: str, selector: str) -> str:
    return f"sum(\n{count_in(metric, selector, _RANGE)}\n) or vector(0)"


def _numbers() -> list[tuple[int, Json]]:
    dropped = as_sum(_PACKETS, count_in(_PACKETS, _DROPPING_HERE, _RANGE))
    over_range = "in the time shown"
    warn = ((None, GREEN), (0.5, ORANGE), (1000, RED))
    return [
        (
            6,
            stat(
                f"Packets that died {over_range}",
                [query(_sum_in(_DROPS, HERE), instant=True)],
                unit=COUNT,
                steps=warn,
            ),
        ),
        (
            6,
            stat(
                "By rules that nobody called expected",
                [query(_sum_in(_PACKETS, _UNEXPECTED), instant=True)],
                unit=COUNT,
                steps=warn,
            ),
        ),
        (
            6,
            stat(
                "Rules that dropped",
                [query(f"count({dropped} > 0) or vector(0)", instant=True)],
                unit=COUNT,
                steps=((None, GREEN), (1, ORANGE)),
            ),
        ),
        (
            6,
            stat(
                "By policies",
                [query(_sum_in(_POLICY, PLACE), instant=True)],
                unit=COUNT,
                steps=warn,
            ),
        ),
    ]


def _over_time() -> list[tuple[int, Json]]:
    by_reason = f"sum by (netns, reason) (\n{rate_in(_DROPS, HERE)}\n) > 0"
    top = f"topk(10, {as_sum(_PACKETS, rate_in(_PACKETS, _DROPPING_HERE))} > 0)"
    return [
        (
            12,
            time_series(
                "Drops by reason",
                [query(by_reason, "{{netns}} {{reason}}")],
                stacked=True,
                description="Every packet that the kernel dropped, netfilter or not.",
            ),
        ),
        (
            12,
            time_series(
                "Drops by rule",
                [query(with_text(top, "text"), "{{netns}} {{table}} {{chain}}: {{text}}")],
                description="Ten worst at each moment, by the rules' counters.",
            ),
        ),
    ]


def _by_place() -> list[tuple[int, Json]]:
    by_table = f"sum by (netns, hook, table) (\n{rate_in(_DROPS, HERE)}\n) > 0"
    by_place = f'label_replace(\n{by_table},\n"hook", "kernel itself", "hook", "")'
    policies = as_sum(_POLICY, rate_in(_POLICY, PLACE))
    return [
        (
            8,
            time_series(
                "Drops by hook and table",
                [query(by_place, "{{netns}} {{hook}} {{table}}")],
                stacked=True,
            ),
        ),
        (
            8,
            time_series(
                "Bytes that died",
                [query(f"sum by (netns) (\n{rate_in(_BYTES, HERE)}\n)", "{{netns}}")],
                unit="Bps",
                stacked=True,
            ),
        ),
        (
            8,
            time_series(
                "Drops by policy", [query(policies, "{{netns}} {{table}} {{chain}}")], stacked=True
            ),
        ),
    ]


def make_traffic() -> Json:
    """Return the dashboard."""
    rows = [
        (12, [(24, make_diagram())]),
        (4, _numbers()),
        (9, [(24, _worst())]),
        (10, _over_time()),
        (9, _by_place()),
    ]
    return make_dashboard(
        UID,
        "Where traffic dies",
        "Which packets die on these hosts, where, by which rule, and since when.",
        layout(rows),
    )

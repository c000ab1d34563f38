"""The dashboard "One rule"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.grafana.model import PLACE, layout, make_dashboard, query, variable
from dashboards.grafana.panels import COUNT, ORANGE, stat, table, time_series
from dashboards.grafana.traffic import RULE_UID
from dashboards.promql import as_sum

if TYPE_CHECKING:
    from dashboards.grafana.model import Json

__all__ = ["make_one_rule"]

_CHOSEN: Final = f'{PLACE}, rule_id=~"$rule"'
_PACKETS: Final = "nftrace_rule_packets_total"
_BYTES: Final = "nftrace_rule_bytes_total"
_COLUMNS: Final = {
    "instance": "Host",
    "netns": "Namespace",
    "engine": "Engine",
    "family": "Family",
    "table": "Table",
    "chain": "Chain",
    "rule": "Rule",
    "text": "Text",
    "comment": "Comment",
    "verdict": "Verdict",
    "expected": "Expected",
}
#: In pixels; text and comment take what is left.
_WIDTHS: Final = {
    "Host": 110,
    "Namespace": 100,
    "Engine": 80,
    "Family": 70,
    "Table": 80,
    "Chain": 210,
    "Rule": 70,
    "Verdict": 80,
    "Expected": 90,
}


def _rule_variable() -> Json:
    """Offer rules by their texts; the value is the id, which no text is."""
    regex = r'/rule_id="(?<value>[^"]+)".*text="(?<text>(?:[^"\\]|\\.)*)"/'
    asked = f"query_result(nftrace_rule_info{{{PLACE}}})"
    return variable("rule", "Rule", asked, many=False, regex=regex)


def _numbers() -> list[tuple[int, Json]]:
    packets = as_sum(_PACKETS, f"{_PACKETS}{{{_CHOSEN}}}")
    octets = as_sum(_BYTES, f"{_BYTES}{{{_CHOSEN}}}")
    started = f"timestamp(increase({_PACKETS}{{{_CHOSEN}}}[$__rate_interval]) > 0)"
    first = f"min(min_over_time(({started})[$__range:$__rate_interval])) * 1000"
    last = f"max(max_over_time(({started})[$__range:$__rate_interval])) * 1000"
    steps = ((None, ORANGE),)
    return [
        (
            6,
            stat(
                "Packets, all in all",
                [query(packets, instant=True)],
                unit=COUNT,
                steps=steps,
                description="As iptables-save -c counts them, across reloads of the ruleset.",
            ),
        ),
        (6, stat("Bytes, all in all", [query(octets, instant=True)], unit="bytes", steps=steps)),
        (
            6,
            stat(
                "First in the time shown",
                [query(first, instant=True)],
                unit="dateTimeAsIso",
                steps=steps,
            ),
        ),
        (
            6,
            stat(
                "Last in the time shown",
                [query(last, instant=True)],
                unit="dateTimeFromNow",
                steps=steps,
            ),
        ),
    ]


def _over_time() -> list[tuple[int, Json]]:
    packets = as_sum(_PACKETS, f"rate({_PACKETS}{{{_CHOSEN}}}[$__rate_interval])")
    octets = as_sum(_BYTES, f"rate({_BYTES}{{{_CHOSEN}}}[$__rate_interval])")
    target = query(packets, "{{instance}} {{netns}} {{table}} {{chain}}")
    target["exemplar"] = True
    of_table = PLACE.rsplit(", ", 1)[0]
    # It has no series where that never was.
    resets = (
        f"increase(nftrace_rule_counter_resets_total{{{of_table}}}[5m])"
        f" or 0 * nftrace_rules{{{of_table}}}"
    )
    return [
        (
            12,
            time_series(
                "Packets that met it",
                [target],
                description="A diamond is a packet: `nftrace show` takes its journey's id.",
            ),
        ),
        (
            6,
            time_series(
                "Bytes", [query(octets, "{{instance}} {{netns}} {{table}} {{chain}}")], unit="Bps"
            ),
        ),
        (
            6,
            time_series(
                "Counters begun anew",
                [query(resets, "{{instance}} {{netns}} {{table}}")],
                unit="short",
                description="Readings at which the counters of its table had begun anew.",
            ),
        ),
    ]


def _neighbours() -> Json:
    """Return the counters of the other rules of the chain: who else takes its packets."""
    around = f'nftrace_rule_packets_total{{{PLACE}, rule_id!~"$rule"}}'
    return time_series(
        "Other counted rules of the chosen chains",
        [query(as_sum(_PACKETS, f"rate({around}[$__rate_interval])"), "{{chain}} {{rule_id}}")],
        nothing="No other rule of the chosen chains is counted.",
        description="With every_rule in the daemon's [metrics] also those that let packets pass.",
    )


def make_one_rule() -> Json:
    """Return the dashboard."""
    read = table(
        "The rule",
        [query(f"nftrace_rule_info{{{_CHOSEN}}}", instant=True, table=True)],
        _COLUMNS,
        units={},
        widths=_WIDTHS,
        sort_by="Rule",
        links={},
    )
    rows = [
        (4, [(24, read)]),
        (4, _numbers()),
        (9, _over_time()),
        (7, [(24, _neighbours())]),
    ]
    return make_dashboard(
        RULE_UID,
        "One rule",
        "What one rule does: its text, its counters, since when.",
        layout(rows),
        [_rule_variable()],
    )

"""The dashboard "nftrace itself"."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TypeAlias

from dashboards.grafana.model import layout, make_dashboard, query
from dashboards.grafana.one_rule import make_one_rule
from dashboards.grafana.panels import COUNT, GREEN, RED, stat, time_series
from dashboards.grafana.traffic import make_traffic
from exporters.prometheus_metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashboards.grafana.model import Json
    from exporters.prometheus_metrics import Metric

    Rows: TypeAlias = Sequence[tuple[int, Sequence[tuple[int, Json]]]]

__all__ = ["make_itself"]

_HOST: Final = '{instance=~"$host"}'
_NAMED: Final = "{{instance}}"
_BY_SOURCE: Final = "{{instance}} {{source}} {{netns}}"
_BY_NETNS: Final = "{{instance}} {{netns}}"
_OTHER_WIDTH: Final = 8
_OTHER_HEIGHT: Final = 7
#: Grafana's units by how a metric's name ends.
_UNITS: Final = (
    ("_bytes_total", "Bps"),
    ("_seconds_total", "percentunit"),
    ("_total", "eps"),
    ("_bytes", "bytes"),
    ("_seconds", "s"),
)
_OFTEN: Final = "[$__rate_interval]"


def _rate(metric: str) -> str:
    return f"rate({metric}{_HOST}{_OFTEN})"


def _new(metric: str) -> str:
    return f"increase({metric}{_HOST}[5m])"


def _mean(summary: str) -> str:
    return f"{_rate(f'{summary}_sum')} / {_rate(f'{summary}_count')}"


def _state() -> list[tuple[int, Json]]:
    none_is_good = ((None, GREEN), (0.5, RED))
    return [
        (
            5,
            stat(
                "Running",
                [
                    query(
                        f"nftrace_build_info{_HOST}", "{{instance}}: {{version}}, Linux {{kernel}}"
                    )
                ],
                text="name",
            ),
        ),
        (
            5,
            stat(
                "Sources that tell nothing",
                [query(f"count(nftrace_source_up{_HOST} == 0) or vector(0)", instant=True)],
                steps=none_is_good,
            ),
        ),
        (
            5,
            stat(
                "Events lost in the time shown",
                [query(f"sum(increase(nftrace_events_lost_total{_HOST}[$__range]))", instant=True)],
                unit=COUNT,
                steps=none_is_good,
            ),
        ),
        (
            4,
            stat("Namespaces watched", [query(f"nftrace_namespaces{_HOST}", _NAMED)]),
        ),
        (
            5,
            stat(
                "Running since",
                [query(f"process_start_time_seconds{_HOST} * 1000", _NAMED)],
                unit="dateTimeFromNow",
            ),
        ),
    ]


def _events() -> list[tuple[int, Json]]:
    # It has no series where that never was.
    read = f"on (instance, netns) 0 * nftrace_ruleset_read_seconds{_HOST}"
    worst = f"min by (instance, source) (nftrace_source_up{_HOST})"
    unresolved = f"{_rate('nftrace_drops_unresolved_total')} or {read}"
    return [
        (8, time_series("Events", [query(_rate("nftrace_events_total"), _BY_SOURCE)], unit="eps")),
        (
            8,
            time_series(
                "Lost",
                [
                    query(_rate("nftrace_events_lost_total"), f"events {_BY_SOURCE}"),
                    query(unresolved, f"names of rules {_BY_NETNS}"),
                ],
                unit="eps",
            ),
        ),
        (
            8,
            stat(
                "Sources",
                [query(worst, "{{instance}} {{source}}", instant=True)],
                steps=((None, RED), (1, GREEN)),
                text="value_and_name",
                words={"0": "blind", "1": "sees"},
                one_a_row=True,
                description="Of a source that is in several namespaces, the worst of them.",
            ),
        ),
    ]


def _naming() -> list[tuple[int, Json]]:
    return [
        (
            8,
            time_series(
                "Flows armed to name their rule",
                [query(f"nftrace_trace_armed_flows{_HOST}", _NAMED)],
                unit="short",
            ),
        ),
        (
            8,
            time_series(
                "Naming by tracing",
                [
                    query(_rate("nftrace_trace_armed_total"), f"armed {_NAMED}"),
                    query(_rate("nftrace_trace_named_total"), f"named {_NAMED}"),
                    query(_rate("nftrace_trace_refused_total"), f"no budget {_NAMED}"),
                    query(_rate("nftrace_trace_expired_total"), f"nothing came {_NAMED}"),
                    query(_rate("nftrace_trace_untraced_drops_total"), f"untraced {_NAMED}"),
                ],
                unit="eps",
            ),
        ),
        (
            8,
            time_series(
                "Changes of rulesets",
                [
                    query(
                        f"increase(nftrace_ruleset_changes_total{_HOST}[5m])",
                        f"changed {_BY_NETNS}",
                    ),
                    query(
                        _new("nftrace_rule_counter_resets_total"),
                        "begun anew {{instance}} {{netns}} {{table}}",
                    ),
                ],
                unit="short",
            ),
        ),
    ]


def _work() -> list[tuple[int, Json]]:
    memory = [
        query(f"process_resident_memory_bytes{_HOST}", f"resident {_NAMED}"),
        query(f"process_virtual_memory_bytes{_HOST}", f"address space {_NAMED}"),
    ]
    return [
        (
            6,
            time_series(
                "Processor time, cores",
                [
                    query(_rate("process_cpu_seconds_total"), f"all {_NAMED}"),
                    query(_rate("nftrace_loop_busy_seconds_sum"), f"loop {_NAMED}"),
                ],
                unit="percentunit",
            ),
        ),
        (6, time_series("Memory", memory, unit="bytes")),
        (
            6,
            time_series(
                "Seconds a scrape, a reading, a turn",
                [
                    query(_mean("nftrace_scrape_seconds"), f"scrape {_NAMED}"),
                    query(f"nftrace_ruleset_read_seconds{_HOST}", f"reading {_BY_NETNS}"),
                    query(_mean("nftrace_loop_busy_seconds"), f"turn {_NAMED}"),
                ],
                unit="s",
            ),
        ),
        (
            6,
            time_series(
                "File descriptors",
                [
                    query(f"process_open_fds{_HOST}", f"open {_NAMED}"),
                    query(f"process_max_fds{_HOST}", f"may be open {_NAMED}"),
                ],
                unit="short",
            ),
        ),
    ]


def _bounds() -> list[tuple[int, Json]]:
    folded = [
        query(f"sum by (instance, netns) (nftrace_rules_folded{_HOST})", f"rules {_BY_NETNS}"),
        query(f"nftrace_tables_skipped{_HOST}", f"tables skipped {_NAMED}"),
        query(f"nftrace_drop_kinds_folded_total{_HOST}", f"drops of further kinds {_NAMED}"),
        query(f"nftrace_rules_forgotten_total{_HOST}", f"rules forgotten {_NAMED}"),
    ]
    clients = [
        query(f"nftrace_control_clients{_HOST}", f"clients {_NAMED}"),
        query(f"nftrace_control_clients_cut_total{_HOST}", f"cut off {_NAMED}"),
        query(f"nftrace_scrapes_refused_total{_HOST}", f"scrapes refused {_NAMED}"),
    ]
    messages = [
        query(_rate("nftrace_messages_suppressed_total"), f"not repeated {_NAMED}"),
        query(_rate("nftrace_messages_lost_total"), f"lost {_NAMED}"),
        query(_rate("nftrace_configurations_refused_total"), f"configurations refused {_NAMED}"),
    ]
    rules = f"sum by (instance, netns) (nftrace_rules{_HOST})"
    return [
        (6, time_series("Rules", [query(rules, _BY_NETNS)], unit="short")),
        (6, time_series("Counted together, for want of room", folded, unit="short")),
        (6, time_series("Clients", clients, unit="short")),
        (6, time_series("What was not said", messages, unit="eps")),
    ]


def _others(rows: Rows) -> Rows:
    """Return a panel for each metric that neither *rows* nor another dashboard shows."""
    shown = json.dumps([rows, make_traffic(), make_one_rule()])
    panels = [_one(metric) for metric in METRICS if not _is_shown(metric, shown)]
    per_row = 24 // _OTHER_WIDTH
    return [
        (_OTHER_HEIGHT, [(_OTHER_WIDTH, one) for one in panels[at : at + per_row]])
        for at in range(0, len(panels), per_row)
    ]


def _is_shown(metric: Metric, shown: str) -> bool:
    return all(f"{name}{{" in shown for name in metric.samples)


def _one(metric: Metric) -> Json:
    """Return a metric over time as its name and kind say: a counter's rate, a summary's mean."""
    legend = " ".join(f"{{{{{label}}}}}" for label in ("instance", *metric.labels))
    expr = f"{metric.name}{_HOST}"
    if metric.kind == "summary":
        expr = _mean(metric.name)
    elif metric.kind == "counter":
        expr = _rate(metric.name)
    unit = next((unit for end, unit in _UNITS if metric.name.endswith(end)), "short")
    return time_series(
        metric.help.rstrip("."), [query(expr, legend)], unit=unit, description=metric.name
    )


def make_itself() -> Json:
    """Return the dashboard."""
    rows: Rows = [
        (4, _state()),
        (9, _events()),
        (9, _naming()),
        (9, _work()),
        (9, _bounds()),
    ]
    return make_dashboard(
        "nftrace-itself",
        "nftrace itself",
        "How the watch does: whether it sees, what it lost, what it costs.",
        layout([*rows, *_others(rows)]),
    )

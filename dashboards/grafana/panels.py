"""Panels of stock Grafana, with what they need and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.grafana.model import DATASOURCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dashboards.grafana.model import Json

__all__ = ["stat", "table", "time_series"]

#: Green for none, orange from the first, red from *many* on.
GREEN, ORANGE, RED = "green", "orange", "red"
PACKETS_PER_SECOND: Final = "pps"


def thresholds(*steps: tuple[float | None, str]) -> Json:
    """Return absolute thresholds; the first step's value is None."""
    made = [{"value": value, "color": color} for value, color in steps]
    return {"mode": "absolute", "steps": made}


def panel(kind: str, title: str, targets: Sequence[Json], description: str = "") -> Json:
    """Return what all panels have."""
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": list(targets),
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {},
    }


def stat(  # noqa: PLR0913 - what a panel can be told, each by its name
    title: str,
    targets: Sequence[Json],
    *,
    unit: str = "short",
    steps: Sequence[tuple[float | None, str]] = ((None, GREEN),),
    text: str = "auto",
    description: str = "",
) -> Json:
    """Return one or a few numbers, coloured by *steps*."""
    made = panel("stat", title, targets, description)
    made["fieldConfig"]["defaults"] = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": thresholds(*steps),
    }
    made["options"] = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showPercentChange": False,
        "textMode": text,
        "wideLayout": True,
    }
    return made


def time_series(
    title: str,
    targets: Sequence[Json],
    *,
    unit: str = PACKETS_PER_SECOND,
    stacked: bool = False,
    description: str = "",
) -> Json:
    """Return lines over time, or areas on one another."""
    made = panel("timeseries", title, targets, description)
    made["fieldConfig"]["defaults"] = {
        "unit": unit,
        "min": 0,
        "color": {"mode": "palette-classic"},
        "custom": {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        },
    }
    made["options"] = {
        "legend": {
            "displayMode": "table",
            "placement": "right",
            "showLegend": True,
            "calcs": ["mean", "max"],
            "sortBy": "Max",
            "sortDesc": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def table(  # noqa: PLR0913 - what a panel can be told, each by its name
    title: str,
    targets: Sequence[Json],
    columns: Mapping[str, str],
    *,
    units: Mapping[str, str],
    sort_by: str,
    links: Mapping[str, Json],
    description: str = "",
) -> Json:
    """
    Return a table: one row for each set of labels that the instant *targets* have in common.

    *columns* maps what a column is called by Grafana to what it is called here, in order;
    the others are hidden. *units* and *links* are by the names here.
    """
    made = panel("table", title, targets, description)
    made["fieldConfig"]["defaults"] = {
        "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    }
    made["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [
                *([{"id": "unit", "value": units[name]}] if name in units else []),
                *([{"id": "links", "value": [links[name]]}] if name in links else []),
            ],
        }
        for name in columns.values()
        if name in units or name in links
    ]
    made["options"] = {
        "showHeader": True,
        "cellHeight": "sm",
        "frameIndex": 0,
        "sortBy": [{"displayName": sort_by, "desc": True}],
    }
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}},
        {
            "id": "organize",
            "options": {
                "indexByName": {name: at for at, name in enumerate(columns)},
                "renameByName": dict(columns),
                "excludeByName": {},
            },
        },
    ]
    return made

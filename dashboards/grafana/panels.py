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
#: Grafana's own unit for packets, pps, makes "800 mp/s" of less than one a second.
PACKETS_PER_SECOND: Final = "count:p/s"
#: Whole, with separators between the thousands.
COUNT: Final = "locale"


def thresholds(*steps: tuple[float | None, str]) -> Json:
    """Return absolute thresholds; the first step's value is None."""
    made = [{"value": value, "color": color} for value, color in steps]
    return {"mode": "absolute", "steps": made}


def mappings(words: Mapping[str, str]) -> list[Json]:
    """Return what has *words* shown for values; colours stay those of the thresholds."""
    options = {value: {"text": text, "index": at} for at, (value, text) in enumerate(words.items())}
    return [{"type": "value", "options": options}] if options else []


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
    words: Mapping[str, str] | None = None,
    one_a_row: bool = False,
    description: str = "",
) -> Json:
    """Return one or a few numbers, coloured by *steps*; *words* stand for some of them."""
    made = panel("stat", title, targets, description)
    made["fieldConfig"]["defaults"] = {
        "unit": unit,
        **({"decimals": 0} if unit == COUNT else {}),
        "color": {"mode": "thresholds"},
        "thresholds": thresholds(*steps),
        "mappings": mappings(words or {}),
    }
    made["options"] = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "horizontal" if one_a_row else "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showPercentChange": False,
        "textMode": text,
        "wideLayout": True,
    }
    return made


def time_series(  # noqa: PLR0913 - what a panel can be told, each by its name
    title: str,
    targets: Sequence[Json],
    *,
    unit: str = PACKETS_PER_SECOND,
    stacked: bool = False,
    numbers: Sequence[str] = ("mean", "max"),
    nothing: str = "",
    description: str = "",
) -> Json:
    """
    Return lines over time, or areas on one another.

    *numbers* of each line stand in a table below; without, the names stand in a row.
    *nothing* is said where there is no line.
    """
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
            # Counts that are all 0 would have an axis up to 100.
            **({"axisSoftMax": 1} if unit == "short" else {}),
        },
        **({"noValue": nothing} if nothing else {}),
    }
    made["options"] = {
        "legend": {
            "displayMode": "table" if numbers else "list",
            # Beside the lines it would leave them half of a narrow panel.
            "placement": "bottom",
            "showLegend": True,
            "calcs": list(numbers),
            **({"sortBy": "Max", "sortDesc": True} if "max" in numbers else {}),
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
    widths: Mapping[str, int],
    sort_by: str,
    links: Mapping[str, Json],
    description: str = "",
) -> Json:
    """
    Return a table: one row for each set of labels that the instant *targets* have in common.

    *columns* maps what a column is called by Grafana to what it is called here, in order;
    the others are hidden. *units*, *widths* in pixels and *links* are by the names here; a
    column without a width takes what is left.
    """
    made = panel("table", title, targets, description)
    made["fieldConfig"]["defaults"] = {
        "decimals": 0,
        "custom": {
            "align": "auto",
            "cellOptions": {"type": "auto"},
            "inspect": False,
            "wrapText": True,
        },
    }
    made["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [
                *([{"id": "unit", "value": units[name]}] if name in units else []),
                *([{"id": "custom.width", "value": widths[name]}] if name in widths else []),
                *([{"id": "links", "value": [links[name]]}] if name in links else []),
            ],
        }
        for name in columns.values()
        if name in {*units, *widths, *links}
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

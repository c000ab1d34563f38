"""
The pieces of a Grafana dashboard: queries, variables, annotations, links, the whole.

Source: the types of @grafana/schema 13.2, kind `dashboard`, and Grafana's Prometheus
data source for what stands in a query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HERE", "PLACE", "Json", "layout", "make_dashboard", "query", "variable"]

Json: TypeAlias = "dict[str, Any]"

#: Labels that the variables choose by: of the host, and of a table's rules in it.
HERE: Final = 'instance=~"$host", netns=~"$netns"'
PLACE: Final = f'{HERE}, table=~"$table", chain=~"$chain"'

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA_VERSION: Final = 42
_WIDTH: Final = 24
TAG: Final = "nftrace"
#: PromVariableQueryType.ClassicQuery of Grafana's Prometheus data source: as it is written.
_CLASSIC: Final = 5


def query(expr: str, legend: str = "", *, instant: bool = False, table: bool = False) -> Json:
    """Return a target; its refId is given by the panel. *table*: labels become columns."""
    return {
        "datasource": DATASOURCE,
        "expr": expr,
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
        "exemplar": False,
        "format": "table" if table else "time_series",
    }


def variable(name: str, label: str, asked: str, *, many: bool = True, regex: str = "") -> Json:
    """Return a variable whose values Prometheus knows; *many*: all are chosen at first."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": asked, "qryType": _CLASSIC, "refId": name},
        "regex": regex,
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        # What has no such label is chosen by All, too.
        **({"allValue": ".*"} if many else {}),
        "current": {"text": ["All"], "value": ["$__all"]} if many else {"text": "", "value": ""},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def _variables(more: Sequence[Json]) -> list[Json]:
    of_host = '{instance=~"$host"}'
    watched = f"label_values(nftrace_ruleset_read_seconds{of_host}, netns)"
    of_table = f'{{{HERE}, table=~"$table"}}'
    return [
        {
            "type": "datasource",
            "name": "datasource",
            "label": "Data source",
            "query": "prometheus",
            "current": {"text": "", "value": ""},
            "options": [],
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "refresh": 1,
            "regex": "",
            "skipUrlSync": False,
        },
        variable("host", "Host", "label_values(nftrace_build_info, instance)"),
        variable("netns", "Namespace", watched),
        variable("table", "Table", f"label_values(nftrace_rules{{{HERE}}}, table)"),
        variable("chain", "Chain", f"label_values(nftrace_rule_info{of_table}, chain)"),
        *more,
    ]


def _ruleset_changes() -> Json:
    """Return the annotation that marks each change of the rules on every panel."""
    return {
        "name": "Ruleset changes",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "purple",
        "expr": f"increase(nftrace_ruleset_changes_total{{{HERE}}}[1m]) > 0",
        "step": "60s",
        "titleFormat": "ruleset changed",
        "textFormat": "{{instance}}, netns {{netns}}",
        "tagKeys": "instance,netns",
        "useValueForTime": False,
    }


def _links() -> list[Json]:
    return [
        {
            "title": "nftrace",
            "type": "dashboards",
            "tags": [TAG],
            "asDropdown": False,
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
            "icon": "external link",
            "tooltip": "",
            "url": "",
        }
    ]


def layout(rows: Sequence[tuple[int, Sequence[tuple[int, Json]]]]) -> list[Json]:
    """
    Place panels: each row is its height and its panels with their widths, of 24.

    Ids and refIds are given in order.
    """
    placed: list[Json] = []
    top = 0
    for height, panels in rows:
        left = 0
        for width, panel in panels:
            position = {"h": height, "w": width, "x": left, "y": top}
            targets = [
                {"refId": f"Q{at}", **target} for at, target in enumerate(panel["targets"], 1)
            ]
            placed.append({"id": len(placed) + 1, **panel, "gridPos": position, "targets": targets})
            left += width
        if left > _WIDTH:
            raise ValueError(f"a row of {left} columns")
        top += height
    return placed


def make_dashboard(
    uid: str,
    title: str,
    description: str,
    panels: list[Json],
    variables: Sequence[Json] = (),
) -> Json:
    """Return a dashboard with the variables that all have, and *variables* behind them."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_ruleset_changes()]},
        "templating": {"list": _variables(variables)},
        "links": _links(),
        "panels": panels,
    }

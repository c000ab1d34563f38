"""What is asked of Prometheus by the dashboards and the alerts, as it would be asked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from dashboards.alerts.table import ALERTS
from dashboards.files import make_dashboards

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What Grafana puts in for its variables, at their first values and in this order.
_CHOSEN = {
    "$__rate_interval_ms": "60000",
    "$__rate_interval": "1m",
    "$__range": "1h",
    "$__interval": "15s",
    "$host": ".*",
    "$netns": ".*",
    "$table": ".*",
    "$chain": ".*",
    "$rule": ".*",
}
_VARIABLE = re.compile(r"label_values\((.*), (\w+)\)|query_result\((.*)\)")


class Asked(NamedTuple):
    """
    An expression, where it stands, and the labels that its legend or columns name.

    *over_time*: it is asked for each moment of a range.
    """

    where: str
    expr: str
    named: frozenset[str] = frozenset()
    over_time: bool = False


def put_in(text: str, **values: str) -> str:
    """Return *text* with Grafana's variables replaced by *values*, or by their first ones."""
    for name, value in {**_CHOSEN, **{f"${key}": one for key, one in values.items()}}.items():
        text = text.replace(name, value)
    return text


def panels_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a dashboard's panels."""
    panels: list[dict[str, Any]] = dashboard["panels"]
    return panels


def asked_by_dashboards(**values: str) -> Iterator[Asked]:
    """Yield every target, variable and annotation, with *values* for variables."""
    for dashboard in make_dashboards().values():
        title = dashboard["title"]
        for panel in panels_of(dashboard):
            for target in panel["targets"]:
                legend = frozenset(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                where = f"{title}: {panel['title']} {target['refId']}"
                yield Asked(where, put_in(target["expr"], **values), legend, target["range"])
        for one in dashboard["templating"]["list"]:
            if one["type"] == "query":
                found = _VARIABLE.fullmatch(one["query"]["query"])
                assert found is not None, one
                expr = put_in(found[1] or found[3], **values)
                yield Asked(f"{title}: ${one['name']}", expr, frozenset({found[2]} - {None}))
        for note in dashboard["annotations"]["list"]:
            name, expr = f"{title}: {note['name']}", put_in(note["expr"], **values)
            yield Asked(name, expr, over_time=True)


def asked_by_alerts() -> Iterator[Asked]:
    """Yield every alert's expression."""
    for alert in ALERTS:
        yield Asked(alert.name, alert.expr, frozenset(re.findall(r"{(\w+)}", alert.summary)))

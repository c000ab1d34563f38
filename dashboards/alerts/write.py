"""Alert rules as Prometheus and as Grafana read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dashboards.alerts.yaml_text import Tree, render_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dashboards.alerts.table import Alert

__all__ = ["render_grafana", "render_prometheus"]

_HEADER: Final = "# Written by `python -m dashboards` from dashboards/alerts/table.py.\n"
_GROUP: Final = "nftrace"
#: The data source that dashboards/provisioning/datasource.yml declares.
DATASOURCE_UID: Final = "nftrace"
#: Grafana reads as far back as this says at the most; the expressions say how far themselves.
_LOOK_BACK_S: Final = 600
_EVERY: Final = "1m"
_WORD: Final = re.compile(r"\{(\w+)\}")


def render_prometheus(alerts: Iterable[Alert]) -> str:
    """
    Return a rule file for Prometheus' `rule_files`.

    The group has no interval: the server's evaluation_interval holds.
    """
    rules: list[Tree] = [
        {
            "alert": one.name,
            "expr": one.expr,
            "for": one.wait,
            "labels": {"severity": one.severity},
            "annotations": _annotations(one, '{{ printf "%.0f" $value }}'),
        }
        for one in alerts
    ]
    return _HEADER + render_yaml({"groups": [{"name": _GROUP, "rules": rules}]})


def render_grafana(alerts: Iterable[Alert]) -> str:
    """
    Return a file for Grafana's provisioning/alerting.

    Prometheus decides, by the same expression: whatever it returns fires. Condition B only
    turns a value into yes: all values are 0 or more.
    Source: Grafana interpolates no variables in annotations and query models
    (escapeRuleGroup() in its pkg/services/ngalert/api), so `$` stands as it is there.
    """
    group: Tree = {
        "orgId": 1,
        "name": _GROUP,
        "folder": _GROUP,
        "interval": _EVERY,
        "rules": [_grafana_rule(one) for one in alerts],
    }
    return _HEADER + render_yaml({"apiVersion": 1, "groups": [group]})


def _grafana_rule(alert: Alert) -> Tree:
    query: Tree = {"refId": "A", "expr": alert.expr, "instant": True, "range": False}
    yes: Tree = {
        "refId": "B",
        "type": "threshold",
        "expression": "A",
        "conditions": [{"evaluator": {"type": "gt", "params": [-1]}}],
    }
    return {
        "uid": _uid(alert.name),
        "title": alert.name,
        "condition": "B",
        "data": [_data("A", DATASOURCE_UID, query), _data("B", "__expr__", yes)],
        "noDataState": "OK",
        "execErrState": "Error",
        "for": alert.wait,
        "labels": {"severity": alert.severity},
        "annotations": _annotations(alert, '{{ printf "%.0f" $values.A.Value }}'),
    }


def _data(ref: str, datasource: str, model: Tree) -> Tree:
    return {
        "refId": ref,
        "relativeTimeRange": {"from": _LOOK_BACK_S, "to": 0},
        "datasourceUid": datasource,
        "model": model,
    }


def _uid(name: str) -> str:
    """Return `nftrace-new-dropping-rule` for NftraceNewDroppingRule."""
    return re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()


def _annotations(alert: Alert, value: str) -> Tree:
    def spoken(text: str) -> str:
        return _WORD.sub(
            lambda word: value if word[1] == "value" else f"{{{{ $labels.{word[1]} }}}}", text
        )

    return {
        "summary": spoken(alert.summary),
        "description": spoken(alert.description),
        "runbook_url": alert.runbook,
    }

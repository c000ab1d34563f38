"""What `python -m dashboards` writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dashboards.alerts.table import ALERTS
from dashboards.alerts.write import render_grafana, render_prometheus
from dashboards.grafana.itself import make_itself
from dashboards.grafana.one_rule import make_one_rule
from dashboards.grafana.traffic import make_traffic

__all__ = ["make_dashboards", "render_files"]

if TYPE_CHECKING:
    from dashboards.grafana.model import Json


def make_dashboards() -> dict[str, Json]:
    """Return each dashboard by its file's path below dashboards/."""
    return {
        "grafana/where-traffic-dies.json": make_traffic(),
        "grafana/one-rule.json": make_one_rule(),
        "grafana/nftrace-itself.json": make_itself(),
    }


def render_files() -> dict[str, str]:
    """Return each generated file's text by its path below dashboards/."""
    return {
        **{
            name: json.dumps(one, indent=1, ensure_ascii=False) + "\n"
            for name, one in make_dashboards().items()
        },
        "alerts/nftrace.rules.yml": render_prometheus(ALERTS),
        "alerts/grafana-alerting.yml": render_grafana(ALERTS),
    }

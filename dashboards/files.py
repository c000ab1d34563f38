"""What `python -m dashboards` writes."""

from __future__ import annotations

from dashboards.alerts.table import ALERTS
from dashboards.alerts.write import render_grafana, render_prometheus

__all__ = ["render_files"]


def render_files() -> dict[str, str]:
    """Return each generated file's text by its path below dashboards/."""
    return {
        "alerts/nftrace.rules.yml": render_prometheus(ALERTS),
        "alerts/grafana-alerting.yml": render_grafana(ALERTS),
    }

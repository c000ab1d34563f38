"""Grafana dashboards, Prometheus rules and Grafana alerts, written by `python -m dashboards`."""

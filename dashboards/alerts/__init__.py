"""The alerts: one table, written out for Prometheus and for Grafana."""

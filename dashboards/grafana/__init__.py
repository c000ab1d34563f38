"""Grafana dashboards as plain dictionaries, in the words of its JSON model."""

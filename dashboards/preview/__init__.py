"""Pictures of the dashboards, drawn by Grafana's own components; for who maintains them."""

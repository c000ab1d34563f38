"""The generated files: dashboards, rules, alerts."""

"""The two-router case in isolated namespaces."""

"""What all tests have in common."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Two cores that others use as well say nothing about a test by the time that it takes.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

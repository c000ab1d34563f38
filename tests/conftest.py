"""What all tests have in common."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Two cores that others use as well say nothing about a test by the time that it takes.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

# What we print follows the terminal that we are started from: here it is always the same one.
for _name in ("NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)
os.environ["TERM"] = "xterm"

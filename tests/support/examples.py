"""Settings of hypothesis for a machine that others load too: importing this sets them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("csnap", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("csnap")

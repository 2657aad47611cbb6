"""How long hypothesis searches: always the same bounded examples for everyone, many random ones under `-m longer`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_CALM = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "bounded", max_examples=120, derandomize=True, deadline=None, database=None, suppress_health_check=_CALM
)
settings.load_profile("bounded")

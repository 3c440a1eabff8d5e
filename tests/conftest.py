"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

# Shared machines stall now and then; a test's verdict must not depend on it.
settings.register_profile("grpo-hpc", deadline=None)
settings.load_profile("grpo-hpc")

"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# Speed is measured in benchmarks; a test must not fail because the machine is busy.
settings.register_profile("edgewise", deadline=None)
settings.load_profile("edgewise")

"""A pytest plugin, `-p hide_av`: the tests run as if PyAV were not installed."""

import sys

sys.modules["av"] = None  # type: ignore[assignment]

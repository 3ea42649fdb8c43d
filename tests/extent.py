"""How much of the suite runs: what a change needs to hear at once, or everything."""

from __future__ import annotations

import os

EVERYTHING = os.environ.get("GPU_BROKER_TESTS") == "all"
"""`.ci/run` says so: also in a browser, on Valkey, from a built package, as documented."""

LONGER = ("browser/", "scripts/test_e2e", "e2e/")
"""Files, or folders, that only run then."""

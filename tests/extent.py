"""The extent of the suite: the tests that a change needs at once, or all."""

from __future__ import annotations

import os

EVERYTHING = os.environ.get("GPU_BROKER_TESTS") == "all"
"""`.ci/run` says so: also in a browser, on Valkey, from a built package, as documented."""

LONGER = (
    "browser/", "scripts/", "e2e/", "agents/", "api/test_document", "hosts/test_scenarios",
    "redis/test_sentinel", "redis/test_cluster", "faults/test_lost_replies", "faults/test_crowds",
    "faults/test_driver_untouched", "lua/test_queue_random", "model/test_explore",
)  # fmt: skip
"""Files, or folders, that only run then."""

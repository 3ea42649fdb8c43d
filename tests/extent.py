"""The extent of the suite: the tests that a change needs at once, or all."""

from __future__ import annotations

import os

EVERYTHING = os.environ.get("GPU_BROKER_TESTS") == "all"
"""`.ci/run` says so: also in a browser, on Valkey, from a built package, as documented."""

LONGER = (
    "agents/", "api/test_document", "api/test_original_mistakes", "attribution/test_real_host",
    "browser/", "deploy/test_scripts", "docs/test_tutorials", "e2e/",
    "faults/test_attacks", "faults/test_crowds", "faults/test_device_faults",
    "faults/test_driver_untouched", "faults/test_embedded_shared", "faults/test_lost_replies",
    "faults/test_serve_refused", "faults/test_store_killed", "faults/test_twins", "hardware/",
    "hosts/test_scenarios", "lua/test_arguments_fuzz", "lua/test_queue_random",
    "model/test_explore", "model/test_seeded_bugs", "redis/test_cluster", "redis/test_sentinel",
    "scripts/", "unit/test_pytest_plugin",
)  # fmt: skip
"""Files, or folders, that only run then."""

"""The extent of the suite: the tests that a change needs at once, or all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING = os.environ.get("GPU_BROKER_TESTS") == "all"
"""`.ci/run` says so: also in a browser, on Valkey, from a built package, as documented."""

LONGER = (
    "agents/", "api/test_document", "api/test_events_slow", "api/test_original_mistakes",
    "api/test_slow_clients", "api/test_uds", "api/test_workers", "attribution/test_any_strings",
    "attribution/test_any_world", "attribution/test_may_kill", "attribution/test_real_host",
    "attribution/test_real_use", "browser/", "clients/", "deploy/test_image",
    "deploy/test_scripts", "deploy/test_units", "docs/test_recipes", "docs/test_tutorials",
    "e2e/", "faults/test_attacks", "faults/test_crowds", "faults/test_data_loss",
    "faults/test_device_faults", "faults/test_driver_untouched", "faults/test_embedded_shared",
    "faults/test_lost_replies", "faults/test_preempted", "faults/test_redis_away",
    "faults/test_serve_refused", "faults/test_store_killed", "faults/test_twins",
    "faults/test_usage_month", "faults/test_waiter_killed", "faults/test_waiters", "hardware/",
    "hooks/test_delivery", "hooks/test_takeover", "hosts/test_scenarios",
    "lua/test_arguments_fuzz", "lua/test_cost", "lua/test_fairness", "lua/test_queue_fair",
    "lua/test_queue_random", "lua/test_usage.py", "mcp/test_http", "mcp/test_past_use",
    "mcp/test_stdio", "model/test_explore", "model/test_seeded_bugs", "model/test_walk",
    "redis/test_cluster", "redis/test_rotation", "redis/test_sentinel",
    "redis/test_which_server", "scripts/", "unit/test_cli_adopt", "unit/test_cli_agents",
    "unit/test_cli_places", "unit/test_cli_run_containers", "unit/test_cli_run_preempt",
    "unit/test_cli_run_terminal", "unit/test_cli_run_transparent", "unit/test_notebook",
    "unit/test_nvml_", "unit/test_protocol_fuzz", "unit/test_pytest_plugin",
    "unit/test_teams_notices", "unit/test_usage_readings",
)  # fmt: skip
"""Files, or folders, that only run then, or when they are named."""


def takes_longer(path: Path) -> bool:
    """Tell whether a file, or a folder, is one of those."""
    return any(f"tests/{each}" in f"{path}/" for each in LONGER)

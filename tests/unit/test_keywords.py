"""Keywords by which a reader of the service's checklist selects tests: `pytest -k gating`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CHECKLIST = {
    "gating": {
        "tests/agents/test_analyst_gating.py::test_batch_holds_a_lease_and_gives_it_back",
        "tests/agents/test_analyst_gating.py::test_safe_mode_asks_for_no_lease",
        "tests/agents/test_analyst_gating.py::test_no_room_is_the_cpu_with_the_reason",
        "tests/agents/test_analyst_gating.py::test_orchestrator_that_was_never_there_costs_nothing",
    },
    "leasing": {
        "tests/api/test_leasing.py::test_lease_under_safe_mode_is_not_granted",
        "tests/api/test_leasing.py::test_lease_that_fits_is_granted_with_all_fields",
        "tests/api/test_leasing.py::test_allocations_lists_live_leases_only",
    },
    "nvml_flags": {
        "tests/api/test_nvml_flags.py::test_nvml_flags_say_what_was_asked_for_and_what_came_of_it",
        "tests/api/test_nvml_flags.py::test_nvml_flags_that_contradict_each_other_stop_the_start",
    },
}
"""Tests that each keyword must select, beside others."""


def test_keyword_selects_the_tests_that_the_checklist_names() -> None:
    """Each documented `-k` finds its subject."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         "-k", " or ".join(CHECKLIST), "tests/agents", "tests/api"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    selected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    for keyword, tests in CHECKLIST.items():
        assert tests <= {name for name in selected if keyword in name}, done.stdout + done.stderr

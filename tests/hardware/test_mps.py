"""Hosts with CUDA's Multi-Process Service, whose server enforces what the child asks for."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported

SAYS = """
import json, os
names = ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
print(json.dumps({n: os.environ[n] for n in names if n in os.environ}))
"""

GPU = "GPU-00000000-0000-0000-0000-000000000000"


def told(machine: Reported, *options: str, **own: str) -> tuple[dict[str, str], str]:
    """Return MPS's limits that a command gets, and the messages about it."""
    words = ("run", *options, "--", sys.executable, "-c", SAYS)
    done = machine.command(*words, **own)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_commands_under_mps_are_limited_to_their_lease(reported: Callable[..., Reported]) -> None:
    """By the GPU's UUID; threads by policy; the user's own setting stays, which is said."""
    machine = reported("mps_server")
    machine.until(lambda rows: [row["mps"] for row in rows] == [True, False])
    agent = machine.sdk()
    agent.drain("device", GPU.replace("000000000000", "000000000001"))
    env, said = told(machine, "--memory", "20GiB")
    assert env == {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"{GPU}=20480M"}
    assert f"added to the environment: CUDA_MPS_PINNED_DEVICE_MEM_LIMIT={GPU}=20480M" in said
    agent.set_policy(mps_thread_share=True)
    env, _ = told(machine, "--memory", "20GiB")
    assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    env, said = told(machine, "--memory", "20GiB", CUDA_MPS_PINNED_DEVICE_MEM_LIMIT="0=1G")
    assert env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=1G"
    assert "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT stay as they are" in said


def test_commands_elsewhere_or_alone_get_no_limit(reported: Callable[..., Reported]) -> None:
    """No MPS on the GPU, or the whole GPU is leased."""
    machine = reported("mps_server")
    machine.until(lambda rows: rows[0]["mps"])
    machine.words("count=2", "mps=1/1/60", "allocated=0/0", "allocated=1/0")
    machine.until(lambda rows: [row["mps"] for row in rows] == [False, True])
    machine.sdk().drain("device", GPU)
    assert told(machine, "--exclusive")[0] == {}
    machine.words("count=2", "mps=0/1/60", "allocated=0/0", "allocated=1/0")
    machine.until(lambda rows: [row["mps"] for row in rows] == [True, False])
    assert told(machine, "--memory", "1GiB")[0] == {}

"""Machines whose drivers do not list the processes that work: nothing is concluded from that."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from broker.attribution.visibility import BUSY
from broker.devices.sample import NAMELESS
from tests.api.brokers import PROGRAM, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported


def test_working_lease_whose_process_is_not_listed_is_never_idle(
    reported: Callable[..., Reported],
) -> None:
    """Its GPU is busy and full: it is left alone, while a lease on a quiet GPU is reclaimed."""
    machine = reported("wsl_busy_unlisted")
    machine.until(lambda rows: len(rows) == 2 and rows[0]["memory_foreign_mb"] == 9200)
    agent = machine.sdk()
    agent.set_policy(idle_action="enforce", idle_after_s=10, enforce_after_s=0)
    unused = agent.acquire("unused", exclusive=True, ttl_s=60)
    works = agent.acquire("trainer", memory_mb=1000, ttl_s=60)
    busy, quiet = machine.gpus()
    assert [d.uuid for d in unused.devices] == [quiet["uuid"]]
    assert [d.uuid for d in works.devices] == [busy["uuid"]]
    (row,) = eventually(lambda: [e for e in agent.events() if e.event == "revoke"], 20)
    assert row.fields["token"] == unused.token
    busy, quiet = machine.gpus()
    assert (busy["process_visibility"], busy["processes"]) == ("none", None)
    assert (busy["processes_unseen"], busy["findings"]) == (BUSY, [])
    assert (quiet["process_visibility"], quiet["processes"]) == ("host", [])
    status = machine.command("status").stdout
    assert "processes unseen on h1: the GPU is busy" in " ".join(status.split())
    assert f"NOTE   processes unseen on h1: {BUSY}" in machine.command("doctor").stdout
    agent.release(works.token)


@pytest.mark.parametrize("name", ["wsl_busy_unlisted", "vgpu_guest"])
def test_setting_that_no_process_is_looked_at_is_obeyed(
    reported: Callable[..., Reported], name: str
) -> None:
    """GPU_BROKER_PROCESSES=none: also where the driver lists none."""
    machine = reported(name, GPU_BROKER_PROCESSES="none")
    for row in machine.until(lambda rows: all(row["sampled_at"] for row in rows)):
        assert (row["process_visibility"], row["processes"]) == ("none", None)
        assert row["processes_unseen"].startswith("GPU_BROKER_PROCESSES=none")


def test_reporter_in_a_container_knows_nothing_of_an_empty_list(
    reported: Callable[..., Reported],
) -> None:
    """Its pid namespace is not the host's: it says so of busy and of quiet GPUs."""
    machine = reported("wsl_busy_unlisted", GPU_BROKER_DEVICES="none")
    inside = machine.settings | {"GPU_BROKER_DEVICES": "smi", "GPU_BROKER_HOSTNAME": "h2"}
    command = ["unshare", "-pf", "--mount-proc", "--kill-child", PROGRAM, "host"]
    if subprocess.run([*command[:-2], "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to make a pid namespace")
    with subprocess.Popen(command, env=environment(**inside)) as process:
        try:
            rows = machine.until(lambda rows: len(rows) == 2)
            for row in rows:
                assert (row["process_visibility"], row["processes"]) == ("none", None)
                assert "the host's pid namespace" in row["processes_unseen"]
        finally:
            process.kill()  # which ends the reporter: unshare heeds no other signal


def test_named_processes_are_shown_beside_those_without_a_pid(
    reported: Callable[..., Reported],
) -> None:
    """Pid 0 and all ones are other containers' processes: the list is not complete, and says so."""
    machine = reported("pids_of_containers")
    (row,) = machine.until(lambda rows: rows[0]["processes"])
    assert [(p["pid"], p["memory_mb"]) for p in row["processes"]] == [(590, None)]
    assert (row["process_visibility"], row["processes_unseen"]) == ("part", NAMELESS)
    machine.words("count=1", "percent=0/0", "allocated=0/600", f"process=0/{os.getpid()}/590",
                  "process=0/0/none")  # fmt: skip
    (row,) = machine.until(lambda rows: rows[0]["processes"][0]["pid"] == os.getpid())
    machine.until(lambda rows: rows[0]["sampled_at"] > row["sampled_at"] + 1)
    (row,) = machine.gpus()
    assert (row["findings"], row["process_visibility"]) == ([], "part"), "none is accused"
    machine.words("count=1", "percent=0/0", "allocated=0/600", "process=0/0/none")
    (row,) = machine.until(lambda rows: rows[0]["processes"] is None)
    assert (row["process_visibility"], row["processes_unseen"]) == ("none", NAMELESS)


def test_guest_of_a_shared_gpu_is_leased(reported: Callable[..., Reported]) -> None:
    """A vGPU guest tells neither temperature nor power, and lists its own processes: none."""
    machine = reported("vgpu_guest")
    (row,) = machine.until(lambda rows: rows[0]["sampled_at"])
    assert (row["process_visibility"], row["processes"], row["state"]) == ("host", [], "ok")
    assert (row["temperature_c"], row["power_draw_w"]) == (None, None)
    (grant,) = machine.sdk().acquire("trainer", memory_mb=8000, ttl_s=30).devices
    assert grant.uuid == row["uuid"]

"""Machines whose nvidia-smi fails in part, is slow, or says more than rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import eventually
from tests.hardware.machines import HERE, assert_slow
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported

LOST = "nvidia-smi cannot open GPU 0000:0B:00.0: GPU is lost; reset it or reboot"
"""The reason of the fallen GPU's row."""


def states(rows: list[dict[str, Any]]) -> list[str]:
    return [row["state"] for row in rows]


def test_one_fallen_gpu_costs_only_itself(reported: Callable[..., Reported]) -> None:
    """The program then answers to no query for all; the others are asked for by themselves."""
    machine = reported("one_of_four_fallen")
    before = machine.until(lambda rows: states(rows) == ["ok"] * 4)
    machine.later()
    rows = machine.until(lambda rows: states(rows) == ["ok", "lost", "ok", "ok"])
    assert [row["uuid"] for row in rows] == [row["uuid"] for row in before]
    assert rows[1]["reason"] == LOST
    sampled = rows[2]["sampled_at"]
    rows = machine.until(lambda rows: rows[2]["sampled_at"] > sampled)
    assert states(rows) == ["ok", "lost", "ok", "ok"], "and they go on"
    assert [row["process_visibility"] for row in rows] == ["host", "none", "host", "host"]
    assert machine.host()["trouble"] is None
    leases = [machine.broker.granted(exclusive=True, ttl_s=60) for _ in range(3)]
    assert rows[1]["uuid"] not in {lease["gpus"][0]["uuid"] for lease in leases}


def test_one_fallen_gpu_costs_only_itself_from_a_cold_start(
    reported: Callable[..., Reported],
) -> None:
    """Its place is known, and not its name; a lease gets another one."""
    machine = reported("one_of_four_fallen", later=True)
    rows = machine.until(lambda rows: len(rows) == 4)
    assert [(row["index"], row["state"], row["uuid"][-2:]) for row in rows] == [
        (0, "ok", "d0"), (1, "lost", "-1"), (2, "ok", "d2"), (3, "ok", "d3"),
    ]  # fmt: skip
    said = f"GPU 1 cannot be identified: {LOST}"
    assert machine.trouble(said, 5) == said
    assert machine.broker.granted(exclusive=True, ttl_s=60)["gpus"][0]["index"] != 1


def test_program_that_refuses_every_gpu_leaves_none_free(
    reported: Callable[..., Reported],
) -> None:
    """The others are in error where not even they are told, and the host is in trouble."""
    machine = reported("one_of_four_fallen")
    machine.until(lambda rows: states(rows) == ["ok"] * 4)
    line = "Unable to determine the device handle for GPU 0000:0B:00.0: GPU is lost.  Reboot"
    machine.smi(instead=[line], exit=15)
    rows = machine.until(lambda rows: states(rows) == ["error", "lost", "error", "error"])
    assert rows[1]["reason"] == LOST
    assert machine.trouble(rows[0]["reason"], 5) == rows[0]["reason"]
    assert machine.broker.lease(exclusive=True, on_unavailable="refuse").status_code != 200


def test_warning_beside_complete_rows_is_a_warning(reported: Callable[..., Reported]) -> None:
    """A corrupt infoROM ends the program with status 14; rows and processes count as told."""
    machine = reported("v100_corrupt_inforom", GPU_BROKER_REPORT_S="1")
    rows = machine.until(len)
    assert states(rows) == ["ok", "ok"]
    assert [row["memory_used_mb"] for row in rows] == [3.0, 2058.0]
    assert all("does not name" not in (row["processes_unseen"] or "") for row in rows)
    host = eventually(lambda: (h := machine.host())["warning"] and h, 5)
    line = "nvidia-smi: WARNING: infoROM is corrupted at gpu 0000:B3:00.0"
    assert (host["trouble"], host["warning"]) == (None, line)
    assert line in " ".join(called("status", **machine.settings).stdout.split())


def test_driver_that_was_upgraded_is_said_in_plain_words(reported: Callable[..., Reported]) -> None:
    """The program's own words stand behind them."""
    machine = reported("driver_upgraded")
    machine.until(lambda rows: states(rows) == ["ok"])
    machine.later()
    [gpu] = machine.until(lambda rows: states(rows) == ["error"])
    assert gpu["reason"] == (
        "The NVIDIA driver and its library differ in version, as after an upgrade: reload the "
        "driver or reboot, then restart this process (nvidia-smi: Failed to initialize NVML: "
        "Driver/library version mismatch)"
    )
    assert machine.trouble(gpu["reason"], 5) == gpu["reason"]


def test_noise_on_stderr_is_ignored(reported: Callable[..., Reported]) -> None:
    """A program that succeeds may complain."""
    machine = reported("noisy_smi")
    assert states(machine.until(len)) == ["ok"]
    host = machine.host()
    assert (host["trouble"], host["warning"]) == (None, None)


@pytest.mark.parametrize("wait_s", ["0.2", "0.5"])
def test_slow_program_is_waited_for(
    reported: Callable[..., Reported], tmp_path: Path, wait_s: str
) -> None:
    """Its answers count when they come, are as old as its begin, and what helps is said."""
    log = tmp_path / "log"
    machine = reported(
        "a100_without_persistence", GPU_BROKER_DRIVER_WAIT_S=wait_s, FAKE_SMI_LOG=str(log)
    )
    rows = machine.until(lambda rows: states(rows) == ["ok"] * 4)
    if rows[0]["process_visibility"] == "none":  # their first answer was late, too
        assert rows[0]["processes_unseen"].startswith(
            "nvidia-smi does not name the processes in time: "
        )
    rows = machine.until(lambda rows: {row["process_visibility"] for row in rows} == {"host"})
    at = max(row["sampled_at"] for row in rows)
    rows = machine.until(lambda rows: min(row["sampled_at"] for row in rows) > at)
    assert states(rows) == ["ok"] * 4, "it stays so"
    if wait_s == "0.2":
        assert_slow("nvidia-smi", eventually(lambda: machine.host()["warning"], 5))
    assert machine.host()["trouble"] is None
    asked = [json.loads(line)[0].partition("=")[0] for line in log.read_text().splitlines()]
    assert asked == (["--query-gpu", "--query-compute-apps"] * len(asked))[: len(asked)]


def test_program_that_hangs_is_ended_and_said(reported: Callable[..., Reported]) -> None:
    """Its host is in trouble, the GPU in error; one that answers again ends both."""
    machine = reported("noisy_smi", GPU_BROKER_DRIVER_WAIT_S="0.4", GPU_BROKER_DRIVER_MOST_S="1.2")
    machine.until(lambda rows: states(rows) == ["ok"])
    machine.smi(hang=True)
    [gpu] = machine.until(lambda rows: states(rows) == ["error"])
    assert re.fullmatch(r"nvidia-smi has not answered for \d\.\d s", gpu["reason"])
    machine.trouble("nvidia-smi has not answered", 5)
    machine.smi(hang=False)
    machine.until(lambda rows: states(rows) == ["ok"])
    eventually(lambda: machine.host()["trouble"] is None, 5)


def test_stop_waits_for_no_hanging_program(reported: Callable[..., Reported]) -> None:
    """The broker ends in good order while its look goes on, and takes the program with it."""
    machine = reported("noisy_smi")
    machine.until(lambda rows: states(rows) == ["ok"])
    machine.smi(hang=True)
    pid = eventually(lambda: programs(machine.broker.process.pid), 5)[0]
    assert machine.broker.stop() == 0
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 3)


def programs(parent: int) -> list[str]:
    """Return the pids of the nvidia-smi that run among a process's children."""
    tasks = Path(f"/proc/{parent}/task").iterdir()
    pids = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in pids if "nvidia-smi" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_rows_with_a_line_about_one_gpu_place_it(reported: Callable[..., Reported]) -> None:
    """Some versions print the others' rows first; from a cold start the gap is the fallen GPU."""
    machine = reported("one_of_four_fallen")
    before = machine.until(lambda rows: states(rows) == ["ok"] * 4)
    gpus = json.loads((HERE / "one_of_four_fallen" / "smi.json").read_text())["gpus"]
    line = "Unable to determine the device handle for GPU 0000:0B:00.0: Unknown Error"
    rest = [gpu | {"index": place} for place, gpu in enumerate(gpus) if place != 1]
    machine.smi(gpus=rest, tail=[line], exit=255)
    rows = machine.until(lambda rows: states(rows) == ["ok", "error", "ok", "ok"])
    assert rows[1]["uuid"] == before[1]["uuid"]
    assert ": Unknown Error; " in rows[1]["reason"]
    assert machine.host()["trouble"] is None

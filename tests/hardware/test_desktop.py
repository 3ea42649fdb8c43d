"""Machines with a desktop: programs that draw are left alone, and whole GPUs are lent beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.api.brokers import eventually
from tests.hardware.machines import HERE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hardware.machines import Reported

DRAWING = ("firefox", "code", "gnome-shell", "plasmashell", "steamwebhelper", "Xorg")
IDLE = ("count=1", "percent=0/3", "allocated=0/700")


def started(stack: ExitStack, folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a program of this name that sleeps, until the end of the stack."""
    copy = folder / name
    shutil.copy(shutil.which("sleep") or "", copy)
    process = stack.enter_context(subprocess.Popen([copy, "100"]))
    stack.callback(process.kill)
    return process


def test_programs_of_a_desktop_are_neither_squatters_nor_ended(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """They draw and compute nothing; one that computes without a lease is ended by that policy."""
    with ExitStack() as stack:
        drawing = [started(stack, tmp_path, name) for name in DRAWING]
        miner = started(stack, tmp_path, "miner")
        graphics = [f"graphics=0/{p.pid}/{100 + n}" for n, p in enumerate(drawing)]
        machine = reported("desktop_graphics", GPU_BROKER_MAY_KILL="true")
        agent = machine.sdk()
        machine.until(lambda rows: rows[0]["sampled_at"])
        agent.set_policy(
            squatter_action="enforce", orphan_action="enforce", enforce_after_s=0, idle_after_s=10
        )
        machine.words(*IDLE, *graphics)
        (row,) = machine.until(lambda rows: len(rows[0]["processes"] or ()) == len(DRAWING))
        since = row["sampled_at"]
        (row,) = machine.until(lambda rows: rows[0]["sampled_at"] > since + 1)
        assert row["findings"] == []
        assert all(p["graphics_only"] and not p["finding"] for p in row["processes"])
        status = machine.command("status").stdout
        assert "squatter" not in status
        assert {line.split()[1] for line in status.splitlines() if line.endswith(" graphics")} == {
            name[:15] for name in DRAWING
        }
        machine.words(*IDLE, *graphics, f"process=0/{miner.pid}/150")
        assert eventually(lambda: miner.poll() == -15, 10)
        time.sleep(0.5)
        assert [p.poll() for p in drawing] == [None] * len(DRAWING)


def test_program_that_draws_and_computes_is_found(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """On both lists it is one process that computes: beyond what a desktop may use, a squatter."""
    with ExitStack() as stack:
        both = started(stack, tmp_path, "renderer")
        machine = reported("desktop_graphics")
        machine.words(*IDLE, f"graphics=0/{both.pid}/600", f"process=0/{both.pid}/600")
        (row,) = machine.until(lambda rows: rows[0]["findings"])
        assert row["findings"] == [{"kind": "squatter", "subject": str(both.pid)}]
        assert [p["graphics_only"] for p in row["processes"]] == [False]
        assert "squatter" in machine.command("status").stdout


def test_browser_that_decodes_video_is_found_and_not_ended(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """It draws and computes in 900 MiB: the same policy ends a program that only computes."""
    with ExitStack() as stack:
        browser, miner = (started(stack, tmp_path, name) for name in ("firefox", "miner"))
        machine = reported("desktop_graphics", GPU_BROKER_MAY_KILL="true")
        agent = machine.sdk()
        machine.until(lambda rows: rows[0]["sampled_at"])
        agent.set_policy(squatter_action="enforce", enforce_after_s=0)
        both = (f"graphics=0/{browser.pid}/900", f"process=0/{browser.pid}/900")
        machine.words(*IDLE, *both, f"process=0/{miner.pid}/150")
        assert eventually(lambda: miner.poll() == -15, 10)
        row = machine.until(lambda rows: rows[0]["findings"])[0]
        assert {"kind": "squatter", "subject": str(browser.pid)} in row["findings"]
        assert browser.poll() is None


def test_browser_beside_a_display_is_no_squatter_through_nvidia_smi(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """It computes, and does not say that it draws; on a GPU without a display it is one."""
    with ExitStack() as stack:
        browser = started(stack, tmp_path, "firefox")
        machine = reported("desktop_4090")
        [gpu] = json.loads((HERE / "desktop_4090" / "smi.json").read_text())["gpus"]
        apps = [{"gpu_uuid": gpu["uuid"], "pid": browser.pid, "used_gpu_memory": 300}]
        shown = gpu | {"memory.used": 700, "display_active": "Enabled"}
        machine.smi(gpus=[shown], apps=apps)
        (row,) = machine.until(lambda rows: rows[0]["processes"])
        machine.until(lambda rows: rows[0]["sampled_at"] > row["sampled_at"] + 0.7)
        assert machine.gpus()[0]["findings"] == []
        machine.smi(gpus=[shown | {"display_active": "Disabled"}])
        machine.until(lambda rows: rows[0]["findings"])


def test_gpu_of_a_desktop_is_lent_whole_by_policy(reported: Callable[..., Reported]) -> None:
    """1,331 MiB in use are too much by default: explain names the policy that allows them."""
    machine = reported("desktop_4090")
    machine.until(lambda rows: rows[0]["memory_foreign_mb"] == 1331)
    asked = ("explain", "--exclusive", "--agent", "trainer")
    said = " ".join(machine.command(*asked).stdout.split())
    assert "1331 MiB used by processes without a lease" in said
    assert "idle_foreign_mb" in said
    assert machine.command("policy", "set", "idle_foreign_mb=2GiB").returncode == 0
    agent = machine.sdk()
    lease = eventually(lambda: agent.acquire("trainer", exclusive=True, wait_s=5, ttl_s=30), 10)
    (grant,) = lease.devices
    assert grant.memory_mb == 24_564 - 737 - 1331
    assert machine.gpus()[0]["memory_free_mb"] == 0

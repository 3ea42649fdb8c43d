"""A GPU that waits for its reset: nothing may have it open, the reporter neither."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.attribution.driver_release import LET_GO, REST_S
from tests.api.brokers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported


def opened(machine: Reported) -> bool:
    """Tell whether the broker has a GPU open: the stand-in keeps a file open while NVML is."""
    descriptors = Path(f"/proc/{machine.broker.process.pid}/fd")
    return any("fake-nvidia" in str(each.readlink()) for each in descriptors.iterdir())


def test_reporter_lets_go_of_the_driver_for_a_while(reported: Callable[..., Reported]) -> None:
    """Nothing is asked of it, no GPU is lent and leases run on; then all is as before."""
    machine = reported("hgx_one_waits_for_reset")
    machine.until(lambda rows: [row["state"] for row in rows] == ["ok", "quarantined", "ok"])
    agent = machine.sdk()
    lease = agent.acquire("trainer", memory_mb=1000, ttl_s=60)
    assert opened(machine)
    done = machine.command("release-driver", "h1", "--reason", "reset of GPU 1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "host h1: the driver is let go of for 10 min" in done.stdout
    assert not opened(machine)
    rows = machine.gpus()
    assert {row["state"] for row in rows} == {"error"}
    assert all(row["reason"].startswith(LET_GO) for row in rows)
    assert machine.command("run", "--memory", "1GiB", "--wait", "0", "--", "true").returncode == 75
    agent.renew(lease)
    time.sleep(1)
    assert not opened(machine)
    machine.words("count=3")  # it was reset
    assert machine.command("release-driver", "h1", "--end").returncode == 0
    rows = machine.until(lambda rows: rows[0]["state"] == rows[2]["state"] == "ok")
    assert rows[1]["state"] == "quarantined", "its probe begins now"
    assert opened(machine)
    assert not lease.lost


def test_undrain_of_another_gpu_outlives_the_release(reported: Callable[..., Reported]) -> None:
    """Its driver goes on to ask for a reset, and the operator has said that it is lent."""
    machine = reported("hgx_one_waits_for_reset")
    machine.until(lambda rows: [row["state"] for row in rows] == ["ok", "quarantined", "ok"])
    assert machine.command("undrain", "h1:1").returncode == 0
    machine.until(lambda rows: {row["state"] for row in rows} == {"ok"})
    assert machine.command("release-driver", "h1").returncode == 0
    assert {row["state"] for row in machine.gpus()} == {"error"}
    assert machine.command("release-driver", "h1", "--end").returncode == 0
    machine.until(lambda rows: rows[0]["state"] == "ok")
    assert [row["state"] for row in machine.gpus()] == ["ok"] * 3


def test_release_ends_by_itself(reported: Callable[..., Reported]) -> None:
    """A forgotten one keeps no host for good."""
    machine = reported("hgx_one_waits_for_reset")
    machine.until(lambda rows: len(rows) == 3)
    assert machine.command("release-driver", "h1", "--for", "3s").returncode == 0
    assert not opened(machine)
    machine.until(lambda rows: rows[0]["state"] == "ok")
    assert opened(machine)
    done = machine.command("release-driver", "h1", "--for", "0")
    assert (done.returncode, "takes the driver again" in done.stdout) == (0, True)


def test_driver_that_does_not_return_is_not_called_released(
    reported: Callable[..., Reported], tmp_path: Path
) -> None:
    """NVML cannot be shut while a call runs in it: the command says so and fails."""
    hang = tmp_path / "hang"
    hang.touch()
    machine = reported("hgx_one_waits_for_reset", FAKE_NVML_HANG=str(hang))
    machine.until(lambda rows: len(rows) == 3)
    machine.words("count=3", "hang=nvmlDeviceGetPowerUsage/2")
    machine.until(lambda rows: rows[2]["state"] == "error", 20)
    done = machine.command("release-driver", "h1")
    assert done.returncode == 1
    assert "only the end of this process lets go of it" in done.stdout
    hang.unlink()


def test_host_of_which_no_gpu_can_be_lent_lets_go_by_itself(
    reported: Callable[..., Reported],
) -> None:
    """Between looks, while no lease is on it; an operator's undrain is heard at once."""
    machine = reported("hgx_one_waits_for_reset")
    machine.words("count=2", "action=0/1", "action=1/1")
    machine.until(lambda rows: [row["state"] for row in rows[:2]] == ["quarantined"] * 2)
    eventually(lambda: not opened(machine), 5)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        assert not opened(machine)
        time.sleep(0.1)
    assert machine.sdk().hosts()[0].host == "h1"
    machine.words("count=2")
    assert machine.command("undrain", "h1").returncode == 0
    eventually(lambda: opened(machine), REST_S / 2)
    assert "no GPU of h1 can be lent" in machine.broker.said()


def test_safe_mode_holds_no_driver(reported: Callable[..., Reported]) -> None:
    """Switched on while the broker runs, too: its threads would go on to wait for XIDs."""
    machine = reported("hgx_one_waits_for_reset")
    machine.until(lambda rows: len(rows) == 3)
    assert opened(machine)
    machine.sdk().set_policy(safe_mode=True)
    eventually(lambda: not opened(machine), 5)
    done = machine.command("release-driver", "h1")
    assert (done.returncode, "SAFE_MODE is on" in done.stdout) == (0, True)
    machine.command("release-driver", "h1", "--end")
    machine.sdk().set_policy(safe_mode=False)
    eventually(lambda: opened(machine), 5)
    machine.until(lambda rows: [row["state"] for row in rows] == ["ok", "quarantined", "ok"])


def test_lease_keeps_the_driver_open(reported: Callable[..., Reported]) -> None:
    """A program still has the GPU: it cannot be reset, and is accounted for."""
    machine = reported("hgx_one_waits_for_reset")
    machine.words("count=1")
    machine.until(lambda rows: rows[0]["state"] == "ok")
    machine.sdk().acquire("trainer", memory_mb=1000, ttl_s=60)
    machine.words("count=1", "action=0/1")
    machine.until(lambda rows: rows[0]["state"] == "quarantined")
    time.sleep(1)
    assert opened(machine)
    assert "gpu-broker release-driver h1" in machine.command("doctor").stdout


@pytest.mark.parametrize("args", [("nowhere",), ("h1", "--for", "2d")])
def test_wrong_calls_say_so(reported: Callable[..., Reported], args: tuple[str, ...]) -> None:
    """An unknown host; more than a day."""
    machine = reported("hgx_one_waits_for_reset")
    machine.until(lambda rows: len(rows) == 3)
    assert machine.command("release-driver", *args).returncode != 0

"""Drivers whose calls changed: older entries, calls that are gone, codes that came later."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.drivers import Machine as Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.hardware.machines import Reported


@pytest.fixture
def nvml(driver: Path, tmp_path: Path) -> Iterator[Driver]:
    """Start a process that reads the stand-in through nvidia-ml-py."""
    machine = Driver(tmp_path, driver, {})
    yield machine
    machine.let_go()
    machine.kill()


def test_codes_that_ask_for_a_reset_withhold_their_gpus(
    reported: Callable[..., Reported],
) -> None:
    """NVIDIA's catalog says RESET_GPU of nine of them; 13 is the program's own fault."""
    machine = reported("hgx_reset_codes")
    rows = machine.until(lambda rows: len(rows) == 10 and all(row["xid"] for row in rows))
    assert [row["state"] for row in rows] == ["quarantined"] * 9 + ["ok"]
    assert rows[0]["reason"].startswith("XID 140 (unrecovered memory error): withheld until")
    agent = machine.sdk()
    told = {e.fields["xid"]: e.fields["action"] for e in agent.events() if e.event == "xid"}
    assert told == dict.fromkeys(
        ("140", "158", "143", "46", "110", "136", "155", "156", "109"), "probe"
    ) | {"13": "ignore"}
    leased = agent.acquire("trainer", memory_mb=1000)
    assert [grant.uuid for grant in leased.devices] == [rows[9]["uuid"]]


def test_recovery_action_is_heeded_through_nvidia_smi(reported: Callable[..., Reported]) -> None:
    """A host that does not open NVML hears of it too, and gets no XIDs; in words, as NVML's."""
    machine = reported("h100_reset_smi")
    rows = machine.until(lambda rows: [row["state"] for row in rows] != ["ok"] * 3)
    assert [row["state"] for row in rows] == ["ok", "quarantined", "quarantined"]
    assert "the driver asks for a reset of the GPU (recovery action 1)" in rows[1]["reason"]
    assert "peer-to-peer traffic and a reset of the GPU (recovery action 4)" in rows[2]["reason"]
    assert [row["recovery_action"] for row in rows] == [0, 1, 4]


def test_all_processes_of_driver_535_54_are_listed(reported: Callable[..., Reported]) -> None:
    """Its entries are larger than the binding's; each pid keeps its own memory."""
    machine = reported("driver_535_54")
    sleeping = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) for _ in range(3)]
    try:
        words = [f"process=1/{each.pid}/{1000 + n}" for n, each in enumerate(sleeping)]
        machine.words(
            "count=2", "r535=1", "version=535.54.03", "percent=0/0", "allocated=0/10", *words
        )
        rows = machine.until(lambda rows: rows[1]["processes"])
        told = {(p["pid"], p["memory_mb"]) for p in rows[1]["processes"]}
        assert told == {(each.pid, 1000 + n) for n, each in enumerate(sleeping)}
        assert rows[0]["processes"] == []
    finally:
        for each in sleeping:
            each.communicate()


def _told(row: dict[str, Any]) -> list[tuple[int, int | None]]:
    return [(p["pid"], p["memory_mb"]) for p in row["processes"]]


@pytest.mark.parametrize("further", [(), ("cc=1",), ("version=535.86.10",)])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_larger_entries_are_read_as_they_are(
    nvml: Driver, count: int, further: tuple[str, ...]
) -> None:
    """By the entries, not by the driver's version; also computing with graphics and MPS."""
    words = [f"process=0/{4000 + n}/{1000 + n}" for n in range(count)]
    words += [f"graphics=0/{5000 + n}/none" for n in range(count)]
    words += [f"mps=0/{6000 + n}/7" for n in range(count)]
    nvml.say("count=1", *further, *words)
    expected = _told(nvml.row(0))
    assert len(expected) == 3 * count
    nvml.say("count=1", "r535=1", *further, *words)
    assert _told(nvml.row(0)) == expected


def test_parts_of_a_gpu_have_larger_entries_too(nvml: Driver) -> None:
    """Each MIG device lists its own."""
    nvml.say("count=1", "r535=1", "mig=0/9856+9856", *(f"process=0.1/{n}/5" for n in (11, 12, 13)))
    assert _told(nvml.row(101)) == [(11, 5), (12, 5), (13, 5)]
    assert _told(nvml.row(100)) == []


def test_temperature_is_told_where_the_older_call_is_gone(
    reported: Callable[..., Reported],
) -> None:
    """CUDA 14 takes nvmlDeviceGetTemperature away; nvmlDeviceGetTemperatureV answers."""
    (row,) = reported("driver_without_temperature").until(lambda rows: rows[0]["temperature_c"])
    assert (row["temperature_c"], row["state"]) == (41, "ok")


def test_temperature_that_no_call_tells_is_unknown(nvml: Driver) -> None:
    """Neither call is there, or both fail; the GPU is well."""
    for error in (3, 13, 26):
        nvml.say(
            "count=1",
            f"fail=nvmlDeviceGetTemperature/{error}",
            f"fail=nvmlDeviceGetTemperatureV/{error}",
        )
        row = nvml.row(0)
        assert (row["temperature_c"], row["state"], row["nvml_error"]) == (None, "ok", None)

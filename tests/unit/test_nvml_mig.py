"""GPUs that are divided into MIG devices, and made whole again, while we look."""

from __future__ import annotations

import pytest

PARENT = "GPU-00000000-0000-0000-0000-000000000002"


def part(place):
    return f"MIG-00000000-0000-0000-{place:04d}-000000000002"


def told(pid, memory_mb):
    return {"pid": pid, "memory_mb": memory_mb, "busy_pct": None, "draws": False,
            "computes": True}  # fmt: skip


def by_index(sample):
    return {row["index"]: row for row in sample["devices"]}


def test_divided_gpu_has_a_row_for_each_part(machine):
    """Each part is a device with memory and processes of its own; the GPU says it is divided."""
    host = machine("mig=2/10240+0+20480", "process=2.0/71/300", "process=2.2/72/none")
    rows = by_index(host.sample())
    assert list(rows) == [*range(8), 300, 302]
    whole = rows[2]
    assert whole == whole | {
        "uuid": PARENT,
        "state": "mig",
        "reason": "This GPU is divided: its MIG devices are leased in its place",
        "total_mb": 81559,
        "temperature_c": 41.0,
        "processes": None,
        "nvml_error": None,
        "parent": "",
    }
    assert rows[300] == rows[300] | {
        "uuid": part(0),
        "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "model": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "parent": PARENT,
        "state": "ok",
        "reason": "",
        "total_mb": 10240,
        "used_mb": 13,
        "system_mb": 308,
        "utilization_gpu_pct": None,
        "nvml_error": None,
        "processes": [told(71, 300)],
    }
    assert (rows[302]["uuid"], rows[302]["total_mb"]) == (part(2), 20480)
    assert rows[302]["processes"] == [told(72, None)]
    assert [rows[i]["state"] for i in (0, 1, 3, 4, 5, 6, 7)] == ["ok"] * 7


def test_divided_gpu_without_parts_has_its_own_row_alone(machine):
    """MIG that is on and not set up offers nothing, and says why."""
    rows = by_index(machine("mig=2/").sample())
    assert (list(rows), rows[2]["state"]) == (list(range(8)), "mig")
    assert "its driver names no MIG device" in rows[2]["reason"]


def test_mig_on_and_off_while_we_run_loses_what_is_gone_alone(machine):
    """Each sample tells what is there, time and again; a part that is gone is lost."""
    host = machine()
    before = by_index(host.sample())
    host.say("mig=2/10240+10240")
    on = by_index(host.sample())
    assert (on[2]["state"], on[300]["state"], on[301]["state"]) == ("mig", "ok", "ok")
    host.say("mig=2/10240")
    fewer = by_index(host.sample())
    assert (fewer[2]["state"], fewer[300]["state"], fewer[301]["state"]) == ("mig", "ok", "lost")
    host.say()
    off = by_index(host.sample())
    assert {i: off[i] for i in range(8)} == before
    for place in (0, 1):
        gone = off[300 + place]
        assert (gone["uuid"], gone["state"], gone["parent"]) == (part(place), "lost", PARENT)
        assert (gone["total_mb"], gone["used_mb"], gone["processes"]) == (10240, None, None)
        assert gone["nvml_error"] == "The NVIDIA driver no longer lists this GPU"
    host.say("mig=2/10240+10240")
    assert by_index(host.sample()) == on
    host.close()


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetMigMode", "nvmlDeviceGetMigDeviceHandleByIndex"]
)
def test_parts_that_cannot_be_told_are_not_gone(machine, function):
    """The GPU is not lent whole, and its parts stay, in error, until they are told again."""
    host = machine("mig=2/10240+10240")
    before = by_index(host.sample())
    host.say("mig=2/10240+10240", f"fail={function}/999/2")
    rows = by_index(host.sample())
    assert list(rows) == list(before)
    for index in (2, 300, 301):
        assert (rows[index]["state"], rows[index]["listed"]) == ("error", True)
        assert rows[index]["reason"] == "The NVIDIA driver reports an unknown error"
    host.say("mig=2/10240+10240")
    assert by_index(host.sample()) == before


def test_part_has_a_name_that_no_whole_gpu_has(machine):
    """A driver that names parts like their GPU does not make one model of both."""
    rows = by_index(machine("mig=2/10240", "partname=2/NVIDIA H100", "name=2/NVIDIA H100").sample())
    assert (rows[2]["model"], rows[300]["model"]) == ("NVIDIA H100", "NVIDIA H100 MIG")


def test_part_that_is_gone_does_not_open_nvml_again(machine):
    """Only a GPU that is not well may be found again by that; somebody took the part away."""
    host = machine("mig=2/10240", "fallen=5", reopen_s=0.0)
    assert by_index(host.sample())[5]["state"] == "lost"
    host.say("mig=2/")
    assert by_index(host.sample())[300]["state"] == "lost"
    host.say("mig=2/", "init=999")
    assert host.sample()["error"] is None


def test_divided_gpu_that_is_lost_takes_its_parts_with_it(machine):
    """The parts of a GPU that is lost are lost for the same reason; back, they are as they were."""
    host = machine("mig=2/10240")
    before = by_index(host.sample())
    for word in ("lost=2", "fail=nvmlDeviceGetMigDeviceHandleByIndex/15/2"):
        host.say("mig=2/10240", word)
        rows = by_index(host.sample())
        for row in (rows[2], rows[300]):
            assert (row["state"], row["used_mb"]) == ("lost", None)
            assert row["reason"].startswith("The GPU is lost: ")
        assert (rows[300]["parent"], rows[300]["total_mb"]) == (PARENT, 10240)
    host.say("mig=2/10240")
    assert by_index(host.sample()) == before


def test_part_that_cannot_be_read_costs_its_own_row(machine):
    """A part whose memory call fails is in error; the rest goes on."""
    host = machine("mig=2/10240+17000000+10240")
    rows = by_index(host.sample())
    assert (rows[301]["total_mb"], rows[301]["state"]) == (None, "ok")
    assert rows[301]["reason"] == "NVML does not tell how much memory this MIG device has"
    assert (rows[300]["state"], rows[302]["total_mb"]) == ("ok", 10240)

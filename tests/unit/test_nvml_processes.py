"""Processes on a GPU and its health, as NVML tells them."""

from __future__ import annotations

import pytest


def listed(row):
    return [(p["pid"], p["memory_mb"]) for p in row["processes"]]


def busy(row):
    return {p["pid"]: p["busy_pct"] for p in row["processes"]}


WELL = {
    "state": "ok",
    "nvml_error": None,
    "power_limit_w": 700.0,
    "energy_mj": 7_000_000,
    "clock_sm_mhz": 1980.0,
    "clock_memory_mhz": 2619.0,
    "ecc_uncorrected": 0,
    "rows_pending": False,
    "rows_failed": False,
    "recovery_action": 0,
    "mps": False,
    "parent": "",
    "processes": [],
    "xids": [],
}


def test_idle_gpu_tells_how_it_fares(machine):
    """A GPU that nobody uses has no process, and its clocks, limit and health are told."""
    row = machine().row(3)
    assert row == row | WELL


def test_health_is_told_of_each_gpu_alone(machine):
    """Memory errors, rows to remap and what to do about them are of the GPU that has them."""
    host = machine("ecc=2/7", "rows=3/1/0", "rows=4/0/1", "action=5/2")
    rows = host.sample()["devices"]
    assert [row["ecc_uncorrected"] for row in rows] == [0, 0, 7, 0, 0, 0, 0, 0]
    assert [row["rows_pending"] for row in rows] == [i == 3 for i in range(8)]
    assert [row["rows_failed"] for row in rows] == [i == 4 for i in range(8)]
    assert [row["recovery_action"] for row in rows] == [0, 0, 0, 0, 0, 2, 0, 0]


def test_energy_is_told_of_each_gpu_alone(machine):
    """The counter of a whole GPU, however large; all ones is no number, and a part has none."""
    host = machine(f"energy=1/{2**45}", "mig=2/1000+1000")
    rows = host.sample()["devices"]
    assert [row["energy_mj"] for row in rows[:2]] == [7_000_000, 2**45]
    assert {row["energy_mj"] for row in rows if row["parent"]} == {None}
    host.say("utilization=max")
    assert host.row(0)["energy_mj"] is None


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        ("nvmlDeviceGetTotalEccErrors", ["ecc_uncorrected"]),
        ("nvmlDeviceGetRemappedRows", ["rows_pending", "rows_failed"]),
        ("nvmlDeviceGetFieldValues", ["recovery_action"]),
        ("nvmlDeviceGetClockInfo", ["clock_sm_mhz", "clock_memory_mhz"]),
        ("nvmlDeviceGetEnforcedPowerLimit", ["power_limit_w"]),
        ("nvmlDeviceGetTotalEnergyConsumption", ["energy_mj"]),
        ("nvmlDeviceGetMPSComputeRunningProcesses_v3", ["mps"]),
        ("nvmlDeviceGetComputeRunningProcesses_v3", ["processes"]),
    ],
)
def test_what_a_driver_does_not_tell_is_none_and_costs_nothing_else(machine, function, fields):
    """Not supported or not allowed is None; a call that failed is None and named."""
    host = machine()
    for error, named in [(3, None), (4, None), (999, "The NVIDIA driver reports an unknown error")]:
        host.say(f"fail={function}/{error}")
        row = host.row(0)
        assert row == row | WELL | dict.fromkeys(fields) | {"nvml_error": named}


def test_old_driver_has_processes_and_no_recovery_action(machine):
    """Without the calls that came later the older ones are made; what only they tell is None."""
    row = machine("process=0/41/100", driver="old").row(0)
    assert listed(row) == [(41, 100)]
    none = dict.fromkeys(("recovery_action", "energy_mj"))
    assert row == row | WELL | none | {"processes": row["processes"]}


def test_v3_missing_asks_the_older_call(machine):
    """The library's mismatch error, which is no NVMLError, leads to the call that is there."""
    row = machine("v3=missing", "process=0/41/100", "graphics=0/42/7", "mps=0/43/9").row(0)
    assert listed(row) == [(41, 100), (42, 7), (43, 9)]
    assert (row["mps"], row["nvml_error"]) == (True, None)


def test_process_on_several_lists_is_told_once_with_the_most(machine):
    """Compute, graphics and MPS name the same process; it has its largest memory, not the sum."""
    host = machine("process=0/10/100", "graphics=0/10/150", "mps=0/10/1", "process=1/11/5")
    rows = host.sample()["devices"]
    assert [listed(row) for row in rows[:3]] == [[(10, 150)], [(11, 5)], []]
    assert [row["mps"] for row in rows[:3]] == [True, False, False]


def test_process_draws_or_computes_by_the_lists_that_it_is_on(machine):
    """Clients of MPS compute; a process on both lists does both."""
    words = ["process=0/10/1", "graphics=0/10/1", "graphics=0/11/1", "mps=0/12/1", "process=0/13/1"]
    rows = machine(*words).row(0)["processes"]
    assert {p["pid"]: (p["draws"], p["computes"]) for p in rows} == {
        10: (True, True), 11: (True, False), 12: (False, True), 13: (False, True),
    }  # fmt: skip


def test_used_gpu_memory_none_keeps_the_process(machine):
    """A process whose memory the driver does not tell is there with None, never 0."""
    row = machine("process=0/10/none", "process=0/11/none", "graphics=0/11/20").row(0)
    assert listed(row) == [(10, None), (11, 20)]
    assert row["state"] == "ok"


def test_process_without_a_number_is_left_out_and_said_to_be_there(machine):
    """Pid 0, and one that Linux has none of, stand for the processes of other containers."""
    host = machine("process=0/0/100", "process=0/5/1", "process=0/4294967295/1")
    row = host.row(0)
    assert listed(row) == [(5, 1)]
    assert "no pid" in row["unseen"]
    host.say("graphics=0/0/100")
    row = host.row(0)
    assert (row["processes"], row["unseen"] != "") == (None, True)
    host.say("process=0/5/1")
    assert host.row(0)["unseen"] == ""


def test_processes_that_nvml_does_not_name_have_a_reason(machine):
    """Not supported, as on some virtual GPUs."""
    row = machine("fail=nvmlDeviceGetComputeRunningProcesses_v3/3").row(0)
    assert (row["processes"], row["unseen"]) == (
        None,
        "NVML does not name the processes on this GPU",
    )


@pytest.mark.parametrize(
    ("number", "mode"),
    [(0, "default"), (1, "exclusive"), (2, "prohibited"), (3, "exclusive"), (9, "")],
)
def test_compute_mode_is_told(machine, number, mode):
    """Each GPU has its own; a later driver's number is unknown, as is a mode that is not told."""
    host = machine(f"computemode=1/{number}")
    assert host.row(1)["compute_mode"] == mode
    assert host.row(0)["compute_mode"] == "default"
    host.say("fail=nvmlDeviceGetComputeMode/3")
    assert host.row(1)["compute_mode"] == ""


def test_processes_come_and_go(machine):
    """Each sample tells who is there now."""
    host = machine("process=0/10/100")
    assert listed(host.row(0)) == [(10, 100)]
    host.say("process=0/12/3")
    assert listed(host.row(0)) == [(12, 3)]


def test_busy_is_the_mean_since_the_last_sample(machine):
    """No sample tells a stretch of time twice; a process that did not compute has 0."""
    here = ["process=0/10/1", "process=0/11/1", "process=0/12/1"]
    host = machine(*here, "busy=0/10/30/1000", "busy=0/10/50/2000", "busy=0/11/7/2000")
    assert busy(host.row(0)) == {10: 40.0, 11: 7.0, 12: 0.0}
    assert busy(host.row(0)) == {10: 0.0, 11: 0.0, 12: 0.0}
    host.say(*here, "busy=0/10/30/1000", "busy=0/12/90/3000", "busy=0/11/4000000000/3000")
    assert busy(host.row(0)) == {10: 0.0, 11: 0.0, 12: 90.0}


def test_busy_is_none_where_the_driver_does_not_measure(machine):
    """Not supported is unknown, and costs no process."""
    row = machine("process=0/10/1", "fail=nvmlDeviceGetProcessUtilization/3").row(0)
    assert (busy(row), row["nvml_error"]) == ({10: None}, None)


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetProcessUtilization"]
)
def test_gpu_lost_while_its_processes_are_read_costs_its_own_row(machine, function):
    """One of eight that is lost mid-sample has no number left; seven have all of theirs."""
    here = [f"process={i}/{i + 10}/100" for i in range(8)]
    rows = machine(*here, f"fail={function}/15/3").sample()["devices"]
    lost = rows.pop(3)
    assert (lost["state"], lost["processes"], lost["used_mb"]) == ("lost", None, None)
    assert lost["total_mb"] == 81559
    assert [(row["state"], listed(row)) for row in rows] == [
        ("ok", [(i + 10, 100)]) for i in range(8) if i != 3
    ]


def test_sample_of_eight_gpus_with_four_processes_each_is_cheap(machine):
    """A sample costs under 50 ms of processor time, all threads together."""
    here = [f"process={i}/{i * 10 + j}/100" for i in range(8) for j in range(1, 5)]
    host = machine(*here, *[f"busy={i}/{i * 10 + 1}/50/9000" for i in range(8)])
    assert sum(len(row["processes"]) for row in host.sample()["devices"]) == 32
    told = host.sample(20)
    assert told["cpu_s"] / 20 < 0.05

"""Scripted devices: their properties, their steps in time, and their troubles."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from broker.devices.last_known import Fault, Known
from broker.devices.sample import DeviceSample, GpuProcess

ONE = "steps: [{devices: [{uuid: GPU-a, total_mb: 24576}]}]"


# Properties of a device


def test_scripted_device_of_two_words_is_whole_and_says_what_it_is(script):
    """A UUID and a total suffice: idle, a real one's reserve, not simulated, named scripted."""
    device = script.write(ONE).one()
    assert (device.uuid, device.index, device.total_mb) == ("GPU-a", 0, 24576)
    assert (device.state, device.reason, device.simulated) == ("ok", "", False)
    assert (device.system_mb, device.used_mb, device.memory_utilization_pct) == (738, 0, 0.0)
    assert device.name == device.model == "Scripted GPU 24576 MiB"
    assert (device.processes, device.xids, device.parent) == ((), (), "")
    assert (device.temperature_c, device.mps, device.recovery_action) == (None, None, None)


def test_scripted_device_is_all_that_its_file_says(script):
    """Each field that a file names is the sample's, in its type."""
    device = script.write("""
        driver_version: 580.65.06
        steps:
          - devices:
              - {uuid: MIG-p, total_mb: 1000, state: mig, index: 3}
              - uuid: MIG-a
                index: 7
                name: NVIDIA H100, rev/A
                parent: MIG-p
                total_mb: 1000
                system_mb: 0
                used_mb: 500
                temperature_c: 41
                power_draw_w: 98.5
                utilization_gpu_pct: 37
                ecc_uncorrected: 2
                recovery_action: 1
                rows_pending: true
                rows_failed: false
                mps: true
                nvml_error: NVML timed out
                compute_mode: exclusive
                one_lease: it is small
                unseen: some are of other containers
                processes:
                  - {pid: 7, memory_mb: 300, busy_pct: 12.5}
                  - {pid: 8}
                  - {pid: 9, draws: true, computes: false}
        """).devices()["MIG-a"]
    assert (device.index, device.parent) == (7, "MIG-p")
    assert (device.name, device.model) == ("NVIDIA H100, rev/A", "NVIDIA H100 rev A")
    assert (device.system_mb, device.used_mb, device.memory_utilization_pct) == (0, 500, 50.0)
    assert (device.temperature_c, device.power_draw_w) == (41.0, 98.5)
    assert (device.utilization_gpu_pct, device.ecc_uncorrected) == (37.0, 2)
    assert (device.recovery_action, device.rows_pending, device.rows_failed) == (1, True, False)
    assert (device.mps, device.nvml_error) == (True, "NVML timed out")
    assert (device.compute_mode, device.one_lease) == ("exclusive", "it is small")
    assert device.unseen == "some are of other containers"
    drawing = GpuProcess(9, None, draws=True, computes=False)
    assert device.processes == (GpuProcess(7, 300, 12.5), GpuProcess(8, None, None), drawing)
    assert script.source.sample().driver_version == "580.65.06"


def test_scripted_model_without_a_name_still_says_that_it_is_scripted(script):
    """Leases ask for the file's name; the name for people says that it is scripted."""
    device = script.write("steps: [{devices: [{uuid: a, total_mb: 1, model: H100}]}]").one()
    assert (device.name, device.model) == ("Scripted H100", "H100")


def test_scripted_memory_in_use_is_the_processes_unless_it_is_said(script):
    """The sum of what is known of them; a number, or null, that the file names goes before."""
    processes = "processes: [{pid: 1, memory_mb: 300}, {pid: 2, memory_mb: null}]"
    for more, used_mb, pct in (("", 300, 30.0), (", used_mb: 400", 400, 40.0),
                               (", used_mb: null", None, None)):  # fmt: skip
        script.write(f"steps: [{{devices: [{{uuid: a, total_mb: 1000, {processes}{more}}}]}}]")
        assert (script.one().used_mb, script.one().memory_utilization_pct) == (used_mb, pct)


def test_scripted_null_is_what_the_driver_cannot_tell(script):
    """Processes and totals that are null are unknown, and the device is still there."""
    device = script.write("steps: [{devices: [{uuid: a, total_mb: null, processes: null}]}]").one()
    assert (device.total_mb, device.processes, device.state) == (None, None, "ok")
    assert device.reason


@pytest.mark.parametrize(("state", "said"), [("lost", "lost"), ("error", "does not answer")])
def test_scripted_device_in_trouble_keeps_its_identity_and_no_number(script, state, said):
    """Name and total stand, as a real source tells them; what may have changed is unknown."""
    device = script.write(f"""
        steps:
          - devices:
              - {{uuid: a, total_mb: 1000, used_mb: 5, temperature_c: 9,
                 state: {state}, xids: [79]}}
        """).one()
    assert (device.state, device.total_mb, device.xids) == (state, 1000, (79,))
    assert (device.used_mb, device.temperature_c, device.processes) == (None, None, None)
    assert said in device.reason


def test_scripted_pid_may_come_from_the_environment(script, monkeypatch):
    """A test puts a real process where the file has a name."""
    monkeypatch.setenv("HOLDER", str(os.getpid()))
    script.write(
        """steps: [{devices: [{uuid: a, total_mb: 9, processes: [{pid: "${HOLDER}"}]}]}]"""
    )
    assert script.one().processes == (GpuProcess(os.getpid(), None),)


# Steps in time


def test_scripted_steps_come_in_their_time_and_say_what_changes(script):
    """A later step inherits what it does not name; a reason goes with its state."""
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000, temperature_c: 40, state: lost, reason: pulled}]
          - {after_s: 0.3, devices: [{uuid: a, state: ok, used_mb: 7}]}
          - {after_s: 0.6, devices: [{uuid: a, temperature_c: 50}]}
        """)
    first = script.one()
    time.sleep(0.35)
    second = script.one()
    time.sleep(0.3)
    third = script.one()
    assert (first.state, first.reason, first.used_mb) == ("lost", "pulled", None)
    assert (second.state, second.reason, second.used_mb) == ("ok", "", 7)
    assert (second.total_mb, second.temperature_c) == (1000, 40.0)
    assert (third.state, third.used_mb, third.temperature_c) == ("ok", 7, 50.0)


def test_scripted_time_starts_with_the_first_look(script):
    """However long the process took to start."""
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000}]
          - {after_s: 0.2, devices: [{uuid: a, used_mb: 7}]}
        """)
    time.sleep(0.3)
    assert script.one().used_mb == 0


def test_scripted_device_that_a_step_does_not_list_is_lost_and_may_return(script):
    """Its row stays, as a real source keeps it, and what was said of it comes back with it."""
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000}, {uuid: b, total_mb: 2000, used_mb: 9}]
          - {after_s: 0.2, devices: [{uuid: a}]}
          - {after_s: 0.4, devices: [{uuid: a}, {uuid: b}]}
        """)
    assert script.devices()["b"].state == "ok"
    time.sleep(0.25)
    gone = script.devices()["b"]
    assert (gone.state, gone.total_mb, gone.used_mb) == ("lost", 2000, None)
    assert "no longer lists" in gone.reason
    time.sleep(0.2)
    assert (script.devices()["b"].state, script.devices()["b"].used_mb) == ("ok", 9)


def test_scripted_xids_are_each_told_once_also_of_steps_that_nobody_saw(script):
    """A sample has every XID since the sample before, as NVML's event set has."""
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000, xids: [79]}]
          - {after_s: 0.1, devices: [{uuid: a, xids: [94]}]}
          - {after_s: 0.2, devices: [{uuid: a, xids: [13, 13]}]}
        """)
    assert script.one().xids == (79,)
    assert script.one().xids == ()
    time.sleep(0.25)
    assert script.one().xids == (94, 13, 13)
    assert script.one().xids == ()


def test_scripted_error_of_the_machine_silences_every_device_until_it_is_over(script):
    """No driver: the devices are known and in state error; an XID of that time is told later."""
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000}]
          - {after_s: 0.2, devices: [{uuid: a, xids: [79]}]}
          - {after_s: 0.3, error: The NVIDIA driver is not loaded}
          - {after_s: 0.5, devices: [{uuid: a}]}
        """)
    script.one()
    time.sleep(0.35)
    sample = script.source.sample()
    assert sample.error == "The NVIDIA driver is not loaded"
    assert [(d.state, d.reason, d.xids) for d in sample.devices] == [("error", sample.error, ())]
    time.sleep(0.2)
    assert (script.one().state, script.one().xids) == ("ok", ())


def test_scripted_error_at_the_start_knows_no_device(script):
    """A machine without a driver has an error and nothing else."""
    sample = script.write("steps: [{error: no driver}]").source.sample()
    assert (sample.devices, sample.error) == ((), "no driver")


def test_scripted_hang_costs_one_deadline_once_and_one_row(script):
    """It is in error until it answers and is not asked twice meanwhile; the other one is fine."""
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000, hang_s: 0.9}, {uuid: b, total_mb: 1000}]
        """)
    began = time.monotonic()
    devices = script.devices()
    assert 0.25 <= time.monotonic() - began < 0.8
    assert (devices["a"].state, devices["a"].used_mb) == ("error", None)
    assert "has not answered for 0." in devices["a"].reason
    assert devices["b"].state == "ok"
    again = time.monotonic()
    assert script.devices()["a"].state == "error"
    assert time.monotonic() - again < 0.2
    time.sleep(0.95 - (time.monotonic() - began))
    assert script.devices()["a"].state == "ok"


def test_scripted_hang_shorter_than_the_deadline_is_only_slow(script):
    """The sample waits for it, and it is told."""
    script.write("steps: [{devices: [{uuid: a, total_mb: 1000, hang_s: 0.15}]}]")
    began = time.monotonic()
    assert script.one().state == "ok"
    assert time.monotonic() - began >= 0.14


def test_scripted_hang_outlasts_the_step_that_began_it(script):
    """A driver that hangs does not care what the machine does meanwhile."""
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000, hang_s: 5}]
          - {after_s: 0.1, devices: [{uuid: a, used_mb: 7}]}
        """)
    assert [script.one().state, script.one().state] == ["error", "error"]


def test_gpu_that_the_scenario_lists_no_more_says_so() -> None:
    """The pool forgets it after a while; what fails, or is there, is listed.

    A driver that does not answer brings back nothing that it had listed no more.
    """
    known = Known("h1")
    there = tuple(
        DeviceSample(uuid=f"GPU-{n}", index=n, name="G", model="G", total_mb=1, system_mb=0,
                     used_mb=0) for n in range(2)
    )  # fmt: skip
    known.merge({n: (device,) for n, device in enumerate(there)}, Fault("lost", "gone", gone=True))
    rows = known.merge({0: (there[0],)}, Fault("lost", "gone", gone=True))
    assert [(row.uuid, row.state, row.listed) for row in rows] == [
        ("GPU-0", "ok", True), ("GPU-1", "lost", False),
    ]  # fmt: skip
    rows = known.merge({}, Fault("error", "the driver does not answer"))
    assert [(row.state, row.listed) for row in rows] == [("error", True), ("lost", False)]
    rows = known.merge({1: Fault("error", "no UUID")}, Fault("lost", "gone", gone=True))
    assert [(row.state, row.listed) for row in rows] == [("lost", False), ("error", True)]


def test_part_that_is_gone_stays_so_whatever_befalls_its_gpu() -> None:
    """Its GPU hangs, or is gone itself: nothing lists the part; a part that was there is as it."""
    known, gone = Known("h1"), Fault("lost", "gone", gone=True)
    whole = DeviceSample(
        uuid="GPU-0", index=0, name="G", model="G", total_mb=1, system_mb=0, used_mb=0, state="mig"
    )  # fmt: skip
    one, two = (
        replace(whole, uuid=f"MIG-{n}", index=100 + n, state="ok", parent="GPU-0") for n in (1, 2)
    )
    known.merge({0: (whole, one, two)}, gone)
    known.merge({0: (whole, one)}, gone)
    hung = Fault("error", "it does not answer")
    for rows in (known.merge({0: hung}, gone), known.merge({}, hung)):
        assert [(row.uuid, row.state, row.listed) for row in rows] == [
            ("GPU-0", "error", True), ("MIG-1", "error", True), ("MIG-2", "lost", False),
        ]  # fmt: skip
    assert [row.listed for row in known.parts_of("GPU-0", hung)] == [True, False]
    assert [row.listed for row in known.merge({}, gone)] == [False] * 3
    assert [row.listed for row in known.merge({}, hung)] == [False] * 3
    rows = known.merge({0: hung}, gone)
    assert [row.listed for row in rows] == [True, True, False], "its GPU is back, and tells nothing"
    assert [row.listed for row in known.merge({0: (whole, two)}, gone)] == [True, False, True]


def test_scripted_trouble_brings_back_no_gpu_that_was_listed_no_more(script):
    """Gone stays gone while no driver answers, like under a real one."""
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000}, {uuid: b, total_mb: 1000}]
        """)
    assert len(script.source.sample().devices) == 2
    script.write("""
        steps:
          - devices: [{uuid: a, total_mb: 1000}]
        """)
    assert [row.listed for row in script.source.sample().devices] == [True, False]
    script.write("steps: [{error: away}]")
    rows = script.source.sample().devices
    assert [(row.state, row.listed) for row in rows] == [("error", True), ("lost", False)]


def test_mig_devices_of_earlier_layouts_have_few_rows() -> None:
    """A GPU that is divided anew again and again does not make each report longer."""
    known, parent = Known("h1"), DeviceSample(
        uuid="GPU-0", index=0, name="G", model="G", total_mb=1, system_mb=0, used_mb=0, state="mig"
    )  # fmt: skip
    for n in range(100):
        part = replace(parent, uuid=f"MIG-{n}", index=1, state="ok", parent="GPU-0")
        rows = known.merge({0: (parent, part)}, Fault("lost", "gone", gone=True))
    assert len(rows) <= 20
    assert [row.uuid for row in rows if row.listed] == ["GPU-0", "MIG-99"]

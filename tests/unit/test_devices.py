"""Device sources: what they promise about each way in which a driver can fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from broker.devices import DeviceSourceError, choose
from broker.devices.sample import Sample, model_of, number, system_mb_of, text, uuid_of
from broker.devices.simulated import totals_of
from broker.devices.smi.source import SmiSource

ROOT = Path(__file__).resolve().parents[2]

# Samples once under each FAKE_NVML it is given; "-hang " before one first ends what hangs.
CHILD = """
import dataclasses, json, os, pathlib, sys, time
from broker.devices.nvml.source import NvmlSource
settings = json.loads(sys.argv[1])
source = NvmlSource("box", **settings)
for step in json.loads(sys.argv[2]):
    os.environ["FAKE_NVML"] = step.removeprefix("-hang ")
    if step.startswith("-hang "):
        pathlib.Path(os.environ["FAKE_NVML_HANG"]).unlink()
        while any(call.running for call in source._reading.values()):
            time.sleep(0.01)
    began = time.monotonic()
    sample = dataclasses.asdict(source.sample())
    print(json.dumps({**sample, "took_s": time.monotonic() - began}), flush=True)
source.close()
"""


@pytest.fixture
def nvml(libraries, tmp_path):
    """Sample real nvidia-ml-py in a fresh process, once for each scenario, over the fake driver."""

    def ask(*scenarios, driver="driver", deadline_s=5.0, reopen_s=300.0):
        hang = tmp_path / "hang"
        hang.touch()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_NVML_HANG": str(hang)}
        env["LD_LIBRARY_PATH"] = str(libraries[driver]) if driver else str(tmp_path)
        settings = json.dumps({"deadline_s": deadline_s, "reopen_s": reopen_s})
        command = [sys.executable, "-W", "error", "-c", CHILD, settings, json.dumps(scenarios)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def gpu(number_, total_mb=81559):
    return {"uuid": f"GPU-00000000-0000-0000-0000-{number_:012d}", "total_mb": total_mb}


def assert_silent(device, state, reason):
    assert (device["state"], device["nvml_error"]) == (state, device["reason"])
    assert re.fullmatch(reason, device["reason"])
    numbers = ("used_mb", "utilization_gpu_pct", "temperature_c", "power_draw_w")
    assert [device[name] for name in numbers] == [None] * 4


def assert_healthy(sample, *but):
    others = [d for d in sample["devices"] if d["index"] not in but]
    assert len(others) == 8 - len(but)
    assert {(d["state"], d["reason"], d["used_mb"]) for d in others} == {("ok", "", 1025)}


# NVML, through the real ctypes path


def test_nvml_healthy_tells_each_gpu_in_whole_mib(nvml):
    """Eight GPUs come in PCI order with the total rounded down and what is used rounded up."""
    [sample] = nvml("")
    assert (sample["source"], sample["error"]) == ("nvml", None)
    assert sample["driver_version"] == "580.65.06"
    assert [d["index"] for d in sample["devices"]] == list(range(8))
    first = sample["devices"][0]
    assert first == first | gpu(0) | {
        "name": "NVIDIA H100 80GB HBM3, rev/A",
        "model": "NVIDIA H100 80GB HBM3 rev A",
        "system_mb": 2447,
        "used_mb": 1025,
        "state": "ok",
        "reason": "",
        "simulated": False,
        "utilization_gpu_pct": 37.0,
        "memory_utilization_pct": 1.26,
        "temperature_c": 41.0,
        "power_draw_w": 98.765,
        "pcie_tx_kb_s": None,
        "pcie_rx_kb_s": None,
        "nvml_mem_used_mb": 1024.0,
        "nvml_mem_total_mb": 81559.5,
        "nvml_gpu_util_pct": 37.0,
        "nvml_mem_util_pct": 1.26,
        "nvml_error": None,
    }
    assert_healthy(sample)


def test_nvml_used_counts_the_reserve_or_not_tells_the_same(nvml):
    """Used memory does not depend on whether a driver counts its own reserve in it."""
    exclusive, inclusive = nvml("", "used=inclusive")
    assert exclusive["devices"] == inclusive["devices"]


def test_nvml_old_driver_counts_its_reserve_as_used(nvml):
    """Without the second memory call the first one is taken: 500 MiB more are used."""
    [sample] = nvml("", driver="old")
    assert {(d["state"], d["total_mb"], d["used_mb"]) for d in sample["devices"]} == {
        ("ok", 81559, 1525)
    }


def test_nvml_one_gpu_lost_leaves_the_other_seven(nvml):
    """A GPU lost after it was seen keeps its name and total and loses its numbers; seven go on."""
    _, sample = nvml("", "lost=3")
    assert sample["error"] is None
    assert_healthy(sample, 3)
    lost = sample["devices"][3]
    assert lost == lost | gpu(3) | {"index": 3, "model": "NVIDIA H100 80GB HBM3 rev A"}
    assert_silent(lost, "lost", "The GPU is lost: .*")


def test_nvml_gpu_lost_from_the_start_has_a_row_that_says_so(nvml):
    """A GPU that never told its UUID is shown under a stand-in name until it does."""
    sample, healed = nvml("lost=3", "")
    assert_healthy(sample, 3)
    assert sample["devices"][3]["uuid"] == "UNKNOWN-box-3"
    assert_silent(sample["devices"][3], "lost", "The GPU is lost: .*")
    assert_healthy(healed)


def test_nvml_gpu_lost_during_the_sample_keeps_no_number(nvml):
    """Numbers of a GPU from just before it was found lost are not passed on."""
    [sample] = nvml("dying=3")
    assert_healthy(sample, 3)
    assert sample["devices"][3]["total_mb"] == 81559
    assert_silent(sample["devices"][3], "lost", "The GPU is lost: .*")


def test_nvml_lost_gpu_that_needs_a_reopen_returns(nvml):
    """While a GPU is lost NVML is opened again from time to time, which finds it again."""
    lost, healed = nvml("fallen=3", "fallen=3", reopen_s=0.0)
    assert lost["devices"][3]["state"] == "lost"
    assert_healthy(healed)


def test_nvml_one_gpu_hangs_leaves_the_other_seven(nvml):
    """A hanging call costs one deadline once, one row until it ends, and nothing else."""
    steps = ("", "hang=3", "hang=3", "-hang hang=3")
    _, sample, again, healed = nvml(*steps, deadline_s=1.0, reopen_s=0.0)
    for stuck in (sample, again):
        assert_healthy(stuck, 3)
        assert stuck["devices"][3] == stuck["devices"][3] | gpu(3)
        assert_silent(stuck["devices"][3], "error", r"NVML has not answered for \d+\.\d s")
    assert 1.0 <= sample["took_s"] < 3.0
    assert again["took_s"] < 1.0
    assert_healthy(healed)


def test_nvml_that_hangs_does_not_keep_the_process(nvml):
    """Closing and exiting do not wait for a call that never ends."""
    began = time.monotonic()
    nvml("hang=0", deadline_s=0.3)
    assert time.monotonic() - began < 6.0


def test_nvml_init_that_hangs_is_waited_for_and_not_repeated(nvml):
    """An init slower than the deadline is an error until it is done, and then serves."""
    sample, healed = nvml("hang=init", "-hang ", deadline_s=0.5)
    assert re.fullmatch(r"NVML has not answered for 0\.\d s", sample["error"])
    assert sample["devices"] == []
    assert_healthy(healed)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (9, "The NVIDIA driver is not loaded"),
        (18, "The NVIDIA driver and its library differ in version, .*"),
        (999, "The NVIDIA driver reports an unknown error"),
        (17, "NVML failed with error 17: The operating system has blocked the request."),
    ],
)
def test_nvml_init_fails_says_why_and_tries_again(nvml, error, sentence):
    """A failed init is one plain sentence, and the next sample tries again."""
    sample, healed = nvml(f"init={error}", "")
    assert (sample["devices"], sample["source"]) == ([], "nvml")
    assert re.fullmatch(sentence, sample["error"])
    assert_healthy(healed)


def test_nvml_without_a_driver_library_says_so(nvml):
    """A machine without the driver has no GPUs, and the sample says what is missing."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    [sample] = nvml("", driver=None)
    assert sample["error"] == "No NVIDIA driver library (libnvidia-ml.so.1) on this machine"


def test_nvml_memory_unsupported_keeps_the_row(nvml):
    """A GPU that cannot tell its memory is there, well, and says why it has none to lease."""
    [sample] = nvml("memory=3")
    assert {(d["state"], d["total_mb"], d["used_mb"], d["temperature_c"], d["reason"])
            for d in sample["devices"]} == {
        ("ok", None, None, 41.0, "NVML does not tell how much memory this GPU has")
    }  # fmt: skip


def test_nvml_memory_fails_is_an_error_with_the_last_total(nvml):
    """A memory call that fails leaves the last known total, and no number of this sample."""
    _, sample = nvml("", "memory=999")
    for index, device in enumerate(sample["devices"]):
        assert device == device | gpu(index)
        assert_silent(device, "error", "The NVIDIA driver reports an unknown error")


@pytest.mark.parametrize(("error", "told"), [(3, None), (10, "NVML timed out")])
def test_nvml_power_fails_is_null_and_costs_nothing_else(nvml, error, told):
    """A field that is not supported is null; one that failed is null and named."""
    [sample] = nvml(f"power={error}")
    assert_healthy(sample)
    assert {(d["power_draw_w"], d["nvml_error"]) for d in sample["devices"]} == {(None, told)}


def test_nvml_all_ones_is_null(nvml):
    """Numbers that no GPU can have are null."""
    [sample] = nvml("utilization=max")
    assert_healthy(sample)
    assert {(d["utilization_gpu_pct"], d["power_draw_w"], d["temperature_c"])
            for d in sample["devices"]} == {(None, None, 41.0)}  # fmt: skip


def test_nvml_garbled_name_is_made_printable(nvml):
    """A name that is no text neither costs the row nor reaches a page as it is."""
    [sample] = nvml("names=garbled")
    assert_healthy(sample)
    assert {(d["name"], d["model"]) for d in sample["devices"]} <= {
        ("NVIDIA ???", "NVIDIA"),
        ("Unknown GPU", "Unknown GPU"),
    }


def test_nvml_without_uuids_has_rows_without_names(nvml):
    """GPUs that give no UUID are told apart by their place and cannot pass for others."""
    [sample] = nvml("uuid=3")
    assert [d["uuid"] for d in sample["devices"]] == [f"UNKNOWN-box-{i}" for i in range(8)]
    assert {d["state"] for d in sample["devices"]} == {"error"}


def test_nvml_other_order_keeps_the_identity(nvml):
    """A UUID at a new index is still the same GPU."""
    _, sample = nvml("", "order=reversed")
    assert_healthy(sample)
    assert [d["uuid"] for d in sample["devices"]] == [gpu(i)["uuid"] for i in reversed(range(8))]


def test_nvml_count_falls_keeps_the_missing_gpu_as_lost(nvml):
    """A GPU that the driver stopped listing is lost, not forgotten; listed again, it is well."""
    _, sample, healed = nvml("", "count=7", "")
    assert_healthy(sample, 7)
    assert sample["devices"][7] == sample["devices"][7] | gpu(7)
    assert_silent(sample["devices"][7], "lost", "The NVIDIA driver no longer lists this GPU")
    assert_healthy(healed)


def test_nvml_count_grows_shows_the_new_gpu(nvml):
    """A GPU that appears is in the next sample."""
    sample, grown = nvml("count=7", "")
    assert len(sample["devices"]) == 7
    assert_healthy(grown)


def test_nvml_count_not_credible_is_an_error(nvml):
    """A count that no machine has starts no threads."""
    [sample] = nvml("count=-1")
    assert sample["error"] == "NVML failed: ValueError: it counts 4294967295 GPUs"


def test_nvml_closed_says_so():
    """After close, samples have no live device and say why, and NVML stays untouched."""
    source = choose("nvml", enable_nvml=True, safe_mode=False, host="box", smi_on_path=None)
    source.close()
    assert source.sample() == Sample((), "nvml", "The NVML source is closed")


# nvidia-smi, as a program that prints what real ones print

HEADER = (
    "index, uuid, name, driver_version, memory.total [MiB], memory.used [MiB], "
    "utilization.gpu [%], temperature.gpu, power.draw [W]"
)


def printed(*lines, status=0):
    quoted = "\n".join(lines)
    return f"cat <<'END'\n{quoted}\nEND\nexit {status}"


def test_smi_healthy_is_read_by_column_name(smi):
    """Columns may come in any order, and a comma in a name stays in the name."""
    sample = smi(
        printed(
            "power.draw [W], name, index, uuid, memory.total [MiB], memory.used [MiB], "
            "utilization.gpu [%], temperature.gpu, driver_version, new.field",
            "61.25, NVIDIA A, B, 0, GPU-a, 24576, 1, 3, 35, 550.54, 1",
        )
    ).sample()
    assert (sample.source, sample.error, sample.driver_version) == ("smi", None, "550.54")
    [device] = sample.devices
    assert (device.uuid, device.index, device.name) == ("GPU-a", 0, "NVIDIA A, B")
    assert device.model == "NVIDIA A B"
    assert (device.total_mb, device.used_mb, device.system_mb) == (24576, 1, 738)
    assert (device.utilization_gpu_pct, device.temperature_c) == (3.0, 35.0)
    assert (device.power_draw_w, device.memory_utilization_pct) == (61.25, 0.0)
    assert (device.nvml_mem_total_mb, device.nvml_error) == (None, None)


def test_smi_is_asked_for_csv_with_a_header(smi, tmp_path):
    """The program gets one query and the format that the parser reads."""
    smi(f'echo "$@" > {tmp_path}/asked').sample()
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--query-gpu=index,uuid,name,")
    assert asked.endswith("--format=csv,nounits\n")


@pytest.mark.parametrize("word", ["[N/A]", "N/A", "[Not Supported]", "ERR!", "nan", "inf", "-1"])
def test_smi_untold_fields_are_none_and_keep_the_row(smi, word):
    """No way of saying "unknown" costs the row or becomes a number."""
    row = f"0, GPU-a, NVIDIA T4, 550.54, {word}, {word}, {word}, {word}, {word}"
    [device] = smi(printed(HEADER, row)).sample().devices
    assert (device.uuid, device.state) == ("GPU-a", "ok")
    assert (device.total_mb, device.used_mb, device.power_draw_w) == (None, None, None)
    assert (device.utilization_gpu_pct, device.temperature_c) == (None, None)
    assert device.reason == "nvidia-smi does not tell how much memory this GPU has"


def test_smi_lost_gpu_leaves_the_others(smi):
    """A GPU whose fields say that it is lost is lost; its neighbour is well."""
    lost = "[GPU is lost]"
    good = "1, GPU-b, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5"
    sample = smi(printed(HEADER, ", ".join(["0", *[lost] * 8]), good)).sample()
    assert [(d.uuid, d.state) for d in sample.devices] == [
        ("UNKNOWN-box-0", "lost"),
        ("GPU-b", "ok"),
    ]


def test_smi_fails_after_it_worked_keeps_the_devices_as_errors(smi):
    """A failing program is an error in its own words, and known devices stay, without numbers."""
    source = smi(printed(HEADER, "0, GPU-a, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5"))
    assert source.sample().error is None
    smi("echo 'Failed to initialize NVML: Unknown Error' >&2; echo more >&2; exit 255")
    sample = source.sample()
    assert sample.error == "nvidia-smi failed: Failed to initialize NVML: Unknown Error"
    [device] = sample.devices
    assert (device.uuid, device.state, device.reason) == ("GPU-a", "error", sample.error)
    assert (device.total_mb, device.used_mb) == (15360, None)


def test_smi_fails_halfway_keeps_the_rows_it_printed(smi):
    """Rows printed before one GPU broke the query are good; the sample says what broke it."""
    remark = "Unable to determine the device handle for GPU0000:05:00.0: Unknown Error"
    row = "0, GPU-a, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5"
    sample = smi(printed(HEADER, row, remark, status=15)).sample()
    assert sample.error == f"nvidia-smi failed: {remark}"
    assert [(d.uuid, d.state, d.used_mb) for d in sample.devices] == [("GPU-a", "ok", 12)]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("echo 'No devices were found'; exit 6", "nvidia-smi failed: No devices were found"),
        ("echo 'No devices were found'", "nvidia-smi failed: No devices were found"),
        ("exit 3", "nvidia-smi failed: exit status 3, no output"),
        ("exit 0", "nvidia-smi failed: exit status 0, no output"),
        (
            "head -c 200000 /dev/zero | tr '\\0' x",
            "nvidia-smi printed no table: field larger than field limit (131072)",
        ),
    ],
)
def test_smi_without_devices_says_why(smi, body, error):
    """Text in place of rows becomes the sample's error, whatever the exit status."""
    assert smi(body).sample() == Sample((), "smi", error)


def test_smi_gpu_no_longer_listed_is_lost(smi):
    """A GPU that is no longer printed keeps its row as lost."""
    rows = [f"{i}, GPU-{i}, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5" for i in range(2)]
    source = smi(printed(HEADER, *rows))
    assert [d.state for d in source.sample().devices] == ["ok", "ok"]
    smi(printed(HEADER, rows[0]))
    sample = source.sample()
    assert sample.error is None
    assert [(d.uuid, d.state, d.used_mb) for d in sample.devices] == [
        ("GPU-0", "ok", 12),
        ("GPU-1", "lost", None),
    ]


def test_smi_that_cannot_be_killed_is_not_started_again(smi):
    """While a program from before still runs no second one is started; then all is well."""
    source = smi(printed(HEADER))
    stuck = subprocess.Popen(["sleep", "60"])
    source._stuck, source._stuck_at = stuck, time.monotonic() - 7
    assert re.fullmatch(r"nvidia-smi has not answered for 7\.\d s", source.sample().error)
    stuck.kill()
    stuck.wait()
    assert source.sample().error is None


def test_smi_that_hangs_is_ended_with_its_children(smi, tmp_path):
    """After the timeout the program and what it started are gone, and the sample says so."""
    source = smi(f"sleep 60 & echo $! > {tmp_path}/child; wait", timeout_s=0.5)
    began = time.monotonic()
    sample = source.sample()
    assert time.monotonic() - began < 3.0
    assert sample == Sample((), "smi", "nvidia-smi has not answered for 0.5 s")
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    for _ in range(200):
        if not child.exists() or ") Z " in (child / "stat").read_text():
            return
        time.sleep(0.01)
    pytest.fail("the child of nvidia-smi lives on")


def test_smi_that_cannot_be_started_says_why(tmp_path):
    """A program that is not there is an error of the sample, not an exception."""
    sample = SmiSource("box", str(tmp_path / "nvidia-smi")).sample()
    assert sample == Sample((), "smi", "nvidia-smi cannot be started: No such file or directory")


def test_smi_two_callers_take_turns(smi, tmp_path):
    """A caller that comes while another waits starts no second program beside the first."""
    busy = tmp_path / "busy"
    source = smi(f"mkdir {busy} || exit 1; sleep 0.2; rmdir {busy}; {printed(HEADER)}")
    errors = []
    threads = [
        threading.Thread(target=lambda: errors.append(source.sample().error)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert errors == [None] * 3


# Simulated devices


def test_simulated_groups_have_stable_names_and_are_idle():
    """Each device is named by host and place, says what it is, and has all its memory free."""
    source = choose(
        "sim:2x24576,1x81920", enable_nvml=None, safe_mode=True, host="my box", smi_on_path=None
    )
    sample = source.sample()
    assert sample == source.sample()
    assert (sample.source, sample.error) == ("simulated", None)
    assert [(d.uuid, d.index, d.total_mb) for d in sample.devices] == [
        ("SIM-my-box-0", 0, 24576),
        ("SIM-my-box-1", 1, 24576),
        ("SIM-my-box-2", 2, 81920),
    ]
    assert sample.devices[2].name == sample.devices[2].model == "Simulated GPU 81920 MiB"
    for device in sample.devices:
        assert (device.simulated, device.state, device.reason) == (True, "ok", "")
        assert (device.system_mb, device.used_mb) == (0, 0)
        assert (device.utilization_gpu_pct, device.temperature_c) == (0.0, None)


def test_simulated_limits_are_the_largest_taken():
    """1,024 devices and 16 TiB each are taken."""
    assert len(totals_of("sim:1000x1,24x16777216")) == 1024


@pytest.mark.parametrize(
    "spec",
    [
        "sim:", "sim:4", "sim:x24576", "sim:4x", "sim:0x24576", "sim:1025x1", "sim:1000x1,25x1",
        "sim:1x0", "sim:1x16777217", "sim:4x24576,", "sim:-1x5", "sim:4x24GiB", "sim:٤x24576",
        "sim:1x9999999999",
    ],
)  # fmt: skip
def test_simulated_spec_not_understood_names_the_form(spec):
    """A spec that cannot be had is refused with the form that can."""
    with pytest.raises(ValueError, match=r"sim:COUNTxMIB.*for example sim:4x24576"):
        totals_of(spec)
    with pytest.raises(DeviceSourceError, match="GPU_BROKER_DEVICES: "):
        choose(spec, enable_nvml=None, safe_mode=False, host="box", smi_on_path=None)


# Which source


@pytest.mark.parametrize(
    ("spec", "enable_nvml", "safe_mode", "smi", "name"),
    [
        ("auto", True, False, "/bin/smi", "nvml"),
        ("auto", None, False, "/bin/smi", "smi"),
        ("auto", False, False, "/bin/smi", "smi"),
        ("auto", None, False, None, "none"),
        ("nvml", None, False, None, "nvml"),
        ("nvml", True, False, None, "nvml"),
        ("smi", None, False, "/bin/smi", "smi"),
        ("none", True, False, "/bin/smi", "none"),
        ("auto", True, True, "/bin/smi", "none"),
        ("nvml", True, True, "/bin/smi", "none"),
        ("nvml", False, True, "/bin/smi", "none"),
        ("smi", None, True, None, "none"),
        ("sim:1x1", False, True, None, "simulated"),
    ],
)
def test_choose_follows_the_rule(spec, enable_nvml, safe_mode, smi, name):
    """The source depends on what is asked for, allowed and there, and on nothing else."""
    source = choose(spec, enable_nvml=enable_nvml, safe_mode=safe_mode, host="box", smi_on_path=smi)
    assert source.name == name
    source.close()


@pytest.mark.parametrize(
    ("spec", "way_out"),
    [
        ("nvml", "unset ENABLE_NVML"),
        ("smi", "add its folder to PATH"),
        ("NVML", "is none of auto, nvml, smi, none, sim:COUNTxMIB"),
        ("", "is none of auto"),
    ],
)
def test_choose_contradiction_is_refused_with_the_way_out(spec, way_out):
    """Settings that cannot be had together are an error that says what to change."""
    with pytest.raises(DeviceSourceError, match=way_out):
        choose(spec, enable_nvml=False, safe_mode=False, host="box", smi_on_path=None)


@pytest.mark.parametrize(
    ("spec", "safe_mode", "why"),
    [("none", False, None), ("auto", False, "No way to ask"), ("auto", True, "SAFE_MODE is on")],
)
def test_none_says_why_there_are_no_devices(spec, safe_mode, why):
    """No devices is told apart: wanted, not possible, or not allowed."""
    source = choose(spec, enable_nvml=None, safe_mode=safe_mode, host="box", smi_on_path=None)
    sample = source.sample()
    assert (sample.devices, sample.source) == ((), "none")
    assert sample.error is None if why is None else sample.error.startswith(why)


@pytest.fixture
def trapped(tmp_path):
    """Sample once in a process where pynvml raises on import and nvidia-smi leaves a mark."""
    (tmp_path / "pynvml.py").write_text("raise RuntimeError('pynvml was imported')\n")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/touched\n")
    program.chmod(0o755)
    code = textwrap.dedent("""
        import shutil, sys
        from broker.devices import choose
        smi = shutil.which("nvidia-smi")
        assert smi, "the test's nvidia-smi must be on PATH"
        safe_mode = sys.argv[2] == "safe"
        source = choose(
            sys.argv[1], enable_nvml=True, safe_mode=safe_mode, host="box", smi_on_path=smi
        )
        sample = source.sample()
        print(sample.source, sample.error)
        source.close()
    """)

    def ask(spec, mode):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, spec, mode],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout, (tmp_path / "touched").exists()

    return ask


@pytest.mark.parametrize("spec", ["auto", "nvml", "smi", "none", "sim:1x1"])
def test_safe_mode_touches_neither_nvml_nor_nvidia_smi(trapped, spec):
    """Under SAFE_MODE nothing imports pynvml and nothing runs nvidia-smi."""
    told, touched = trapped(spec, "safe")
    assert told.startswith("simulated" if spec.startswith("sim:") else "none")
    assert "pynvml" not in told
    assert not touched


def test_without_safe_mode_the_same_traps_are_sprung(trapped):
    """The traps of the test above do catch what they are there for."""
    assert trapped("smi", "unsafe")[1]
    assert "pynvml was imported" in trapped("nvml", "unsafe")[0]


def test_nvml_import_that_fails_is_an_error_of_the_sample(tmp_path):
    """A missing or broken nvidia-ml-py is told in a sentence, at the first sample, not before."""
    code = textwrap.dedent("""
        import sys
        from broker.devices import choose
        source = choose("nvml", enable_nvml=None, safe_mode=False, host="b", smi_on_path=None)
        assert "pynvml" not in sys.modules
        print(source.sample().error)
    """)
    for body, sentence in {
        "raise ImportError('no')": "nvidia-ml-py is not installed: pip install "
        "'gpu-lease-broker[broker]'\n",
        "raise RuntimeError('bad')": "NVML failed: RuntimeError: bad\n",
    }.items():
        (tmp_path / "pynvml.py").write_text(body)
        done = subprocess.run(
            [sys.executable, "-B", "-W", "error", "-c", code],
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (sentence, "")


# What is told


@pytest.mark.parametrize(
    ("total_mb", "system_mb"),
    [(None, 256), (1000, 256), (8533, 256), (8534, 257), (81559, 2447), (100_000, 3000)],
)
def test_system_memory_is_three_percent_and_at_least_256_mib(total_mb, system_mb):
    """The system's memory of a real device is 3 % rounded up, never under 256 MiB."""
    assert system_mb_of(total_mb) == system_mb


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 101, -1, 10**400, "", None, b"5"])
def test_number_out_of_range_is_none(value):
    """Only a finite number in range is a number."""
    assert number(value, 0, 100) is None


def test_names_become_words_that_the_pool_takes():
    """Names and ids never carry what a key, a log line or a page cannot take."""
    assert model_of("NVIDIA GeForce GTX 1660 Ti / Max-Q") == "NVIDIA GeForce GTX 1660 Ti Max-Q"
    assert model_of("€<>") == "unknown"
    assert re.fullmatch(r"[A-Za-z0-9._ -]{1,64}", model_of("x " * 99))
    assert text(b"Tesla\x00\xff T4\n") == "Tesla?? T4"
    assert (uuid_of(b"GPU-1/2:3"), uuid_of("GPU 1"), uuid_of("a" * 81)) == ("GPU-1/2:3", "", "")

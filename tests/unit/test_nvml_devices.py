"""GPUs through NVML: every way in which a driver can fail, through the real ctypes path."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from broker.devices import choose
from broker.devices.sample import Sample
from broker.devices.unified import host_memory

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
    # On a busy machine the first look takes more than one deadline
    steps = (*[""] * 5, "hang=3", "hang=3", "-hang hang=3")
    *_, sample, again, healed = nvml(*steps, deadline_s=1.0, reopen_s=0.0)
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
    # On a busy machine it takes more than one deadline
    sample, *_, healed = nvml("hang=init", "-hang ", *[""] * 9, deadline_s=0.5)
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


@pytest.mark.parametrize("missing", ["unsupported", "denied", "not told"])
def test_nvml_memory_that_is_not_told_keeps_the_row(nvml, missing):
    """A GPU that cannot tell its memory is there, well, and says why it has none to lease."""
    words = {"unsupported": "nvmlDeviceGetMemoryInfo/3,memory=4", "denied": "x/1,memory=4"}
    [sample] = nvml(f"fail={words.get(missing, 'x/1,memory=6')}")
    assert {(d["state"], d["total_mb"], d["used_mb"], d["temperature_c"], d["reason"])
            for d in sample["devices"]} == {
        ("ok", None, None, 41.0, "NVML does not tell how much memory this GPU has")
    }  # fmt: skip


def test_nvml_gpus_without_memory_of_their_own_share_the_machines(nvml):
    """Memory that is not supported is the machine's; several GPUs have an equal part each."""
    for words, parts in (("count=1,memory=3", 1), ("memory=3", 8)):
        [sample] = nvml(words)
        host = host_memory()
        assert len(sample["devices"]) == parts
        for row in sample["devices"]:
            assert (row["state"], row["reason"], row["unified"]) == ("ok", "", True)
            assert row["total_mb"] == host.total_mb // parts
            assert abs(row["used_mb"] * parts - (host.total_mb - host.available_mb)) < 2048
            assert row["nvml_mem_total_mb"] is None


@pytest.mark.parametrize(
    ("name", "total_mb", "unified"),
    [
        ("NVIDIA GB10", "all", True),
        ("Orin (nvgpu)", "none", True),
        ("NVIDIA H100", "none", True),
        ("NVIDIA H100", "all", False),
        ("NVIDIA Thor", "half", False),
    ],
)
def test_nvml_memory_of_the_machine_that_counts_as_the_gpu_s(nvml, name, total_mb, unified):
    """Some drivers tell MemTotal, and the page cache as used, or 0; then the machine tells."""
    host = host_memory()
    total_mb = {"all": host.total_mb, "half": host.total_mb // 2, "none": 0}[total_mb]
    [sample] = nvml(f"count=1,name=0/{name},total=0/{total_mb},allocated=0/1000")
    [row] = sample["devices"]
    used_mb = host.total_mb - host.available_mb if unified else 1000
    assert (row["unified"], row["total_mb"]) == (unified, host.total_mb if unified else total_mb)
    assert abs(row["used_mb"] - used_mb) < 2048 * unified + 1


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


def test_nvml_import_that_fails_is_an_error_of_the_sample(tmp_path):
    """A broken or another pynvml in its place is told at the first sample, not before."""
    (tmp_path / "nvidia_ml_py-1.dist-info").mkdir()
    (tmp_path / "nvidia_ml_py-1.dist-info" / "METADATA").write_text("Name: nvidia-ml-py\n")
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
        "class NVMLError(Exception): pass": f"another package's pynvml ({tmp_path}/pynvml.py) is "
        "in the place of nvidia-ml-py's: pip uninstall nvidia-ml-py3 pynvml, then pip install "
        "--force-reinstall nvidia-ml-py\n",
    }.items():
        (tmp_path / "pynvml.py").write_text(body)
        done = subprocess.run(
            [sys.executable, "-B", "-W", "error", "-c", code],
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (sentence, "")

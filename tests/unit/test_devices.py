"""Device sources: the choice among them, simulated ones, and the values that a sample takes."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agent_sdk.keys import model_of
from broker.devices import DeviceSourceError, DriverLimits, choose
from broker.devices.sample import number, system_mb_of, text, uuid_of
from broker.devices.simulated import totals_of

ROOT = Path(__file__).resolve().parents[2]

WITHOUT_AMD = DriverLimits(amd_root=Path("/nonexistent"))
"""A machine without AMD's driver, whatever this one has."""


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
    source = choose(
        spec,
        enable_nvml=enable_nvml,
        safe_mode=safe_mode,
        host="box",
        smi_on_path=smi,
        limits=WITHOUT_AMD,
    )
    assert source.name == name
    source.close()


@pytest.mark.parametrize(
    ("spec", "way_out"),
    [
        ("nvml", "unset ENABLE_NVML"),
        ("smi", "add its folder to PATH"),
        ("NVML", "is none of auto, nvml, smi, amd, none, sim:COUNTxMIB"),
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
    source = choose(
        spec,
        enable_nvml=None,
        safe_mode=safe_mode,
        host="box",
        smi_on_path=None,
        limits=WITHOUT_AMD,
    )
    sample = source.sample()
    assert (sample.devices, sample.source) == ((), "none")
    assert sample.error is None if why is None else sample.error.startswith(why)


@pytest.fixture
def trapped(tmp_path):
    """Sample once in a process where pynvml raises on import and nvidia-smi leaves a mark."""
    (tmp_path / "pynvml.py").write_text("raise RuntimeError('pynvml was imported')\n")
    (tmp_path / "nvidia_ml_py-1.dist-info").mkdir()  # the real one is not looked for
    (tmp_path / "nvidia_ml_py-1.dist-info" / "METADATA").write_text("Name: nvidia-ml-py\n")
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


# Values


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
    long = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition MIG 1g.24gb"
    models = [model_of(long), model_of(f"{long}+me.all"), model_of(f"{long}+gfx")]
    assert len(set(models)) == 3
    assert all(re.fullmatch(r"NVIDIA RTX PRO 6000 [A-Za-z0-9._ -]{1,45}", m) for m in models)
    assert [model_of(m) for m in models] == models
    assert text(b"Tesla\x00\xff T4\n") == "Tesla?? T4"
    assert (uuid_of(b"GPU-1/2:3"), uuid_of("GPU 1"), uuid_of("a" * 81)) == ("GPU-1/2:3", "", "")

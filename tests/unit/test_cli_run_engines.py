"""Engines that `gpu-broker run` keeps inside a lease, and the imports that a run needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk import Lease
from agent_sdk.engines.share import Share, decimal
from agent_sdk.engines.table import ENGINES
from agent_sdk.protocol.messages import Device, Grant
from broker.run.engines import EngineSetup, set_up

if TYPE_CHECKING:
    from collections.abc import Mapping

LEASED, TOTAL, USED = 6000, 24_000, 8000


def lease(
    leased_mb: int = LEASED, total_mb: int = TOTAL, used_mb: int | None = USED, gpus: int = 1
) -> Lease:
    """A lease that is not renewed, on GPUs of this size."""
    devices = tuple(
        Device(f"GPU-{n}", n, "h1", "GPU", leased_mb, total_mb, used_mb, str(n))
        for n in range(gpus)
    )
    return Lease(Grant("t" * 16, "ann", 1, 0, 60_000, 60_000, None, devices, 1e12))


def setup(engine: str, *command: str, environ: Mapping[str, str] | None = None) -> EngineSetup:
    return set_up(command or ("engine",), engine, lease(), environ or {})


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "1.0"),
        (0.5, "0.5"),
        (2048 / 275_040, "0.0074"),
        (5120 / 275_040, "0.0186"),
        (0.29166, "0.2916"),
        (0.3, "0.3"),
        (20 / 275_040, "0.00007"),
        (1 / 300_000, "0.000003"),
    ],
)
def test_share_is_rounded_down_to_four_digits_and_never_zero(share: float, text: str) -> None:
    """A larger one would exceed the lease, and engines refuse 0."""
    assert decimal(share) == text
    assert 0 < float(decimal(share)) <= share


@pytest.mark.parametrize(
    ("engine", "flag", "env"),
    [
        ("vllm", "--gpu-memory-utilization 0.25", {}),
        ("sglang", "--mem-fraction-static 0.3375", {}),
        ("trtllm", "--kv_cache_free_gpu_memory_fraction 0.2307", {}),
        ("comfyui", "--reserve-vram 9.77", {}),
        ("torch", "", {"PYTORCH_ALLOC_CONF": "per_process_memory_fraction:0.2286"}),
        ("deepspeed", "", {"PYTORCH_ALLOC_CONF": "per_process_memory_fraction:0.2286"}),
        ("jax", "", {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2286"}),
        ("tensorflow", "", {"TF_DEVICE_MIN_SYS_MEMORY_IN_MB": "10000"}),
        ("cupy", "", {"CUPY_GPU_MEMORY_LIMIT": str(5488 << 20)}),
        ("llamacpp", "", {"LLAMA_ARG_FIT_TARGET": "10000"}),
    ],
)
def test_each_engine_gets_its_own_measure(engine: str, flag: str, env: dict[str, str]) -> None:
    """24,000 MiB, of which 8,000 are in use and 6,000 leased."""
    made = setup(engine)
    if flag:
        env = {**env, "GPU_LEASE_ENGINE_ARGS": flag}
    assert (made.flag, made.env, made.remarks) == (flag, env, [])
    assert made.words == ["engine", *flag.split()]
    assert {*ENGINES} == {"vllm", "sglang", "trtllm", "torch", "deepspeed", "jax", "tensorflow",
                          "cupy", "ollama", "llamacpp", "comfyui"}  # fmt: skip


@pytest.mark.parametrize("used_mb", [0, 5000, 17_000, 23_000, None])
@pytest.mark.parametrize("leased_mb", [100, 3000, 12_000, 24_000])
def test_no_engine_takes_more_than_the_lease(leased_mb: int, used_mb: int | None) -> None:
    """Each engine's own arithmetic, on what is free when it starts."""
    free_mb = max(leased_mb, TOTAL - (used_mb or 0))
    share = Share(leased_mb, TOTAL, free_mb)

    def value(engine: str) -> float:
        said = ENGINES[engine].settings(share)
        text = said.flag[1] if said.flag else next(iter(said.env.values()))
        return float(text.rpartition(":")[2])

    assert 0 < value("vllm") * TOTAL <= leased_mb
    assert 0 < value("sglang") * free_mb <= leased_mb
    for weights in range(0, leased_mb // 2 + 1, 50):
        assert weights + value("trtllm") * (free_mb - weights) <= leased_mb
    for engine in ("torch", "jax"):
        assert 0 < value(engine) * TOTAL <= leased_mb
    assert 0 < value("cupy") <= leased_mb << 20
    for engine, unit in (("tensorflow", 1), ("llamacpp", 1), ("ollama", 1 / (1 << 20)),
                         ("comfyui", 1024)):  # fmt: skip
        assert free_mb - value(engine) * unit <= leased_mb


@pytest.mark.parametrize(
    ("engine", "command"),
    [
        ("vllm", ["vllm", "--gpu-memory-utilization=0.2"]),
        ("vllm", ["vllm", "--gpu_memory_utilization", "0.25"]),
        ("vllm", ["vllm", "--gpu-memory-util", "0.25"]),
        ("sglang", ["sglang", "--mem-fraction-static", "0.3"]),
        ("trtllm", ["trtllm-serve", "--free_gpu_memory_fraction=0.1"]),
    ],
)
def test_own_option_within_the_lease_is_left_alone(engine: str, command: list[str]) -> None:
    """Nothing is added, and nothing said."""
    made = setup(engine, *command)
    assert (made.words, made.flag, made.remarks) == (command, "", [])


@pytest.mark.parametrize(
    ("engine", "command", "environ", "said"),
    [
        ("vllm", ["vllm", "--gpu-memory-utilization", "0.9"], {}, "21.1 GiB"),
        ("vllm", ["vllm", "--kv-cache-memory-bytes=20G"], {}, "20.0 GiB"),
        ("vllm", ["vllm", "--kv-cache-memory-bytes=2G"], {}, "by hand"),
        ("sglang", ["sglang", "--mem-fraction-static=0.8"], {}, "12.5 GiB"),
        ("trtllm", ["trtllm-serve", "--kv_cache_free_gpu_memory_fraction=0.9"], {}, "14.1 GiB"),
        ("trtllm", ["trtllm-serve", "m", "--config", "more.yaml"], {}, "by hand"),
        ("jax", ["python"], {"XLA_CLIENT_MEM_FRACTION": ".75"}, "17.6 GiB"),
        ("llamacpp", ["llama-server", "-fitt", "1024"], {}, "14.6 GiB"),
        ("llamacpp", ["llama-server", "-ngl", "99"], {}, "by hand"),
        ("comfyui", ["main.py", "--reserve-vram", "1"], {}, "14.6 GiB"),
        ("comfyui", ["main.py", "--highvram"], {}, "by hand"),
        ("ollama", ["ollama", "run", "m"], {}, "ollama serve"),
        ("cupy", ["x"], {"CUPY_GPU_MEMORY_LIMIT": "1000"}, "left as it is"),
    ],
)
def test_setting_that_lets_more_than_the_lease_through_is_said(
    engine: str, command: list[str], environ: dict[str, str], said: str
) -> None:
    """The amount is named, where it is known."""
    assert said in " ".join(setup(engine, *command, environ=environ).remarks)


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "vllm serve m"],
        ["/bin/bash", "-lc", "vllm serve m"],
        ["bash", "-euo", "pipefail", "-c", "vllm serve m"],
        ["env", "A=1", "sh", "-c", "vllm serve m"],
        ["nice", "-n", "5", "dash", "-ec", "vllm serve m"],
        ["python3.12", "-c", "import vllm"],
        ["python", "-X", "dev", "-c", "import vllm"],
        ["su", "ann", "-c", "vllm serve m"],
        ["flock", "lock", "-c", "vllm serve m"],
    ],
)
def test_command_in_one_word_gets_no_option(command: list[str]) -> None:
    """It would be the shell's; the remark names the variable that has it."""
    made = setup("vllm", *command)
    assert (made.words, made.flag, made.added) == (command, "", [])
    assert "$GPU_LEASE_ENGINE_ARGS" in " ".join(made.remarks)
    assert made.env["GPU_LEASE_ENGINE_ARGS"] == "--gpu-memory-utilization 0.25"


@pytest.mark.parametrize(
    "command",
    [
        ["vllm", "serve", "m"],
        ["python", "-m", "vllm.entrypoints.openai.api_server", "-c", "x"],
        ["python", "-u", "serve.py", "-c", "config"],
        ["env", "A=1", "nice", "vllm", "serve", "m"],
    ],
)
def test_command_in_words_gets_the_option(command: list[str]) -> None:
    """A -c of the program is the program's."""
    assert setup("vllm", *command).flag == "--gpu-memory-utilization 0.25"


def test_shell_script_has_to_hand_the_option_on(tmp_path: Path) -> None:
    """A remark says it; a program in Python with a long path begins like a shell script."""
    script, program = tmp_path / "serve.sh", tmp_path / "vllm"
    script.write_text("#!/usr/bin/env bash\nvllm serve m\n")
    program.write_text("#!/bin/sh\n'''exec' /a/long/python \"$0\" \"$@\"\n' '''\n")
    script.chmod(0o755)
    program.chmod(0o755)
    assert "hand it on" in " ".join(setup("vllm", str(script)).remarks)
    assert "hand it on" in " ".join(setup("vllm", "bash", str(script)).remarks)
    assert setup("vllm", str(program), "serve", "m").remarks == []


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_own_settings_of_the_allocator_are_kept(name: str) -> None:
    """PyTorch reads one of the two variables: the limit goes to the one that it reads."""
    made = setup("torch", environ={name: "expandable_segments:True"})
    assert made.env == {name: "expandable_segments:True,per_process_memory_fraction:0.2286"}
    own = setup("torch", environ={name: "per_process_memory_fraction:0.9"})
    assert own.env == {}
    assert "left as it is" in " ".join(own.remarks)


def test_pytorch_for_amd_reads_another_variable_too() -> None:
    """PYTORCH_HIP_ALLOC_CONF goes before the common one there, and means nothing elsewhere."""
    own = {"PYTORCH_HIP_ALLOC_CONF": "expandable_segments:True"}
    assert setup("torch", environ=own).env.keys() == {"PYTORCH_ALLOC_CONF"}
    radeon = Device("amd:1", 0, "h1", "GPU", LEASED, TOTAL, USED, "GPU-0000000000000001")
    on_amd = Lease(Grant("t" * 16, "ann", 1, 0, 60_000, 60_000, None, (radeon,), 1e12))
    assert set_up(["engine"], "torch", on_amd, own).env.keys() == own.keys()


@pytest.mark.parametrize(("version", "old"), [("2.9.1", True), ("2.10.0", False), ("3.0", False)])
def test_pytorch_without_such_a_setting_is_named(tmp_path: Path, version: str, old: bool) -> None:
    """By the folder of the package that the command's interpreter would import."""
    (tmp_path / f"lib/python3.12/site-packages/torch-{version}.dist-info").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.symlink_to(sys.executable)
    made = setup("torch", str(python), "train.py")
    assert (made.env == {}) == old
    assert (version in " ".join(made.remarks)) == old


def test_memory_that_is_unknown_bounds_nothing() -> None:
    """A pool that does not know the GPU's size cannot give a share of it."""
    made = set_up(["vllm"], "vllm", lease(total_mb=0), os.environ)
    assert made.words == ["vllm"]
    assert "does not know" in " ".join(made.remarks)


def test_page_has_a_row_for_each_engine() -> None:
    """And no row more: with the version that was read, what is set, and what that leaves open."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "engines.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|((?:[^|]+\|){4})$", page, re.MULTILINE)
    assert [name for name, _ in rows] == list(ENGINES)


def test_run_needs_the_base_install_alone() -> None:
    """redis and click: no web server, no settings library."""
    code = "import sys, broker.cli.commands.run; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not loaded & {"fastapi", "uvicorn", "pydantic", "prometheus_client", "pynvml"}

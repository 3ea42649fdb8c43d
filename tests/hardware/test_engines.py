"""Settings of engines under a lease, by `gpu-broker run` on machines that a broker reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported

SHOW = "env | grep -E '^(CUDA|NVIDIA|GPU_LEASE|XLA|TF_|PYTORCH|CUPY|OLLAMA|LLAMA)' ; echo ARGS $*"


class Child:
    """Command under `gpu-broker run`, with its environment and arguments."""

    def __init__(self, machine: Reported, *options: str, script: str = SHOW, args: tuple[str, ...]
                 = (), **env: str) -> None:  # fmt: skip
        done = machine.command(
            "run", "-o", "json", "--wait", "5s", *options, "--", *self.command(script, args), **env
        )
        self.code = done.returncode
        self.events: list[dict[str, Any]] = [json.loads(x) for x in done.stderr.splitlines()]
        lines = done.stdout.splitlines()
        self.args = next((x.split()[1:] for x in lines if x.startswith("ARGS")), [])
        self.env = dict(x.split("=", 1) for x in lines if "=" in x and not x.startswith("ARGS"))

    @staticmethod
    def command(script: str, args: tuple[str, ...]) -> list[str]:
        return ["./engine", *args] if script is SHOW else ["sh", "-c", script, *args]

    @property
    def remarks(self) -> str:
        """Sentences about what is not bounded."""
        return " ".join(x["detail"] for x in self.events if x["event"] == "unbounded")

    @property
    def given(self) -> list[str]:
        """Options that were said to be added."""
        return [x["flag"] for x in self.events if x["event"] == "hint" and x["flag"]]


@pytest.fixture(autouse=True)
def engine(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a program that shows its environment and its arguments, and is no shell script."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "engine"
    program.write_text(
        "#!/usr/bin/env python3\n"
        "import os, sys\n"
        "for name, value in os.environ.items(): print(f'{name}={value!s}')\n"
        "print('ARGS', *sys.argv[1:])\n"
    )
    program.chmod(0o755)


def test_vllm_gets_a_small_share_of_a_large_gpu(reported: Callable[..., Reported]) -> None:
    """2 of 268.6 GiB are 0.0074: never 0, which vLLM refuses; a shell finds it in a variable."""
    machine = reported("b300")
    machine.until(len)
    vllm = ("--memory", "2GiB", "--for", "vllm")
    child = Child(machine, *vllm, args=("serve", "m"))
    assert child.code == 0
    assert child.args == ["serve", "m", "--gpu-memory-utilization", "0.0074"]
    assert child.given == ["--gpu-memory-utilization 0.0074"]
    assert child.env["GPU_LEASE_MEMORY_FRACTION"] == "0.0074"
    in_shell = Child(machine, *vllm, script="echo ARGS $0 $* $GPU_LEASE_ENGINE_ARGS")
    assert (in_shell.given, in_shell.args[1:]) == ([], ["--gpu-memory-utilization", "0.0074"])
    assert "sh -c" in in_shell.remarks


def test_sglang_gets_a_share_of_what_is_free(reported: Callable[..., Reported]) -> None:
    """36 of 40 free GiB, less the part of its activations, on a GPU half of which is in use."""
    machine = reported("a100_in_use")
    machine.until(len)
    child = Child(machine, "--memory", "36GiB", "--for", "sglang")
    assert child.args == ["--mem-fraction-static", "0.8107"]
    assert child.env["CUDA_VISIBLE_DEVICES"] == "0"


def test_engine_that_reads_numbers_gets_numbers(reported: Callable[..., Reported]) -> None:
    """Beside UUIDs for containers; others get UUIDs, unless they are told otherwise."""
    machine = reported("a100_pair")
    machine.until(lambda gpus: len(gpus) == 2)
    uuids = {gpu["uuid"] for gpu in machine.gpus()}
    for options, form in (
        (("--for", "deepspeed"), "index"),
        ((), "uuid"),
    ):
        env = Child(machine, "--gpus", "2", *options).env
        assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert set(env["NVIDIA_VISIBLE_DEVICES"].split(",")) == uuids
        seen = set(env["CUDA_VISIBLE_DEVICES"].split(","))
        assert seen == ({"0", "1"} if form == "index" else uuids)


def test_uncertain_number_is_never_given(reported: Callable[..., Reported]) -> None:
    """The driver's list has a gap: CUDA may count otherwise, and would open another GPU."""
    machine = reported("a100_gap")
    machine.until(lambda gpus: len(gpus) == 2)
    child = Child(machine, "--gpus", "2", "--for", "sglang")
    assert child.env["CUDA_VISIBLE_DEVICES"].count("GPU-") == 2
    assert "not certain" in child.remarks
    with machine.sdk().lease("ann", memory_mb=1024) as lease:
        assert lease.env("sglang")["CUDA_VISIBLE_DEVICES"].startswith("GPU-")
        with pytest.raises(BadRequest):
            lease.env(visible="index")


def test_sdk_gives_an_engine_the_same(reported: Callable[..., Reported]) -> None:
    """The grant, an adopted lease and the answer over HTTP have all that it needs."""
    machine = reported("a100_in_use")
    machine.until(len)
    client = machine.sdk()
    with client.lease("ann", memory_mb=36 * 1024) as lease:
        env = lease.env(for_="sglang")
        assert lease.engine_args("sglang") == ["--mem-fraction-static", "0.8107"]
        assert env["GPU_LEASE_ENGINE_ARGS"] == "--mem-fraction-static 0.8107"
        assert (env["CUDA_VISIBLE_DEVICES"], env["GPU_LEASE_MEMORY_FRACTION"]) == ("0", "0.45")
        assert client.adopt(lease.token).env(for_="sglang") == env
        with pytest.raises(BadRequest, match="vllm"):
            lease.env(for_="vlm")
    body = {"agent": "ann", "min_memory_mb": 36 * 1024}
    answer = machine.broker.http.post("/lease", json=body).json()
    [gpu] = answer["gpus"]
    assert (gpu["memory_total_mb"], gpu["memory_used_mb"], gpu["runtime_id"]) == (81920, 41000, "0")
    assert answer["env"]["GPU_LEASE_MEMORY_FRACTION"] == "0.45"

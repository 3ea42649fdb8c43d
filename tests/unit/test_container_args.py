"""`lease.args`: options of container runtimes, read by the programs that are to understand them."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_sdk import AsyncLease, Lease
from agent_sdk.engines.containers import LABEL, RUNTIMES, container_label
from agent_sdk.errors import BadRequest
from tests.containers import GPUS, TOKEN, args, docker_daemon, lease

MIG = "MIG-5a4d2c1b-0000-4000-8000-00000000000a"

AMD_GPU = "amd:a100004a4a4a4a4a"

if TYPE_CHECKING:
    from pathlib import Path

NAMES = tuple(word for name in ("A", "GPU_BROKER_POOL", "GPU_BROKER_HOSTNAME")
              for word in ("--env", name))  # fmt: skip

END = (*NAMES, "--label", f"{LABEL}=x")

NVIDIA_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Files by which a driver tells its GPUs' device files: two of NVIDIA's, one of AMD's."""
    for number, uuid in enumerate(GPUS):
        folder = tmp_path / f"proc/driver/nvidia/gpus/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        told = f"Model: \t\t NVIDIA A100\nGPU UUID: \t {uuid}\nDevice Minor: \t {3 - number}\n"
        (folder / "information").write_text(told)
    folder = tmp_path / "sys/class/drm/renderD129/device"
    folder.mkdir(parents=True)
    (folder / "unique_id").write_text(f"{AMD_GPU.partition(':')[2]}\n")
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    return tmp_path


def test_options_name_the_leases_gpus() -> None:
    """By UUID: docker's own request, podman's CDI names, Apptainer's switch."""
    assert args("docker", *GPUS) == ("--gpus", f'"device={GPUS[0]},{GPUS[1]}"', *END)
    assert args("docker", MIG) == ("--gpus", f'"device={MIG}"', *END)
    assert args("podman", *GPUS) == (
        "--device", f"nvidia.com/gpu={GPUS[0]}", "--device", f"nvidia.com/gpu={GPUS[1]}", *END,
    )  # fmt: skip
    assert args("podman", MIG)[1] == f"nvidia.com/gpu={MIG}"
    assert args("apptainer", *GPUS) == ("--nv",)
    assert args("apptainer", AMD_GPU) == ("--rocm",)


@pytest.mark.parametrize("uuids", [(), ("SIM-h1-0",)])
def test_lease_without_a_real_gpu_hands_on_none(uuids: tuple[str, ...]) -> None:
    """Its variables still, so that a process in the container knows its lease."""
    for runtime in RUNTIMES:
        assert args(runtime, *uuids) == (END if runtime in {"docker", "podman"} else ())


def test_device_files_are_the_leases_own(machine: Path) -> None:
    """The driver tells their numbers, which are not the GPUs' indexes."""
    files = [*NVIDIA_FILES, "/dev/nvidia3", "/dev/nvidia2"]
    bound = tuple(word for file in files for word in ("--dev-bind-try", file, file))
    assert args("bwrap", *GPUS, root=machine) == bound
    own = ("--device", "/dev/kfd", "--device", "/dev/dri/renderD129")
    assert args("docker", AMD_GPU, root=machine) == (*own, *END)


def test_device_files_that_are_not_certain_are_all(machine: Path) -> None:
    """A MIG device's parent is not known, nor an AMD GPU's file while the card sleeps."""
    bound = args("bwrap", MIG, root=machine)[1::3]
    every = ("/dev/nvidia0", "/dev/nvidia2", "/dev/nvidia3", "/dev/nvidia-caps")
    assert bound == (*NVIDIA_FILES, *every)
    assert args("podman", "amd:1", root=machine)[:4] == ("--device", "/dev/kfd", "--device",
                                                         "/dev/dri")  # fmt: skip


def test_no_value_of_the_lease_stands_in_a_command_line() -> None:
    """Other users of the machine read it, and a token is a right; the label is a digest of it."""
    for kind in (Lease, AsyncLease):
        words = lease(*GPUS, kind=kind).args("docker")
        assert not any(TOKEN in word for word in words)
        assert f"{LABEL}={container_label(TOKEN)}" in words
        assert {"GPU_LEASE_TOKEN", "CUDA_VISIBLE_DEVICES", "GPU_BROKER_POOL"} <= {*words}


def test_unknown_runtime_is_refused() -> None:
    """With the names of those that there are."""
    with pytest.raises(BadRequest, match="'lxc' is none of docker, podman, apptainer, bwrap"):
        lease().args("lxc")  # type: ignore[arg-type] # a wrong word


@pytest.mark.skipif(not shutil.which("docker"), reason="docker's client is not installed")
def test_docker_asks_its_daemon_for_these_gpus(tmp_path: Path) -> None:
    """Its real client reads the options and sends the daemon what they mean."""
    held = lease(*GPUS)
    with docker_daemon(tmp_path) as (url, asked):
        done = subprocess.run(
            ["docker", "run", "--rm", "--init", *held.args("docker"), "image", "train"],
            env=os.environ | held.env() | {"DOCKER_HOST": url, "GPU_BROKER_POOL": "team"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "noted" in done.stderr
    (body,) = asked
    (request,) = body["HostConfig"]["DeviceRequests"]
    assert (request["DeviceIDs"], request["Capabilities"]) == ([*GPUS], [["gpu"]])
    sent = dict(word.split("=", 1) for word in body["Env"] if "=" in word)
    assert sent == held.env() | {"GPU_BROKER_POOL": "team"}
    assert body["Labels"] == {LABEL: container_label(TOKEN)}
    assert (body["Image"], body["Cmd"]) == ("image", ["train"])

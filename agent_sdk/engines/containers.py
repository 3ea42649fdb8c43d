"""Options by which a container or a sandbox gets the GPUs of a lease, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from agent_sdk.engines.visible import AMD, on_amd
from agent_sdk.errors import error_for
from agent_sdk.evidence import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent_sdk.protocol.messages import Device

Runtime = Literal["docker", "podman", "apptainer", "bwrap"]

RUNTIMES: Final[tuple[str, ...]] = get_args(Runtime)

DETACHED: Final = ("docker", "podman")
"""Runtimes whose containers outlive the program that starts them, and get no environment of it."""

LABEL: Final = "gpu-lease"
"""Name of the label by which a lease's containers are found; `container_label` is its value."""

POOL: Final = ("GPU_BROKER_POOL", "GPU_BROKER_HOSTNAME")
"""Variables by which the SDK in a container finds the pool and host of its lease, where set."""

SIMULATED: Final = "SIM-"
"""Beginning of the UUIDs of simulated GPUs, which no runtime could hand on."""

NVIDIA_SHARED: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
"""Device files that every process with a GPU of NVIDIA needs."""


def container_label(token: str) -> str:
    """Return the label's value for a lease: a digest, so the token stays secret."""
    return digest(token).hex()


def runtime_args(
    runtime: str,
    label: str,
    names: Iterable[str],
    devices: Sequence[Device],
    root: Path = Path("/"),
) -> list[str]:
    """Return a runtime's options for a lease of these GPUs.

    Args:
        runtime: docker, podman, apptainer or bwrap.
        label: the value of the container's label.
        names: the variables to hand on by name, so that no value stands in a command line.
        devices: the lease's GPUs.
        root: where `/dev`, `/proc` and `/sys` are.

    Raises:
        BadRequest: there is no such runtime.
    """
    if runtime not in RUNTIMES:
        raise error_for("bad_request", f"{runtime!r} is none of {', '.join(RUNTIMES)}")
    devices = [device for device in devices if not device.uuid.startswith(SIMULATED)]
    if runtime == "apptainer":
        return [] if not devices else ["--rocm" if on_amd(devices) else "--nv"]
    if runtime == "bwrap":
        files = (_amd_files if on_amd(devices) else _nvidia_files)(devices, root)
        return [word for file in files for word in ("--dev-bind-try", file, file)]
    variables = [word for name in (*names, *POOL) for word in ("--env", name)]
    return [*_gpus(runtime, devices, root), *variables, "--label", f"{LABEL}={label}"]


def _gpus(runtime: str, devices: Sequence[Device], root: Path) -> list[str]:
    if on_amd(devices):
        return [word for file in _amd_files(devices, root) for word in ("--device", file)]
    uuids = [device.uuid for device in devices]
    if runtime == "docker":
        return ["--gpus", f'"device={",".join(uuids)}"'] if uuids else []
    return [word for uuid in uuids for word in ("--device", f"nvidia.com/gpu={uuid}")]


def _amd_files(devices: Sequence[Device], root: Path) -> list[str]:
    """Return the device files of AMD's GPUs; all of them where one's own is not certain."""
    if not devices:
        return []
    found = {}
    for driver in sorted(root.glob("sys/class/drm/renderD*/device/unique_id")):
        found[f"{AMD}{_text(driver).strip()}"] = f"/dev/dri/{driver.parts[-3]}"
    nodes = [found.get(device.uuid, "/dev/dri") for device in devices]
    return ["/dev/kfd", *(["/dev/dri"] if "/dev/dri" in nodes else nodes)]


def _nvidia_files(devices: Sequence[Device], root: Path) -> list[str]:
    """Return the device files of NVIDIA's GPUs; all of them where one's own is not certain.

    A MIG device needs its GPU's file and some of nvidia-caps, which no file names by its UUID.
    """
    if not devices:
        return []
    numbers = {}
    for file in root.glob("proc/driver/nvidia/gpus/*/information"):
        pairs = (line.partition(":") for line in _text(file).splitlines())
        told = {name.strip(): value.strip() for name, _, value in pairs}
        numbers[told.get("GPU UUID", "")] = told.get("Device Minor", "")
    own = [f"nvidia{numbers.get(device.uuid, '')}" for device in devices]
    if "nvidia" in own:
        every = (file.name for file in root.glob("dev/nvidia[0-9]*"))
        own = [*sorted(every), "nvidia-caps"]
    return [f"/dev/{name}" for name in (*NVIDIA_SHARED, *own)]


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""

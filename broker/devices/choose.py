"""Choice of this process's device source, from GPU_BROKER_DEVICES and the other settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.devices.amd.beside import beside
from broker.devices.amd.source import AmdSource
from broker.devices.amd.topology import present
from broker.devices.fallback import FallbackSource
from broker.devices.nvml.binding import FOLDERS
from broker.devices.nvml.source import NvmlSource
from broker.devices.sample import Sample
from broker.devices.scenario.source import ScriptedSource
from broker.devices.simulated import SimulatedSource, totals_of
from broker.devices.smi.source import SmiSource
from broker.devices.unified import Unified

if TYPE_CHECKING:
    from broker.devices.sample import Source


PCIE_EVERY_S = 30.0

NVML_WAIT_S: Final = 2.0
SMI_WAIT_S: Final = 5.0
AMD_WAIT_S: Final = 2.0
"""Seconds after which a driver that has not answered counts as silent, by the way of asking."""


@dataclass(frozen=True, slots=True)
class DriverLimits:
    """Limits on asking this machine's driver, the place of its library, and what it does not tell.

    Attributes:
        wait_s: seconds after which it counts as silent; None: as long as each way of asking has.
        most_s: seconds after which an answer is no longer waited for.
        library: NVML's library, or its folder; empty: where the loader and we look.
        unified_mb: MiB of the machine's memory for integrated GPUs; None: all of it.
        amd_root: the folder with the kernel's files about AMD's GPUs.
    """

    wait_s: float | None = None
    most_s: float = 60.0
    library: str = ""
    unified_mb: int | None = None
    amd_root: Path = Path("/")


class DeviceSourceError(ValueError):
    """Error for settings that ask for an unavailable device source; the message has the way out."""


class NoneSource:
    """Source without devices. `why` is the error of each sample, None when none was asked for."""

    name = "none"

    def __init__(self, why: str | None) -> None:
        self._sample = Sample((), "none", why)

    def sample(self) -> Sample:
        """Return the sample without devices."""
        return self._sample

    def close(self) -> None:
        """Do nothing: no resource is held."""


def choose(
    spec: str,
    *,
    enable_nvml: bool | None,
    safe_mode: bool,
    host: str,
    smi_on_path: str | None,
    pcie: bool = False,
    limits: DriverLimits | None = None,
) -> Source:
    """Return the source for `spec`: auto, nvml, smi, amd, none, sim:COUNTxMIB or scenario:FILE.

    `auto` is NVML if `enable_nvml` is true, with nvidia-smi where NVML cannot be used; else
    nvidia-smi if `smi_on_path` names its program, else none; and AMD's GPUs beside, where their
    driver is loaded. Under `safe_mode` no GPU is looked
    at: all but sim and scenario becomes none. Nothing is imported, started or opened before the
    first sample, except a scenario's file: an invalid one ends the start. With `pcie`, NVML is
    asked for the throughput of each GPU's bus every 30 s.

    Raises:
        DeviceSourceError: the spec is unknown, or cannot be had with the other settings.
    """
    if (made_up := _made_up(spec, host)) is not None:
        return made_up
    if spec not in {"auto", "nvml", "smi", "amd", "none"}:
        raise DeviceSourceError(
            f"GPU_BROKER_DEVICES={spec!r} is none of auto, nvml, smi, amd, none, sim:COUNTxMIB, "
            "scenario:FILE.yaml"
        )
    if spec == "none":
        return NoneSource(None)
    if safe_mode:
        return NoneSource("SAFE_MODE is on: no driver is asked for GPUs")
    limits = limits or DriverLimits()
    amd = AmdSource(host, limits.amd_root, wait_s=limits.wait_s or AMD_WAIT_S)
    if spec == "amd":
        return amd
    nvidia = _nvidia(
        spec, enable_nvml=enable_nvml, host=host, smi_on_path=smi_on_path, pcie=pcie, limits=limits
    )
    if spec != "auto" or not present(limits.amd_root):
        return nvidia
    return amd if isinstance(nvidia, NoneSource) else beside(nvidia, amd)


def _nvidia(
    spec: str,
    *,
    enable_nvml: bool | None,
    host: str,
    smi_on_path: str | None,
    pcie: bool,
    limits: DriverLimits,
) -> Source:
    """Return the source of NVIDIA's GPUs."""
    if spec == "nvml" and enable_nvml is False:
        raise DeviceSourceError(
            "GPU_BROKER_DEVICES=nvml, but ENABLE_NVML=false: "
            "unset ENABLE_NVML or set it to true, or set GPU_BROKER_DEVICES=smi or none"
        )
    if spec == "smi" and smi_on_path is None:
        raise DeviceSourceError(
            "GPU_BROKER_DEVICES=smi, but nvidia-smi is not on PATH: "
            "add its folder to PATH, or set GPU_BROKER_DEVICES=nvml or none"
        )
    unified = Unified(limits.unified_mb)
    smi = None
    if smi_on_path is not None:
        wait_s = limits.wait_s or SMI_WAIT_S
        smi = SmiSource(host, smi_on_path, wait_s=wait_s, most_s=limits.most_s, unified=unified)
    if spec == "nvml" or (spec == "auto" and enable_nvml):
        nvml = NvmlSource(
            host,
            deadline_s=limits.wait_s or NVML_WAIT_S,
            most_s=limits.most_s,
            pcie_every_s=PCIE_EVERY_S if pcie else None,
            libraries=(limits.library,) if limits.library else FOLDERS,
            unified=unified,
        )
        return nvml if spec == "nvml" or smi is None else FallbackSource(nvml, smi)
    if smi is not None:
        return smi
    return NoneSource(
        "No way to ask for GPUs: ENABLE_NVML is not true, nvidia-smi is not on PATH, and no "
        "driver of AMD is loaded"
    )


def _made_up(spec: str, host: str) -> Source | None:
    """Return a source of simulated or scripted GPUs; None: `spec` asks for real ones."""
    if spec == "scenario:":
        raise DeviceSourceError("GPU_BROKER_DEVICES=scenario: names no file: scenario:FILE.yaml")
    if spec.startswith("scenario:"):
        scripted = ScriptedSource(Path(spec.removeprefix("scenario:")))
        # As the error of a sample it would take over the devices of this host's other reporter.
        if problem := scripted.problem():
            raise DeviceSourceError(f"GPU_BROKER_DEVICES={spec!r}: {problem}")
        return scripted
    if not spec.startswith("sim:"):
        return None
    try:
        return SimulatedSource(totals_of(spec), host)
    except ValueError as error:
        raise DeviceSourceError(f"GPU_BROKER_DEVICES: {error}") from error

"""Findings of `gpu-broker doctor` about the pool's devices, and about this machine's driver."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from agent_sdk import LeaseClient
from agent_sdk.errors import LeaseError
from broker.cli.contests import contests
from broker.cli.finding import Diagnosis, Severity
from broker.cli.host_words import troubles
from broker.text.state_word import state_of

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.snapshot import HostStatus, PoolStatus
    from broker.devices import Sample, Source

SAFE: Final = Diagnosis(
    "SAFE_MODE is on: no GPU leases are given",
    "gpu-broker policy set safe_mode=false switches it off, for every broker whose environment "
    "does not set SAFE_MODE=true",
    Severity.NOTE,
)

MORE: Final = "nvidia-smi on that host tells more"

DEFAULT_MODE: Final = "nvidia-smi -i {} -c DEFAULT on that host lets it be leased"

UNSEEN: Final = (
    "until they are seen, no lease there is found idle, and no process without a lease: "
    "docs/concepts/memory.md says how hosts see them"
)

RESET: Final = (
    "gpu-broker status says why; gpu-broker release-driver {} lets nvidia-smi there reset a GPU"
)

NVIDIA: Final = "NVIDIA driver (nvidia-smi shows whether it works)"

DRIVERS: Final = {"amd": "driver amdgpu (ls /dev/dri shows whether it works)"}
"""Drivers by the source that asks them; others ask NVIDIA's."""


def pool_state() -> tuple[PoolStatus | None, list[str], list[Diagnosis]]:
    """Return lines about the pool's devices, with the problems of these and of their hosts."""
    try:
        with LeaseClient.from_env() as client:
            pool, devices, hosts = client.pool(), client.devices(), client.hosts()
    except LeaseError as error:
        return None, [], [Diagnosis(str(error), "start gpu-broker serve", Severity.BROKEN)]
    rows = [f"SAFE_MODE is {'on' if pool.safe_mode else 'off'}"] if pool.ready else []
    rows += [f"{d.host}:{d.index}  {d.uuid}  {d.name}  {state_of(d, pool.now_ms)}" for d in devices]
    findings = [*([SAFE] if pool.safe_mode else []), *_absent(pool, devices, hosts)]
    findings += [
        Diagnosis(
            f"host {host.host} has been silent since its deadline",
            "start gpu-broker host or serve there",
        )
        for host in hosts
        if not host.alive(pool.now_ms)
    ]
    findings += troubles(hosts, pool.now_ms)
    findings += contests(pool, devices, hosts)
    findings += [_state(d, pool.now_ms) for d in devices if d.state not in {"ok", "away", "mig"}]
    return pool, rows, findings + _unseen(devices)


def _state(device: DeviceStatus, now_ms: int) -> Diagnosis:
    """Return a finding about a device that takes no leases."""
    what = f"{device.host}:{device.index} is {state_of(device, now_ms)}"
    if device.state == "prohibited":  # an administrator's choice, as for a GPU that only draws
        return Diagnosis(what, DEFAULT_MODE.format(device.index), Severity.NOTE)
    return Diagnosis(what, RESET.format(device.host) if device.state == "quarantined" else MORE)


def _unseen(devices: tuple[DeviceStatus, ...]) -> list[Diagnosis]:
    """Return a finding for each reason for which processes are not seen, with its hosts."""
    hosts: dict[str, dict[str, None]] = {}
    for device in devices:
        if device.unseen and device.state != "mig":
            hosts.setdefault(device.unseen, {})[device.host] = None
    return [
        Diagnosis(f"processes unseen on {', '.join(on)}: {why}", UNSEEN, Severity.NOTE)
        for why, on in hosts.items()
    ]


def _absent(
    pool: PoolStatus, devices: tuple[DeviceStatus, ...], hosts: tuple[HostStatus, ...]
) -> list[Diagnosis]:
    """Return a finding if there is nothing to lease: no host, or no GPU on any."""
    if not pool.ready:
        start = "start gpu-broker serve, or gpu-broker host on a machine with GPUs"
        return [Diagnosis("no host has reported to this pool", start, Severity.BROKEN)]
    if devices or pool.safe_mode:  # under SAFE_MODE no host looks for GPUs
        return []
    return [
        Diagnosis(
            f"no GPUs: none of {len(hosts)} hosts reports one",
            "GPU_BROKER_DEVICES says where a host looks for them: nvml, smi, amd, sim:2x24576",
        )
    ]


def driver_state(pool: PoolStatus | None) -> list[Diagnosis]:
    """Return a finding if this environment asks for NVML or nvidia-smi, and this machine lacks it.

    No driver is touched where SAFE_MODE is on, or the pool cannot say that it is off.
    """
    try:
        from broker.reporter import source_of  # noqa: PLC0415 - the base install has none
        from broker.settings import SettingsError, load_settings  # noqa: PLC0415 - as above
    except ModuleNotFoundError:
        return []
    try:
        settings = load_settings(keys_file=None)
    except SettingsError:
        return []  # told with the settings
    asked = settings.devices in {"nvml", "smi", "amd"} or settings.enable_nvml is True
    made_up = settings.devices.startswith(("sim:", "scenario:", "none"))
    safe = pool is None or not pool.ready or pool.safe_mode or settings.safe_mode
    if not asked or made_up or safe:
        return []
    sample = _answer_of(source_of(settings), settings.driver_most_s)
    said = "ENABLE_NVML=true" if settings.enable_nvml else f"GPU_BROKER_DEVICES={settings.devices}"
    if sample.error is None:
        return [
            Diagnosis(
                f"here: {warning}", "this machine's GPUs are read all the same", Severity.NOTE
            )
            for warning in sample.warnings
        ]
    return [
        Diagnosis(
            f"{said} asks for this machine's GPUs, and they cannot be had: {sample.error}",
            f"install the {DRIVERS.get(sample.source, NVIDIA)}, or unset it here",
        )
    ]


def _answer_of(source: Source, most_s: float) -> Sample:
    """Return the first sample that has the driver's answer, and close the source."""
    until = time.monotonic() + most_s
    try:
        sample = source.sample()
        while sample.late and time.monotonic() < until:
            sample = source.sample()
    finally:
        source.close()
    return sample

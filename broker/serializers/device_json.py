"""Devices as rows of `/gpu/info` and of the page. Times are epoch seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_sdk.state.finding_kinds import OF_LEASE
from agent_sdk.state.telemetry import MEASUREMENTS, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_sdk.state.devices import DeviceStatus, ProcessStatus
    from agent_sdk.state.snapshot import HostStatus
    from broker.devices import Sample

NO_GPUS = (
    "no GPU is known: GPU_BROKER_DEVICES says where to look, gpu-broker serve --demo simulates"
)


def row(
    device: DeviceStatus, named: Callable[[str], str], free_mb: int | None = None
) -> dict[str, Any]:
    """Return one row of `/gpu/info`; an unknown value is null, and never drops the row.

    Args:
        device: the device.
        named: cuts a lease's token to the part that may be shown.
        free_mb: MiB of it for the next request; None: where parts of a GPU are given.
    """
    said: dict[str, Any] = {
        "index": device.index,
        "name": device.name,
        "memory_total_mb": float(device.total_mb) if device.total_mb else None,
        "memory_used_mb": None if device.used_mb is None else float(device.used_mb),
        **{name: device.telemetry[name] for name in shown("always")},
        "uuid": device.uuid,
        "host": device.host,
        "model": device.model,
        "state": "drained" if device.drained and device.state == "ok" else device.state,
        "reason": device.reason,
        "drained": device.drained,
        "simulated": device.simulated,
        "sampled_at": device.sampled_ms / 1000 if device.sampled_ms else None,
        "memory_reserved_mb": device.leased_mb,
        "memory_free_mb": device.free_mb if free_mb is None else free_mb,
        "memory_left_mb": max(0, device.left_mb),
        "memory_withheld_mb": device.withheld_mb,
        "memory_foreign_mb": device.unleased_mb,
        "memory_system_mb": device.system_mb,
        "leases": device.leases,
        "one_lease": device.one_lease or None,
        "memory_unified": device.unified,
    }
    said |= _reserved(device) | _health(device) | _processes(device, named)
    nvml: dict[str, Any] = {
        MEASUREMENTS[name].http_name or name: device.telemetry[name]
        for name in shown("nvml")
        if device.telemetry[name] is not None
    }
    if device.nvml_error:
        nvml["nvml_error"] = device.nvml_error
    return said | nvml


def _reserved(device: DeviceStatus) -> dict[str, Any]:
    """Return a reservation's agent, its begin, and its end if it stays unused."""
    of = device.reservation
    return {
        "reserved_for": of.agent if of else None,
        "reserved_since": of.since_ms / 1000 if of and of.since_ms else None,
        "reserved_until": of.until_ms / 1000 if of and of.until_ms else None,
    }


def _health(device: DeviceStatus) -> dict[str, Any]:
    """Return the health that the host reports of a device."""
    return {
        "quarantine": device.quarantine,
        "xid": device.xid or None,
        "xid_at": device.xid_ms / 1000 if device.xid_ms else None,
        "parent": device.parent or None,
        **{name: _measured(device, name) for name in shown("health")},
    }


def _measured(device: DeviceStatus, name: str) -> float | bool | None:
    """Return a flag as a bool, a count as a whole number."""
    value = device.telemetry[name]
    if value is None:
        return None
    kind = MEASUREMENTS[name].kind
    return bool(value) if kind == "flag" else int(value) if kind == "count" else value


def _processes(device: DeviceStatus, named: Callable[[str], str]) -> dict[str, Any]:
    """Return a device's processes, null where its host cannot tell, and its findings.

    The visibility is `host`: all are seen; `part`: some are; `none`.
    """

    def process(p: ProcessStatus) -> dict[str, Any]:
        return {
            "pid": p.pid,
            "name": p.name,
            "user": p.user,
            "memory_mb": p.memory_mb,
            "busy_pct": p.busy_pct,
            "token": named(p.token) if p.token else None,
            "finding": p.finding or None,
            "graphics_only": p.graphics_only,
            "since": p.since_ms / 1000,
        }

    seen = device.processes is not None
    return {
        "process_visibility": "none" if not seen else "part" if device.unseen else "host",
        "processes": [process(p) for p in device.processes or ()] if seen else None,
        "processes_unseen": device.unseen or None,
        "findings": [
            {"kind": f.kind, "subject": named(f.subject) if f.kind in OF_LEASE else f.subject}
            for f in device.findings
        ],
    }


def info(
    sample: Sample | None, hosts: Sequence[HostStatus] = (), *, any_rows: bool, nvml_rows: bool
) -> dict[str, Any]:
    """Return what `/gpu/info` says beside its rows; `available` is true only with one.

    `hosts`: those that report, for their trouble; `nvml_rows`: NVML told something in a row.
    """
    nvml = sample is not None and sample.source == "nvml"
    answer: dict[str, Any] = {
        "available": any_rows,
        "nvml_enriched": nvml_rows,
        "nvml_supported": bool(nvml and sample and not sample.error),
    }
    troubles = {host.host: host.trouble for host in hosts if host.trouble}
    warnings = {host.host: host.warning for host in hosts if host.warning}
    if troubles:
        answer["host_trouble"] = troubles
    if warnings:
        answer["host_warnings"] = warnings
    if not any_rows:
        said = "; ".join(f"{host}: {trouble}" for host, trouble in troubles.items())
        answer["message"] = f"no GPU is seen: {said}" if said else NO_GPUS
    if sample and (error := sample.nvml_error or (nvml and sample.error)):
        answer["nvml_init_error"] = error
    return answer


def enriched(row: Mapping[str, Any]) -> bool:
    """Return whether NVML told something in a row."""
    return any(name.startswith("nvml_") for name in row)

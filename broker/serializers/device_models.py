"""Types of answers about devices, for `device_json` and for the OpenAPI document.

Times are epoch seconds, memory is MiB; null: the host cannot tell.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NotRequired

from typing_extensions import TypedDict, get_type_hints

from agent_sdk.state.telemetry import MEASUREMENTS
from broker.serializers.lease_models import Page

MEASURED: Final[dict[str, Any]] = {"number": float, "count": int, "flag": bool}
"""Types of measurements by kind."""


def extended(name: str, base: type, more: dict[str, Any], **names: Any) -> Any:
    """Return a type with the fields of another and more; its docstring is the base's.

    `names`: what annotations of the base name, but its module does not import at run time.
    """
    hints = get_type_hints(base, localns=names, include_extras=True)
    make: Any = TypedDict  # mypy knows no types that are made of a table
    made = make(name, hints | more)
    made.__doc__, made.__orig_bases__ = base.__doc__, (base,)
    return made


class ProcessOnGpu(TypedDict):
    """Process on a GPU.

    Attributes:
        name: its program.
        busy_pct: its part of the GPU's time.
        token: the beginning of its lease's token, for operators the whole; null: no lease.
        finding: a word of the findings about it.
        graphics_only: it draws, and computes nothing.
        since: the time since which it is seen.
    """

    pid: int
    name: str
    user: str
    memory_mb: int | None
    busy_pct: float | None
    token: str | None
    finding: str | None
    graphics_only: bool
    since: float


class GpuFinding(TypedDict):
    """Finding of the host about a lease or a process on a GPU, or about the GPU.

    Attributes:
        kind: a word.
        subject: the lease or the pid.
    """

    kind: str
    subject: str


class GpuFacts(TypedDict):
    """GPU as its host last reported it.

    Attributes:
        index: its index on its host.
        name: its name by the driver.
        uuid: the name that never changes.
        model: the name that a request may ask for.
        state: `ok`, or a word for which it is not leased.
        reason: that state in words.
        simulated: there is no such hardware.
        sampled_at: the time of the last measurement.
        memory_reserved_mb: MiB that leases hold.
        memory_free_mb: MiB that a request may get now.
        memory_left_mb: MiB that no lease holds.
        memory_withheld_mb: MiB of leases that are over, not known to be free yet.
        memory_foreign_mb: MiB that processes without a lease use.
        memory_system_mb: MiB that the driver keeps.
        leases: the number of leases on it.
        one_lease: the reason for which it takes one lease at a time.
        memory_unified: its memory is the machine's.
        reserved_for: the agent whose request it is reserved for.
        reserved_since: the begin of the reservation.
        reserved_until: the end of the reservation if it stays unused.
        quarantine: the reason for which its host does not lend it; empty: none.
        xid: NVIDIA's number of its last error.
        xid_at: the time of that error.
        parent: the GPU that it is a part of.
        process_visibility: `host`: all processes are seen; `part`: some are; `none`.
        processes_unseen: the reason for which some are not seen.
        nvml_error: NVML's error about this GPU.
    """

    index: int
    name: str
    memory_total_mb: float | None
    memory_used_mb: float | None
    uuid: str
    host: str
    model: str
    state: str
    reason: str
    drained: bool
    simulated: bool
    sampled_at: float | None
    memory_reserved_mb: int
    memory_free_mb: int
    memory_left_mb: int
    memory_withheld_mb: int
    memory_foreign_mb: int
    memory_system_mb: int
    leases: int
    one_lease: str | None
    memory_unified: bool
    reserved_for: str | None
    reserved_since: float | None
    reserved_until: float | None
    quarantine: str
    xid: int | None
    xid_at: float | None
    parent: str | None
    process_visibility: Literal["none", "part", "host"]
    processes: list[ProcessOnGpu] | None
    processes_unseen: str | None
    findings: list[GpuFinding]
    nvml_error: NotRequired[str]


def _measurements() -> dict[str, Any]:
    """Return the fields of telemetry; one that NVML tells is there if NVML told it."""
    fields: dict[str, Any] = {}
    for name, of in MEASUREMENTS.items():
        if of.shown == "nvml":
            fields[of.http_name or name] = NotRequired[float]
        else:
            kind = MEASURED[of.kind if of.shown == "health" else "number"]
            fields[name] = kind | None
    return fields


GPU: Final[Any] = extended("Gpu", GpuFacts, _measurements())
"""Row of `/gpu/info`: the facts of a GPU, and its measurements."""


class GpuSummary(Page):
    """All GPUs that were asked for, or a page of them.

    Attributes:
        available: there is a GPU.
        nvml_enriched: NVML told something of a GPU.
        nvml_supported: NVML answers at this broker.
        message: the reason for which there is none.
        host_trouble: hosts whose GPUs are not seen, each with its reason.
        host_warnings: hosts with a remark.
        nvml_init_error: NVML's error at this broker.
    """

    available: bool
    nvml_enriched: bool
    nvml_supported: bool
    message: NotRequired[str]
    host_trouble: NotRequired[dict[str, str]]
    host_warnings: NotRequired[dict[str, str]]
    nvml_init_error: NotRequired[str]


GPU_INFO: Final[Any] = extended("GpuInfo", GpuSummary, {"gpus": list[GPU]})
"""Body of `/gpu/info`."""

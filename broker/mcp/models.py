"""Results of the tools, as pydantic models: their schemas are part of each tool."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Notice(BaseModel):
    """News of a lease that the agent did not ask for."""

    token: str
    kind: str = Field(
        description="preempt, wanted, idle, overuse, degraded, or the reason of a loss, as revoked"
    )
    says: str


class Result(BaseModel):
    """Result of any tool."""

    notices: list[Notice] = Field(default=[], description="news of your leases")


class Refusal(BaseModel):
    """Structured content of a tool error."""

    code: str
    says: str
    next: str = Field(description="what to do about it")
    retryable: bool = Field(description="the same call may succeed later")
    token: str | None = None
    notices: list[Notice] = []


class LeasedGpu(BaseModel):
    """GPU of a lease."""

    host: str
    index: int
    uuid: str
    name: str
    memory_mb: int = Field(description="MiB of it that the lease holds")


class LeaseView(BaseModel):
    """Lease that is held."""

    token: str
    agent: str
    gpus: list[LeasedGpu]
    memory_mb: int = Field(description="MiB on all GPUs together")
    fence: int = Field(description="grows with every grant: a store can refuse an older one")
    ends_in_s: float | None = Field(description="null: it has no time of its own")
    ends: str = Field(description="what ends it")
    env: dict[str, str] = Field(description="environment for the programs that use it")


class LeaseResult(Result):
    """Outcome of a request: a lease, or a place in the queue that the server keeps."""

    state: Literal["active", "waiting"]
    ticket: str = Field(description="names the wait, and the lease once it is granted")
    place: int | None = Field(default=None, description="waiters ahead; null: not known")
    lease: LeaseView | None = None
    next: str


class ReleasedResult(Result):
    """Outcome of a release."""

    token: str
    released: bool


class Held(BaseModel):
    """Lease or wait in a list."""

    token: str
    agent: str
    state: Literal["active", "waiting"]
    gpus: list[str] = Field(default=[], description="host:index")
    memory_mb: int
    ends_in_s: float | None = None
    place: int | None = None


class LeasesResult(Result):
    """Leases and waits of the caller."""

    leases: list[Held]


class DeviceView(BaseModel):
    """GPU of the pool."""

    host: str
    index: int
    name: str
    state: str = Field(description="ok takes leases")
    total_mb: int
    free_mb: int = Field(description="MiB for a new lease")
    leases: int


class StatusResult(Result):
    """State of the pool."""

    ready: bool
    safe_mode: bool = Field(description="true: no GPU is leased")
    waiting: int = Field(description="requests in the queue")
    free_gpus: int = Field(description="GPUs without a lease that take one")
    devices: list[DeviceView]
    more: int = Field(description="GPUs that this list leaves out: name a host")


class Change(BaseModel):
    """Change of the request that would fit now."""

    arguments: dict[str, Any]
    says: str


class ExplainResult(Result):
    """Outlook of a request, or the reason of a wait."""

    state: str
    code: str
    summary: str
    estimate_s: float | None = Field(description="seconds until a grant may come; null: unknown")
    basis: str = Field(description="grounds of the estimate")
    ahead: int = Field(description="waiters ahead")
    fits_now: list[Change] = Field(
        description="smallest changes that fit now, the least loss first"
    )
    devices: dict[str, int] = Field(description="reason against a GPU: the number of such GPUs")


class Use(BaseModel):
    """Use of a lease that is held now."""

    token: str
    agent: str
    gpus: list[str] = Field(description="host:index")
    memory_mb: int
    used_mb: int | None = Field(description="MiB of its processes; null: its hosts cannot tell")
    age_s: float
    gpu_s: float = Field(description="GPU-seconds so far; a share counts as its part of the GPU")
    findings: list[str]


class PastUse(BaseModel):
    """Use of your leases that ended since then, as far as the pool remembers them."""

    since: str
    leases: int
    gpu_hours: float
    busy_gpu_hours: float | None = Field(description="null: not observed")
    idle_gpu_hours: float | None = Field(description="null: not observed")
    asked_mb: int | None = Field(description="MiB of the largest on a GPU; null: no peak is known")
    peak_mb: int | None = Field(description="most MiB that programs used on a GPU; null: not known")
    advice: str


class UsageResult(Result):
    """Use of the leases that are held now, and of your ended ones."""

    leases: list[Use]
    more: int = Field(description="leases that this list leaves out")
    memory_mb: int = Field(description="of those in the list")
    gpu_s: float = Field(description="of those in the list")
    past: PastUse


class RunResult(Result):
    """State of a command under a lease."""

    state: Literal["running", "ended"]
    job: str = Field(description="names the command in the next call")
    exit_code: int | None = None
    output: str = Field(description="last output, stdout and stderr together")
    cut: bool = Field(description="true: earlier output is left out")
    next: str

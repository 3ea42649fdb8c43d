"""Types of answers about leases and waiters, for `lease_json` and for the OpenAPI document.

Times are epoch seconds, memory is MiB. The document takes each field's meaning from "Attributes".
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

Cpu = Annotated[str, Field(pattern="^cpu$")]
"""The word `cpu`: no constant, for which openapi-python-client refuses the numbers beside it."""


class GpuOfLease(TypedDict):
    """GPU of a lease, or the lease's part of one; what is no longer known is null.

    Attributes:
        uuid: the name that never changes.
        index: its index on its host.
        name: its name by the driver.
        memory_mb: MiB of it that the lease holds.
        memory_total_mb: MiB of the whole GPU.
        memory_used_mb: MiB in use when its host last told.
        runtime_id: CUDA's number of it, where that is certain.
    """

    uuid: str
    index: int | None
    host: str | None
    name: str | None
    memory_mb: int
    memory_total_mb: int | None
    memory_used_mb: int | None
    runtime_id: str | None


class LeaseFields(TypedDict):
    """Fields of every lease.

    Attributes:
        gpu: the index of the first GPU on its host, or `cpu`.
        token: the name of the lease; of another key's lease its beginning.
        timestamp: the time of the grant.
        gpus: the GPUs; none: a lease on the CPU.
        host: the host with the GPUs.
        memory_mb: MiB on all GPUs together.
        fence: a number that grows with each lease.
        expires_at: the end unless it is renewed; null: never.
        expires_in_s: the seconds until then.
        ttl_s: seconds that it lasts without a renewal; 0: for ever.
        reason: the code for which there is no GPU.
        team: the team for whose quota it counts.
    """

    agent: str
    team: str
    gpu: int | Cpu | None
    token: str
    timestamp: float
    gpus: list[GpuOfLease]
    host: str | None
    memory_mb: int
    fence: int
    expires_at: float | None
    expires_in_s: float | None
    ttl_s: float
    state: Literal["active", "cpu"]
    reason: str | None


class LivingLease(LeaseFields):
    """Living lease.

    Attributes:
        findings: what its hosts find about it now.
        notices: the findings that its holder was told.
        preempt_at: the time at which it ends for another team's request; null: it is not preempted.
        preempt_for: the team for which it is preempted.
        enforced: the driver limits its memory.
        note: a remark of its holder for people.
    """

    priority: int
    findings: list[str]
    notices: list[str]
    preempt_at: float | None
    preempt_for: str | None
    enforced: bool
    note: str | None


class WithIgnored(TypedDict):
    """Fields of every answer to a body.

    Attributes:
        ignored: names in the body that this broker does not know.
    """

    ignored: NotRequired[list[str]]


class NewLease(LeaseFields):
    """New lease, on a GPU or on the CPU.

    Attributes:
        code: the same as `reason`.
        env: the variables to set for the process that uses the GPU.
    """

    granted: Literal[True]
    code: str | None
    env: dict[str, str]


class LeaseGrant(NewLease, WithIgnored):
    """New lease, on a GPU or on the CPU.

    Attributes:
        hint: a doubt about the request.
    """

    hint: NotRequired[str]


class SafeModeAnswer(WithIgnored):
    """No lease: SAFE_MODE is on."""

    granted: Literal[False]
    note: Literal["SAFE_MODE"]
    agent: str


class PlaceInQueue(WithIgnored):
    """Place in the queue, held for 10 s: ask again with the token.

    Attributes:
        place: requests ahead in the same queue; null: only a cap holds it back.
        team: the team for whose quota it counts.
    """

    granted: Literal[False]
    agent: str
    team: str
    token: str
    state: Literal["waiting"]
    place: int | None
    code: str
    detail: str
    retryable: bool


class WaiterReservation(TypedDict):
    """Devices reserved for a waiter.

    Attributes:
        devices: their ids.
        since: the begin.
        until: the end if it stays unused.
    """

    devices: list[str]
    memory_mb: int
    since: float | None
    until: float | None


class Waiter(TypedDict):
    """Request in the queue, or one with offered devices that it has yet to claim.

    Attributes:
        token: its token; of another key's request its beginning.
        place: requests ahead in the same queue; null: a cap alone holds it back, or it is offered.
        capped: it waits for its agent's, its key's or its team's cap alone.
        host: the host that it asks for; null: any.
        model: the model that it asks for; null: any.
        gives_up_at: the end of its wait.
        reserved: ids of the devices that are reserved for it.
        team: the team for whose quota it counts.
        capped_by: whose cap: `agent`, `key NAME` or `team NAME`; null: it is not capped.
    """

    token: str
    agent: str
    team: str
    state: Literal["waiting", "offered"]
    granted: Literal[False]
    place: int | None
    capped: bool
    capped_by: str | None
    memory_mb: int
    devices: int
    exclusive: bool
    priority: int
    host: str | None
    model: str | None
    enqueued_at: float
    waiting_s: float
    gives_up_at: float
    reserved: list[str]
    reservation: WaiterReservation | None


class WantedBy(TypedDict):
    """Request that asks for a lease.

    Attributes:
        memory_mb: MiB that it waits for, on all GPUs together.
    """

    agent: str
    memory_mb: int


class RenewedLease(WithIgnored):
    """Renewed lease.

    Attributes:
        expires_at: the end unless it is renewed again; null: never.
        expires_in_s: the seconds until then.
        notices: what its hosts find about it: stop, or answer it.
        preempt_in_s: the seconds until it is taken back for a request with a right to its memory;
            null: it is not to be.
        wanted: the request that asks for it (`yields`); null: none does.
    """

    renewed: Literal[True]
    token: str
    expires_at: float | None
    expires_in_s: float | None
    notices: list[str]
    preempt_in_s: float | None
    wanted: WantedBy | None


class ReleasedLease(WithIgnored):
    """Lease that was given back."""

    released: Literal[True]
    token: str


class Page(TypedDict):
    """Fields of a list that was asked for with `limit`.

    Attributes:
        total: rows of all pages.
        next: the cursor of the next page; null: this is the last.
    """

    total: NotRequired[int]
    next: NotRequired[str | None]


class Allocations(Page):
    """Living leases by token; of other keys' leases by the token's beginning."""

    allocations: dict[str, LivingLease]


class Queue(Page):
    """Waiters in their order.

    Attributes:
        waiting: the number of those that match, on all pages.
    """

    waiting: int
    queue: list[Waiter]


class Host(TypedDict):
    """Machine that reports devices.

    Attributes:
        version: its reporter's version.
        devices: the number of its devices.
        alive: it reported within its deadline.
        reported_at: the time of its last report.
        report_age_s: the seconds since then.
        trouble: the reason for which GPUs are not seen; null: none.
        warning: a remark about the host; null: none.
    """

    host: str
    version: str
    devices: int
    drained: bool
    alive: bool
    reported_at: float
    report_age_s: float
    trouble: str | None
    trouble_since: float | None
    warning: str | None


class Hosts(Page):
    """Machines that report devices, by name."""

    hosts: list[Host]

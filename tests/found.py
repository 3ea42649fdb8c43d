"""A host that has found something: two GPUs with processes, written as their host tells them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.protocol.report import About

if TYPE_CHECKING:
    from agent_sdk import LeaseClient

HOST: Final = "h1"

FIRST, SECOND, BLIND = "GPU-1", "GPU-2", "GPU-3"
"""One with processes, one in quarantine, one whose processes cannot be seen."""

UNSEEN = "this container does not see the host's processes"

QUARANTINE = "XID 79: the GPU has fallen off the bus"

DAY_MS = 86_400_000


def process(pid: int, **more: Any) -> dict[str, Any]:
    """A process as a device's field `processes` has it."""
    said = {"pid": pid, "memory_mb": 100, "name": "python3", "user": "ann", "token": "",
            "finding": "", "since_ms": 1_795_607_400_000}  # fmt: skip
    return said | more


def report(client: LeaseClient, host: str = HOST) -> None:
    """Three GPUs of 8 GiB, for a day."""
    fields = {
        "name": "NVIDIA L4", "model": "L4", "total_mb": 8192, "system_mb": 0, "used_mb": 0,
        "state": "ok", "simulated": 1, "utilization_gpu_pct": 80,
    }  # fmt: skip
    about = About(deadline_ms=DAY_MS, sampled_ms=0, epoch="", safe_mode=False, version="test")
    uuids = enumerate((FIRST, SECOND, BLIND))
    client.report(host, tuple((u, (("index", n), *fields.items())) for n, u in uuids), **about)


def tell(client: LeaseClient, uuid: str, **fields: Any) -> None:
    """Write a host's report of a device; a list is JSON."""
    said = {k: json.dumps(v) if isinstance(v, list) else v for k, v in fields.items()}
    client.redis.hset(client.keys.device(uuid), mapping=said)
    client.redis.hincrby(client.keys.pool, "sequence", 1)


def find(client: LeaseClient) -> str:
    """One lease that uses too much and was told so, a squatter, an orphan; the lease's token."""
    lease = client.acquire("trainer", memory_mb=4096, ttl_s=600, model="L4", placement="pack")
    held = lease.devices[0].uuid
    assert held == FIRST
    over = "0" * 16
    tell(
        client, FIRST, overuse=lease.token, squatter="991", orphan="77", unleased_mb=700,
        processes=[
            process(991, memory_mb=500, name="jupyter", user="bob", finding="squatter"),
            process(4711, memory_mb=5120, token=lease.token, busy_pct=79.6),
            process(77, memory_mb=None, token=over, finding="orphan", user="someone-with-a-name"),
        ],
        power_limit_w=72, clock_sm_mhz=2040, clock_memory_mhz=6251, ecc_uncorrected=0,
        rows_pending=0, rows_failed=0, recovery_action=0, mps=1,
    )  # fmt: skip
    quarantine(client)
    tell(client, BLIND, unseen=UNSEEN, parent="GPU-0")
    client.redis.hset(client.keys.record(lease.token), "notice", "overuse")
    client.redis.hincrby(client.keys.pool, "sequence", 1)
    return lease.token


def quarantine(client: LeaseClient) -> None:
    """Have the host keep the second device out."""
    tell(
        client, SECOND, quarantine=QUARANTINE, xid=79, xid_ms=1_795_607_400_500, recovery_action=1,
        processes=[], state="quarantined",
    )  # fmt: skip

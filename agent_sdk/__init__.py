"""Leases on GPUs for agents: straight from Redis, sync or async.

```python
import agent_sdk

with agent_sdk.lease("analyst", memory_mb=8192, wait_s=60) as lease:
    run_model(env=lease.env())
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_sdk.aio import AsyncLeaseClient
    from agent_sdk.client import LeaseClient
    from agent_sdk.errors import (
        AgentCapExceeded,
        AgentCapExceededInTime,
        BadRequest,
        BrokerUnavailable,
        Conflict,
        Denied,
        HostTaken,
        HostUnknown,
        InUse,
        LeaseError,
        LeaseLost,
        NeverFits,
        NoCapacity,
        NoCapacityInTime,
        NotGrantedInTime,
        OutcomeUnknown,
        ProtocolMismatch,
        Refused,
        SafeMode,
        StillWaiting,
        TeamLimit,
        UnknownHook,
        UnknownToken,
    )
    from agent_sdk.leases.holder import AsyncLease, Lease
    from agent_sdk.orchestrator import GPUOrchestratorClient
    from agent_sdk.protocol.messages import Device
    from agent_sdk.shared import lease
    from agent_sdk.store.store import Store

__all__ = [
    "AgentCapExceeded",
    "AgentCapExceededInTime",
    "AsyncLease",
    "AsyncLeaseClient",
    "BadRequest",
    "BrokerUnavailable",
    "Conflict",
    "Denied",
    "Device",
    "GPUOrchestratorClient",
    "HostTaken",
    "HostUnknown",
    "InUse",
    "Lease",
    "LeaseClient",
    "LeaseError",
    "LeaseLost",
    "NeverFits",
    "NoCapacity",
    "NoCapacityInTime",
    "NotGrantedInTime",
    "OutcomeUnknown",
    "ProtocolMismatch",
    "Refused",
    "SafeMode",
    "StillWaiting",
    "Store",
    "TeamLimit",
    "UnknownHook",
    "UnknownToken",
    "lease",
]

_ELSEWHERE = {
    "AsyncLease": "leases.holder",
    "AsyncLeaseClient": "aio",
    "Device": "protocol.messages",
    "GPUOrchestratorClient": "orchestrator",
    "Lease": "leases.holder",
    "LeaseClient": "client",
    "Store": "store.store",
    "lease": "shared",
}
"""Modules of the names that are no errors."""


def __getattr__(name: str) -> object:
    """Import a name when it is asked for: a blocking agent does without asyncio, and so on."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"agent_sdk.{_ELSEWHERE.get(name, 'errors')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

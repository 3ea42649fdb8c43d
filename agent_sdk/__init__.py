"""Leases on GPUs for agents: straight from Redis, sync or async.

```python
from agent_sdk import LeaseClient

client = LeaseClient.from_env()
with client.lease("analyst", memory_mb=8192) as lease:
    run_model(env=lease.env())
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.aio import AsyncLeaseClient
from agent_sdk.client import LeaseClient
from agent_sdk.errors import (
    AgentCapExceeded,
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
    OutcomeUnknown,
    ProtocolMismatch,
    Refused,
    SafeMode,
    StillWaiting,
    UnknownToken,
)
from agent_sdk.lease import AsyncLease, Lease
from agent_sdk.protocol.messages import Device
from agent_sdk.store.store import Store

if TYPE_CHECKING:
    from agent_sdk.orchestrator import GPUOrchestratorClient

__all__ = [
    "AgentCapExceeded",
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
    "OutcomeUnknown",
    "ProtocolMismatch",
    "Refused",
    "SafeMode",
    "StillWaiting",
    "Store",
    "UnknownToken",
]


def __getattr__(name: str) -> object:
    """Import the HTTP client when it is asked for: users of Redis do without HTTP."""
    if name == "GPUOrchestratorClient":
        from agent_sdk.orchestrator import GPUOrchestratorClient  # noqa: PLC0415 - see above

        return GPUOrchestratorClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

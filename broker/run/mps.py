"""Limits of a command under MPS, CUDA's Multi-Process Service, which its server enforces.

Each holds for one process of the command, not for all of them together. NVIDIA:
https://docs.nvidia.com/deploy/mps/latest/appendix-environment-variables.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk import Lease
    from agent_sdk.state.limits import DeviceLimits

MEMORY: Final = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
"""Most memory of each device, named by its UUID: numbers depend on the server's own setting."""

THREADS: Final = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
"""Most of the threads of each device, in percent."""


def mps_environment(lease: Lease, limits: DeviceLimits) -> dict[str, str]:
    """Return MPS's limits of a lease; nothing where MPS does not run, or the lease has all."""
    under_mps = {u: d for u, d in limits.under_mps.items() if d.exclusive != lease.token}
    held = {g.uuid: g.memory_mb for g in lease.devices if g.uuid in under_mps}
    if not held:
        return {}
    env = {MEMORY: ",".join(f"{uuid}={memory_mb}M" for uuid, memory_mb in held.items())}
    shares = [100 * mb // max(1, under_mps[uuid].total_mb) for uuid, mb in held.items()]
    return env | ({THREADS: str(max(1, min(shares)))} if limits.mps_thread_share else {})


def without_own(env: Mapping[str, str], own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that the user has not set, and the names of the others."""
    kept = [name for name in env if own.get(name)]
    return {name: value for name, value in env.items() if name not in kept}, kept

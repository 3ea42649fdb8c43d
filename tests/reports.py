"""Reports of hosts that no broker watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.pools import device

if TYPE_CHECKING:
    from agent_sdk import LeaseClient
    from agent_sdk.protocol.messages import Moment

DAY_MS = 86_400_000


def register(
    client: LeaseClient,
    *devices: tuple[str, dict[str, Any]],
    host: str = "h1",
    epoch: str = "",
    deadline_ms: int = DAY_MS,
) -> Moment:
    """Report a host's devices for a day; without devices, one of 1000 MiB."""
    said = tuple((uuid, tuple(fields.items())) for uuid, fields in devices or (device("D0"),))
    return client.report(
        host, said, deadline_ms=deadline_ms, sampled_ms=0, epoch=epoch, safe_mode=False,
        version="test",
    )  # fmt: skip

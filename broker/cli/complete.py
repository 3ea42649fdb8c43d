"""Shell completion of names that the pool knows.

A shell waits for it at a keystroke: it is quick, and silent while the store is away.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from broker.cli.names import place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import click

    from agent_sdk import LeaseClient
    from agent_sdk.state.pool_state import PoolState

    Complete = Callable[[click.Context, click.Parameter, str], list[str]]

DEADLINE_S: Final = 0.5


def _completing(names: Callable[[PoolState], Iterable[str]]) -> Complete:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from agent_sdk.errors import LeaseError  # noqa: PLC0415 - only at a keystroke

        del ctx, param
        with suppress(LeaseError, ValueError), _client() as client:
            found = {n for n in names(client.scene()) if n.startswith(incomplete)}
            return sorted(filter(str.isprintable, found))
        return []

    return complete


def _client() -> LeaseClient:
    from agent_sdk import LeaseClient, Store  # noqa: PLC0415 - as above
    from agent_sdk.settings import read_settings  # noqa: PLC0415 - as above

    settings = read_settings()
    settings.check_state_dir()
    store = Store(settings.store_url, timeout_s=DEADLINE_S)
    return LeaseClient(store, pool=settings.pool, client_name="completion", deadline_s=DEADLINE_S)


hosts = _completing(lambda scene: scene.hosts)
hosts_and_devices = _completing(
    lambda scene: (*scene.hosts, *map(place, scene.devices.values()), *scene.devices)
)
agents = _completing(
    lambda scene: (
        *(lease.agent for lease in scene.leases.values()),
        *(waiter.agent for waiter in scene.waiters.values()),
    )
)
tokens = _completing(lambda scene: (*scene.leases, *scene.waiters))
"""Completions of tokens; pass it as `shell_complete` of an argument or option."""

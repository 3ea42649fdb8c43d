"""Shell completion of names that the pool knows.

A shell waits for it at a keystroke: it is quick, and silent while the store is away.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import click

    from agent_sdk import LeaseClient

    Complete = Callable[[click.Context, click.Parameter, str], list[str]]

DEADLINE_S: Final = 0.5


def _completing(names: Callable[[LeaseClient], Iterable[str]]) -> Complete:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from agent_sdk.errors import LeaseError  # noqa: PLC0415 - only at a keystroke

        del ctx, param
        with suppress(LeaseError, ValueError), _client() as client:
            found = {n for n in names(client) if n.startswith(incomplete)}
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


def _hosts_and_devices(client: LeaseClient) -> Iterator[str]:
    yield from client.host_list()
    for device in client.device_list():
        yield from (f"{device.host}:{device.number}", device.uuid)


def _agents(client: LeaseClient) -> Iterator[str]:
    scene = client.scene()
    yield from (lease.agent for lease in scene.leases.values())
    yield from (waiter.agent for waiter in scene.waiters.values())


def _tokens(client: LeaseClient) -> Iterator[str]:
    yield from (lease.token for part in client.lease_list() for lease in part)
    yield from (waiter.token for waiter in client.queue())


hosts = _completing(lambda client: client.host_list())
hosts_and_devices = _completing(_hosts_and_devices)
agents = _completing(_agents)
teams = _completing(lambda client: (team.name for team in client.teams()))
tokens = _completing(_tokens)
"""Completions of tokens; pass it as `shell_complete` of an argument or option."""

"""Names as the commands show them: hosts, `host:index`, device ids, the beginnings of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import click

from agent_sdk.errors import error_for
from broker.text.printable import printable
from broker.text.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk import LeaseClient
    from agent_sdk.state.devices import DeviceStatus

Kind: TypeAlias = Literal["device", "host"]

PREFIX: Final = 8
"""Letters of a token or a device id that suffice if only one begins with them."""

WHOLE: Final = 16
"""Letters of the shortest token."""

LISTED: Final = 5
"""Most names that a message lists."""


class Target(NamedTuple):
    """Device or host of the pool.

    Attributes:
        name: the device's id, or the host's name.
    """

    kind: Kind
    name: str


def target_of(client: LeaseClient, name: str) -> Target:
    """Find the target of a name: a host, or a device by `host:index`, id or beginning of the id.

    Raises:
        UsageError: several devices match.
        NeverFits: no host and no device matches; the message names the nearest.
    """
    hosts = set(client.host_list())
    if name in hosts:
        return Target("host", name)
    devices = client.devices()
    found = _devices_called(name, devices)
    if len(found) == 1:
        return Target("device", found[0].uuid)
    if found:
        listed = _listed(f"{d.uuid} ({place(d)})" for d in found)
        raise click.UsageError(f"{len(found)} devices are called {name}: {listed}")
    known = {*hosts, *map(place, devices), *(device.uuid for device in devices)}
    meant = did_you_mean(name, known) or f"hosts: {_listed(hosts) or 'none'}"
    raise error_for(
        "device_unknown",
        f"no host and no device is called {name!r}; {meant}"
        f"{'' if meant.endswith('?') else '; devices: gpu-broker status'}",
    )


def _devices_called(name: str, devices: Iterable[DeviceStatus]) -> list[DeviceStatus]:
    """Return the devices that a name may mean; a whole id or a place wins over a beginning."""
    devices = tuple(devices)
    exact = [d for d in devices if name in {d.uuid, place(d)}]
    if exact or len(name) < PREFIX:
        return exact
    return [d for d in devices if d.uuid.startswith(name)]


def place(device: DeviceStatus) -> str:
    """Return a device's place as the commands show it: `host:index`."""
    return f"{device.host}:{device.index}"


def whole_token(client: LeaseClient, token: str) -> str:
    """Return the one token that begins so, of a lease or a waiter; else the given whole one.

    Raises:
        UsageError: several tokens begin so; the message lists them with their agents.
        BadRequest: it is too short for a beginning.
        UnknownToken: it is no whole token, and none begins so.
    """
    if len(token) < PREFIX:
        raise error_for("bad_request", f"{token!r} is no token: write {PREFIX} letters of one")
    if len(token) >= WHOLE and client.lookup(token) is not None:
        return token
    known = _agents_by_token(client)
    if token in known:
        return token
    begin = sorted(name for name in known if name.startswith(token))
    if len(begin) > 1:
        listed = _listed(f"{name} of {known[name]}" for name in begin)
        raise click.UsageError(
            f"{len(begin)} tokens begin with {token}: {listed}; write more letters"
        )
    if not begin and len(token) < WHOLE:
        raise error_for(
            "unknown_token",
            f"no lease and no waiter has a token that begins with {token}: gpu-broker leases and "
            "gpu-broker queue list all; write the whole token of a lease that has ended",
        )
    return begin[0] if begin else token


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"{', '.join(map(printable, found[:LISTED]))}{more}"


def unheard_agent(client: LeaseClient, agent: str) -> str:
    """Suggest an agent instead of one without leases and waits; empty: it has some."""
    known = set(_agents_by_token(client).values())
    return "" if agent in known else did_you_mean(agent, known)


def _agents_by_token(client: LeaseClient) -> dict[str, str]:
    agents = {waiter.token: waiter.agent for waiter in client.queue()}
    return agents | {lease.token: lease.agent for lease in client.leases()}

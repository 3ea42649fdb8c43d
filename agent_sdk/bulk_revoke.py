"""Revocation of many leases: all of an agent, on a host, on a device, or in several of these."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.errors import LeaseLost, UnknownToken, error_for
from agent_sdk.protocol.operator import revoke
from agent_sdk.state import snapshot

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Call, Read


def revoke_where(
    keys: Keys,
    *,
    agent: str | None,
    host: str | None,
    device: str | None,
    force: bool,
    by: str,
    why: str,
) -> Generator[Call | Read, Answer, tuple[str, ...]]:
    """Revoke every lease of an agent, on a host, on a device; given several, those in all.

    Returns:
        The tokens that this call revoked, without leases that ended meanwhile.

    Raises:
        BadRequest: none of the three is given.
    """
    if agent is None and host is None and device is None:
        raise error_for("bad_request", "name an agent, a host or a device")
    hosts = {device.uuid: device.host for device in (yield from snapshot.devices(keys))}
    revoked = []
    for lease in (yield from snapshot.leases(keys)):
        uuids = {uuid for uuid, _ in lease.devices}
        if (
            agent not in {None, lease.agent}
            or (host is not None and host not in map(hosts.get, uuids))
            or (device is not None and device not in uuids)
        ):
            continue
        try:
            yield from revoke(lease.token, force=force, by=by, why=why)
        except (LeaseLost, UnknownToken):
            continue
        revoked.append(lease.token)
    return tuple(revoked)

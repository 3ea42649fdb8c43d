"""Part of a pool that is asked for, with the figures of all that match: the rest is not read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_sdk.protocol.messages import Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state import lists, snapshot
from agent_sdk.state.devices import DEVICE_NUMBERS, DeviceStatus, device_status
from agent_sdk.state.pool_state import PoolState
from agent_sdk.state.readings import names, read_known, text_or_none

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.state.snapshot import LeaseStatus

BRIEF: Final = (
    "host", "index", "name", "model", "state", "drained", "exclusive", "reserved_for", "one_lease",
    "parent", *DEVICE_NUMBERS,
)  # fmt: skip
"""Fields of a device that tell its place, its state and its free memory."""


class Wanted(NamedTuple):
    """Devices and leases that are asked for; None: all.

    Attributes:
        host: only those on this host.
        device: only this one, by its id.
        agent: only this agent's leases, and the devices that they hold.
        team: the same of a team.
        state: only devices in this state, as `lists.shown_state` names it.
        most: most devices of which all is read.
    """

    host: str | None = None
    device: str | None = None
    agent: str | None = None
    state: str | None = None
    team: str | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class PoolPart:
    """Part of a pool.

    Attributes:
        scene: the first devices that match, the leases on them, their hosts; no waiters. Without
            a `Wanted.agent` or `team` also no leases on the CPU.
        matching: all devices that match, by the fields of `BRIEF` alone, by host and index.
    """

    scene: PoolState
    matching: tuple[DeviceStatus, ...]

    @property
    def left_out(self) -> int:
        """Number of devices that match and are not in the scene."""
        return len(self.matching) - len(self.scene.devices)


def read(keys: Keys, wanted: Wanted) -> Generator[Read, Answer, PoolPart]:
    """Read the part that is asked for."""
    pool = yield from snapshot.pool(keys)
    matching = yield from _brief(keys, wanted)
    leases: list[LeaseStatus] | None = None
    if wanted.agent is not None or wanted.team is not None:
        leases = yield from _leases_of_agent(keys, wanted)
        held = {uuid for lease in leases for uuid, _ in lease.devices}
        matching = [device for device in matching if device.uuid in held]
    uuids = [device.uuid for device in matching[: wanted.most]]
    devices = yield from snapshot.devices_of(keys, uuids)
    if leases is None:
        tokens = yield from lists.holding(keys, uuids)
        leases = yield from snapshot.leases_of(keys, tokens)
    hosts = yield from _hosts(keys, wanted, matching)
    shown = {device.uuid: device for device in devices}
    scene = PoolState(
        pool=pool,
        hosts={host.host: host for host in hosts},
        devices=shown,
        leases={
            lease.token: lease
            for lease in sorted(leases, key=lambda lease: lease.fence)
            if not lease.devices or any(uuid in shown for uuid, _ in lease.devices)
        },
        waiters={},
        sums={},
    )
    return PoolPart(scene, tuple(matching))


def _leases_of_agent(keys: Keys, wanted: Wanted) -> Generator[Read, Answer, list[LeaseStatus]]:
    found = yield from lists.living(keys, wanted.agent, wanted.host)
    leases = yield from snapshot.leases_of(keys, [each.token for each in chain(*found)])
    return [lease for lease in leases if wanted.team in {None, lease.team}]


def _hosts(
    keys: Keys, wanted: Wanted, matching: Sequence[DeviceStatus]
) -> Generator[Read, Answer, Sequence[snapshot.HostStatus]]:
    if wanted[:-1] == Wanted()[:-1]:
        return (yield from snapshot.hosts(keys))
    return (yield from snapshot.hosts_of(keys, sorted({device.host for device in matching})))


def _brief(keys: Keys, wanted: Wanted) -> Generator[Read, Answer, list[DeviceStatus]]:
    """Read the devices that match, by the fields of `BRIEF`, by host and index."""
    if wanted.device is not None:
        uuids = [wanted.device]
    else:
        host = wanted.host
        listing = ("ZRANGE", keys.fits, 0, -1) if host is None else ("SMEMBERS", keys.devices(host))
        uuids = names((yield from read_known(keys, listing)))
    found: list[DeviceStatus] = []
    for start in range(0, len(uuids), lists.PAGE):
        part = uuids[start : start + lists.PAGE]
        answer = yield Read(tuple(("HMGET", keys.device(uuid), *BRIEF) for uuid in part))
        rows = zip(part, _rows(answer), strict=True)
        known = ((uuid, row) for uuid, row in rows if row)
        found += [
            device
            for device in snapshot.legible(device_status, known)
            if wanted.host in {None, device.host}
            and wanted.state in {None, lists.shown_state(device.state, drained=device.drained)}
        ]
    return sorted(found, key=lambda d: (d.host, d.index, d.uuid))


@of_known_form
def _rows(answer: Answer) -> list[dict[str, str]]:
    return [
        {
            name: value
            for name, value in zip(BRIEF, row, strict=True)
            if text_or_none(value) is not None
        }
        for row in answer.raw
    ]

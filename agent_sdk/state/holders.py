"""Holders of a host's devices, which its reporter compares with the processes that it sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent_sdk.lazy import later
from agent_sdk.protocol.messages import Read
from agent_sdk.state.readings import ended_in, names, names_each, read_known, text_or_none

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer
    from agent_sdk.state import snapshot
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.snapshot import LeaseStatus
    from agent_sdk.state.tombstones import EndedLease
else:
    (snapshot,) = later("state.snapshot")


@dataclass(frozen=True, slots=True)
class Holders:
    """Devices of a host, with the leases on them.

    Attributes:
        now_ms: the pool's time before anything was read.
        devices: all that it ever reported and that are still its own.
        leases: active and cooling leases on them.
        of: device -> the tokens that hold it, or whose memory on it is withheld.
        unsure: devices with more leased memory than these leases hold: the pool moved on between
            two readings, or a lease is of a version that does not name its place.
        gone: device -> holders' tokens without a record: scripts of a version without holders have
            ended them.
        ended: the ended ones of the tokens that were asked for.
        elsewhere: the living ones of them without a device here: on a CPU, or on another host.
        released_until_ms: an operator wants the host's driver let go of until then; 0: not.
        rows: the devices' hashes, as they are stored.
    """

    now_ms: int
    devices: dict[str, DeviceStatus]
    leases: dict[str, LeaseStatus]
    of: dict[str, tuple[str, ...]]
    unsure: frozenset[str]
    gone: dict[str, tuple[str, ...]]
    ended: dict[str, EndedLease]
    elsewhere: frozenset[str]
    released_until_ms: int = 0
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_holders(
    keys: Keys, host: str, now_ms: int, perhaps_over: Iterable[str] = ()
) -> Generator[Read, Answer, Holders]:
    """Read the holders of a host's devices.

    `perhaps_over`: tokens whose end is to be read, too.
    """
    answer = yield from read_known(
        keys,
        ("SMEMBERS", keys.devices(host)),
        ("HGET", keys.host(host), "driver_released_until_ms"),
    )
    released_until_ms = int(text_or_none(answer.raw[1]) or 0)
    uuids = sorted(names(answer))
    stored = yield from snapshot.device_rows(keys, uuids)
    found = yield from snapshot.devices_in(keys, stored)
    devices = {device.uuid: device for device in found if device.host == host}
    of: dict[str, tuple[str, ...]] = {}
    if devices:
        answer = yield Read(tuple(("SMEMBERS", keys.holders(uuid)) for uuid in devices))
        held_by = zip(devices, names_each(answer), strict=True)
        of = {uuid: tuple(sorted(tokens)) for uuid, tokens in held_by}
    tokens = sorted({token for of_one in of.values() for token in of_one})
    rows = yield from snapshot.records_of(keys, tokens, ("offered", "active", "cooling"))
    granted = [(token, row) for token, row in rows.items() if row["state"] != "offered"]
    leases = {x.token: x for x in snapshot.legible(snapshot.lease_status, granted) if x.devices}
    promised = {token for token, row in rows.items() if row["state"] == "offered"}
    promised |= {token for token, lease in leases.items() if lease.state == "active"}
    unsure = {uuid for uuid in devices if devices[uuid].leases != len(promised & {*of[uuid]})}
    others = sorted({*perhaps_over} - rows.keys())
    elsewhere = yield from snapshot.records_of(keys, others, ("waiting", "offered", "active"))
    ended = yield from _ended(keys, [t for t in others if t not in elsewhere])
    gone = {uuid: tuple(t for t in held if t not in rows) for uuid, held in of.items()}
    return Holders(
        now_ms,
        devices,
        leases,
        of,
        frozenset(unsure),
        gone,
        ended,
        frozenset(elsewhere),
        released_until_ms,
        {uuid: stored[uuid] for uuid in devices},
    )


def _ended(keys: Keys, tokens: list[str]) -> Generator[Read, Answer, dict[str, EndedLease]]:
    if not tokens:
        return {}
    answer = yield Read(tuple(("GET", keys.done(token)) for token in tokens))
    found = {token: ended_in(answer, n, token) for n, token in enumerate(tokens)}
    return {token: over for token, over in found.items() if over}

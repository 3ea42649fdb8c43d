"""Reservations of requests that have waited long, as readers see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent_sdk.protocol.messages import Answer, Read
from agent_sdk.state.readings import names

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping

    from agent_sdk.keys import Keys
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.placement import PlacementRequest

LENT_READ: Final = 64
"""Reserved devices that acquire looks at, as in `lua/lib/offers.lua`."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Devices reserved for a request that has waited long: no later request gets them.

    Times are ms on the pool's clock; None: an older version made the reservation.

    Attributes:
        agent, token: the waiter's.
        devices: ids of all devices that are reserved for it.
        memory_mb: MiB that count against its agent's cap meanwhile, like a lease.
        since_ms: the begin of the reservation.
        until_ms: its end if they have room and no lease on them ends.
    """

    agent: str
    token: str
    devices: tuple[str, ...]
    memory_mb: int
    since_ms: int | None
    until_ms: int | None


def reservation(token: str, row: dict[str, str]) -> Reservation | None:
    """Return the reservation in a waiter's record; None: there is none."""
    devices = tuple(filter(None, row.get("reserved", "").split(",")))
    if not devices:
        return None
    since, until = row.get("reservation_since_ms"), row.get("reservation_until_ms")
    return Reservation(
        agent=row["agent"],
        token=token,
        devices=devices,
        memory_mb=int(row.get("reservation_mb", 0)),
        since_ms=int(since) if since else None,
        until_ms=int(until) if until else None,
    )


def lent(keys: Keys, until_ms: int) -> Generator[Read, Answer, frozenset[str]]:
    """Read which reserved devices a request may use that has ended by then, on the pool's clock."""
    found = ("ZRANGE", keys.backfill, until_ms, "+inf", "BYSCORE", "LIMIT", 0, LENT_READ)
    return frozenset(names((yield Read((found,)))))


def unreserved(
    devices: Mapping[str, DeviceStatus], lent: Collection[str]
) -> dict[str, DeviceStatus]:
    """Return devices with those that are lent as if they were not reserved."""
    return {
        uuid: replace(device, reserved_for="", reservation=None) if uuid in lent else device
        for uuid, device in devices.items()
    }


def with_some_lent(
    wish: PlacementRequest, devices: Mapping[str, DeviceStatus], lent: Collection[str]
) -> dict[str, DeviceStatus]:
    """Return the devices of which a request may have some, one of them lent, as `unreserved`."""
    mine = {uuid: device for uuid, device in devices.items() if uuid in lent}
    if wish.devices > 1:
        groups = {(device.host, device.model) for device in mine.values()}
        mine = {uuid: d for uuid, d in devices.items() if (d.host, d.model) in groups}
    return unreserved(mine, lent)


def says(reserved: Reservation, now_ms: int) -> str:
    """Return its agent, begin and end, as a part of a sentence."""
    words = f"reserved for {reserved.agent}"
    if reserved.since_ms is not None:
        words += f" since {_span(now_ms - reserved.since_ms)}"
    if reserved.until_ms is not None:
        words += f", for {_span(reserved.until_ms - now_ms)} more while unused"
    return words


def _span(ms: int) -> str:
    seconds = max(0, ms) // 1000
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"  # noqa: PLR2004 - two minutes

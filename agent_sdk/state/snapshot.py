"""Snapshot of the pool at one moment. Reading is never a verb: plain pipelined commands.

Between two pipelines of one reading the pool may move on; every part has its own time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.policy import PolicyValues, from_store
from agent_sdk.protocol.messages import ENDLESS_MS, Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.devices import device_status
from agent_sdk.state.lists import tokens_due
from agent_sdk.state.readings import check_schema, names, numbers, read_known, row, rows
from agent_sdk.state.reservations import reservation

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.state.devices import DeviceStatus

T = TypeVar("T")

log = logging.getLogger(__name__)

PAGE = 32
"""Hashes read in one pipeline: few enough that no event loop is held while they are parsed."""


def pool_id(epoch: str) -> str:
    """Return a name of the pool's data without its epoch: equal names are one pool of one store."""
    return sha256(epoch.encode()).hexdigest()[:12] if epoch else ""


ENDS: Final = ("released", "expired", "revoked", "preempted")
"""Ends of a lease, as counters and events call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus(PolicyValues):
    """The pool's policy and counters.

    Attributes:
        now_ms: the time of the reading, on the pool's clock.
        ready: False until a host has reported for the first time.
        waiting: the number of waiters.
        teams: the number of teams with a policy.
        capacity_mb: MiB of all devices that leases could ever hold.
        stats: counters since the pool's beginning; every replica reads the same.
    """

    now_ms: int
    ready: bool
    epoch: str
    policy_version: int
    closed_until_ms: int
    waiting: int
    stats: dict[str, int]
    capacity_mb: int = 0
    teams: int = 0

    @property
    def active_leases(self) -> int:
        """Number of living GPU leases: granted or recovered, and not ended."""
        return self._live("")

    @property
    def active_cpu_leases(self) -> int:
        """Number of living CPU leases."""
        return self._live("cpu_")

    @property
    def lends(self) -> bool:
        """True if GPU leases are given: SAFE_MODE is off, and the pool not closed after a loss."""
        return not self.safe_mode and self.now_ms >= self.closed_until_ms

    def free_mb(self, device: DeviceStatus) -> int:
        """Return the MiB of a device for the next request, under the present policy."""
        return device.free_for(shares=self.allow_fractional_shares) if self.lends else 0

    def _live(self, kind: str) -> int:
        ended = sum(self.stats.get(kind + how, 0) for how in ENDS)
        return sum(self.stats.get(kind + how, 0) for how in ("granted", "recovered")) - ended


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """Record of a lease.

    Attributes:
        devices: (device id, MiB) of each device held.
        expires_at_ms: the end on Redis's clock; None = no expiry.
        hold_until_ms: the limit of all renewals; None = no limit.
        revoked: an operator ended its renewals.
        asked_host: the requested host; `*` = any.
        pid: the holder as `pid:start time`; empty = unknown.
        notices: its host's findings that its holder is told, words of `FINDINGS`.
        note: a line of its holder for people, or empty.
        preemptible: it may be preempted at any time; yields: its holder is told when others want
            what it has.
        preempt_at_ms: the time at which it must end for others, on Redis's clock; None: it need
            not.
        preempt_for: the token of the waiter that it is preempted for, with `preempt_by`, its
            agent, and `preempt_team`; empty: it is not preempted.
        wanted: the agent that asked for it last, and how many MiB it waits for; None: no agent.
        evictions: how often its job was preempted before.
    """

    token: str
    agent: str
    state: str
    devices: tuple[tuple[str, int], ...]
    fence: int
    granted_at_ms: int
    expires_at_ms: int | None
    ttl_ms: int
    hold_until_ms: int | None
    revoked: bool
    priority: int
    asked_host: str
    reason: str | None
    owner: str
    client: str
    pid: str
    notices: tuple[str, ...] = ()
    note: str = ""
    team: str = DEFAULT_TEAM
    preemptible: bool = False
    yields: bool = False
    preempt_at_ms: int | None = None
    preempt_for: str = ""
    preempt_by: str = ""
    preempt_team: str = ""
    wanted: tuple[str, int] | None = None
    evictions: int = 0

    @property
    def memory_mb(self) -> int:
        """MiB held on all devices together."""
        return sum(mb for _, mb in self.devices)


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Machine that reports devices, or did.

    Attributes:
        rival: a reporter that was refused its name, last at `rival_ms`; empty: none.
        trouble: why its GPUs, or some of them, are not seen, since `trouble_since_ms`; empty: all
            are.
        warning: what its operator should know beside that; empty: nothing.
    """

    host: str
    version: str
    reported_ms: int
    deadline_ms: int
    devices: int
    drained: bool
    rival: str = ""
    rival_ms: int = 0
    trouble: str = ""
    trouble_since_ms: int = 0
    warning: str = ""

    def alive(self, now_ms: int) -> bool:
        """Tell whether it has reported within its deadline."""
        return now_ms - self.reported_ms <= self.deadline_ms


def pool(keys: Keys) -> Generator[Read, Answer, PoolStatus]:
    """Read policy, counters and time.

    Raises:
        ProtocolMismatch: they are of no known form.
    """
    answer = yield Read((("TIME",), ("HGETALL", keys.pool), ("HGETALL", keys.stats)))
    time, facts, stats = answer.raw
    check_schema(row(facts).get("schema"))
    return _pool(time, row(facts), row(stats))


@of_known_form
def _pool(time: list[Any], row: dict[str, str], stats: dict[str, str]) -> PoolStatus:
    def number(name: str) -> int:
        return int(row.get(name, 0))

    return PoolStatus(
        now_ms=int(time[0]) * 1000 + int(time[1]) // 1000 + number("offset_ms"),
        ready=bool(row),
        epoch=row.get("epoch", ""),
        policy_version=number("policy_version"),
        closed_until_ms=number("closed_until_ms"),
        waiting=number("waiting"),
        stats=_counted(row, stats),
        capacity_mb=number("capacity_mb"),
        teams=number("teams"),
        **from_store(row),
    )


def _counted(pool: dict[str, str], stats: dict[str, str]) -> dict[str, int]:
    """Return every counter: those of frequent paths are fields of the pool itself."""
    counts = {name: int(value) for name, value in stats.items()}
    for name in ("granted", "released"):
        if name in pool:
            counts[name] = counts.get(name, 0) + int(pool[name])
    return counts


def devices(keys: Keys) -> Generator[Read, Answer, tuple[DeviceStatus, ...]]:
    """Read every registered device, by host and index."""
    answer = yield from read_known(keys, ("ZRANGE", keys.fits, 0, -1))
    found = yield from devices_of(keys, names(answer))
    return tuple(sorted(found, key=lambda d: (d.host, d.index, d.uuid)))


def devices_of(keys: Keys, uuids: Sequence[str]) -> Generator[Read, Answer, list[DeviceStatus]]:
    """Read the registered ones of these devices, in this order."""
    devices: list[DeviceStatus] = []
    for page in _pages(uuids):
        found = yield from _hashes([keys.device(uuid) for uuid in page])
        known = ((uuid, of) for uuid, of in zip(page, found, strict=True) if of)
        devices += legible(device_status, known)
    return (yield from _with_reservations(keys, devices))


def device_rows(
    keys: Keys, uuids: Sequence[str]
) -> Generator[Read, Answer, dict[str, dict[str, str]]]:
    """Read the hashes of the registered ones of these devices."""
    found = yield from _hashes([keys.device(uuid) for uuid in uuids])
    return {uuid: of for uuid, of in zip(uuids, found, strict=True) if of}


def devices_in(
    keys: Keys, rows: dict[str, dict[str, str]]
) -> Generator[Read, Answer, list[DeviceStatus]]:
    """Return the devices of these hashes, with the reservations on them."""
    return (yield from _with_reservations(keys, list(legible(device_status, rows.items()))))


def _with_reservations(
    keys: Keys, devices: list[DeviceStatus]
) -> Generator[Read, Answer, list[DeviceStatus]]:
    tokens = sorted({d.reserved_for for d in devices} - {""})
    waiters = yield from records_of(keys, tokens, ("waiting",))
    reserved = {x.token: x for x in legible(reservation, waiters.items()) if x}
    return [
        replace(d, reservation=reserved.get(d.reserved_for)) if d.reserved_for else d
        for d in devices
    ]


def leases(keys: Keys) -> Generator[Read, Answer, tuple[LeaseStatus, ...]]:
    """Read every living lease, oldest first."""
    tokens = yield from tokens_due(keys)
    found = yield from leases_of(keys, list(tokens))
    return tuple(sorted(found, key=lambda lease: lease.fence))


def leases_of(keys: Keys, tokens: Sequence[str]) -> Generator[Read, Answer, list[LeaseStatus]]:
    """Read the living leases among these tokens, in this order."""
    leases: list[LeaseStatus] = []
    for page in _pages(tokens):
        active = yield from records_of(keys, page, ("active",))
        leases += legible(lease_status, active.items())
    return leases


def records(
    keys: Keys, states: tuple[str, ...], due_by_ms: int | None = None
) -> Generator[Read, Answer, dict[str, dict[str, str]]]:
    """Read the hashes of all records in these states, by token.

    Args:
        keys: of the pool.
        states: of a record.
        due_by_ms: only those whose deadline is not after it, on the pool's clock; None: all.
    """
    tokens = yield from tokens_due(keys, due_by_ms)
    return (yield from records_of(keys, list(tokens), states))


def records_of(
    keys: Keys, tokens: Sequence[str], states: tuple[str, ...]
) -> Generator[Read, Answer, dict[str, dict[str, str]]]:
    """Read the hashes of these tokens that are in these states."""
    found: dict[str, dict[str, str]] = {}
    for page in _pages(tokens):
        rows = yield from _hashes([keys.record(token) for token in page])
        found |= {t: of for t, of in zip(page, rows, strict=True) if of.get("state") in states}
    return found


def hosts(keys: Keys) -> Generator[Read, Answer, tuple[HostStatus, ...]]:
    """Read every host that the pool knows, by name."""
    answer = yield from read_known(keys, ("SMEMBERS", keys.hosts))
    return tuple((yield from hosts_of(keys, sorted(names(answer)))))


def hosts_of(keys: Keys, of: Sequence[str]) -> Generator[Read, Answer, list[HostStatus]]:
    """Read those of these hosts that the pool knows, in this order."""
    found: list[HostStatus] = []
    for page in _pages(of):
        facts = yield from _hashes([keys.host(name) for name in page])
        answer = yield Read(tuple(("SCARD", keys.devices(name)) for name in page))
        counted = zip(facts, numbers(answer), strict=True)
        each = (row | {"devices": str(count or 0)} for row, count in counted)
        found += legible(_host_status, zip(page, each, strict=True))
    return found


def _host_status(name: str, row: dict[str, str]) -> HostStatus:
    return HostStatus(
        host=name,
        version=row.get("version", ""),
        reported_ms=int(row.get("reported_ms", 0)),
        deadline_ms=int(row.get("deadline_ms", 0)),
        devices=int(row["devices"]),
        drained=row.get("drained") == "1",
        rival=row.get("rival", ""),
        rival_ms=int(row.get("rival_ms", 0)),
        trouble=row.get("trouble", ""),
        trouble_since_ms=int(row.get("trouble_since_ms", 0)),
        warning=row.get("warning", ""),
    )


def _pages(of: Sequence[str]) -> Iterator[Sequence[str]]:
    return (of[start : start + PAGE] for start in range(0, len(of), PAGE))


def _hashes(of: list[str]) -> Generator[Read, Answer, list[dict[str, str]]]:
    found: list[dict[str, str]] = []
    for page in _pages(of):
        answer = yield Read(tuple(("HGETALL", key) for key in page))
        found += rows(answer)
    return found


def legible(
    read: Callable[[str, dict[str, str]], T], found: Iterable[tuple[str, dict[str, str]]]
) -> Iterator[T]:
    """Return each row's reading, by name; a row of unknown form is left out, and hides no other."""
    for name, facts in found:
        try:
            one = read(name, facts)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            _say_once(name, f"{type(error).__name__}: {error}")
        else:
            yield one


@lru_cache(PAGE)
def _say_once(name: str, why: str) -> None:
    # Eight letters of a token tell it from others and open nothing.
    log.warning("what the store has of %s… is not legible, and is passed over: %s", name[:8], why)


def held(devices: str) -> tuple[tuple[str, int], ...]:
    """Return (device id, MiB) of each device in a record's `uuid=mb,...`."""
    parts = [part.rpartition("=") for part in devices.split(",") if part]
    return tuple((uuid, int(mb)) for uuid, _, mb in parts)


def lease_status(token: str, row: dict[str, str]) -> LeaseStatus:
    """Return a record's hash as a LeaseStatus. `request`: ARGV 4-13 of acquire, joined by `|`."""
    granted_at_ms, expires_at_ms = int(row["granted_at_ms"]), int(row["expires_at_ms"])
    asked = row["request"].split("|")
    return LeaseStatus(
        token=token,
        agent=row["agent"],
        state=row["state"],
        devices=held(row["devices"]),
        fence=int(row["fence"]),
        granted_at_ms=granted_at_ms,
        expires_at_ms=None if expires_at_ms - granted_at_ms > ENDLESS_MS else expires_at_ms,
        ttl_ms=int(row["ttl_ms"]),
        hold_until_ms=int(row["hold_until_ms"]) if "hold_until_ms" in row else None,
        revoked="revoked" in row,
        priority=int(asked[5]),
        asked_host=asked[6],
        reason=row.get("reason"),
        owner=row.get("owner", ""),
        client=row.get("client", ""),
        pid=row.get("pid", ""),
        notices=tuple(filter(None, row.get("notice", "").split(","))),
        note=row.get("note", ""),
        team=row.get("team", DEFAULT_TEAM),
        preemptible=row.get("preemptible") == "1",
        yields=row.get("yields") == "1",
        preempt_at_ms=int(row["preempt_at_ms"]) if "preempt_at_ms" in row else None,
        preempt_for=row.get("preempt_for", ""),
        preempt_by=row.get("preempt_by", ""),
        preempt_team=row.get("preempt_team", ""),
        wanted=wanted_of(row["wanted"]) if "wanted" in row else None,
        evictions=int(row.get("evictions", 0)),
    )


def wanted_of(text: str) -> tuple[str, int]:
    """Return the agent and the MiB in a record's `mb:agent`."""
    mb, _, agent = text.partition(":")
    return agent, int(mb)

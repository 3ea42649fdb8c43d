"""Queue at one moment: the waiters, their requests, their order. Plain reads, as in `snapshot`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent_sdk.errors import error_for
from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.protocol.messages import ANY, Answer, Read
from agent_sdk.state import snapshot
from agent_sdk.state.lists import PART, in_states, tokens_due
from agent_sdk.state.placement import PlacementRequest
from agent_sdk.state.readings import ended_in, numbers, read_known, row, whole_number
from agent_sdk.state.reservations import Reservation, reservation

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.state.snapshot import LeaseStatus

WAITS = ("waiting", "offered")
"""States of a record that is no lease yet."""

DUE_WITHIN_MS = 15_000
"""A waiter must poll, or claim its offer, within 10 s; the rest is for polls while it is read."""


@dataclass(frozen=True, slots=True)
class WaiterStatus:
    """Waiter in the queue, or one with offered devices that it has yet to claim.

    Attributes:
        state: waiting or offered.
        memory_mb: MiB on each device.
        devices: the number of devices.
        asked_host, model: `*` = any.
        place: waiters ahead in its queue; None when capped or offered.
        capped: only a cap holds it back.
        capped_by: whose: `agent`, `key NAME`, `team NAME` or that of a quota by model,
            `team NAME#model MODEL`; empty: it is not capped.
        rank: the smaller first: µs of entry, less a minute for each step of priority.
        queue_id: host/model/size class, and the team where it is not the default one: common to
            one queue.
        offered: (device id, MiB) of each device that it may claim.
        reserved: ids of devices that are reserved for it.
        reservation: the same with begin and end; None: there is none.
        preemptible, yields: as asked.
        preempts: tokens of the leases that are preempted for it.
        preempt_at_ms: the last time at which one of these must end; None: none is preempted.
    """

    token: str
    agent: str
    state: str
    memory_mb: int
    devices: int
    exclusive: bool
    priority: int
    asked_host: str
    model: str
    place: int | None
    capped: bool
    rank: int
    enqueued_ms: int
    wait_until_ms: int
    ttl_ms: int
    queue_id: str
    offered: tuple[tuple[str, int], ...]
    reserved: tuple[str, ...]
    owner: str
    client: str
    pid: str
    reservation: Reservation | None = None
    team: str = DEFAULT_TEAM
    preemptible: bool = False
    yields: bool = False
    capped_by: str = ""
    preempts: tuple[str, ...] = ()
    preempt_at_ms: int | None = None

    @property
    def wish(self) -> PlacementRequest:
        """Its request, as placement sees it."""
        return PlacementRequest(
            agent=self.agent,
            memory_mb=self.memory_mb,
            devices=self.devices,
            exclusive=self.exclusive,
            host=self.asked_host,
            model=self.model,
            owner=self.owner,
            team=self.team,
        )


def waiters(keys: Keys) -> Generator[Read, Answer, tuple[WaiterStatus, ...]]:
    """Read all waiters, by rank; of leases that end within seconds the state alone is read."""
    waits = yield from _tokens(keys)
    records = yield from snapshot.records_of(keys, waits, WAITS)
    found = yield from placed(keys, records)
    return tuple(sorted(found, key=lambda waiter: (waiter.rank, waiter.token)))


def waiting_since(keys: Keys) -> Generator[Read, Answer, int | None]:
    """Read when the oldest waiter entered the queue, ms on the pool's clock; None: none waits."""
    tokens, since = (yield from _tokens(keys)), list[int]()
    for start in range(0, len(tokens), PART):
        part = tokens[start : start + PART]
        answer = yield Read(tuple(("HGET", keys.record(t), "enqueued_ms") for t in part))
        since += [whole_number(at) for at in answer.raw if at is not None]
    return min(since, default=None)


def _tokens(keys: Keys) -> Generator[Read, Answer, list[str]]:
    """Read which tokens wait, by their deadlines."""
    answer = yield from read_known(keys, ("HGET", keys.pool, "last_ms"))
    due = yield from tokens_due(keys, whole_number(answer.raw[0]) + DUE_WITHIN_MS)
    return (yield from in_states(keys, list(due), WAITS))


def lookup(
    keys: Keys, token: str
) -> Generator[Read, Answer, LeaseStatus | WaiterStatus | str | None]:
    """Read a lease or a waiter; or its outcome, a word of `errors.CODES`; or None: unknown.

    Raises:
        ProtocolMismatch: its record is of no known form.
    """
    answer = yield from read_known(keys, ("HGETALL", keys.record(token)), ("GET", keys.done(token)))
    record, over = row(answer.raw[0]), ended_in(answer, 1, token)
    if not record:
        return over.outcome if over else None
    if record.get("state") == "cooling" and "outcome" in record:
        return record["outcome"]
    found: Sequence[LeaseStatus | WaiterStatus]
    if record.get("state") in WAITS:
        found = yield from placed(keys, {token: record})
    else:
        found = list(snapshot.legible(snapshot.lease_status, [(token, record)]))
    if not found:
        raise error_for("protocol_mismatch", f"the record of {token[:8]}… is of no known form")
    return found[0]


def placed(
    keys: Keys, records: dict[str, dict[str, str]]
) -> Generator[Read, Answer, list[WaiterStatus]]:
    """Read the waiters' places in as few pipelines as needed, and return the waiters."""
    waiters: list[WaiterStatus] = []
    tokens = list(records)
    for start in range(0, len(tokens), snapshot.PAGE):
        page = tokens[start : start + snapshot.PAGE]
        ranks = (("ZRANK", keys.queue(records[t].get("queue_id", "")), t) for t in page)
        answer = yield Read(tuple(ranks))
        at = dict(zip(page, numbers(answer), strict=True))

        def waiter(token: str, row: dict[str, str], at: dict[str, int | None] = at) -> WaiterStatus:
            return waiter_status(token, row, at[token])

        waiters += snapshot.legible(waiter, ((token, records[token]) for token in page))
    return (yield from _with_preemptions(keys, waiters))


def _with_preemptions(
    keys: Keys, waiters: list[WaiterStatus]
) -> Generator[Read, Answer, list[WaiterStatus]]:
    """Read when the leases end that are preempted for waiters, of those that have any."""
    of = [x for x in waiters if x.preempts]
    if not of:
        return waiters
    tokens = sorted({token for x in of for token in x.preempts})
    at_ms: dict[str, int] = {}
    for start in range(0, len(tokens), PART):
        part = tokens[start : start + PART]
        answer = yield Read(tuple(("HGET", keys.record(t), "preempt_at_ms") for t in part))
        at_ms |= zip(part, map(whole_number, answer.raw), strict=True)
    return [
        replace(x, preempt_at_ms=max(at_ms[token] for token in x.preempts) or None)
        if x.preempts
        else x
        for x in waiters
    ]


def waiter_status(token: str, row: dict[str, str], place: int | None) -> WaiterStatus:
    """Return a record's hash as a WaiterStatus. `request`: ARGV 4-13 of acquire, joined by `|`."""
    _, devices, exclusive, _, _, priority, host, model, *_ = row["request"].split("|")
    capped = row["state"] == "waiting" and place is None
    party = row.get("capped", row["agent"]) if capped else ""
    return WaiterStatus(
        token=token,
        agent=row["agent"],
        state=row["state"],
        memory_mb=int(row["memory_mb"]),
        devices=int(devices),
        exclusive=exclusive == "1",
        priority=int(priority),
        asked_host=host,
        model=model,
        place=place,
        capped=capped,
        rank=int(row["rank"]),
        enqueued_ms=int(row["enqueued_ms"]),
        wait_until_ms=int(row["wait_until_ms"]),
        ttl_ms=int(row["ttl_ms"]),
        queue_id=row["queue_id"],
        offered=snapshot.held(row["devices"]),
        reserved=tuple(filter(None, row.get("reserved", "").split(","))),
        owner=row.get("owner", ""),
        client=row["client"],
        pid=row["pid"],
        reservation=reservation(token, row),
        team=row.get("team", DEFAULT_TEAM),
        preemptible=row.get("preemptible") == "1",
        yields=row.get("yields") == "1",
        capped_by="agent" if party == row["agent"] else party,
        preempts=tuple(filter(None, row.get("preempts", "").split(","))),
    )


def matches(waiter: WaiterStatus, agent: str | None, host: str | None, state: str | None) -> bool:
    """Tell whether a waiter is asked for; None: any. One that takes any host is on each."""
    return (
        agent in {None, waiter.agent}
        and state in {None, waiter.state}
        and (host is None or waiter.asked_host in {host, ANY})
    )

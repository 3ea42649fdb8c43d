"""History: the last finished leases, one by one; some `history_leases` of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_sdk.errors import error_for
from agent_sdk.keys import DEFAULT_TEAM, EVENT_ID
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.readings import hash_in, read_known, read_now, text
from agent_sdk.state.snapshot import legible
from agent_sdk.usage.lease_runs import gpus_of, held, number, whole, words_of
from agent_sdk.usage.period import HOUR_MS, at_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Read
    from agent_sdk.usage.period import Instant

START: Final = "0-0"
"""Position before every finished lease."""

PART: Final = 200
"""Entries that are read at once: an event loop is not held while they are parsed."""

LOOKED_AT: Final = 20_000
"""Most entries that one reading looks at; the next one goes on there."""

MOST: Final = 10_000
"""Most leases of one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedLease:
    """Lease that is over.

    Attributes:
        id: its place in the history, `ms-n` by Redis's clock; later ids are greater.
        owner: the API key that asked for it; empty: none.
        host, model: where it was; `-` and `cpu`: on a CPU.
        devices: (device id, MiB) of each device.
        gpus: devices, each by the part of it that the lease had.
        mb: MiB on all devices together.
        outcome: how it ended: released, expired, revoked or preempted.
        granted_at_ms, ended_at_ms: from when until when, ms on the pool's clock.
        waited_ms: how long it had waited; None: it had not.
        known_ms: ms that hosts have observed, summed over its devices; None: nothing.
        busy_ms: of `known_ms`, while its processes computed; None: not known.
        peak_mb: the most MiB that its processes used, the peaks of its devices added; None: not
            known of each device.
        energy_mj: millijoules; None: not known.
    """

    id: str
    token: str
    agent: str
    team: str
    owner: str
    host: str
    model: str
    devices: tuple[tuple[str, int], ...]
    gpus: float
    mb: int
    outcome: str
    granted_at_ms: int
    ended_at_ms: int
    waited_ms: int | None = None
    known_ms: int | None = None
    busy_ms: int | None = None
    peak_mb: int | None = None
    energy_mj: int | None = None

    @property
    def held_ms(self) -> int:
        """Time from its grant to its end, ms."""
        return max(0, self.ended_at_ms - self.granted_at_ms)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours that it had: of each device by its part."""
        return self.gpus * self.held_ms / HOUR_MS


@dataclass(frozen=True, slots=True)
class LeaseHistory:
    """Finished leases.

    Attributes:
        leases: those that were asked for, the oldest first.
        first, last: the ids of the oldest and the newest entry that were looked at, whether or not
            they were asked for: `before` of the next older page, `after` of the next newer one.
            There was no entry: `first` is empty, and `last` is `after` itself, if that was given,
            else START.
        more: there are further entries in the direction of the reading, which goes back unless
            `after` was given.
    """

    leases: tuple[FinishedLease, ...]
    first: str
    last: str
    more: bool


def read(
    keys: Keys,
    *,
    after: str = "",
    before: str = "",
    limit: int = 100,
    agent: str | None = None,
    team: str | None = None,
    host: str | None = None,
    outcome: str | None = None,
    since: Instant | None = None,
) -> Generator[Read, Answer, LeaseHistory]:
    """Read finished leases, a page at a time.

    Without `after` the page is the newest `limit` leases that match; with it, the next ones after
    that id, from START on. At most LOOKED_AT entries are looked at.

    Args:
        keys: of the pool.
        after: an id; only later entries, from the oldest of them on.
        before: an id; only earlier entries, the newest of them. Not with `after`.
        limit: the most leases of the page, 1 to MOST.
        agent: only its leases.
        team: only its leases.
        host: only leases there.
        outcome: only leases that ended so.
        since: only leases that ended then or later; see `period.at_ms`.

    Raises:
        BadRequest: an argument is wrong.
    """
    for name, of in (("after", after), ("before", before)):
        if of and not (isinstance(of, str) and EVENT_ID.fullmatch(of)):
            raise error_for("bad_request", f"{name} must be an id of the history, as 1795-0")
    if after and before:
        raise error_for("bad_request", "after and before exclude each other")
    if type(limit) is not int or not 1 <= limit <= MOST:
        raise error_for("bad_request", f"limit must be 1 to {MOST}")
    since_ms = 0 if since is None else at_ms(since, (yield from read_now(keys)))

    def wanted(x: FinishedLease) -> bool:
        return (
            x.ended_at_ms >= since_ms
            and agent in {None, x.agent}
            and team in {None, x.team}
            and host in {None, x.host}
            and outcome in {None, x.outcome}
        )

    if after:
        return (yield from _pages(keys, after, limit, wanted, forward=True))
    return (yield from _pages(keys, before, limit, wanted, forward=False))


def _pages(
    keys: Keys, at: str, limit: int, wanted: Callable[[FinishedLease], bool], *, forward: bool
) -> Generator[Read, Answer, LeaseHistory]:
    found: list[FinishedLease] = []
    ids: list[str] = []
    left, more = LOOKED_AT, True
    while more and len(found) < limit and left > 0:
        edge = ids[-1] if ids else at
        edge = f"({edge}" if edge else "+"
        ends = ("XRANGE", edge, "+") if forward else ("XREVRANGE", edge, "-")
        asked = min(PART, left)
        answer = yield from read_known(keys, (ends[0], keys.history, *ends[1:], "COUNT", asked))
        entries = _entries(answer)
        more, left = len(entries) == asked, left - asked
        for n, (name, row) in enumerate(entries, 1):
            ids = [*ids[:1], name]
            line = words_of(row.get("lease", ""))
            found += filter(wanted, legible(_finished, [(name, line)]))
            if len(found) == limit:
                more = more or n < len(entries)
                break
    ordered, looked_at = (found, ids) if forward else (found[::-1], ids[::-1])
    first, last = (looked_at[0], looked_at[-1]) if looked_at else ("", at if forward else START)
    return LeaseHistory(tuple(ordered), first, last, more)


@of_known_form
def _entries(answer: Answer) -> list[tuple[str, dict[str, str]]]:
    return [(text(name), hash_in(fields)) for name, fields in answer.raw[0] or ()]


def _finished(name: str, row: dict[str, str]) -> FinishedLease:
    def maybe(word: str) -> int | None:
        return number(row.get(word))

    said: dict[str, Any] = {
        word: maybe(word) for word in ("waited_ms", "known_ms", "busy_ms", "peak_mb", "energy_mj")
    }
    devices = held(row.get("devices", ""))
    return FinishedLease(
        id=name,
        token=row["token"],
        agent=row["agent"],
        team=row.get("team") or DEFAULT_TEAM,
        owner=row.get("owner", ""),
        host=row["host"],
        model=row["model"],
        devices=devices,
        gpus=gpus_of(row.get("gpus", "0")),
        mb=sum(mb for _, mb in devices),
        outcome=row["outcome"],
        granted_at_ms=whole(row["granted_at_ms"]),
        ended_at_ms=whole(row["ended_at_ms"]),
        **said,
    )

"""Readings of a pool: the verbs of both clients that change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from agent_sdk.lazy import later
from agent_sdk.pool_client import PoolClient
from agent_sdk.protocol import validation
from agent_sdk.verbs.steps import Reckoning, Verb

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from typing import Unpack

    from agent_sdk.request import LeaseOptions
    from agent_sdk.state import holders, limits, lists, queue, snapshot
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.events import Event
    from agent_sdk.state.explain import Explanation
    from agent_sdk.state.holders import Holders
    from agent_sdk.state.limits import DeviceLimits
    from agent_sdk.state.lists import DeviceEntry, LeaseEntry, Matches
    from agent_sdk.state.part import PoolPart, Wanted
    from agent_sdk.state.pool_state import PoolState
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import HostStatus, LeaseStatus, PoolStatus
    from agent_sdk.teams.status import TeamStatus
    from agent_sdk.usage.advice import Advised
    from agent_sdk.usage.groups import Usage
    from agent_sdk.usage.history import LeaseHistory
    from agent_sdk.usage.period import Instant
    from agent_sdk.usage.totals import UsageTotals
    from agent_sdk.verbs.steps import Steps
else:
    holders, limits, snapshot, queue, lists = later(
        "state.holders", "state.limits", "state.snapshot", "state.queue", "state.lists"
    )

R = TypeVar("R")


class ReadingVerbs(PoolClient[R]):
    """Readings of a pool. `LeaseClient` and `AsyncLeaseClient` run them."""

    @Verb
    def lookup(self, token: str) -> Steps[LeaseStatus | WaiterStatus | str | None]:
        """Return a lease or a waiter by its token; or its outcome; or None: it is unknown."""
        return queue.lookup(self.keys, validation.check_name(token, "token"))

    @Verb
    def explain(self, token: str) -> Steps[Explanation]:
        """Explain a wait: its reasons, and what would fit now; see `state.explain.explain`."""
        from agent_sdk.state import explain  # noqa: PLC0415 - rarely needed

        return explain.explain(self.keys, validation.check_name(token, "token"))

    @Verb
    def explain_request(self, agent: str, **ask: Unpack[LeaseOptions]) -> Steps[Explanation]:
        """Explain the outlook of a request without making it, or the reason of its refusal."""
        from agent_sdk.state import explain  # noqa: PLC0415 - rarely needed

        request = self._caller.request(agent, **ask)
        return explain.explain_request(self.keys, request)

    @Verb
    def scene(self) -> Steps[PoolState]:
        """Return the whole pool at about one moment: cheaper and more consistent than its parts."""
        from agent_sdk.state import pool_state  # noqa: PLC0415 - rarely needed

        return pool_state.read(self.keys)

    @Verb
    def scene_part(self, wanted: Wanted) -> Steps[PoolPart]:
        """Return the part of the pool that is asked for; see `state.part`."""
        from agent_sdk.state import part  # noqa: PLC0415 - rarely needed

        return part.read(self.keys, wanted)

    @Verb
    def queue_scene(self) -> Steps[PoolState]:
        """Return the whole pool but its leases: what tells how its waiters stand."""
        from agent_sdk.state import pool_state  # noqa: PLC0415 - rarely needed

        return pool_state.read_queue(self.keys)

    @Verb
    def scene_again(
        self, scene: PoolState, tokens: Collection[str], uuids: Collection[str]
    ) -> Steps[PoolState]:
        """Return the scene with these leases, waiters and devices, and the queue, read anew."""
        from agent_sdk.state.pool_state import read_again  # noqa: PLC0415 - rarely needed

        return read_again(self.keys, scene, tokens, uuids)

    @Verb
    def events(self, count: int = 100) -> Steps[tuple[Event, ...]]:
        """Return the last `count` events, the oldest of them first."""
        from agent_sdk.state import events  # noqa: PLC0415 - rarely needed

        return events.newest(self.keys, count)

    @Reckoning
    def usage(
        self,
        *,
        by: Iterable[str] = ("team", "agent"),
        since: Instant = "30d",
        until: Instant | None = None,
        daily: bool = False,
    ) -> Steps[Usage]:
        """Return what each party used in a period; see `usage.reading.read`, and `Usage`.

        Args:
            by: words to group by: `day`, `model`, and either `team` and `agent`, or `host`; none:
                one row of all.
            since: the beginning: `30d`, `2026-11-30`, a timedelta before now, a date or datetime
                of UTC, or ms on the pool's clock. What has ended is known by whole days of UTC,
                what runs now exactly.
            until: the end, and a day includes it; None: now.
            daily: rows have the GPU-time of each day too.

        Raises:
            BadRequest: the words or the period are wrong.
        """
        from agent_sdk.usage import reading  # noqa: PLC0415 - rarely needed

        return reading.read(self.keys, by, since, until, daily=daily)

    @Verb
    def history(
        self,
        *,
        after: str = "",
        before: str = "",
        limit: int = 100,
        agent: str | None = None,
        team: str | None = None,
        host: str | None = None,
        outcome: str | None = None,
        since: Instant | None = None,
    ) -> Steps[LeaseHistory]:
        """Return finished leases, a page at a time; see `usage.history.read`, and `LeaseHistory`.

        Without `after` it is the newest page.
        """
        from agent_sdk.usage import history  # noqa: PLC0415 - rarely needed

        return history.read(
            self.keys, after=after, before=before, limit=limit, agent=agent, team=team, host=host,
            outcome=outcome, since=since,
        )  # fmt: skip

    @Verb
    def size_advice(
        self, *, since: Instant | None = None, agent: str | None = None, team: str | None = None
    ) -> Steps[Advised]:
        """Return which sizes would have fitted the finished leases; see `usage.advice`.

        It reads all of the history that is asked for.
        """
        from agent_sdk.usage import advice  # noqa: PLC0415 - rarely needed

        return advice.read(self.keys, since, agent=agent, team=team)

    @Verb
    def queue(self) -> Steps[tuple[WaiterStatus, ...]]:
        """Return all waiters, in the order of the queue."""
        return queue.waiters(self.keys)

    @Verb
    def pool(self) -> Steps[PoolStatus]:
        """Return policy and counters."""
        return snapshot.pool(self.keys)

    @Verb
    def devices(self) -> Steps[tuple[DeviceStatus, ...]]:
        """Return every registered device, by host and index."""
        return snapshot.devices(self.keys)

    @Verb
    def devices_of(self, uuids: Iterable[str]) -> Steps[tuple[DeviceStatus, ...]]:
        """Return those of these devices that are registered, by host and index."""
        return tuple((yield from snapshot.devices_of(self.keys, sorted(uuids))))

    @Verb
    def waiting_since(self) -> Steps[int | None]:
        """Return when the oldest waiter came, ms on Redis's clock; None: none waits."""
        return queue.waiting_since(self.keys)

    @Verb
    def hook_names(self) -> Steps[list[str]]:
        """Return which webhooks the pool has, by name."""
        return lists.hooks(self.keys)

    @Verb
    def host_list(self) -> Steps[list[str]]:
        """Return which hosts the pool knows, by name."""
        return lists.hosts(self.keys)

    @Verb
    def device_count(self) -> Steps[int]:
        """Return how many devices are registered."""
        return lists.device_count(self.keys)

    @Verb
    def device_list(
        self, host: str | None = None, state: str | None = None
    ) -> Steps[list[DeviceEntry]]:
        """Return which devices there are, by host and index; see `state.lists.devices`."""
        return lists.devices(self.keys, host, state)

    @Verb
    def lease_list(
        self,
        agent: str | None = None,
        host: str | None = None,
        kind: str | None = None,
        matches: Matches | None = None,
    ) -> Steps[tuple[list[LeaseEntry], ...]]:
        """Return which leases live, as lists that are each oldest first; see `state.lists`."""
        return lists.living(self.keys, agent, host, kind, matches)

    @Verb
    def leases_of(self, tokens: Sequence[str]) -> Steps[list[LeaseStatus]]:
        """Return those of these leases that live, in this order."""
        return snapshot.leases_of(self.keys, tokens)

    @Verb
    def limits_on(self, uuids: Iterable[str]) -> Steps[DeviceLimits]:
        """Return the limits of memory that a command on these devices gets."""
        return limits.read(self.keys, sorted(uuids))

    @Verb
    def leases(self) -> Steps[tuple[LeaseStatus, ...]]:
        """Return every living lease, oldest first."""
        return snapshot.leases(self.keys)

    @Verb
    def holders(self, host: str, now_ms: int, perhaps_over: Iterable[str] = ()) -> Steps[Holders]:
        """Return the holders of a host's devices; see `state.holders.read_holders`."""
        return holders.read_holders(self.keys, host, now_ms, perhaps_over)

    @Verb
    def hosts(self) -> Steps[tuple[HostStatus, ...]]:
        """Return every host that the pool knows, by name."""
        return snapshot.hosts(self.keys)

    @Verb
    def hosts_of(self, names: Sequence[str]) -> Steps[list[HostStatus]]:
        """Return these hosts as the pool knows them, in this order."""
        return snapshot.hosts_of(self.keys, names)

    @Verb
    def teams(self) -> Steps[tuple[TeamStatus, ...]]:
        """Return every team that has a policy, leases or waiters, by name."""
        from agent_sdk.state import caps  # noqa: PLC0415 - rarely needed

        return caps.read(self.keys)

    @Verb
    def usage_totals(self, teams: Sequence[str]) -> Steps[UsageTotals]:
        """Return what the finished leases of these teams had, since the pool began."""
        from agent_sdk.usage import totals  # noqa: PLC0415 - rarely needed

        return totals.read(self.keys, teams)

"""Verbs of both clients, each written once: as steps that a client runs in its way."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from agent_sdk.errors import LeaseError
from agent_sdk.lazy import later
from agent_sdk.pool_client import PoolClient
from agent_sdk.protocol import lease as protocol
from agent_sdk.protocol import validation

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Collection,
        Coroutine,
        Generator,
        Iterable,
        Mapping,
        Sequence,
    )
    from typing import Unpack

    from agent_sdk import attach, bulk_revoke
    from agent_sdk.aio import AsyncLeaseClient
    from agent_sdk.client import LeaseClient
    from agent_sdk.leases.lease import HeldLease
    from agent_sdk.policy import Policy
    from agent_sdk.protocol import operator, report
    from agent_sdk.protocol.messages import Answer, Moment, Renewal
    from agent_sdk.request import Acquisition, LeaseOptions
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
    from agent_sdk.teams import TeamPolicy, TeamStatus
    from agent_sdk.usage.advice import Advised
    from agent_sdk.usage.groups import Usage
    from agent_sdk.usage.history import LeaseHistory
    from agent_sdk.usage.period import Instant
    from agent_sdk.usage.totals import UsageTotals
else:
    attach, bulk_revoke, operator, report, holders, limits, snapshot, queue, lists = later(
        "attach",
        "bulk_revoke",
        "protocol.operator",
        "protocol.report",
        "state.holders",
        "state.limits",
        "state.snapshot",
        "state.queue",
        "state.lists",
    )


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

if TYPE_CHECKING:
    from typing import TypeAlias

    Steps: TypeAlias = Generator[Any, Answer, T]


class Verb(Generic[P, T]):
    """Method that is written as steps. A client runs them, and the caller gets the result.

    The result of a method of `AsyncLeaseClient` is awaited.
    """

    performed_by = "_perform"

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self._steps = steps

    @overload
    def __get__(
        self, client: None, owner: type | None = None
    ) -> Callable[Concatenate[Any, P], Steps[T]]: ...

    @overload
    def __get__(self, client: LeaseClient, owner: type | None = None) -> Callable[P, T]: ...

    @overload
    def __get__(
        self, client: AsyncLeaseClient, owner: type | None = None
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Any, owner: type | None = None) -> Any:
        """Return the method that runs the steps in the client's way."""
        if client is None:
            return self._steps
        bound = MethodType(self._steps, client)
        call = partial(getattr(client, self.performed_by), bound)
        call.__wrapped__, call.__doc__ = bound, bound.__doc__  # type: ignore[attr-defined] # for help()
        return call


class Reckoning(Verb[P, T]):
    """Verb that reckons for long between its reads: no event loop is held meanwhile."""

    performed_by = "_reckon"


class Verbs(PoolClient[R]):
    """Requests to a pool, except acquiring. `LeaseClient` and `AsyncLeaseClient` run them."""

    def keep(self, lease: HeldLease) -> None:
        """Renew the lease in the background from now on, until it is released or lost.

        Raises:
            LeaseLost: it was released already.
            BadRequest: it is a forked parent's: see `adopt`.
            RuntimeError: no thread can be had for it.
        """
        self._keeper.add(lease)

    @Verb
    def renew(
        self,
        lease: HeldLease | str,
        ttl_s: float | None = None,
        *,
        fence: int | None = None,
        owner: str = "",
    ) -> Steps[Renewal]:
        """Renew a lease now, to at least ttl_s seconds from now; None = as at the grant.

        A token renews a lease of another process; `fence` is then compared if given. With an owner
        another principal's lease counts as unknown.

        Raises:
            LeaseLost: it has ended for good.
            UnknownToken: the token is unknown.
            BadRequest: it is a forked parent's: see `adopt`.
        """
        ttl_ms = None if ttl_s is None else validation.ttl_milliseconds(ttl_s, "ttl_s")
        fence = None if fence is None else validation.check_whole(fence, "fence")
        if isinstance(lease, str):
            token = validation.check_name(lease, "token")
            return (yield from protocol.renew(token, fence, ttl_ms, owner))
        lease.require_own()
        try:
            renewal = yield from protocol.renew(
                lease.token, lease.fence, ttl_ms, owner, lease.claim
            )
        except LeaseError as error:
            lease.lose_if_over(error)
            raise
        lease.accept(renewal)
        return renewal

    @Verb
    def reap(self, seen_ms: int = 0) -> Steps[Moment]:
        """Take ended leases back, about 16 devices' at a time; `more`: there are others.

        seen_ms: `now_ms` of the last reply; a pool behind it has lost data, and closes.
        """
        return protocol.reap(seen_ms)

    @Verb
    def report(
        self, host: str, devices: tuple[report.Report, ...], **about: Unpack[report.About]
    ) -> Steps[report.Reported]:
        """Report a host's devices, and that it lives; see `protocol.report.report`."""
        return report.report(host, devices, **about)

    @Verb
    def revoke(
        self, token: str, *, force: bool = False, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """End a lease as an operator; see `protocol.operator.revoke`.

        `by`: the actor; default this client.
        """
        token = validation.check_name(token, "token")
        return operator.revoke(token, force=force, by=by or self.by, why=why)

    @Verb
    def revoke_where(
        self,
        *,
        agent: str | None = None,
        host: str | None = None,
        device: str | None = None,
        force: bool = False,
        why: str = "",
        by: str | None = None,
    ) -> Steps[tuple[str, ...]]:
        """Revoke every lease of an agent, on a host, on a device; return their tokens."""
        return bulk_revoke.revoke_where(
            self.keys, agent=agent, host=host, device=device, force=force, by=by or self.by, why=why
        )

    @Verb
    def drain(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """Stop new leases on a device, or on a host's devices; return the number of devices."""
        return operator.drain(what, name, drained=True, by=by or self.by, why=why)

    @Verb
    def undrain(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """Allow new leases on a device, or on a host's devices, again."""
        return operator.drain(what, name, drained=False, by=by or self.by, why=why)

    @Verb
    def forget(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """Remove a device, or a host with all its devices, from the pool; return their number."""
        return operator.forget(what, name, by=by or self.by, why=why)

    @Verb
    def release_driver(
        self, host: str, *, for_s: float = 600.0, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """Make a host's reporter let go of its driver, so that its GPUs can be reset.

        Its devices take no new leases meanwhile, and none of their readings is told.

        Args:
            host: the host.
            for_s: seconds until it takes the driver again by itself, at most a day; 0: now.
            why: for the log.
            by: the operator, if it is not this client.

        Returns:
            The time until which it is let go, ms on Redis's clock; 0: it is not.
        """
        return operator.release_driver(host, for_ms=int(for_s * 1000), by=by or self.by, why=why)

    @Verb
    def set_policy(self, *, by: str | None = None, **policy: Unpack[Policy]) -> Steps[int]:
        """Change the named fields of the policy, all or none; return its new version."""
        return operator.set_policy(by or self.by, **policy)

    @Verb
    def set_teams(
        self,
        teams: Mapping[str, TeamPolicy | Mapping[str, object]],
        *,
        by: str | None = None,
        version: int | None = None,
    ) -> Steps[int]:
        """Set the policies of all teams, all or none; see `protocol.operator.set_teams`.

        `version`: that of the policy that they were written against, else they are refused.
        """
        return operator.set_teams(teams, by=by or self.by, version=version)

    @Verb
    def apply_policy(
        self,
        policy: Policy,
        teams: Mapping[str, TeamPolicy | Mapping[str, object]] | None = None,
        *,
        by: str | None = None,
        version: int | None = None,
    ) -> Steps[int]:
        """Set fields and all teams as one version; see `protocol.operator.apply_policy`."""
        return operator.apply_policy(policy, teams, by=by or self.by, version=version)

    @Verb
    def teams(self) -> Steps[tuple[TeamStatus, ...]]:
        """Return every team that has a policy, leases or waiters, by name."""
        from agent_sdk.state import caps  # noqa: PLC0415 - as above

        return caps.read(self.keys)

    @Verb
    def usage_totals(self, teams: Sequence[str]) -> Steps[UsageTotals]:
        """Return what the finished leases of these teams had, since the pool began."""
        from agent_sdk.usage import totals  # noqa: PLC0415 - as above

        return totals.read(self.keys, teams)

    @Verb
    def extend_hold(
        self, token: str, seconds: float | None, *, by: str = "", owner: str = ""
    ) -> Steps[int | None]:
        """Set how long a lease may be held from now on; see `protocol.operator.extend_hold`.

        Args:
            token: the lease's.
            seconds: from now; None: without limit.
            by: the operator that does it; empty: its holder, within the limit of its team.
            owner: the principal whose it must be, else it is unknown; empty: any.
        """
        token = validation.check_name(token, "token")
        hold_ms = 0 if seconds is None else max(1, validation.milliseconds(seconds, "seconds"))
        return operator.extend_hold(token, hold_ms, by=by, owner=owner)

    @Verb
    def request_yield(self, token: str, waiter_token: str, *, owner: str = "") -> Steps[bool]:
        """Ask a lease's holder to give it up for a waiter; see `protocol.operator.request_yield`.

        Return False if its holder takes no such requests.
        """
        token = validation.check_name(token, "token")
        waiter_token = validation.check_name(waiter_token, "token")
        return operator.request_yield(token, waiter_token, owner=owner)

    @Verb
    def lookup(self, token: str) -> Steps[LeaseStatus | WaiterStatus | str | None]:
        """Return a lease or a waiter by its token; or its outcome; or None: it is unknown."""
        return queue.lookup(self.keys, validation.check_name(token, "token"))

    @Verb
    def explain(self, token: str) -> Steps[Explanation]:
        """Explain a wait: its reasons, and what would fit now; see `state.explain.explain`."""
        from agent_sdk.state import explain  # noqa: PLC0415 - rarely asked, and a fifth of the import

        return explain.explain(self.keys, validation.check_name(token, "token"))

    @Verb
    def explain_request(self, agent: str, **ask: Unpack[LeaseOptions]) -> Steps[Explanation]:
        """Explain the outlook of a request without making it, or the reason of its refusal."""
        from agent_sdk.state import explain  # noqa: PLC0415 - as above

        request = self._caller.request(agent, **ask)
        return explain.explain_request(self.keys, request)

    @Verb
    def scene(self) -> Steps[PoolState]:
        """Return the whole pool at about one moment: cheaper and more consistent than its parts."""
        from agent_sdk.state import pool_state  # noqa: PLC0415 - as above

        return pool_state.read(self.keys)

    @Verb
    def scene_part(self, wanted: Wanted) -> Steps[PoolPart]:
        """Return the part of the pool that is asked for; see `state.part`."""
        from agent_sdk.state import part  # noqa: PLC0415 - as above

        return part.read(self.keys, wanted)

    @Verb
    def queue_scene(self) -> Steps[PoolState]:
        """Return the whole pool but its leases: what tells how its waiters stand."""
        from agent_sdk.state import pool_state  # noqa: PLC0415 - as above

        return pool_state.read_queue(self.keys)

    @Verb
    def scene_again(
        self, scene: PoolState, tokens: Collection[str], uuids: Collection[str]
    ) -> Steps[PoolState]:
        """Return the scene with these leases, waiters and devices, and the queue, read anew."""
        from agent_sdk.state.pool_state import read_again  # noqa: PLC0415 - as above

        return read_again(self.keys, scene, tokens, uuids)

    @Verb
    def events(self, count: int = 100) -> Steps[tuple[Event, ...]]:
        """Return the last `count` events, the oldest of them first."""
        from agent_sdk.state import events  # noqa: PLC0415 - as above

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
        from agent_sdk.usage import reading  # noqa: PLC0415 - as above

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
        from agent_sdk.usage import history  # noqa: PLC0415 - as above

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
        from agent_sdk.usage import advice  # noqa: PLC0415 - as above

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

    def _releasing(self, lease: HeldLease | str, *, refuse_late: bool, owner: str) -> Steps[bool]:
        """Give a lease back; return False if it had ended before."""
        token = self._ended(lease)
        if not token:
            return not isinstance(lease, str) and lease.local
        answer = yield protocol.release_call(token, plant=refuse_late, owner=owner)
        return protocol.released(answer, token).by_this_call

    def _ended(self, lease: HeldLease | str) -> str:
        """End a lease here; return the token whose release is to be sent. Empty: none is."""
        if isinstance(lease, str):
            return validation.check_name(lease, "token")
        self._keeper.discard(lease)
        lease.end()
        return "" if lease.local or lease.is_view else lease.token

    def _waits(self, wait: bool | None, *, refuse_late: bool, owner: str) -> bool:
        """Return whether a release waits for its answer: always where it could not be repeated."""
        return bool(owner) or not refuse_late or (self.wait_release if wait is None else wait)

    def _after_failed_release(
        self, error: BaseException, lease: HeldLease | str, *, refuse_late: bool, owner: str
    ) -> None:
        """Have a lease given back in the background if its release was interrupted."""
        if not isinstance(error, LeaseError) and refuse_late and not owner:
            self._keeper.abandon(lease if isinstance(lease, str) else lease.token)

    def _tries_again(self, error: BaseException, wait: Acquisition) -> bool:
        """Return whether a failed acquire is to be tried again, with another token.

        The possible lease of a failed one is given back in the background.
        """
        if wait.leaves_something(error):
            self._keeper.abandon(wait.request.token)
        return wait.again(error)

"""The blocking client: `LeaseClient`."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from redis.exceptions import RedisError, ResponseError

from agent_sdk.block import Block
from agent_sdk.clock import local_now
from agent_sdk.errors import LeaseError
from agent_sdk.lazy import later
from agent_sdk.lease import Lease
from agent_sdk.pool_client import PoolClient
from agent_sdk.protocol import lease as protocol
from agent_sdk.protocol import validation
from agent_sdk.protocol.lease import Answer, Call, Pause, Read
from agent_sdk.renewal.wakeups import Inbox
from agent_sdk.request import own_token
from agent_sdk.scripts.dispatch import TRIES
from agent_sdk.state.holders import Holders, read_holders
from agent_sdk.store.handler_errors import raised_by_handler
from agent_sdk.store.retry import RetryPolicy, poll_of

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable
    from types import TracebackType
    from typing import Self, Unpack

    from redis import Redis

    from agent_sdk import attach, bulk_revoke
    from agent_sdk.policy import Policy
    from agent_sdk.protocol import operator, report
    from agent_sdk.request import Acquisition, LeaseOptions
    from agent_sdk.scripts.dispatch import Command
    from agent_sdk.state import queue, snapshot
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.events import Event
    from agent_sdk.state.explain import Explanation
    from agent_sdk.state.pool_state import PoolState
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import HostStatus, LeaseStatus, PoolStatus
    from agent_sdk.store.store import Store
else:
    attach, bulk_revoke, operator, report, snapshot, queue = later(
        "attach",
        "bulk_revoke",
        "protocol.operator",
        "protocol.report",
        "state.snapshot",
        "state.queue",
    )

T = TypeVar("T")


class LeaseClient(PoolClient["Redis"]):
    """Leases from a pool, straight from Redis; safe to share between threads. See `PoolClient`."""

    def _connect(self, store: Store) -> Redis:
        self._inbox = Inbox(store, self.keys.base)
        weakref.finalize(self, self._inbox.close).atexit = False
        return store.connect()

    def acquire(self, agent: str, **ask: Unpack[LeaseOptions]) -> Lease:
        """Get a lease. Nobody renews it until `keep` is called: it ends `ttl_s` after the grant.

        With `wait_s` it waits in the line, without polling: who makes room hands it over.
        An exception in the middle (Ctrl-C) leaves the line.

        Args:
            agent: who asks: 1-128 of `A-Z a-z 0-9 . _ : @ / -`.
            **ask: see `LeaseOptions`.

        Raises:
            Refused: the broker decided against it; the class and `code` say why.
            StillWaiting: `wait_s` is over and `keep_place` was asked for.
            BrokerUnavailable: nothing was done.
            OutcomeUnknown: no answer. With a token of the caller's own: repeat it, or release it.
                Otherwise what may have been granted is given back once the store answers.
        """
        return self.attend(self.wait_for(agent, ask))

    def attend(self, wait: Acquisition) -> Lease:
        """Get the lease of an acquire that was prepared by `wait_for`; see `acquire`."""
        while True:
            try:
                return Lease(self._run(wait.steps(self.keys)))
            except BaseException as error:
                if wait.leaves_something(error):
                    self._keeper.abandon(wait.request.token)
                if wait.again(error):
                    continue
                if not wait.falls_back(error):
                    raise
                return Lease(wait.local_grant(error), local=True)

    def lease(self, agent: str, **ask: Unpack[LeaseOptions]) -> Block:
        """Hold a lease for the length of a block: acquired, renewed in the background, released.

        Leaving the block never hides the block's own error. Whether the lease was lost inside it,
        `lease.lost`, `lease.on_lost` and `lease.raise_if_lost` tell. An interrupt (Ctrl-C, a time
        limit) while it is entered or left leaves no lease: the renewing thread gives it back.
        """
        return Block(self, self._keeper, agent, ask)

    def adopt(self, token: str | None = None) -> Lease:
        """Take up a lease that another process acquired, by its token; a forked parent's too.

        It is renewed now; `keep` renews it from here on. Both processes may renew it, and whoever
        releases it ends it for both.

        Args:
            token: default GPU_LEASE_TOKEN, the lease that this process was started under.

        Raises:
            LeaseLost: it is over; the code says how it ended.
            StillWaiting: it stands in the line yet.
            UnknownToken: nothing is known of it, or no token was named and none is set.
        """
        return Lease(self._run(attach.adopt(self.keys, own_token(token))))

    def keep(self, lease: Lease) -> None:
        """Renew the lease in the background from now on, until it is released or lost.

        Raises:
            LeaseLost: it was released already.
            BadRequest: it is a forked parent's: see `adopt`.
            RuntimeError: no thread can be had for it.
        """
        self._keeper.add(lease)

    def renew(
        self,
        lease: Lease | str,
        ttl_s: float | None = None,
        *,
        fence: int | None = None,
        owner: str = "",
    ) -> protocol.Renewal:
        """Renew a lease now, to at least ttl_s seconds from now; None = as at the grant.

        By its token, a lease of another process is renewed; `fence` is then compared if given. With
        an owner another principal's lease is as unknown as one that is not there.

        Raises:
            LeaseLost: it is over; nothing brings it back.
            UnknownToken: nothing is known of that token.
            BadRequest: it is a forked parent's: see `adopt`.
        """
        ttl_ms = None if ttl_s is None else validation.ttl_milliseconds(ttl_s, "ttl_s")
        fence = None if fence is None else validation.check_whole(fence, "fence")
        if isinstance(lease, str):
            token = validation.check_name(lease, "token")
            return self._run(protocol.renew(token, fence, ttl_ms, owner))
        lease.require_own()
        try:
            steps = protocol.renew(lease.token, lease.fence, ttl_ms, owner, lease.claim)
            renewal = self._run(steps)
        except LeaseError as error:
            lease.lose_if_over(error)
            raise
        lease.accept(renewal)
        return renewal

    def release(self, lease: Lease | str, *, refuse_late: bool = True, owner: str = "") -> bool:
        """Give a lease back, by itself or by its token; False when it had ended before.

        In a forked child its parent's lease stays the parent's: False, and nothing is sent.
        A token that was never acquired is refused from then on, unless refuse_late is False: its
        acquire may still be on its way. With an owner another principal's counts as unknown.
        A call that is interrupted leaves no lease: the renewing thread gives it back.
        """
        try:
            return self._release(lease, refuse_late=refuse_late, owner=owner)
        except BaseException as error:
            if not isinstance(error, LeaseError) and refuse_late and not owner:
                self._keeper.abandon(lease if isinstance(lease, str) else lease.token)
            raise

    def _release(self, lease: Lease | str, *, refuse_late: bool, owner: str) -> bool:
        if isinstance(lease, Lease):
            self._keeper.discard(lease)
            lease.end()
            if lease.local or lease.is_view:
                return lease.local
        token = lease.token if isinstance(lease, Lease) else validation.check_name(lease, "token")
        return self._run(protocol.release(token, plant=refuse_late, owner=owner)).by_this_call

    def reap(self, seen_ms: int = 0) -> protocol.Moment:
        """Take back what is over, some 16 devices of it; `more` says whether that was all.

        seen_ms: `now_ms` of the last reply; a pool that is behind it has lost data, and closes.
        """
        return self._run(protocol.reap(seen_ms))

    def report(
        self, host: str, devices: tuple[report.Report, ...], **about: Unpack[report.About]
    ) -> report.Reported:
        """Say which devices a host has and that it lives; see `report.report`."""
        return self._run(report.report(host, devices, **about))

    def revoke(
        self, token: str, *, force: bool = False, why: str = "", by: str | None = None
    ) -> int:
        """End a lease as an operator; see `operator.revoke`. `by`: who; default this client."""
        token = validation.check_name(token, "token")
        return self._run(operator.revoke(token, force=force, by=by or self.by, why=why))

    def revoke_where(
        self,
        *,
        agent: str | None = None,
        host: str | None = None,
        device: str | None = None,
        force: bool = False,
        why: str = "",
        by: str | None = None,
    ) -> tuple[str, ...]:
        """Revoke every lease of an agent, on a host, on a device; the tokens that it was."""
        steps = bulk_revoke.revoke_where(
            self.keys, agent=agent, host=host, device=device, force=force, by=by or self.by, why=why
        )
        return self._run(steps)

    def drain(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> int:
        """Let a device, or a host's devices, take no new leases; how many devices that were."""
        return self._run(operator.drain(what, name, drained=True, by=by or self.by, why=why))

    def undrain(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> int:
        """Let them take leases again."""
        return self._run(operator.drain(what, name, drained=False, by=by or self.by, why=why))

    def forget(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> int:
        """Take a device, or a host with all it has, out of the pool now; how many devices."""
        return self._run(operator.forget(what, name, by=by or self.by, why=why))

    def set_policy(self, *, by: str | None = None, **policy: Unpack[Policy]) -> int:
        """Change the policy, all of what is named or nothing; its new version."""
        return self._run(operator.set_policy(by or self.by, **policy))

    def lookup(self, token: str) -> LeaseStatus | WaiterStatus | str | None:
        """A lease or a waiter by its token; or how it ended; or None: nothing is known of it."""
        return self._run(queue.lookup(self.keys, validation.check_name(token, "token")))

    def explain(self, token: str) -> Explanation:
        """Why a waiter waits, and what would fit now; see `explain.explain`."""
        from agent_sdk.state import explain  # noqa: PLC0415 - rarely asked, and a fifth of the import

        return self._run(explain.explain(self.keys, validation.check_name(token, "token")))

    def explain_request(self, agent: str, **ask: Unpack[LeaseOptions]) -> Explanation:
        """What would become of a request now, without making it; why it was refused."""
        from agent_sdk.state import explain  # noqa: PLC0415 - as above

        request = self._caller.request(agent, **ask)
        return self._run(explain.explain_request(self.keys, request))

    def scene(self) -> PoolState:
        """All of the pool at about one moment: cheaper and more of a piece than its parts."""
        from agent_sdk.state import pool_state  # noqa: PLC0415 - as above

        return self._run(pool_state.read(self.keys))

    def scene_again(
        self, scene: PoolState, tokens: Collection[str], uuids: Collection[str]
    ) -> PoolState:
        """The same with these leases and waiters, these devices and the whole line read anew."""
        from agent_sdk.state.pool_state import read_again  # noqa: PLC0415 - as above

        return self._run(read_again(self.keys, scene, tokens, uuids))

    def events(self, count: int = 100) -> tuple[Event, ...]:
        """The last so many events, the oldest of them first."""
        from agent_sdk.state import events  # noqa: PLC0415 - as above

        return self._run(events.newest(self.keys, count))

    def queue(self) -> tuple[WaiterStatus, ...]:
        """Everybody who waits, in the order of the line."""
        return self._run(queue.waiters(self.keys))

    def pool(self) -> PoolStatus:
        """Policy and counters."""
        return self._run(snapshot.pool(self.keys))

    def devices(self) -> tuple[DeviceStatus, ...]:
        """Every registered device, by host and index."""
        return self._run(snapshot.devices(self.keys))

    def leases(self) -> tuple[LeaseStatus, ...]:
        """Every lease that lives, oldest first."""
        return self._run(snapshot.leases(self.keys))

    def holders(self, host: str, now_ms: int, perhaps_over: Iterable[str] = ()) -> Holders:
        """Who holds a host's devices; see `holders.read_holders`."""
        return self._run(read_holders(self.keys, host, now_ms, perhaps_over))

    def hosts(self) -> tuple[HostStatus, ...]:
        """Every host that ever reported, by name."""
        return self._run(snapshot.hosts(self.keys))

    def close(self) -> None:
        """Stop renewing and disconnect. Leases still held run on to their end.

        A client that is used after that connects anew, and renews what it then keeps.
        """
        self._keeper.close()
        self._inbox.close()
        self.redis.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop renewing and disconnect."""
        self.close()

    def _run(self, steps: Generator[Any, Answer, T]) -> T:
        patience = RetryPolicy(self.deadline_s, reached=self._reached)
        try:
            ask = next(steps)
            while True:
                if isinstance(ask, Pause):
                    self._inbox.wait(self._caller.client, ask.token, ask.seconds)
                    away_s = min(ask.left_s, self.away_s) + self.deadline_s
                    patience = RetryPolicy(away_s, reached=True)
                    ask = next(steps)
                else:
                    ask = steps.send(self._send(ask, patience))
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, ask: Call | Read, patience: RetryPolicy) -> Answer:
        while True:
            sent_at = local_now()
            try:
                raw = self._call(ask) if isinstance(ask, Call) else self._read(ask)
            except RedisError as error:
                if (struck := raised_by_handler(error)) is not None and struck is not error:
                    raise struck from None
                if poll := poll_of(ask, error):
                    ask = poll
                    continue
                time.sleep(patience.pause_after(error, getattr(ask, "token", None)))
            else:
                self._reached = True
                return Answer(raw, sent_at)

    def _call(self, call: Call) -> list[Any]:
        for _ in range(TRIES - 1):
            try:
                return self._say(self.wording.command(call))
            except ResponseError as error:
                for command in self.wording.amend(call, error):
                    self._say(command)
        return self._say(self.wording.command(call))

    def _say(self, command: Command) -> list[Any]:
        answer: list[Any] = self.redis.execute_command(*command)  # type: ignore[no-untyped-call] # in redis-py
        return answer

    def _read(self, read: Read) -> list[Any]:
        pipe = self.redis.pipeline(transaction=False)
        for command in read.commands:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call] # untyped in redis-py
        return pipe.execute()

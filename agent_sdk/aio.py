"""The asyncio client: `AsyncLeaseClient`, the same names as `LeaseClient`, awaited."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from redis.exceptions import RedisError, ResponseError

from agent_sdk.block import AsyncBlock
from agent_sdk.clock import local_now
from agent_sdk.errors import LeaseError
from agent_sdk.lazy import later
from agent_sdk.lease import AsyncLease
from agent_sdk.pool_client import PoolClient
from agent_sdk.protocol import lease as protocol
from agent_sdk.protocol import validation
from agent_sdk.protocol.lease import Answer, Call, Pause, Read
from agent_sdk.renewal.wakeups import AsyncInbox
from agent_sdk.request import own_token
from agent_sdk.scripts.dispatch import TRIES
from agent_sdk.state.holders import Holders, read_holders
from agent_sdk.store.multiplex import Multiplexer
from agent_sdk.store.retry import RetryPolicy, poll_of

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable
    from types import TracebackType
    from typing import Self, Unpack

    from redis.asyncio import Redis

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


class AsyncLeaseClient(PoolClient["Redis"]):
    """Leases from a pool, straight from Redis, in an event loop; see `LeaseClient`, `PoolClient`.

    The calls of all its tasks travel together over one connection; see `multiplex`.

    Renewal is a thread here too: an event loop that a computation blocks must not lose a GPU.
    """

    def _connect(self, store: Store) -> Redis:
        redis = store.connect_async()
        self._inbox = AsyncInbox(store, self.keys.base)
        self._calls = Multiplexer(redis)
        for part in (self._inbox, self._calls):
            weakref.finalize(self, part.let_go).atexit = False
        return redis

    async def acquire(self, agent: str, **ask: Unpack[LeaseOptions]) -> AsyncLease:
        """Get a lease; see `LeaseClient.acquire`.

        A cancelled call leaves no lease behind, unless the caller named its token.
        """
        return await self.attend(self.wait_for(agent, ask))

    async def attend(self, wait: Acquisition) -> AsyncLease:
        """Get the lease of an acquire that was prepared by `wait_for`; see `acquire`."""
        while True:
            try:
                return AsyncLease(await self._run(wait.steps(self.keys)))
            except BaseException as error:
                if wait.leaves_something(error):
                    self._keeper.abandon(wait.request.token)
                if wait.again(error):
                    continue
                if not wait.falls_back(error):
                    raise
                return AsyncLease(wait.local_grant(error), local=True)

    def lease(self, agent: str, **ask: Unpack[LeaseOptions]) -> AsyncBlock:
        """Hold a lease for the length of a block; see `LeaseClient.lease`.

        A cancellation during the release leaves no lease: the renewing thread gives it back.
        """
        return AsyncBlock(self, self._keeper, agent, ask)

    async def adopt(self, token: str | None = None) -> AsyncLease:
        """Take up a lease that another process acquired; see `LeaseClient.adopt`."""
        return AsyncLease(await self._run(attach.adopt(self.keys, own_token(token))))

    def keep(self, lease: AsyncLease) -> None:
        """Renew the lease in the background from now on, until it is released or lost."""
        self._keeper.add(lease)

    async def renew(
        self,
        lease: AsyncLease | str,
        ttl_s: float | None = None,
        *,
        fence: int | None = None,
        owner: str = "",
    ) -> protocol.Renewal:
        """Renew a lease now; see `LeaseClient.renew`."""
        ttl_ms = None if ttl_s is None else validation.ttl_milliseconds(ttl_s, "ttl_s")
        fence = None if fence is None else validation.check_whole(fence, "fence")
        if isinstance(lease, str):
            token = validation.check_name(lease, "token")
            return await self._run(protocol.renew(token, fence, ttl_ms, owner))
        lease.require_own()
        try:
            steps = protocol.renew(lease.token, lease.fence, ttl_ms, owner, lease.claim)
            renewal = await self._run(steps)
        except LeaseError as error:
            lease.lose_if_over(error)
            raise
        lease.accept(renewal)
        return renewal

    async def release(
        self, lease: AsyncLease | str, *, refuse_late: bool = True, owner: str = ""
    ) -> bool:
        """Give a lease back; see `LeaseClient.release`.

        A cancelled call leaves no lease behind: the renewing thread gives it back.
        """
        try:
            return await self._release(lease, refuse_late=refuse_late, owner=owner)
        except BaseException as error:
            if not isinstance(error, LeaseError) and refuse_late and not owner:
                self._keeper.abandon(lease if isinstance(lease, str) else lease.token)
            raise

    async def _release(self, lease: AsyncLease | str, *, refuse_late: bool, owner: str) -> bool:
        if isinstance(lease, AsyncLease):
            self._keeper.discard(lease)
            lease.end()
            if lease.local or lease.is_view:
                return lease.local
        token = (
            lease.token if isinstance(lease, AsyncLease) else validation.check_name(lease, "token")
        )
        ending = await self._run(protocol.release(token, plant=refuse_late, owner=owner))
        return ending.by_this_call

    async def reap(self, seen_ms: int = 0) -> protocol.Moment:
        """Take back what is over; see `LeaseClient.reap`."""
        return await self._run(protocol.reap(seen_ms))

    async def report(
        self, host: str, devices: tuple[report.Report, ...], **about: Unpack[report.About]
    ) -> report.Reported:
        """Say which devices a host has and that it lives; see `report.report`."""
        return await self._run(report.report(host, devices, **about))

    async def revoke(
        self, token: str, *, force: bool = False, why: str = "", by: str | None = None
    ) -> int:
        """End a lease as an operator; see `operator.revoke`."""
        token = validation.check_name(token, "token")
        return await self._run(operator.revoke(token, force=force, by=by or self.by, why=why))

    async def revoke_where(
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
        return await self._run(steps)

    async def drain(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> int:
        """Let a device, or a host's devices, take no new leases; how many devices that were."""
        return await self._run(operator.drain(what, name, drained=True, by=by or self.by, why=why))

    async def undrain(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> int:
        """Let them take leases again."""
        return await self._run(operator.drain(what, name, drained=False, by=by or self.by, why=why))

    async def forget(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> int:
        """Take a device, or a host with all it has, out of the pool now; how many devices."""
        return await self._run(operator.forget(what, name, by=by or self.by, why=why))

    async def set_policy(self, *, by: str | None = None, **policy: Unpack[Policy]) -> int:
        """Change the policy, all of what is named or nothing; its new version."""
        return await self._run(operator.set_policy(by or self.by, **policy))

    async def lookup(self, token: str) -> LeaseStatus | WaiterStatus | str | None:
        """A lease or a waiter by its token; or how it ended; or None: nothing is known of it."""
        return await self._run(queue.lookup(self.keys, validation.check_name(token, "token")))

    async def explain(self, token: str) -> Explanation:
        """Why a waiter waits, and what would fit now; see `explain.explain`."""
        from agent_sdk.state import explain  # noqa: PLC0415 - rarely asked, and a fifth of the import

        return await self._run(explain.explain(self.keys, validation.check_name(token, "token")))

    async def explain_request(self, agent: str, **ask: Unpack[LeaseOptions]) -> Explanation:
        """What would become of a request now, without making it; why it was refused."""
        from agent_sdk.state import explain  # noqa: PLC0415 - as above

        request = self._caller.request(agent, **ask)
        return await self._run(explain.explain_request(self.keys, request))

    async def scene(self) -> PoolState:
        """All of the pool at about one moment: cheaper and more of a piece than its parts."""
        from agent_sdk.state import pool_state  # noqa: PLC0415 - as above

        return await self._run(pool_state.read(self.keys))

    async def scene_again(
        self, scene: PoolState, tokens: Collection[str], uuids: Collection[str]
    ) -> PoolState:
        """The same with these leases and waiters, these devices and the whole line read anew."""
        from agent_sdk.state.pool_state import read_again  # noqa: PLC0415 - as above

        return await self._run(read_again(self.keys, scene, tokens, uuids))

    async def events(self, count: int = 100) -> tuple[Event, ...]:
        """The last so many events, the oldest of them first."""
        from agent_sdk.state import events  # noqa: PLC0415 - as above

        return await self._run(events.newest(self.keys, count))

    async def queue(self) -> tuple[WaiterStatus, ...]:
        """Everybody who waits, in the order of the line."""
        return await self._run(queue.waiters(self.keys))

    async def pool(self) -> PoolStatus:
        """Policy and counters."""
        return await self._run(snapshot.pool(self.keys))

    async def devices(self) -> tuple[DeviceStatus, ...]:
        """Every registered device, by host and index."""
        return await self._run(snapshot.devices(self.keys))

    async def leases(self) -> tuple[LeaseStatus, ...]:
        """Every lease that lives, oldest first."""
        return await self._run(snapshot.leases(self.keys))

    async def holders(self, host: str, now_ms: int, perhaps_over: Iterable[str] = ()) -> Holders:
        """Who holds a host's devices; see `holders.read_holders`."""
        return await self._run(read_holders(self.keys, host, now_ms, perhaps_over))

    async def hosts(self) -> tuple[HostStatus, ...]:
        """Every host that ever reported, by name."""
        return await self._run(snapshot.hosts(self.keys))

    async def close(self) -> None:
        """Stop renewing and disconnect; see `LeaseClient.close`. Any event loop may do it."""
        await self._inbox.close()
        await self._calls.close()
        try:
            await asyncio.to_thread(self._keeper.close)
        except RuntimeError:  # no thread for it
            self._keeper.close(0)

    async def __aenter__(self) -> Self:
        """Close at the end of the block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop renewing and disconnect."""
        await self.close()

    async def _run(self, steps: Generator[Any, Answer, T]) -> T:
        patience = RetryPolicy(self.deadline_s, reached=self._reached)
        try:
            ask = next(steps)
            while True:
                if isinstance(ask, Pause):
                    await self._inbox.wait(self._caller.client, ask.token, ask.seconds)
                    away_s = min(ask.left_s, self.away_s) + self.deadline_s
                    patience = RetryPolicy(away_s, reached=True)
                    ask = next(steps)
                else:
                    ask = steps.send(await self._send(ask, patience))
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, ask: Call | Read, patience: RetryPolicy) -> Answer:
        while True:
            sent_at = local_now()
            try:
                raw = await (self._call(ask) if isinstance(ask, Call) else self._read(ask))
            except RedisError as error:
                if poll := poll_of(ask, error):
                    ask = poll
                    continue
                await asyncio.sleep(patience.pause_after(error, getattr(ask, "token", None)))
            else:
                self._reached = True
                return Answer(raw, sent_at)

    async def _call(self, call: Call) -> list[Any]:
        for _ in range(TRIES - 1):
            try:
                return await self._say(self.wording.command(call))
            except ResponseError as error:
                for command in self.wording.amend(call, error):
                    await self._say(command)
        return await self._say(self.wording.command(call))

    async def _say(self, command: Command) -> list[Any]:
        answer: list[Any] = await self._calls.execute(*command)
        return answer

    async def _read(self, read: Read) -> list[Any]:
        return await self._calls.execute_many(read.commands)

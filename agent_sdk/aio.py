"""Client for asyncio: `AsyncLeaseClient`, the same names as `LeaseClient`, awaited."""

from __future__ import annotations

import asyncio
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from redis.exceptions import RedisError

from agent_sdk.clock import local_now
from agent_sdk.errors import LeaseError
from agent_sdk.lazy import later
from agent_sdk.leases.block import AsyncBlock
from agent_sdk.leases.holder import AsyncLease
from agent_sdk.protocol.messages import Answer, Call, Exchange, Pause, Read
from agent_sdk.renewal.wakeups import AsyncInbox
from agent_sdk.request import own_token
from agent_sdk.scripts.dispatch import TRIES, exchanged, not_understood, reply_of
from agent_sdk.store.multiplex import Multiplexer
from agent_sdk.store.retry import RetryPolicy, poll_of
from agent_sdk.verbs.requests import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Self, Unpack

    from redis.asyncio import Redis

    from agent_sdk import attach
    from agent_sdk.renewal.renewer import Renewer
    from agent_sdk.request import Acquisition, LeaseOptions
    from agent_sdk.scripts.packed import Packed
    from agent_sdk.store.store import Store
else:
    (attach,) = later("attach")

P = ParamSpec("P")
T = TypeVar("T")


class AsyncLeaseClient(Verbs["Redis"]):
    """Client of a pool in an event loop, straight to Redis; see `LeaseClient`, `PoolClient`.

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
        return await self.attend(self.wait_for(agent, ask), reminded=True)

    async def attend(self, wait: Acquisition, *, reminded: bool = False) -> AsyncLease:
        """Get the lease of an acquire that was prepared by `wait_for`; see `LeaseClient`."""
        while True:
            try:
                lease = AsyncLease(await self._run(wait.steps(self.keys)), client=self)
                return self._reminded(lease) if reminded else lease
            except BaseException as error:
                if self._tries_again(error, wait):
                    continue
                if not wait.falls_back(error):
                    raise
                return AsyncLease(wait.local_grant(error), local=True, client=self)

    def lease(self, agent: str, **ask: Unpack[LeaseOptions]) -> AsyncBlock:
        """Hold a lease for the length of a block; see `LeaseClient.lease`.

        A cancellation during the release leaves no lease: the renewing thread gives it back.
        """
        return AsyncBlock(self, self._keeper, agent, ask)

    async def adopt(self, token: str | None = None) -> AsyncLease:
        """Take over a lease that another process acquired; see `LeaseClient.adopt`."""
        grant, renewal = await self._run(attach.adopt(self.keys, own_token(token)))
        return self._told(AsyncLease(grant, client=self), renewal)

    async def release(
        self,
        lease: AsyncLease | str,
        *,
        wait: bool | None = None,
        refuse_late: bool = True,
        owner: str = "",
    ) -> bool:
        """Give a lease back; see `LeaseClient.release`.

        A cancelled call leaves no lease behind: the renewing thread gives it back.
        """
        try:
            if not self._waits(wait, refuse_late=refuse_late, owner=owner):
                return self._send_release(lease)
            return await self._run(self._releasing(lease, refuse_late=refuse_late, owner=owner))
        except BaseException as error:
            self._after_failed_release(error, lease, refuse_late=refuse_late, owner=owner)
            raise

    def _post_release(self, token: str, packed: Packed) -> None:
        sent = self._calls.ask((packed,))
        sent.add_done_callback(partial(_answered, self._keeper, token))

    async def exchange(
        self, lease: AsyncLease | str, agent: str, **ask: Unpack[LeaseOptions]
    ) -> AsyncLease:
        """Give a lease back and get the next one; see `LeaseClient.exchange`.

        A cancelled call leaves neither: the renewing thread gives back what may be left.
        """
        wait = self.wait_for(agent, ask)
        try:
            self._giving(lease, wait)
            return self._after_exchange(await self.attend(wait, reminded=True), wait)
        except BaseException as error:
            self._after_failed_exchange(error, wait)
            raise

    async def close(self) -> None:
        """Stop renewing and disconnect; see `LeaseClient.close`. Any event loop may do it.

        A cancelled call has stopped renewing, too.
        """
        try:
            await self._inbox.close()
            await self._calls.close()
        finally:
            self._keeper.stop()
        try:
            await asyncio.to_thread(self._keeper.close)
        except RuntimeError:  # no thread for it
            self._keeper.close(0)

    async def __aenter__(self) -> Self:
        """Enter a block that closes the client at its end."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop renewing and disconnect."""
        await self.close()

    async def _perform(
        self, steps: Callable[P, Generator[Any, Answer, T]], *args: P.args, **options: P.kwargs
    ) -> T:
        """Run the steps of a verb."""
        return await self._run(steps(*args, **options))

    async def _reckon(
        self, steps: Callable[P, Generator[Any, Answer, T]], *args: P.args, **options: P.kwargs
    ) -> T:
        """Run the steps of a verb that reckons for long, in a thread; its reads are made here."""
        until = time.monotonic() + self.deadline_s
        made = steps(*args, **options)
        go: Callable[[Any], Any] = made.send
        sent: Answer | LeaseError | None = None
        while True:
            done, found = await asyncio.to_thread(_step, go, sent)
            if done:
                result: T = found
                return result
            try:
                go, sent = made.send, await self._send(found, until)
            except LeaseError as error:
                go, sent = made.throw, error

    async def _run(self, steps: Generator[Any, Answer, T]) -> T:
        until = time.monotonic() + self.deadline_s
        try:
            ask = next(steps)
            while True:
                if type(ask) is Pause:
                    began = time.monotonic()
                    await self._inbox.wait(self._caller.client, ask.token, ask.seconds)
                    until = self._deadline_after(ask, began)
                    ask = next(steps)
                else:
                    try:
                        answer = await self._send(ask, until)
                    except LeaseError as error:
                        ask = steps.throw(error)
                    else:
                        ask = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, ask: Call | Exchange | Read, until: float) -> Answer:
        patience: RetryPolicy | None = None
        while True:
            sent_at = local_now()
            try:
                if type(ask) is Call:
                    replies = await self._calls.ask((self.wording.packed(ask),))
                    raw = replies[0]
                    if type(raw) is not list:
                        del raw  # an error keeps this frame
                        raw = await self._call_again(ask, replies)
                elif isinstance(ask, Exchange):
                    raw = await self._exchange(ask)
                else:
                    raw = await self._read(ask)
            except RedisError as error:
                if poll := poll_of(ask, error):
                    ask = poll
                    continue
                if patience is None:
                    patience = RetryPolicy(until - time.monotonic(), reached=self._reached)
                await asyncio.sleep(patience.pause_after(error, getattr(ask, "token", None)))
            else:
                self._reached = True
                return Answer(raw, sent_at)

    async def _call_again(self, call: Call, replies: list[Any]) -> list[Any]:
        """Repeat a call that was refused; see `LeaseClient`."""
        for _ in range(TRIES - 1):
            if not not_understood(replies[0]):
                break
            for command in self.wording.amend(call, replies.pop()):
                await self._calls.execute(*command)
            replies = await self._calls.ask((self.wording.packed(call),))
        return reply_of(replies)

    async def _exchange(self, exchange: Exchange) -> list[Any]:
        replies: list[Any] = []
        for _ in range(TRIES):
            replies = await self._calls.ask([self.wording.packed(call) for call in exchange.calls])
            commands = exchanged(exchange, replies, self.wording)
            if commands is None:
                break
            for command in commands:
                await self._calls.execute(*command)
        return reply_of(replies)

    async def _read(self, read: Read) -> list[Any]:
        return await self._calls.execute_many(read.commands)


def _answered(keeper: Renewer, token: str, sent: asyncio.Future[list[Any]]) -> None:
    """Tell the keeper what became of a release that was not waited for."""
    if sent.cancelled() or sent.exception() is not None:
        keeper.hurry(token)
    else:
        keeper.answered(token, sent.result()[0])


def _step(go: Callable[[Any], Any], sent: Answer | LeaseError | None) -> tuple[bool, Any]:
    """Make one step; return whether it was the last, and what it asks for or has found."""
    try:
        return False, go(sent)
    except StopIteration as done:
        return True, done.value

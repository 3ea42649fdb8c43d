"""Blocking client: `LeaseClient`."""

from __future__ import annotations

import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from redis.exceptions import RedisError

from agent_sdk.clock import local_now
from agent_sdk.errors import LeaseError
from agent_sdk.lazy import later
from agent_sdk.leases.block import Block
from agent_sdk.leases.holder import Lease
from agent_sdk.protocol.messages import Answer, Call, Exchange, Pause, Read
from agent_sdk.renewal.wakeups import Inbox
from agent_sdk.request import own_token
from agent_sdk.scripts.dispatch import TRIES, exchanged, not_understood, reply_of
from agent_sdk.store.handler_errors import raise_of_handler
from agent_sdk.store.retry import RetryPolicy, poll_of
from agent_sdk.verbs.requests import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Self, Unpack

    from redis import Redis

    from agent_sdk import attach
    from agent_sdk.request import Acquisition, LeaseOptions
    from agent_sdk.scripts.packed import Packed
    from agent_sdk.store.pools import Pool
    from agent_sdk.store.store import Store
else:
    (attach,) = later("attach")

P = ParamSpec("P")
T = TypeVar("T")


class LeaseClient(Verbs["Redis"]):
    """Client of a pool, straight to Redis; safe to share between threads. See `PoolClient`."""

    def _connect(self, store: Store) -> Redis:
        self._inbox = Inbox(store, self.keys.base)
        weakref.finalize(self, self._inbox.close).atexit = False
        redis = store.connect()
        self._pool: Pool = redis.connection_pool  # type: ignore[assignment] # of `Store.connect`
        return redis

    def _collector(self) -> Callable[[float], object]:
        collect = weakref.WeakMethod(self._pool.collect)  # no thread keeps the pool alive

        def answers(within_s: float) -> None:
            if (found := collect()) is not None:
                found(within_s)

        return answers

    def acquire(self, agent: str, **ask: Unpack[LeaseOptions]) -> Lease:
        """Get a lease. It is not renewed until `keep` is called: it ends `ttl_s` after the grant.

        `with client.acquire(...) as lease` keeps it to the end of the block, and releases it there.
        A lease that nothing renews is logged once, before it ends.

        With `wait_s` it waits in the queue, without polling: the end of a lease hands it over.
        An exception in the middle (Ctrl-C) leaves the queue.

        Args:
            agent: the agent that asks: 1-128 of `A-Z a-z 0-9 . _ : @ / -`.
            **ask: see `LeaseOptions`.

        Raises:
            Refused: the pool decided against it; the class and `code` have the reason.
            StillWaiting: `wait_s` is over and `keep_place` was asked for.
            BrokerUnavailable: nothing was done.
            OutcomeUnknown: no answer. With a token of your own repeat the call, or release it.
                Otherwise a granted lease is given back once the store answers.
        """
        return self.attend(self.wait_for(agent, ask), reminded=True)

    def attend(self, wait: Acquisition, *, reminded: bool = False) -> Lease:
        """Get the lease of an acquire that was prepared by `wait_for`; see `acquire`.

        reminded: log a reminder before its end, unless it is renewed.
        """
        while True:
            try:
                lease = Lease(self._run(wait.steps(self.keys)), client=self)
                return self._reminded(lease) if reminded else lease
            except BaseException as error:
                if self._tries_again(error, wait):
                    continue
                if not wait.falls_back(error):
                    raise
                return Lease(wait.local_grant(error), local=True, client=self)

    def lease(self, agent: str, **ask: Unpack[LeaseOptions]) -> Block:
        """Hold a lease for the length of a block: acquired, renewed in the background, released.

        Leaving the block never hides the block's own error. `lease.lost`, `lease.on_lost` and
        `lease.raise_if_lost` tell about a loss inside it. An interrupt (Ctrl-C, a time limit)
        during entry or exit leaves no lease: the renewing thread gives it back.
        """
        return Block(self, self._keeper, agent, ask)

    def adopt(self, token: str | None = None) -> Lease:
        """Take over a lease that another process acquired, by its token; a forked parent's too.

        It is renewed now; `keep` renews it from here on. Both processes may renew it, and the first
        release ends it for both.

        Args:
            token: default GPU_LEASE_TOKEN, the lease that this process was started under.

        Raises:
            LeaseLost: it has ended; the code has the outcome.
            StillWaiting: it is still in the queue.
            UnknownToken: the token is unknown, or neither given nor set.
        """
        grant, renewal = self._run(attach.adopt(self.keys, own_token(token)))
        return self._told(Lease(grant, client=self), renewal)

    def release(
        self,
        lease: Lease | str,
        *,
        wait: bool | None = None,
        refuse_late: bool = True,
        owner: str = "",
    ) -> bool:
        """Give a lease back, by itself or by its token; return False if it had ended before.

        In a forked child the lease stays the parent's: return False, and send nothing.
        A token that was never acquired is refused from then on, unless refuse_late is False: its
        acquire may still be on its way. With an owner another principal's lease counts as unknown.
        A call that is interrupted leaves no lease: the renewing thread gives it back.

        With `wait=False` the release is sent at once, and not waited for: its answer comes
        with that of the next call: return True, and raise no error of the store. What is not
        answered after 50 ms, or was refused, the renewing thread repeats until it is, for 15
        minutes; `close` and the end of the process try once more. None: as the client's
        `wait_release`. With an owner, or without `refuse_late`, it is waited for in any case.
        """
        try:
            if not self._waits(wait, refuse_late=refuse_late, owner=owner):
                return self._send_release(lease)
            return self._run(self._releasing(lease, refuse_late=refuse_late, owner=owner))
        except BaseException as error:
            self._after_failed_release(error, lease, refuse_late=refuse_late, owner=owner)
            raise

    def _post_release(self, token: str, packed: Packed) -> None:
        told = partial(self._keeper.answered, token)
        try:
            sent = self._pool.post(*packed, told, local_now())
        except RedisError as error:
            raise_of_handler(error)
            sent = False
        if not sent:
            self._keeper.hurry(token)

    def exchange(self, lease: Lease | str, agent: str, **ask: Unpack[LeaseOptions]) -> Lease:
        """Give a lease back and get the next one, in one round trip: `release`, then `acquire`.

        The release takes effect first, so the next lease may get the same room. From the call on
        the old lease is over, whatever comes of the acquire: a refusal does not bring it back.
        Without an answer it is given back in the background, as after an interrupt; with an owner
        it is not: release it by its token.

        Args:
            lease: the lease to give back, or its token; one that has ended is no error.
            agent: the agent that asks for the next one.
            **ask: see `LeaseOptions`; an option that is wrong leaves the old lease as it is.

        Raises:
            BadRequest: an option is wrong, or another process holds the lease; nothing was sent.
            Refused, StillWaiting, BrokerUnavailable, OutcomeUnknown: as `acquire`.
        """
        wait = self.wait_for(agent, ask)
        try:
            self._giving(lease, wait)
            return self._after_exchange(self.attend(wait, reminded=True), wait)
        except BaseException as error:
            self._after_failed_exchange(error, wait)
            raise

    def close(self) -> None:
        """Stop renewing and disconnect. Leases still held run on to their end.

        Releases that were not waited for are answered first, or tried once more.
        A later call connects anew, and leases that are then kept are renewed.
        """
        self._pool.collect()
        self._keeper.close()
        self._inbox.close()
        self.redis.close()

    def __enter__(self) -> Self:
        """Enter a block that closes the client at its end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop renewing and disconnect."""
        self.close()

    def _perform(
        self, steps: Callable[P, Generator[Any, Answer, T]], *args: P.args, **options: P.kwargs
    ) -> T:
        """Run the steps of a verb."""
        return self._run(steps(*args, **options))

    _reckon = _perform

    def _run(self, steps: Generator[Any, Answer, T]) -> T:
        until = time.monotonic() + self.deadline_s
        try:
            ask = next(steps)
            while True:
                if type(ask) is Pause:
                    began = time.monotonic()
                    self._inbox.wait(self._caller.client, ask.token, ask.seconds)
                    until = self._deadline_after(ask, began)
                    ask = next(steps)
                else:
                    try:
                        answer = self._send(ask, until)
                    except LeaseError as error:
                        ask = steps.throw(error)
                    else:
                        ask = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, ask: Call | Exchange | Read, until: float) -> Answer:
        patience: RetryPolicy | None = None
        while True:
            sent_at = local_now()
            try:
                if type(ask) is Call:
                    data, mark = self.wording.packed(ask)
                    replies = self._pool.ask(data, (mark,), sent_at)
                    raw = replies[0]
                    if type(raw) is not list:
                        del raw  # an error keeps this frame
                        raw = self._call_again(ask, replies, sent_at)
                elif isinstance(ask, Exchange):
                    raw = self._exchange(ask, sent_at)
                else:
                    raw = self._read(ask)
            except RedisError as error:
                raise_of_handler(error)
                if poll := poll_of(ask, error):
                    ask = poll
                    continue
                if patience is None:
                    patience = RetryPolicy(until - time.monotonic(), reached=self._reached)
                time.sleep(patience.pause_after(error, getattr(ask, "token", None)))
            else:
                self._reached = True
                return Answer(raw, sent_at)

    def _call_again(self, call: Call, replies: list[Any], now: float) -> list[Any]:
        """Repeat a call that was refused until the server understands it; raise another refusal."""
        for _ in range(TRIES - 1):
            if not not_understood(replies[0]):
                break
            for command in self.wording.amend(call, replies.pop()):
                self.redis.execute_command(*command)  # type: ignore[no-untyped-call] # in redis-py
            data, mark = self.wording.packed(call)
            replies = self._pool.ask(data, (mark,), now)
        return reply_of(replies)

    def _exchange(self, exchange: Exchange, now: float) -> list[Any]:
        replies: list[Any] = []
        for _ in range(TRIES):
            data, marks = zip(*map(self.wording.packed, exchange.calls), strict=True)
            replies = self._pool.ask(b"".join(data), marks, now)
            commands = exchanged(exchange, replies, self.wording)
            if commands is None:
                break
            for command in commands:
                self.redis.execute_command(*command)  # type: ignore[no-untyped-call] # in redis-py
        return reply_of(replies)

    def _read(self, read: Read) -> list[Any]:
        pipe = self.redis.pipeline(transaction=False)
        for command in read.commands:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call] # untyped in redis-py
        return pipe.execute()

"""How a keeper reaches the broker: what it says there is the same over Redis and over HTTP."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

from redis.exceptions import NoPermissionError, RedisError

from agent_sdk.clocks import local_now
from agent_sdk.errors import LeaseError, error_for
from agent_sdk.protocol import PROTOCOL, Answer, Call, Renewal, renew_call, renewed, unknown
from agent_sdk.wording import TRIES, Wording, not_understood

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis import Redis

    from agent_sdk.keys import Keys
    from agent_sdk.lease import HeldLease
    from agent_sdk.wording import Command


class Link(Protocol):
    """One way to the broker, used by one thread."""

    def renew(self, leases: Sequence[HeldLease]) -> Iterator[Renewal | LeaseError]:
        """For each lease its renewal, or why there is none; it may end before the last.

        Raises:
            BrokerUnavailable: nobody answers.
        """
        ...

    def give_back(self, tokens: Sequence[str]) -> Iterator[bool]:
        """Release what these tokens may have been granted, now or later; whether that is final.

        Raises:
            BrokerUnavailable: nobody answers.
        """
        ...

    def memory(self) -> object:
        """What names the pool's memory: once it is another, leases may have been forgotten.

        Raises:
            BrokerUnavailable: nobody answers.
        """
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class RedisLink:
    """Straight to Redis: everything in one pipeline.

    Args:
        connect: makes the connection, at the first call.
        keys: the pool's.
    """

    def __init__(self, connect: Callable[[], Redis], keys: Keys) -> None:
        self._connect = connect
        self._keys = keys
        self._redis: Redis | None = None
        self._wording = Wording(keys.base)

    def renew(self, leases: Sequence[HeldLease]) -> Iterator[Renewal | LeaseError]:
        """See `Link`."""
        sent_at = local_now()
        answers = self._send([renew_call(x.token, x.fence, x.ttl_ms) for x in leases])
        claims = {
            n: renew_call(x.token, x.fence, x.ttl_ms, claim=x.claim)
            for n, (x, raw) in enumerate(zip(leases, answers, strict=True))
            if unknown(raw) and x.claim
        }
        for n, raw in zip(claims, self._send([*claims.values()]), strict=True):
            answers[n] = raw
        for lease, raw in zip(leases, answers, strict=True):
            yield _renewal(raw, lease.token, sent_at)

    def give_back(self, tokens: Sequence[str]) -> Iterator[bool]:
        """See `Link`."""
        for raw in self._send([Call("release", (PROTOCOL, token, 1), token) for token in tokens]):
            yield not isinstance(raw, RedisError) or isinstance(raw, NoPermissionError)

    def memory(self) -> object:
        """See `Link`: the server's name and the epoch, as the scripts last saw them."""
        try:
            return self._connected().hmget(self._keys.pool, "run_id", "epoch")
        except NoPermissionError:
            return None
        except RedisError as error:
            raise error_for("store_unavailable") from error

    def _send(self, calls: list[Call]) -> list[list[object] | RedisError]:
        """The answers to a pipeline.

        Raises:
            BrokerUnavailable: there are none.
        """
        try:
            return self._pipeline(calls) if calls else []
        except RedisError as error:
            raise error_for("store_unavailable") from error

    def _connected(self) -> Redis:
        if self._redis is None:
            self._redis = self._connect()
        return self._redis

    def _pipeline(self, calls: list[Call]) -> list[list[object] | RedisError]:
        """One pipeline; once more with the calls that the server did not understand."""
        redis, answers = self._connected(), dict[int, list[object] | RedisError]()
        left = dict(enumerate(calls))
        for _ in range(TRIES):
            pipe = redis.pipeline(transaction=False)
            for call in left.values():
                pipe.execute_command(*self._wording.command(call))  # type: ignore[no-untyped-call] # in redis-py
            answers |= zip(left, pipe.execute(raise_on_error=False), strict=True)
            first: dict[str, list[Command]] = {}
            for n, call in list(left.items()):
                if not_understood(error := answers[n]):
                    first[call.verb] = self._wording.amend(call, error)
                else:
                    del left[n]
            if not left:
                break
            for command in itertools.chain.from_iterable(first.values()):
                redis.execute_command(*command)  # type: ignore[no-untyped-call] # in redis-py
        return [answers[n] for n in range(len(calls))]

    def close(self) -> None:
        """See `Link`."""
        if self._redis is not None:
            self._redis.close()


def _renewal(raw: list[object] | RedisError, token: str, sent_at: float) -> Renewal | LeaseError:
    if isinstance(raw, RedisError):
        return error_for("store_unavailable")
    try:
        return renewed(Answer(raw, sent_at), token)
    except LeaseError as error:
        return error

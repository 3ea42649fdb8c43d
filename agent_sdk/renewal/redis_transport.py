"""Transport of renewals: its interface, and the one straight to Redis."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from redis.exceptions import NoPermissionError, RedisError

from agent_sdk.clock import local_now
from agent_sdk.errors import LeaseError, error_for
from agent_sdk.protocol.lease import MOST_AT_ONCE, renew_call, renew_many_call
from agent_sdk.protocol.messages import PROTOCOL, Answer, Call, Renewal
from agent_sdk.protocol.replies import each_renewal, renewed, unknown
from agent_sdk.scripts.dispatch import TRIES, Dispatch, not_understood

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis import Redis

    from agent_sdk.keys import Keys
    from agent_sdk.leases.lease import HeldLease
    from agent_sdk.scripts.dispatch import Command


class Memory(NamedTuple):
    """A pool's data, as a reply tells it.

    Attributes:
        name: another one means that leases may have been forgotten.
        behind: True if it lacks what we have seen of it: its data has gone back.
        noticed_ms: when a lease was last told that it must end for a waiter; 0: never.
    """

    name: object
    behind: bool = False
    noticed_ms: int = 0


class RenewalTransport(Protocol):
    """Transport to the store, used by one thread."""

    def renew(self, leases: Sequence[HeldLease]) -> Iterator[Renewal | LeaseError]:
        """Yield each lease's renewal or error; it may stop before the last lease.

        Raises:
            BrokerUnavailable: no answer came.
        """
        ...

    def release(self, tokens: Sequence[str]) -> Iterator[bool]:
        """Release these tokens' leases, also later ones; yield whether each release is final.

        Raises:
            BrokerUnavailable: no answer came.
        """
        ...

    def memory(self, fence: int) -> Memory:
        """Return the identity of the pool's data: another one may have forgotten leases.

        fence: the highest of our leases, which the pool must know.

        Raises:
            BrokerUnavailable: no answer came.
        """
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


MEMORY = ("run_id", "epoch", "lost_us", "fence", "last_ms", "noticed_ms")
"""Fields of the pool that identify its data and its age, and tell of notices."""


class RedisTransport:
    """Transport straight to Redis: leases in one call, everything else in one pipeline.

    Args:
        connect: makes the connection, at the first call.
        keys: the pool's.
    """

    def __init__(self, connect: Callable[[], Redis], keys: Keys) -> None:
        self._connect = connect
        self._keys = keys
        self._redis: Redis | None = None
        self._wording = Dispatch(keys.base)
        self._newest_ms = 0

    def renew(self, leases: Sequence[HeldLease]) -> Iterator[Renewal | LeaseError]:
        """Renew leases; see `RenewalTransport`."""
        sent_at = local_now()
        answers = self._renew(leases[:MOST_AT_ONCE])
        claims = {
            n: renew_call(x.token, x.fence, x.ttl_ms, claim=x.claim)
            for n, (x, raw) in enumerate(zip(leases, answers, strict=False))
            if unknown(raw) and x.claim
        }
        for n, raw in zip(claims, self._send([*claims.values()]), strict=True):
            answers[n] = raw
        for lease, raw in zip(leases, answers, strict=False):
            yield _renewal(raw, lease.token, sent_at)

    def _renew(self, leases: Sequence[HeldLease]) -> list[list[object] | RedisError]:
        """Return the answers of the first leases, of all where one script could do them.

        A server that cannot answer for all at once is asked for one after another.
        """
        asked = [(x.token, x.fence, x.ttl_ms) for x in leases]
        if len(asked) > 1:
            [raw] = self._send([renew_many_call(asked)])
            with suppress(LeaseError):
                if isinstance(raw, list) and (each := each_renewal(Answer(raw, 0.0))):
                    return [*each]
        return self._send([renew_call(*each) for each in asked])

    def release(self, tokens: Sequence[str]) -> Iterator[bool]:
        """Release tokens; see `RenewalTransport`."""
        for raw in self._send([Call("release", (PROTOCOL, token, 1), token) for token in tokens]):
            yield not isinstance(raw, RedisError) or isinstance(raw, NoPermissionError)

    def memory(self, fence: int) -> Memory:
        """Return the server, the epoch and the last loss of data, as the scripts last saw them."""
        try:
            found = self._connected().hmget(self._keys.pool, *MEMORY)
        except NoPermissionError:
            return Memory(None)
        except RedisError as error:
            raise error_for("store_unavailable") from error
        *name, last_fence, last_ms, noticed_ms = found
        newest, self._newest_ms = self._newest_ms, _whole(last_ms)
        behind = _whole(last_fence) < fence or self._newest_ms < newest
        return Memory(name, behind, _whole(noticed_ms))

    def _send(self, calls: list[Call]) -> list[list[object] | RedisError]:
        """Return the answers to a pipeline.

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
        """Send one pipeline; send once more the calls that the server did not understand."""
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
        """Disconnect; see `RenewalTransport`."""
        if self._redis is not None:
            self._redis.close()


def _whole(word: object) -> int:
    """Return a number of the pool; 0 where it has none, or in another form."""
    return int(word) if isinstance(word, str) and word.isdecimal() else 0


def _renewal(raw: list[object] | RedisError, token: str, sent_at: float) -> Renewal | LeaseError:
    if isinstance(raw, RedisError):
        return error_for("store_unavailable")
    try:
        return renewed(Answer(raw, sent_at), token)
    except LeaseError as error:
        return error

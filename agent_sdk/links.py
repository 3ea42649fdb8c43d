"""How a keeper reaches the broker: what it says there is the same over Redis and over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from redis.exceptions import NoPermissionError, NoScriptError, RedisError

from agent_sdk.clocks import local_now
from agent_sdk.errors import LeaseError, error_for
from agent_sdk.protocol import PROTOCOL, Answer, Call, Renewal, renew_call, renewed
from agent_sdk.scripts import scripts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis import Redis

    from agent_sdk.lease import HeldLease


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

    def close(self) -> None:
        """Disconnect."""
        ...


class RedisLink:
    """Straight to Redis: everything in one pipeline.

    Args:
        connect: makes the connection, at the first call.
        base: the pool's key base.
    """

    def __init__(self, connect: Callable[[], Redis], base: str) -> None:
        self._connect = connect
        self._base = base
        self._redis: Redis | None = None

    def renew(self, leases: Sequence[HeldLease]) -> Iterator[Renewal | LeaseError]:
        """See `Link`."""
        sent_at = local_now()
        answers = self._send([renew_call(x.token, x.fence, x.ttl_ms) for x in leases])
        for lease, raw in zip(leases, answers, strict=True):
            yield _renewal(raw, lease.token, sent_at)

    def give_back(self, tokens: Sequence[str]) -> Iterator[bool]:
        """See `Link`."""
        for raw in self._send([Call("release", (PROTOCOL, token, 1), token) for token in tokens]):
            yield not isinstance(raw, RedisError) or isinstance(raw, NoPermissionError)

    def _send(self, calls: list[Call]) -> list[list[object] | RedisError]:
        """The answers to a pipeline.

        Raises:
            BrokerUnavailable: there are none.
        """
        try:
            return self._pipeline(calls)
        except RedisError as error:
            raise error_for("store_unavailable") from error

    def _pipeline(self, calls: list[Call]) -> list[list[object] | RedisError]:
        """One pipeline; a script that the server does not know is loaded once."""
        if self._redis is None:
            self._redis = self._connect()
        known = scripts()
        for attempt in range(2):
            pipe = self._redis.pipeline(transaction=False)
            if attempt:
                for verb in sorted({call.verb for call in calls}):
                    self._redis.script_load(known[verb].source)
            for call in calls:
                pipe.evalsha(known[call.verb].sha, 1, self._base, *call.args)
            answers: list[list[object] | RedisError] = pipe.execute(raise_on_error=False)
            if not any(isinstance(answer, NoScriptError) for answer in answers):
                break
        return answers

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

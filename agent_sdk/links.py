"""How a keeper reaches the broker: what it says there is the same over Redis and over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from redis.exceptions import NoPermissionError, NoScriptError, RedisError

from agent_sdk.clocks import local_now
from agent_sdk.errors import LeaseError, error_for
from agent_sdk.protocol import PROTOCOL, Answer, Call, Renewal, renew_call, renewed
from agent_sdk.scripts import scripts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from redis import Redis

    from agent_sdk.lease import HeldLease

    Exchanged: TypeAlias = tuple[list[Renewal | LeaseError], list[bool]]


class Link(Protocol):
    """One way to the broker, used by one thread."""

    def exchange(self, leases: Sequence[HeldLease], tokens: Sequence[str]) -> Exchanged:
        """Renew leases, and give back what these tokens may have been granted.

        Returns:
            For each lease its renewal, or why there is none; for each token whether the answer was
            final.

        Raises:
            BrokerUnavailable: nobody answered.
        """
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class RedisLink:
    """Straight to Redis: everything in one pipeline.

    Args:
        connect: makes the connection, at the first exchange.
        base: the pool's key base.
    """

    def __init__(self, connect: Callable[[], Redis], base: str) -> None:
        self._connect = connect
        self._base = base
        self._redis: Redis | None = None

    def exchange(self, leases: Sequence[HeldLease], tokens: Sequence[str]) -> Exchanged:
        """See `Link`."""
        calls = [renew_call(x.token, x.fence, x.ttl_ms) for x in leases]
        calls += [Call("release", (PROTOCOL, token, 1), token) for token in tokens]
        sent_at = local_now()
        try:
            answers = self._send(calls)
        except RedisError as error:
            raise error_for("store_unavailable") from error
        count = len(leases)
        return (
            [
                _renewal(raw, lease.token, sent_at)
                for lease, raw in zip(leases, answers, strict=False)
            ],
            [
                not isinstance(raw, RedisError) or isinstance(raw, NoPermissionError)
                for raw in answers[count:]
            ],
        )

    def _send(self, calls: list[Call]) -> list[list[object] | RedisError]:
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

"""Delivery to one hook: the events of the stream in order, each until it is taken."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from redis.exceptions import RedisError

from agent_sdk.errors import LeaseError
from agent_sdk.state.events import Event, events_of, order
from broker.hooks.message import message_of
from broker.hooks.registry import StreamEnd, end_of
from broker.hooks.tenure import Superseded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from broker.hooks.hook import Hook
    from broker.hooks.message import Message
    from broker.hooks.tenure import Tenure
    from broker.hooks.web import SendOutcome

T = TypeVar("T")

log = logging.getLogger(__name__)

PAGE: Final = 100
"""Events that are read at once."""

FIRST_S, LONGEST_S = 1.0, 300.0
"""Pause after the first failure; each further one doubles it, up to the longest."""

ASKED_S: Final = 3600.0
"""Longest pause that a receiver may ask for by Retry-After."""

UNTRIED_S: Final = 2 * ASKED_S
"""Seconds since the last failure after which nothing was tried meanwhile: no broker could send."""

SKIPPED_S: Final = 1.0
"""Seconds after which it is written that unwanted events were passed over."""

RETRY_S: Final = 0.5
"""Pause before the store is asked again."""


class Count(Protocol):
    """Counter of what this process has done."""

    def __call__(self, what: str, amount: int = 1) -> None:
        """Count deliveries: delivered, failed; and events: missed."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Means of all deliveries of this process.

    Attributes:
        redis: a client of the store, for asyncio.
        send: sends a message once.
        wait: waits for new events, at most for so many seconds.
        places: device id -> its host and index.
        give_up_s: seconds of nothing but failures after which a hook is disabled.
    """

    redis: Any
    stream: str
    pool: str
    tenure: Tenure
    send: Callable[[Hook, Message], Awaitable[SendOutcome]]
    wait: Callable[[float], Awaitable[None]]
    places: Callable[[], Mapping[str, tuple[str, int]]]
    count: Count
    give_up_s: float


class HookDelivery:
    """Delivery to one hook.

    Args:
        hook: the hook, as Redis has it.
        ways: see there.
    """

    def __init__(self, hook: Hook, ways: Ways) -> None:
        self.hook = hook
        self._ways = ways
        self._written = hook.cursor
        self._written_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Deliver until the hook is disabled.

        Raises:
            Superseded: another process delivers now, or the hook is not that one any more.
        """
        self.hook = await self._insist(lambda: self._ways.tenure.read(self.hook))
        while not self.hook.disabled:
            try:
                page, end = await self._read()
                await self._close_gap(page, end)
                for event in page:
                    await self._pass(event)
                await self._write_skipped()
            except (RedisError, LeaseError) as error:
                log.debug("hook %s: the store cannot be asked: %s", self.hook.name, error)
                await asyncio.sleep(RETRY_S)
                continue
            if len(page) < PAGE:
                await self._ways.wait(SKIPPED_S)

    async def _read(self) -> tuple[list[Event], StreamEnd]:
        """Read the next events, and the end of the stream at the same moment."""
        pipe = self._ways.redis.pipeline(transaction=True)
        pipe.execute_command(
            "XRANGE", self._ways.stream, f"({self.hook.cursor}", "+", "COUNT", PAGE
        )
        pipe.xinfo_stream(self._ways.stream)
        entries, info = await pipe.execute(raise_on_error=False)
        if isinstance(entries, Exception):
            raise entries
        return events_of(entries), end_of(info)

    async def _close_gap(self, page: list[Event], end: StreamEnd) -> None:
        """Count the events that fell out of the stream; go on behind data that went back."""
        hook = self.hook
        # Of an old copy of the data the rest of a long stream is not known to the event
        begin = end.ordinal - (len(page) if len(page) < PAGE else end.length)
        if order(end.id) < order(hook.cursor):
            log.warning("hook %s: the stream went back: it goes on at its end", hook.name)
            await self._write(cursor=end.id, ordinal=end.ordinal)
        elif end.ordinal < hook.ordinal:
            log.warning("hook %s: the pool lost data: it goes on with what there is", hook.name)
            await self._write(ordinal=begin)
        elif (missed := end.ordinal - end.length - hook.ordinal) > 0:
            log.warning("hook %s: %d events fell out of the stream unsent", hook.name, missed)
            self._ways.count("missed", missed)
            await self._write(ordinal=hook.ordinal + missed, missed=hook.missed + missed)

    async def _pass(self, event: Event) -> None:
        """Deliver an event if it is wanted, and go past it."""
        if self.hook.disabled:
            return
        ordinal = self.hook.ordinal + 1
        if not self.hook.wants(event.event):
            self.hook = replace(self.hook, cursor=event.id, ordinal=ordinal)
            return
        message = message_of(self._ways.pool, event, self._ways.places())
        while not (outcome := await self._send(message)).taken:
            await self._failed(outcome)
            if self.hook.disabled:
                return
            await asyncio.sleep(
                max(pause_s(self.hook.attempts), min(outcome.retry_after_s, ASKED_S))
            )
        self._ways.count("delivered")
        await self._write(
            cursor=event.id, ordinal=ordinal, delivered=self.hook.delivered + 1, attempts=0,
            failing_since_ms=0, delivered_ms=await self._now_ms(),
        )  # fmt: skip

    async def _send(self, message: Message) -> SendOutcome:
        if not self._ways.tenure.left_s:  # another process may deliver already
            raise Superseded
        return await self._ways.send(self.hook, message)

    async def _failed(self, outcome: SendOutcome) -> None:
        """Write a failure; disable the hook after too many, or if the receiver asks for that."""
        hook, now_ms = self.hook, await self._now_ms()
        goes_on = now_ms - hook.error_ms <= UNTRIED_S * 1000
        attempts = hook.attempts + 1 if goes_on else 1
        since_ms = (goes_on and hook.failing_since_ms) or now_ms
        reason = ""
        if outcome.gone:
            reason = f"the receiver wants nothing any more: {outcome.said}"
        elif now_ms - since_ms >= self._ways.give_up_s * 1000:
            reason = f"nothing but failures for {self._ways.give_up_s:g} s: {outcome.said}"
        log.warning("hook %s: %s%s", hook.name, outcome.said, "; it is disabled" * bool(reason))
        self._ways.count("failed")
        await self._write(
            failed=hook.failed + 1, attempts=attempts, failing_since_ms=since_ms,
            error=outcome.said, error_ms=now_ms, disabled=reason,
        )  # fmt: skip

    async def _write_skipped(self) -> None:
        """Write how far it is, if that is not written and was not for a while."""
        late = asyncio.get_running_loop().time() - self._written_at >= SKIPPED_S
        if self.hook.cursor != self._written and late:
            await self._write(cursor=self.hook.cursor, ordinal=self.hook.ordinal)

    async def _now_ms(self) -> int:
        return await self._insist(self._ways.tenure.now_ms)

    async def _write(self, **changes: str | int) -> None:
        """Write progress; while the store is away, again and again: a message is not sent twice."""
        changed = replace(self.hook, **changes)  # type: ignore[arg-type] # each has its field's type
        disabled = str(changes.pop("disabled", ""))
        held = {**changes, "cursor": changed.cursor, "ordinal": changed.ordinal}
        await self._insist(lambda: self._ways.tenure.write(self.hook, held, disabled))
        self.hook, self._written = changed, changed.cursor
        self._written_at = asyncio.get_running_loop().time()

    @staticmethod
    async def _insist(ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except RedisError:
                await asyncio.sleep(RETRY_S)


def pause_s(attempts: int) -> float:
    """Return the pause after so many failures in a row, with a random part."""
    longest = min(LONGEST_S, FIRST_S * 2 ** min(attempts - 1, 20))
    return float(longest * random.uniform(0.5, 1.0))

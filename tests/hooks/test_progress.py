"""Progress of a hook on a real store: the fence, what fell out of the stream, the end of trying."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk import Store
from agent_sdk.errors import LeaseError
from agent_sdk.keys import Keys
from broker.hooks import delivery
from broker.hooks.delivery import HookDelivery, Ways, pause_s
from broker.hooks.hook import KINDS, hook_of
from broker.hooks.operators import new_hook, row_of
from broker.hooks.registry import Registry, StreamEnd
from broker.hooks.tenure import TTL_S, Superseded, Tenure
from broker.hooks.web import SendOutcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.hooks.hook import Hook
    from broker.hooks.message import Message
    from tests.servers import Server

TAKEN, REFUSED = SendOutcome(True, "status 200"), SendOutcome(False, "status 500")


class Bench:
    """A pool's hooks, and a delivery whose messages end here.

    Attributes:
        sent: the ids of the messages.
        answers: the outcomes of the next tries; then all are taken.
        missed: events that were counted as such.
    """

    def __init__(self, redis: Any) -> None:
        self.redis, self.keys = redis, Keys(f"hooks-{uuid4().hex[:8]}")
        self.registry = Registry(redis, self.keys)
        self.tenure = Tenure(redis, self.keys, "me")
        self.sent: list[str] = []
        self.answers: list[SendOutcome] = []
        self.missed = 0

    async def event(self, name: str = "expired", **more: Any) -> str:
        return str(await self.redis.xadd(self.keys.events, {"event": name}, **more))

    async def add(self, *on: str) -> Hook:
        return await self.registry.add(new_hook("https://ops.example", name="ops", on=on))

    async def send(self, _: Hook, message: Message) -> SendOutcome:
        self.sent.append(message.id)
        return self.answers.pop(0) if self.answers else TAKEN

    def count(self, what: str, amount: int = 1) -> None:
        self.missed += amount if what == "missed" else 0

    def delivery(self, hook: Hook, give_up_s: float = 60) -> HookDelivery:
        return HookDelivery(hook, Ways(
            self.redis, self.keys.events, self.keys.pool_name, self.tenure, self.send,
            lambda _: asyncio.sleep(0.01), dict, self.count, give_up_s,
        ))  # fmt: skip

    async def now(self) -> Hook:
        return await self.registry.find("ops")

    async def reaches(self, cursor: str = "", number: int = 0) -> None:
        """Wait until that event is done with, or so many were sent and the last is done with."""
        async with asyncio.timeout(20):
            while True:
                wanted = cursor or "".join(self.sent[number - 1 : number])
                if (await self.now()).cursor == wanted:
                    return
                await asyncio.sleep(0.01)

    async def until(self, hook: Hook, number: int) -> None:
        """Deliver until so many messages were sent and the last is done with."""
        task = asyncio.create_task(self.delivery(hook).run())
        await self.reaches(number=number)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def bench(server: Server) -> AsyncIterator[Bench]:
    redis = Store(server.url).connect_async()
    try:
        found = Bench(redis)
        assert await found.tenure.take()
        yield found
    finally:
        await redis.aclose()


async def test_hook_begins_with_the_next_event_and_goes_on_where_it_was(server: Server) -> None:
    """Also in another process, with events in between that it does not want."""
    async with bench(server) as b:
        await b.event()
        hook = await b.add("expired")
        wanted = [await b.event(), await b.event()]
        await b.event("granted")
        await b.until(hook, 2)
        wanted.append(await b.event())
        await b.until(hook, 3)
        assert b.sent == wanted
        assert (await b.now()).delivered == 3
        assert (await b.now()).ordinal == 5


async def test_second_sender_is_fenced_off_and_takes_over(server: Server) -> None:
    """While the key names another, neither the cursor nor anything else is written."""
    async with bench(server) as b:
        hook, rival = await b.add(), Tenure(b.redis, b.keys, "rival")
        assert not await rival.take()
        with pytest.raises(Superseded):
            await rival.write(hook, {"cursor": "1-0"})
        await b.redis.delete(b.keys.hooks_sender)  # its time is up
        assert await rival.take()
        assert 0 < await b.redis.pttl(b.keys.hooks_sender) <= TTL_S * 1000
        with pytest.raises(Superseded):
            await b.tenure.write(hook, {"cursor": "1-0"})
        assert not await b.tenure.take()
        assert b.tenure.left_s == 0
        await b.tenure.give_up()  # what it has not it gives to nobody
        assert await b.redis.get(b.keys.hooks_sender)
        await rival.write(hook, {"delivered": 1})
        assert (await b.now()).cursor == hook.cursor
        assert (await b.now()).delivered == 1


async def test_hook_that_was_removed_or_added_anew_is_another(server: Server) -> None:
    """A delivery that was on its way writes nothing into it."""
    async with bench(server) as b:
        hook = await b.add()
        await b.registry.remove("ops")
        with pytest.raises(Superseded):
            await b.tenure.write(hook, {"cursor": "1-0"})
        assert not await b.redis.exists(b.keys.hook("ops"))
        again = await b.add()
        with pytest.raises(Superseded):
            await b.tenure.write(hook, {"cursor": "1-0"})
        with pytest.raises(Superseded):
            await b.delivery(hook).run()
        assert await b.now() == again


async def test_events_that_fell_out_of_the_stream_are_counted(server: Server) -> None:
    """A long outage of the receiver: exactly those that are gone."""
    async with bench(server) as b:
        hook = await b.add()
        for _ in range(7):
            await b.event()
        left = [await b.event(maxlen=2, approximate=False), await b.event()]
        await b.until(hook, 3)
        assert b.sent[1:] == left
        assert b.missed == (await b.now()).missed == 6


async def test_stream_that_went_back_is_followed_again(server: Server) -> None:
    """Data of an earlier hour, or none: nothing is counted as missed, and what is new comes."""
    async with bench(server) as b:
        await b.event(id="9-0")
        hook = await b.add()
        await b.redis.delete(b.keys.events)
        await b.event(id="5-0")
        task = asyncio.create_task(b.delivery(hook).run())
        await b.reaches("5-0")
        await b.event(id="7-0")
        await b.reaches("7-0")
        task.cancel()
        assert b.sent == ["7-0"]
        assert b.missed == 0


async def test_receiver_may_ask_for_a_longer_pause(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Retry-After; it is waited for, and then the same message comes."""
    monkeypatch.setattr(delivery, "FIRST_S", 0.01)
    async with bench(server) as b:
        hook = await b.add()
        event = await b.event()
        b.answers = [replace(REFUSED, retry_after_s=0.4)]
        began = time.monotonic()
        await b.until(hook, 2)
        assert time.monotonic() - began >= 0.4
        assert b.sent == [event, event]
        assert (await b.now()).attempts == 0


async def test_failures_without_end_disable_a_hook(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time that the setting says, with the reason in the stream; not before."""
    monkeypatch.setattr(delivery, "FIRST_S", 0.02)
    async with bench(server) as b:
        hook = await b.add()
        await b.event()
        b.answers = [REFUSED] * 1000
        await asyncio.wait_for(b.delivery(hook, give_up_s=0.3).run(), 30)
        found = await b.now()
        assert found.attempts == found.failed == len(b.sent) > 1
        assert found.error_ms - found.failing_since_ms >= 300
        assert found.cursor == hook.cursor
        ((_, told),) = await b.redis.xrevrange(b.keys.events, count=1)
        assert told == {"event": "hook_disabled", "hook": "ops", "reason": found.disabled}


async def test_time_without_a_try_disables_no_hook(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No broker ran for three days: one more failure is the first of a new row of them."""
    monkeypatch.setattr(delivery, "FIRST_S", 0.02)
    async with bench(server) as b:
        hook = await b.add()
        now_ms = await b.registry.now_ms()
        tried_ms = now_ms - 3 * 86_400_000
        failed = {"attempts": 2, "failed": 2, "failing_since_ms": tried_ms - 999}
        await b.tenure.write(hook, failed | {"error_ms": tried_ms, "error": "status 500"})
        event = await b.event()
        b.answers = [REFUSED]
        task = asyncio.create_task(b.delivery(hook, give_up_s=86_400).run())
        await b.reaches(number=2)
        task.cancel()
        found = await b.now()
        assert b.sent == [event, event]
        assert (found.disabled, found.failed, found.delivered) == ("", 3, 1)


async def test_names_and_numbers_of_hooks_are_bounded(server: Server) -> None:
    """64 of a pool; an unknown one is named with the nearest."""
    async with bench(server) as b:
        await b.add()
        await b.redis.sadd(b.keys.hooks, *(f"n{number}" for number in range(63)))
        with pytest.raises(LeaseError, match="at most 64"):
            await b.registry.add(new_hook("https://ops.example"))
        with pytest.raises(LeaseError, match="did you mean ops"):
            await b.registry.find("opss")


def test_hash_that_another_hand_wrote_can_be_read() -> None:
    """Text in place of a number is 0, in place of an event the beginning of the stream."""
    for junk in ("", "x", "1-", "9" * 400, "-1", "\x1b[2J"):
        found = hook_of("ops", dict.fromkeys(KINDS, junk) | {"url": "https://x.example"})
        assert found is not None
        assert found.cursor == "0-0"
        end = StreamEnd("7-0", 5, 5, "1-0")
        assert row_of(found, end)["backlog"] <= 5
        assert json.dumps(row_of(found, end))
    assert hook_of("ops", {}) is None
    for url, is_web in (("http://[::1", True), ("HTTP://h]x", True), ("x", False), ("//[", False)):
        broken = hook_of("ops", {"url": url})
        assert broken is not None
        assert broken.is_web is is_web


def test_pauses_grow_to_a_bound() -> None:
    """With a part by chance, so that not all hooks ask at once."""
    for attempts, longest in ((1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (10_000, 300)):
        pauses = {pause_s(attempts) for _ in range(20)}
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest
        assert len(pauses) > 1

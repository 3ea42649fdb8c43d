"""Sender: one process of all replicas delivers to the hooks; it takes over when another dies."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError, RedisError

from agent_sdk.errors import Denied, LeaseError
from broker.hooks.delivery import HookDelivery, Ways
from broker.hooks.message import message_of_test
from broker.hooks.registry import Registry
from broker.hooks.tenure import Superseded, Tenure
from broker.tasks import end

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import AsyncLeaseClient
    from broker.hooks.addresses import Addresses
    from broker.hooks.delivery import Count
    from broker.hooks.hook import Hook
    from broker.hooks.message import Message
    from broker.hooks.web import SendOutcome, WebClient
    from broker.live.feed import Feed

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
"""Seconds between two looks at the hooks."""

ANSWER_S: Final = 1.5
"""Seconds for each answer of the store."""

PACKAGES: Final = ("cloudevents", "httpcore2", "standardwebhooks")

INSTALL: Final = "pip install 'gpu-lease-broker[hooks]'"


class HookSender:
    """Deliveries of this process, while it has the right to deliver.

    Args:
        client: the pool's client.
        replica: the name of this process among the replicas.
        addresses: where requests may go.
        give_up_s: seconds of nothing but failures after which a hook is disabled.
        feed: tells when there are new events.
        count: see `Ways`.
        leads: tells whether this worker does what one of them does.

    Attributes:
        registry: the hooks, for the routes.
    """

    def __init__(
        self,
        client: AsyncLeaseClient,
        *,
        replica: str,
        addresses: Addresses,
        give_up_s: float,
        feed: Feed,
        count: Count,
        leads: Callable[[], bool],
    ) -> None:
        self._client = client
        self._redis: Any = replace(client.store, timeout_s=ANSWER_S).connect_async()
        self._addresses = addresses
        self._leads = leads
        self._tenure = Tenure(self._redis, client.keys, replica)
        self.registry = Registry(self._redis, client.keys)
        self._web: WebClient | None = None
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._problem = ""
        self._ways = Ways(
            self._redis, client.keys.events, client.keys.pool_name, self._tenure, self._send,
            feed.wait, lambda: feed.places, count, give_up_s,
        )  # fmt: skip

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            while True:
                try:
                    await self._tick()
                except (RedisError, LeaseError) as error:
                    # The ticker logs the store's other problems
                    if isinstance(error, Denied | NoPermissionError):
                        self._say(str(error))
                await asyncio.sleep(TICK_S)
        finally:
            await self._stop()
            with suppress(RedisError):
                await self._tenure.give_up()
            if self._web:
                await self._web.close()
            await self._redis.aclose()

    async def _tick(self) -> None:
        # A pool without hooks costs no connection
        if not await self._client.hook_names() or not self._leads():
            await self._stop()
            await self._tenure.give_up()
            return
        seen = await self.registry.seen()
        missing = [each for each in PACKAGES if importlib.util.find_spec(each) is None]
        if missing:
            self._say(f"there are hooks, and this broker cannot deliver: {INSTALL}")
            return
        if not await self._tenure.take():
            await self._stop()
            return
        self._say("")
        if self._alarm:
            self._alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(self._tenure.left_s, self._halt)
        await self._begin(seen.hooks)

    async def _begin(self, hooks: tuple[Hook, ...]) -> None:
        """Begin and end deliveries, as the hooks are now."""
        wanted = {(hook.name, hook.life): hook for hook in hooks if not hook.disabled}
        tests = {(hook.name, hook.test): hook for hook in hooks if hook.test}
        for key in self._tasks.keys() - wanted.keys() - tests.keys():
            self._ended.add(self._tasks.pop(key))
        await end(self._ended)
        self._ended = set()
        for key, hook in wanted.items():
            if key not in self._tasks or self._tasks[key].done():
                self._tasks[key] = asyncio.create_task(
                    _logged(HookDelivery(hook, self._ways).run())
                )
        for key, hook in tests.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(_logged(self._test(hook)))

    async def _test(self, hook: Hook) -> None:
        """Send a test, and write the answer."""
        began = time.monotonic()
        now_ms = await self._tenure.now_ms()
        outcome = await self._send(
            hook, message_of_test(self._ways.pool, hook.name, hook.test, now_ms)
        )
        said = {
            "test": hook.test, "delivered": outcome.taken, "said": outcome.said,
            "status": outcome.status, "answer": outcome.answer,
            "took_s": round(time.monotonic() - began, 3),
        }  # fmt: skip
        await self._tenure.write(hook, {"test": "", "tested": json.dumps(said)})

    async def _send(self, hook: Hook, message: Message) -> SendOutcome:
        # Imported here, because extras have what they need.
        from broker.hooks import chat, web  # noqa: PLC0415 - see above

        if not hook.is_web:
            problem = await chat.send(hook.url, message, self._addresses)
            return web.SendOutcome(not problem, problem or "taken")
        if self._web is None:
            self._web = web.WebClient(self._addresses)
        return await self._web.send(hook, message)

    async def _stop(self) -> None:
        """End every delivery, and wait for that."""
        self._halt()
        await end(self._ended)
        self._ended = set()

    def _halt(self) -> None:
        """Cancel every delivery, at the latest when the right to deliver is over."""
        self._ended |= set(self._tasks.values())
        self._tasks = {}
        for task in self._ended:
            task.cancel()

    def _say(self, problem: str) -> None:
        if problem and problem != self._problem:
            log.warning("hooks: %s", problem)
        self._problem = problem


async def _logged(work: Any) -> None:
    """Do the work of a task; its errors are logged, and the next tick begins it anew."""
    try:
        await work
    except Superseded:
        log.debug("a delivery ends: another one goes on")
    except (RedisError, LeaseError) as error:
        log.warning("hooks: the store cannot be asked: %s", error)
    except Exception:
        log.exception("a delivery to a hook failed")

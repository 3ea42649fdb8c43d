"""Leases of both clients, blocking and for asyncio."""

from __future__ import annotations

import inspect
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from agent_sdk.clock import local_now
from agent_sdk.errors import LeaseLost
from agent_sdk.lazy import LazyModule
from agent_sdk.leases.block import Leave, leave, leave_async, leaving
from agent_sdk.leases.lease import HeldLease
from agent_sdk.renewal.callbacks import run

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self
else:
    asyncio = LazyModule("asyncio")


class Lease(HeldLease):
    """Lease of `LeaseClient`. A `with` block keeps it renewed, and gives it back at its end."""

    def release(self) -> bool:
        """Give it back; see `LeaseClient.release`."""
        with suppress(LeaseLost):
            done: bool = self._own_client().release(self)
            return done
        return False

    def renew(self, ttl_s: float | None = None) -> float:
        """Renew it now, and return `trusted_s`; see `LeaseClient.renew`."""
        self._own_client().renew(self, ttl_s)
        return self.trusted_s

    def __enter__(self) -> Self:
        """Renew it from here on; an interrupt from now on gives it back."""
        held = self._begin()
        try:
            held.hold(self)
            self.raise_if_lost()
            return self  # noqa: TRY300 - an interrupt at this step counts too
        except BaseException:
            leave(held)
            raise

    if TYPE_CHECKING:

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

    else:
        __exit__ = Leave(leave)

    def on_notice(self, callback: Callable[[Self], object]) -> None:
        """Call back in a thread of its own at each change of `notices`, `preempt_at`, `wanted`.

        At once if there is one of them already, as after `adopt`. A call that waits for an earlier
        one to return stands for all changes meanwhile.
        """
        _refuse_coroutines(callback)
        self._when_noticed(lambda: callback(self))

    def on_lost(self, callback: Callable[[Self], object]) -> None:
        """Call back once after its loss, in a thread of its own; at once if it is lost already.

        A lease that is not being renewed is not watched: look at `lost` there.
        """
        _refuse_coroutines(callback)
        self._when_lost(lambda: callback(self))

    def wait_lost(self, timeout_s: float) -> bool:
        """Wait until it is lost or released, at most `timeout_s` seconds; return `lost`."""
        told, until = threading.Event(), local_now() + timeout_s
        with self._watching(told.set):
            while not self.lost and not self._ended and (left := until - local_now()) > 0:
                told.wait(min(left, max(self.trusted_s, 0.01), threading.TIMEOUT_MAX))
        return self.lost


class AsyncLease(HeldLease):
    """Lease of `AsyncLeaseClient`; `async with` keeps it renewed, and gives it back at its end."""

    async def release(self) -> bool:
        """Give it back; see `AsyncLeaseClient.release`."""
        with suppress(LeaseLost):
            done: bool = await self._own_client().release(self)
            return done
        return False

    async def renew(self, ttl_s: float | None = None) -> float:
        """Renew it now, and return `trusted_s`; see `LeaseClient.renew`."""
        await self._own_client().renew(self, ttl_s)
        return self.trusted_s

    async def __aenter__(self) -> Self:
        """Renew it from here on; a cancellation from now on gives it back."""
        held = self._begin()
        try:
            held.hold(self)
            self.raise_if_lost()
            return self  # noqa: TRY300 - an interrupt at this step counts too
        except BaseException as error:
            await leave_async(held, type(error))
            raise

    if TYPE_CHECKING:

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

    else:
        __aexit__ = Leave(leaving)

    def _tell(self, name: str, callback: Callable[[], object]) -> None:
        run(self, name, callback)  # it only wakes the loop

    def on_notice(self, callback: Callable[[Self], object]) -> None:
        """Call back in this event loop at each change of `notices`, `preempt_at`, `wanted`.

        At once if there is one of them already, as after `adopt`.
        """
        self._when_noticed(self._in_loop(callback))

    def on_lost(self, callback: Callable[[Self], object]) -> None:
        """Call back once in this event loop after its loss; at once if it is lost already.

        The coroutine of a coroutine function is run as a task.
        """
        self._when_lost(self._in_loop(callback))

    def _in_loop(self, callback: Callable[[Self], object]) -> Callable[[], object]:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[object]] = set()  # a loop keeps no task alive

        def call() -> None:
            made = callback(self)
            if inspect.iscoroutine(made):
                task = loop.create_task(made)
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        return lambda: loop.call_soon_threadsafe(call)

    async def wait_lost(self, timeout_s: float) -> bool:
        """Wait until it is lost or released, at most `timeout_s` seconds; return `lost`."""
        told, until = asyncio.Event(), local_now() + timeout_s
        loop = asyncio.get_running_loop()
        with self._watching(lambda: loop.call_soon_threadsafe(told.set)):
            while not self.lost and not self._ended and (left := until - local_now()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, max(self.trusted_s, 0.01))):
                        await told.wait()
        return self.lost


def _refuse_coroutines(callback: Callable[..., object]) -> None:
    if inspect.iscoroutinefunction(callback):
        raise TypeError(
            f"{callback!r} is a coroutine function: a blocking lease calls ordinary functions"
        )

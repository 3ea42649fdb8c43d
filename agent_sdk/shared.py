"""`agent_sdk.lease`: leases without a client of one's own.

The process has one client of each kind, made from the environment at the first entry, and anew
when the environment names another pool. Of asyncio's kind each event loop that runs has its own;
that of a loop which was closed goes to the next. They are closed at the end of the process, after
all that blocks still held was given back. A forked child connects anew.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from agent_sdk.lazy import LazyModule, later
from agent_sdk.leases import decorated
from agent_sdk.renewal.at_exit import after_exit
from agent_sdk.settings import SdkSettings, read_settings

if TYPE_CHECKING:
    import asyncio
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from types import TracebackType
    from typing import Unpack

    from agent_sdk import aio, client
    from agent_sdk.aio import AsyncLeaseClient
    from agent_sdk.client import LeaseClient
    from agent_sdk.leases.block import AsyncBlock, Block
    from agent_sdk.leases.holder import AsyncLease, Lease
    from agent_sdk.request import LeaseOptions
else:
    asyncio = LazyModule("asyncio")
    aio, client = later("aio", "client")

P = ParamSpec("P")
R = TypeVar("R")

_blocking: dict[SdkSettings, LeaseClient] = {}
_async: dict[tuple[SdkSettings, AbstractEventLoop | None], AsyncLeaseClient] = {}
"""Clients by the settings that they were made from: the present ones alone, but for a moment."""


def shared_client() -> LeaseClient:
    """Return the blocking client of this process, from the environment.

    Of two threads that make one, both get one.
    """
    settings = read_settings()
    found = _blocking.get(settings)
    if found is None:
        found = _blocking.setdefault(settings, client.LeaseClient.from_env())
        for other in _blocking.keys() - {settings}:
            _blocking.pop(other, None)  # its blocks keep it as long as they need it
    return found


def shared_async_client() -> AsyncLeaseClient:
    """Return the asyncio client of this process and of the loop that runs, from the environment."""
    settings, loop = read_settings(), _running_loop()
    found = _async.get((settings, loop))
    if found is None:
        made = _left_over(settings) or aio.AsyncLeaseClient.from_env()
        found = _async.setdefault((settings, loop), made)
        for other in [each for each in list(_async) if each[0] != settings]:
            _async.pop(other, None)  # as above
    return found


def _running_loop() -> AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _left_over(settings: SdkSettings) -> AsyncLeaseClient | None:
    """Take the client of a loop that was closed, or that was made outside of any."""
    for each in list(_async):
        if each[0] == settings and (each[1] is None or each[1].is_closed()):
            found = _async.pop(each, None)
            if found is not None:  # no other thread has taken it
                return found
    return None


def forget() -> None:
    """Let the clients go. Blocks that still hold leases keep theirs as long as they need it."""
    _blocking.clear()
    _async.clear()


def _close() -> None:
    for each in list(_blocking.values()):
        each.close()
    for one in list(_async.values()):
        with suppress(RuntimeError):  # the interpreter starts no more threads
            asyncio.run(one.close())


after_exit(_close)


class _Inner:
    """Descriptor of a method of the block inside, whose guard the `with` statement then keeps."""

    def __init__(self, inner: str, name: str) -> None:
        self._inner = inner
        self._name = name

    def __get__(self, block: SharedBlock | None, _: type) -> Callable[..., Any]:
        if block is not None:
            found: Callable[..., Any] = getattr(getattr(block, self._inner)(), self._name)
            return found
        inner, name = self._inner, self._name  # an ExitStack asks the class
        return lambda block, *error: getattr(getattr(block, inner)(), name)(*error)


class SharedBlock:
    """Block of `lease`: for `with`, for `async with`, and around functions of both kinds."""

    def __init__(self, agent: str, ask: LeaseOptions) -> None:
        self._agent = agent
        self._ask = ask
        self._block: Block | None = None
        self._async_block: AsyncBlock | None = None

    def new(self) -> Block:
        """Return a new block of the process's blocking client."""
        return shared_client().lease(self._agent, **self._ask)

    def new_async(self) -> AsyncBlock:
        """Return a new block of the process's asyncio client."""
        return shared_async_client().lease(self._agent, **self._ask)

    def _one(self) -> Block:
        if self._block is None:
            self._block = self.new()
        return self._block

    def _async_one(self) -> AsyncBlock:
        if self._async_block is None:
            self._async_block = self.new_async()
        return self._async_block

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Run each call of a function, ordinary or asyncio's, under a lease of its own.

        A parameter named `lease` is given it.
        """
        if inspect.iscoroutinefunction(function):
            made: Any = decorated.coroutine_function(self.new_async, function)
            found: Callable[P, R] = made
            return found
        return decorated.function(self.new, function)

    if TYPE_CHECKING:

        def __enter__(self) -> Lease: ...

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

        async def __aenter__(self) -> AsyncLease: ...

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

    else:
        __enter__ = _Inner("_one", "__enter__")
        __exit__ = _Inner("_one", "__exit__")
        __aenter__ = _Inner("_async_one", "__aenter__")
        __aexit__ = _Inner("_async_one", "__aexit__")


def lease(agent: str, **ask: Unpack[LeaseOptions]) -> SharedBlock:
    """Hold a lease of the environment's pool for a block, or for each call of a function.

    ```python
    with agent_sdk.lease("analyst", memory_mb=8192, wait_s=60) as lease:
        run_model(env=lease.env())

    @agent_sdk.lease("analyst", memory_mb=8192, wait_s=60)
    def work(text, lease=None):
        run_model(env=lease.env())
    ```

    `async with`, and a function of `async def`, hold an `AsyncLease`. See `LeaseClient.lease`.
    """
    return SharedBlock(agent, ask)

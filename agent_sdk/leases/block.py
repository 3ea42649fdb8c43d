"""Blocks that hold a lease: entered, renewed and given back, even when interrupted anywhere.

Python runs signal handlers between any two steps of the main thread: after a lease was granted and
before the block begins, and on the first step of `__exit__`, before any `try` of its own. So the
token is known before anything is sent, and two things beside `__exit__` give it back:

- the object that the `with` statement alone refers to: it is gone when the
  statement is over, in whatever way, though a traceback may keep every frame;
- the block's own state, when nothing refers to it any more: a block entered by hand, or one whose
  coroutine is never resumed.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from agent_sdk.errors import LeaseError
from agent_sdk.fork import identity
from agent_sdk.lazy import LazyModule
from agent_sdk.renewal.at_exit import before_exit

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from agent_sdk.aio import AsyncLeaseClient
    from agent_sdk.client import LeaseClient
    from agent_sdk.leases import decorated
    from agent_sdk.leases.holder import AsyncLease, Lease
    from agent_sdk.leases.lease import HeldLease
    from agent_sdk.renewal.renewer import Renewer
    from agent_sdk.request import Acquisition, LeaseOptions
else:
    asyncio = LazyModule("asyncio")
    decorated = LazyModule("agent_sdk.leases.decorated")

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")
L = TypeVar("L", bound="HeldLease")


_watched: set[weakref.ref[Any]] = set()
"""References to the blocks that are not settled: each must outlive its referent."""


class BlockToken(NamedTuple):
    """Lease that was granted before its block: nothing but its name, lest it be kept alive."""

    token: str


class BlockHoldings(Generic[C, L]):
    """Holdings of a block until it is settled: a lease or a place in the queue, if any.

    Attributes:
        client: the owner of the block.
        wait: its acquire, from before anything is sent until nothing is left to give back.
        lease: the lease, once granted.
    """

    def __init__(self, client: C, keeper: Renewer) -> None:
        self.client = client
        self._keeper = keeper
        self._process = identity()
        self._guard: weakref.ref[Any] | None = None
        self._own: weakref.ref[Any] | None = None
        self._entered = False
        self.wait: Acquisition | BlockToken | None = None
        self.lease: L | None = None

    def guard(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        """Return the object that a `with` statement keeps until it ends."""
        kept = partial(leave, self)
        if not self._entered:  # the statement asks for it before it enters
            self._guard = weakref.ref(kept, partial(_left, weakref.ref(self)))
        return kept

    @property
    def guarded(self) -> bool:
        """True inside a `with` statement, which keeps these holdings until it ends."""
        return self._guard is not None

    def unguard(self) -> None:
        """Ignore the statement's end: it waits for this block's own end."""
        self._guard = None

    def enter(self, wait: Acquisition | BlockToken) -> None:
        """Begin the block: from here on something may be left to give back."""
        if self._entered:
            raise RuntimeError("a block is entered once: make another with client.lease(...)")
        self._own = weakref.ref(self, partial(_gone, wait, self._keeper, self._process))
        _watched.add(self._own)
        self._entered = True
        self.wait = wait

    def hold(self, lease: L) -> None:
        """Renew a lease from here on, until the block's end."""
        self.lease = lease
        self._keeper.add(lease)

    def settle(self) -> None:
        """Note that nothing is left to give back."""
        if self._own is not None:
            _watched.discard(self._own)
        self.wait = self._guard = self.lease = self._own = None

    def settle_if_decided(self, wait: Acquisition, error: BaseException) -> None:
        """Settle if an acquire's error means that nothing is left; else have it given back."""
        if isinstance(error, LeaseError) and not wait.leaves_something(error):
            self.settle()
        else:
            self.release()

    def release(self) -> None:
        """Leave the rest to the renewing thread, which goes on until the store answers."""
        if self.wait is not None and self._process == identity():
            if self.lease is not None:
                self.lease.end()
            with suppress(RuntimeError):  # no thread: it ends by its ttl
                self._keeper.abandon(self.wait.token)
        self.settle()

    def left(self, guard: weakref.ref[Any]) -> None:
        """Give back what is left when the statement is over."""
        if guard is self._guard and self.wait is not None and self._own is not None:
            _gone(self.wait, self._keeper, self._process, self._own)
            self.settle()


def _left(at: weakref.ref[BlockHoldings[Any, Any]], guard: weakref.ref[Any]) -> None:
    """Call back at a statement's end.

    A second interrupt that strikes here is dropped by Python, and what keeps its traceback keeps
    this frame: so it is done once more, and the frame has no reference of its own.
    """
    try:
        _tell_left(at(), guard)
    except BaseException:
        _tell_left(at(), guard)
        raise


def _tell_left(held: BlockHoldings[Any, Any] | None, guard: weakref.ref[Any]) -> None:
    if held is not None:
        held.left(guard)


def _gone(
    wait: Acquisition | BlockToken, keeper: Renewer, process: str, own: weakref.ref[Any]
) -> None:
    """Give back what a block left; a forked child has nothing of its parent's to give."""
    _watched.discard(own)
    if process == identity():
        keeper.drop(wait.token)


class Leave:
    """Descriptor of `__exit__` and `__aexit__`: a block gets its guard, a class the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._leave = function

    def __get__(self, block: Any, _: type) -> Callable[..., Any]:
        if block is not None:
            held: BlockHoldings[Any, Any] = block.held
            return held.guard(self._leave)
        function = self._leave
        return lambda block, *error: function(block.held, *error)  # an ExitStack asks the class


class _Block(Generic[C, L]):
    """Common part of both kinds of block."""

    def __init__(self, client: C, keeper: Renewer, agent: str, ask: LeaseOptions) -> None:
        self.held: BlockHoldings[C, L] = BlockHoldings(client, keeper)
        self._keeper = keeper
        self._agent = agent
        self._ask = ask

    def again(self) -> Self:
        """Return a new block for each call of a decorated function."""
        return type(self)(self.held.client, self._keeper, self._agent, self._ask)


def _leave_all() -> None:
    """Give back all held leases at the exit: a generator may never end its block.

    Later the interpreter has neither the modules nor the threads for it.
    """
    for own in list(_watched):
        if (held := own()) is not None:
            held.release()


before_exit(_leave_all)


def leave(held: BlockHoldings[LeaseClient, Lease], *_: object) -> None:
    """Give the lease back. The block's own error is never hidden by one of the release."""
    if held.lease is None or held.wait is None:
        return
    try:
        held.client.release(held.lease)
        held.settle()
    except LeaseError:
        held.release()
    except BaseException:
        held.release()
        raise


class Block(_Block["LeaseClient", "Lease"]):
    """Block of `LeaseClient`; see `LeaseClient.lease`."""

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Run each call of a function under a lease of its own; see `decorated.function`."""
        return decorated.function(self.again, function)

    def __enter__(self) -> Lease:
        """Acquire the lease, and renew it from here on."""
        held, wait = self.held, self.held.client.wait_for(self._agent, self._ask)
        held.enter(wait)
        try:
            held.hold(lease := held.client.attend(wait))
            return lease  # noqa: TRY300 - an interrupt at this step counts too
        except BaseException as error:
            if held.lease is None:
                held.settle_if_decided(wait, error)
            else:
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


async def leave_async(held: BlockHoldings[AsyncLeaseClient, AsyncLease], kind: object) -> None:
    """Give the lease back in an event loop; a coroutine closed after its loop cannot wait."""
    if held.lease is None or held.wait is None:
        return
    try:
        if kind is GeneratorExit and not _in_loop():
            held.release()
            return
        await held.client.release(held.lease)
        held.settle()
    except LeaseError:
        held.release()
    except BaseException:
        held.release()
        raise


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def leaving(
    held: BlockHoldings[AsyncLeaseClient, AsyncLease], kind: object, *_: object
) -> Coroutine[Any, Any, None]:
    """Return the coroutine that leaves; the statement keeps it, and its references, from now on."""
    coroutine = leave_async(held, kind)
    held.unguard()
    return coroutine


class AsyncBlock(_Block["AsyncLeaseClient", "AsyncLease"]):
    """Block of `AsyncLeaseClient`; see `AsyncLeaseClient.lease`."""

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """Run each call of a coroutine function under a lease of its own; see `decorated`."""
        return decorated.coroutine_function(self.again, function)

    async def __aenter__(self) -> AsyncLease:
        """Acquire the lease, and renew it from here on."""
        held, wait = self.held, self.held.client.wait_for(self._agent, self._ask)
        held.enter(wait)
        try:
            held.hold(lease := await held.client.attend(wait))
            return lease  # noqa: TRY300 - an interrupt at this step counts too
        except BaseException as error:
            if held.lease is None:
                held.settle_if_decided(wait, error)
            else:
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

"""Functions that run under a lease: each call holds one of its own."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from agent_sdk.leases.block import AsyncBlock, Block

P = ParamSpec("P")
R = TypeVar("R")

NAME: Final = "lease"
"""Parameter of a decorated function that is given the lease; a caller does not pass it."""


def function(block: Callable[[], Block], inner: Callable[P, R]) -> Callable[P, R]:
    """Decorate an ordinary function. A parameter named `lease` is given the lease of the call.

    Raises:
        TypeError: it is a coroutine function, or a generator's: its body runs after the call.
    """
    if inspect.iscoroutinefunction(inner):
        raise TypeError(
            f"{inner!r} is a coroutine function: decorate it with AsyncLeaseClient.lease, "
            "or with agent_sdk.lease"
        )
    _refuse_generator(inner)
    takes = _takes_lease(inner)

    @wraps(inner)
    def call(*args: P.args, **options: P.kwargs) -> R:
        with block() as lease:
            if takes:
                options[NAME] = lease
            return inner(*args, **options)

    return _without_lease(call, inner) if takes else call


def coroutine_function(
    block: Callable[[], AsyncBlock], inner: Callable[P, Awaitable[R]]
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Decorate a coroutine function. A parameter named `lease` is given the lease of the call.

    Raises:
        TypeError: it is an ordinary function, or a generator's.
    """
    _refuse_generator(inner)
    if not inspect.iscoroutinefunction(inner):
        raise TypeError(
            f"{inner!r} is no coroutine function: decorate it with LeaseClient.lease, "
            "or with agent_sdk.lease"
        )
    takes = _takes_lease(inner)

    @wraps(inner)
    async def call(*args: P.args, **options: P.kwargs) -> R:
        async with block() as lease:
            if takes:
                options[NAME] = lease
            return await inner(*args, **options)

    return _without_lease(call, inner) if takes else call


def _refuse_generator(inner: Callable[..., object]) -> None:
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(
            f"{inner!r} is a generator function, whose body runs after the call: hold the lease "
            "by a block in it"
        )


def _takes_lease(inner: Callable[..., object]) -> bool:
    found = inspect.signature(inner).parameters.get(NAME)
    return found is not None and found.kind in {found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY}


def _without_lease(call: Any, inner: Callable[..., object]) -> Any:
    """Hide the parameter from what reads signatures, as task queues do before they call."""
    seen = inspect.signature(inner)
    rest = [each for each in seen.parameters.values() if each.name != NAME]
    call.__signature__ = seen.replace(parameters=rest)
    return call

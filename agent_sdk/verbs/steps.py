"""Methods that are written as steps, once for both clients; each runs them in its own way."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import TypeAlias

    from agent_sdk.aio import AsyncLeaseClient
    from agent_sdk.client import LeaseClient
    from agent_sdk.protocol.messages import Answer

P = ParamSpec("P")
T = TypeVar("T")

if TYPE_CHECKING:
    Steps: TypeAlias = Generator[Any, Answer, T]


class Verb(Generic[P, T]):
    """Method that is written as steps. A client runs them, and the caller gets the result.

    The result of a method of `AsyncLeaseClient` is awaited.
    """

    performed_by = "_perform"

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self._steps = steps

    @overload
    def __get__(
        self, client: None, owner: type | None = None
    ) -> Callable[Concatenate[Any, P], Steps[T]]: ...

    @overload
    def __get__(self, client: LeaseClient, owner: type | None = None) -> Callable[P, T]: ...

    @overload
    def __get__(
        self, client: AsyncLeaseClient, owner: type | None = None
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Any, owner: type | None = None) -> Any:
        """Return the method that runs the steps in the client's way."""
        if client is None:
            return self._steps
        bound = MethodType(self._steps, client)
        call = partial(getattr(client, self.performed_by), bound)
        call.__wrapped__, call.__doc__ = bound, bound.__doc__  # type: ignore[attr-defined] # for help()
        return call


class Reckoning(Verb[P, T]):
    """Verb that reckons for long between its reads: no event loop is held meanwhile."""

    performed_by = "_reckon"

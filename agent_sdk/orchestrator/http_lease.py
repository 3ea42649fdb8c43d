"""Lease over HTTP, given back at the end of its block or of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from agent_sdk.leases.holder import Lease
from agent_sdk.renewal.at_exit import before_exit

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from agent_sdk.orchestrator.client import GPUOrchestratorClient
    from agent_sdk.protocol.messages import Grant


class HttpLease(Lease):
    """Lease over HTTP, renewed in the background; a `with` block releases it at its end.

    With a GPU, or marked as without: `on_cpu` is true and `reason` says why. `local` is true when
    the broker knows nothing of it.
    """

    def __init__(self, client: GPUOrchestratorClient, grant: Grant, *, local: bool = False) -> None:
        super().__init__(grant, local=local)
        self._service: GPUOrchestratorClient | None = client

    def _own_client(self) -> Any:
        return self._service or super()._own_client()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state that travels, without the client."""
        return super().__getstate__() | {"_service": None}

    def __enter__(self) -> Self:
        """Hold the lease until the end of the block, or of the process."""
        _entered.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release it, however the block ended."""
        _entered.discard(self)
        if not self.released and self._service is not None:
            self._service.release(self)

    def leave(self) -> None:
        """Give it back in the background; the end of the process waits for that."""
        if self._service is not None and not (self.released or self.is_view or self.local):
            self.end()
            self._service.abandon(self)


_entered: WeakSet[HttpLease] = WeakSet()
"""Leases in blocks that have not ended: a generator may never end its block."""


def _leave_all() -> None:
    for lease in list(_entered):
        lease.leave()


before_exit(_leave_all)

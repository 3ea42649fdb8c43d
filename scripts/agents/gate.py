"""The orchestrator's decision on asking for a GPU, which never holds a batch up for long.

While the last decision was for the GPU, the next is waited for, 2 s at the most. After one against
it the orchestrator may be gone: then it is asked in the background, a batch gives it 0.25 s to say
that the GPU is back, and a silent one is waited for by nobody.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_sdk import GPUOrchestratorClient

PATIENCE_S = 0.25

SILENCE = {
    "use_gpu": False, "safe_mode": True, "gpu_available": False, "policy_fallback": True,
}  # fmt: skip
"""The client's decision when no orchestrator answers."""


class Gate:
    """One agent's; the constructor asks nobody, and until the first answer there is no GPU.

    Attributes:
        last: the last decision, and when it was made: `decided_at`, epoch seconds.
    """

    def __init__(self, client: GPUOrchestratorClient) -> None:
        self._client = client
        self._background = ThreadPoolExecutor(1, "gate")
        self._asking: Future[dict[str, Any]] | None = None
        self._lock = Lock()
        self.last = _dated(SILENCE)

    def ask(self, *, afresh: bool = False) -> dict[str, Any]:
        """Ask now; `afresh`: also for a policy that is still believed."""
        if afresh:
            self._client.get_policy(force_refresh=True)
        self.last = _dated(self._client.cpu_fallback_decision())
        return self.last

    def decision(self) -> dict[str, Any]:
        """For the batch that is about to begin."""
        if self.last["use_gpu"]:
            return self.ask()
        with self._lock:
            idle = self._asking is None or self._asking.done()
            if idle:
                self._asking = self._background.submit(self.ask)
            asking = self._asking
        if idle and asking is not None:
            wait([asking], PATIENCE_S)
        return self.last

    def silent(self) -> None:
        """Note that the orchestrator did not answer: the next batch does not wait for it."""
        self.last = _dated(SILENCE)

    def close(self) -> None:
        """Ask no more."""
        self._background.shutdown(cancel_futures=True)


def why_not(decision: dict[str, Any]) -> str:
    """Return the reason of a decision against the GPU, in one word."""
    if decision["policy_fallback"]:
        return "unreachable"
    return "safe_mode" if decision["safe_mode"] else "no_gpu"


def _dated(decision: dict[str, bool]) -> dict[str, Any]:
    return decision | {"decided_at": time.time()}

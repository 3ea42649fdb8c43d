"""The analyst: sentiment and keywords of articles, on a GPU when the orchestrator gives it one.

The gating that every GPU-capable agent should have: it asks for the decision once before anything
could initialise a GPU, takes a lease for each batch, looks at `lease.lost` between articles, and
goes on with the CPU whatever happens to the lease, the orchestrator or the GPU. This process never
opens a GPU; a child that is started with the lease's environment does (`cuda_child`). On a
SIMULATED device numpy computes, and the results say `"device": "gpu", "engine": "numpy"`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything is imported that may look at it

from common import Articles, arguments, build_app, serve
from cuda_child import CudaChild, GpuUnusable, torch_installed
from gate import Gate, why_not
from sentiment import NumpyEngine, keywords_of, label_of

from agent_sdk import GPUOrchestratorClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from common import Article
    from fastapi import FastAPI

    from agent_sdk.orchestrator import HttpLease

AGENT = "analyst"

log = logging.getLogger(__name__)


class Leased:
    """Computing under a lease: on its GPU while that may be used, and from then on on the CPU.

    Attributes:
        device: `gpu` or `cpu`: where the next text is scored.
        reason: why on the CPU, in one word; None on a GPU.
    """

    def __init__(self, lease: HttpLease, cpu: NumpyEngine) -> None:
        self._lease = lease
        self._cpu = cpu
        self._child: CudaChild | None = None
        self.device = "cpu"
        self.reason = lease.reason

    def __enter__(self) -> Self:
        """Open the GPU, if the lease has one."""
        if self._lease.on_cpu:
            return self
        simulated = all(device.uuid.startswith("SIM-") for device in self._lease.devices)
        if not simulated and not torch_installed():
            self.reason = "no_torch"
            return self
        try:
            if not simulated:
                self._child = CudaChild(self._lease.env(), lambda: not self._lease.lost)
            self.device = "gpu"
        except GpuUnusable as error:
            self._fall_back(str(error))
        return self

    def __exit__(self, *_: object) -> None:
        """Close the GPU: before the lease is given back."""
        self._close()

    def score(self, text: str) -> dict[str, Any]:
        """Return the sentiment of a text, and what computed it where."""
        if self.device == "gpu" and self._lease.lost:
            self._fall_back("lost")
        if self._child is not None:
            try:
                return _scored(self._child.score(text), "gpu", self._child.name)
            except GpuUnusable as error:
                self._fall_back(str(error))
        return _scored(self._cpu.score(text), self.device, self._cpu.name)

    def _fall_back(self, why: str) -> None:
        self._close()
        self.device, self.reason = "cpu", self._lease.lost_reason or why
        log.warning("on the CPU from here on: %s", self.reason)

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class Analyst:
    """Analyzes batches.

    Args:
        memory_mb: MiB to lease for a batch.
        ttl_s: of each lease, should this process die.
        pause_s: rest after each article, so that a demonstration has time to pull a plug.
    """

    def __init__(self, memory_mb: int, ttl_s: float, pause_s: float) -> None:
        self._client = GPUOrchestratorClient()
        self._memory_mb, self._ttl_s, self._pause_s = memory_mb, ttl_s, pause_s
        self._cpu = NumpyEngine()
        self.gate = Gate(self._client)

    def analyze(self, articles: list[Article]) -> dict[str, Any]:
        """Return a result for each article, in their order, and under which lease and decision."""
        decision = self.gate.decision()
        if decision["use_gpu"]:
            with self._client.lease(AGENT, self._memory_mb, ttl_s=self._ttl_s) as lease:
                if lease.reason == "store_unavailable":
                    self.gate.silent()
                with Leased(lease, self._cpu) as leased:
                    found = [self._result(x, leased.score(x.whole)) for x in articles]
                seen, reason = _seen(lease), leased.reason
        else:
            reason = why_not(decision)
            found = [
                self._result(x, _scored(self._cpu.score(x.whole), "cpu", self._cpu.name))
                for x in articles
            ]
            seen = {"gpu": "cpu", "uuids": [], "on_cpu": True, "reason": reason, "fence": 0}
        keywords = keywords_of([article.whole for article in articles])
        results = [x | {"keywords": words} for x, words in zip(found, keywords, strict=True)]
        return {"results": results, "lease": seen, "decision": decision, "reason": reason}

    def close(self) -> None:
        """Renew and ask no more."""
        self.gate.close()
        self._client.close()

    def _result(self, article: Article, scored: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self._pause_s)
        return {"id": article.id, "label": label_of(scored["sentiment"])} | scored


def _scored(score: float, device: str, engine: str) -> dict[str, Any]:
    return {"sentiment": round(score, 6), "device": device, "engine": engine}


def _seen(lease: HttpLease) -> dict[str, Any]:
    """Return a lease as the answer shows it; `reason` is why it has no GPU, or lost it."""
    return {
        "gpu": lease.devices[0].index if lease.devices else "cpu",
        "uuids": [device.uuid for device in lease.devices],
        "on_cpu": lease.on_cpu,
        "reason": lease.reason or lease.lost_reason,
        "fence": lease.fence,
    }


@dataclass(frozen=True, slots=True)
class Batch:
    """Articles to be analyzed."""

    articles: Articles


def analyst_app(analyst: Analyst) -> FastAPI:
    """Build the agent with its endpoints."""

    @asynccontextmanager
    async def during() -> AsyncIterator[None]:
        await asyncio.to_thread(analyst.gate.ask)
        try:
            yield
        finally:
            await asyncio.to_thread(analyst.close)

    def about() -> dict[str, Any]:
        return {"gpu": analyst.gate.last["use_gpu"], "decision": analyst.gate.last}

    app = build_app(AGENT, about=about, during=during)

    @app.get("/decision")
    def decision() -> dict[str, Any]:
        """Return the last decision, with its time."""
        return analyst.gate.last

    @app.post("/decision")
    def decide() -> dict[str, Any]:
        """Ask the orchestrator again, also for its policy."""
        return analyst.gate.ask(afresh=True)

    @app.post("/analyze")
    def analyze(batch: Batch) -> dict[str, Any]:
        """Sentiment and keywords; on the CPU where there is no GPU to be had."""
        return analyst.analyze(batch.articles)

    return app


def main() -> None:
    """Read the options, and answer until SIGTERM."""
    parser = arguments(AGENT, __doc__)
    parser.add_argument("--memory", type=int, default=512, help="MiB to lease for a batch")
    parser.add_argument("--ttl", type=float, default=30.0, help="seconds, of each lease")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each article")
    asked = parser.parse_args()
    serve(analyst_app(Analyst(asked.memory, asked.ttl, asked.pause)), asked)


if __name__ == "__main__":
    main()

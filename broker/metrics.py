"""Prometheus metrics; the one module that knows prometheus_client.

Requests and uptime count this process. What replicas share comes from Redis: every replica exports
the same figure and a restart resets none, so aggregate those with max, not with sum.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric
    from starlette.types import ASGIApp, Receive, Scope, Send

    from agent_sdk.snapshot import PoolStatus
    from broker.devices import Sample

COUNTED = {
    ("GET", "/gpu/info"): "gpu_info",
    ("GET", "/policy"): "policy_get",
    ("POST", "/policy"): "policy_post",
    ("POST", "/lease"): "lease",
    ("POST", "/release"): "release",
}
"""Requests that have a documented counter of their own."""


class Metrics:
    """What this process counts, and the text of `/metrics`."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._requests = 0
        self._by_route = dict.fromkeys(COUNTED.values(), 0)

    def counting(self, app: ASGIApp) -> ASGIApp:
        """ASGI middleware that counts requests."""

        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                self._requests += 1
                if name := COUNTED.get((scope["method"], scope["path"])):
                    self._by_route[name] += 1
            await app(scope, receive, send)

        return count

    def text(self, pool: PoolStatus | None, sample: Sample | None) -> bytes:
        """The exposition; without the pool, what this process knows by itself."""
        registry = CollectorRegistry()
        registry.register(_Snapshot([*self._process(sample), *_shared(pool)]))
        return generate_latest(registry)

    def _process(self, sample: Sample | None) -> Iterator[Metric]:
        uptime_s = time.monotonic() - self._started
        yield _gauge("uptime_seconds", "Seconds since this replica started.", uptime_s)
        yield _counter("requests", "HTTP requests to this replica.", self._requests)
        yield CounterMetricFamily(
            "justnews_requests", "The same under an older name.", value=self._requests
        )
        for name, value in self._by_route.items():
            yield _counter(f"{name}_requests", f"Requests to this replica: {name}.", value)
        nvml = sample is not None and sample.source == "nvml"
        failed = sample.error if nvml and sample else None
        yield _gauge("nvml_supported", "1 when NVML answers here.", float(nvml and not failed))
        if failed:
            yield _gauge("nvml_error_info", "NVML was asked for and failed.", 1)
        yield _gauge("mps_enabled", "1 when CUDA MPS runs here.", 0)


def _shared(pool: PoolStatus | None) -> Iterator[Metric]:
    if pool is None:
        return
    yield _gauge("active_leases", "GPU leases that live now.", pool.active_leases)
    expired = pool.stats.get("expired", 0) + pool.stats.get("cpu_expired", 0)
    yield _counter("lease_expired", "Leases that nobody renewed.", expired)


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gpu_orchestrator_{name}", says, value=value)


def _counter(name: str, says: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"gpu_orchestrator_{name}", says, value=value)


class _Snapshot:
    """A collector of families that are already made."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families

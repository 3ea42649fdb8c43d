"""Documented metrics: unlabelled, as snapshot scripts parse them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from agent_sdk.state.snapshot import PoolStatus
    from broker.devices import Sample

COUNTED = {
    ("GET", "/gpu/info"): "gpu_info",
    ("GET", "/orchestrator/gpu/info"): "gpu_info",
    ("GET", "/policy"): "policy_get",
    ("GET", "/orchestrator/gpu/policy"): "policy_get",
    ("POST", "/policy"): "policy_post",
    ("POST", "/lease"): "lease",
    ("POST", "/release"): "release",
}
"""Requests with a documented counter of their own."""


class Requests:
    """Counters of this replica's requests, by the names of COUNTED.

    Args:
        registry: the registry of the counters.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, says: str) -> Counter:
            return Counter(name, says, registry=registry)

        self._all = (
            counter("gpu_orchestrator_requests", "HTTP requests to this replica."),
            counter("justnews_requests", "The same under an older name."),
        )
        self._by_name = {
            name: counter(f"gpu_orchestrator_{name}_requests", f"Requests to this replica: {name}.")
            for name in dict.fromkeys(COUNTED.values())
        }

    def count(self, method: str, path: str) -> None:
        """Count one more."""
        for each in self._all:
            each.inc()
        if name := COUNTED.get((method, path)):
            self._by_name[name].inc()


def families(
    uptime_s: float, pool: PoolStatus | None, sample: Sample | None, *, mps: bool
) -> Iterator[Metric]:
    """Yield the documented metrics but the requests; without the pool, only this process's own.

    `mps`: CUDA MPS runs on a device.
    """
    yield _gauge("uptime_seconds", "Seconds since this replica started.", uptime_s)
    nvml = sample is not None and sample.source == "nvml"
    failed = sample.error if nvml and sample else None
    yield _gauge("nvml_supported", "1 when NVML answers here.", float(nvml and not failed))
    if failed:
        yield _gauge("nvml_error_info", "NVML was asked for and failed.", 1)
    mps = mps or any(device.mps for device in (sample.devices if sample else ()))
    yield _gauge("mps_enabled", "1 when CUDA MPS runs on any device.", float(mps))
    if pool is not None:
        yield _gauge("active_leases", "GPU leases that live now.", pool.active_leases)
        expired = pool.stats.get("expired", 0) + pool.stats.get("cpu_expired", 0)
        yield _counter("lease_expired", "Leases that expired unrenewed.", expired)


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gpu_orchestrator_{name}", says, value=value)


def _counter(name: str, says: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"gpu_orchestrator_{name}", says, value=value)

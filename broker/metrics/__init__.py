"""Prometheus metrics; only this package knows prometheus_client.

Requests, uptime and latencies are this process's. Shared figures come from Redis: every replica
exports the same ones and a restart resets none, so aggregate those with max, not sum.
Labels are bounded: hosts, devices, routes, codes; never a token, never an agent's name.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import InfoMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from agent_sdk.state.devices import counted_once
from broker.metrics.documented import Requests, families
from broker.metrics.flow import Flow
from broker.metrics.hooks import HookCounts
from broker.metrics.pool import PoolReading, device_families, pool_families
from broker.path_prefix import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric
    from starlette.types import Scope

    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.snapshot import PoolStatus
    from broker.devices import Sample
    from broker.worker import WorkerPlace

disable_created_metrics()  # type: ignore[no-untyped-call] # untyped there

# PROMETHEUS_MULTIPROC_DIR of another program is not ours: workers share a folder of their own.
values.ValueClass = values.MutexValue

REQUEST_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 2.5, 10, 60)

REDIS_S: Final = (0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1)


class Metrics:
    """Counters of this process, and the text of `/metrics`.

    Attributes:
        flow: the histograms that the pool's events feed.
        hooks: the counts of deliveries to webhooks.
    """

    def __init__(
        self, version: str = "", replica: str = "", place: WorkerPlace | None = None
    ) -> None:
        self._started = place.started if place else time.monotonic()
        self._shared_in = place and place.folder
        if place:
            _share(place)
        self._about = {"version": version, "replica": replica}
        self._own = CollectorRegistry()
        self._requests = Requests(self._own)
        self.flow = Flow(self._own)
        self.hooks = HookCounts(self._own)
        self._answered = Counter(
            "gpu_broker_http_requests", "HTTP requests to this replica, by how they ended.",
            ["method", "route", "status"], registry=self._own,
        )  # fmt: skip
        self._took = Histogram(
            "gpu_broker_http_request_duration_seconds", "To the answer's first byte; waits count.",
            ["route"], buckets=REQUEST_S, registry=self._own,
        )  # fmt: skip
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._redis_up = Gauge(
            "gpu_broker_redis_up",
            "1 while the store can serve this replica.",
            registry=self._own,
            multiprocess_mode="mostrecent",
        )
        self._redis_took = Histogram(
            "gpu_broker_redis_duration_seconds", "Round trip of a reap that has nothing to do.",
            buckets=REDIS_S, registry=self._own,
        )  # fmt: skip
        self._reap_lag = Gauge(
            "gpu_broker_reap_lag_seconds", "Lateness of the last reap.",
            registry=self._own, multiprocess_mode="mostrecent",
        )  # fmt: skip

    def asked(self, scope: Scope) -> None:
        """Count a request."""
        self._requests.count(scope["method"], path_of(scope))

    def answered(self, scope: Scope, status: int, took_s: float) -> None:
        """Count an answer, and the seconds to its first byte."""
        named = _method(scope), _route(scope), status
        series = self._series.get(named)
        if series is None:
            method, route, _ = named
            counter = self._answered.labels(method, route, str(status))
            series = self._series[named] = counter, self._took.labels(route)
        series[0].inc()
        series[1].observe(took_s)

    def looked(self, took_s: float | None, lag_s: float) -> None:
        """Note a reap of the ticker.

        `took_s`: its round trip, None without an answer; `lag_s`: its lateness.
        """
        self._redis_up.set(float(took_s is not None))
        if took_s is not None:
            self._redis_took.observe(took_s)
        self._reap_lag.set(lag_s)

    def text(self, seen: PoolReading | None, sample: Sample | None) -> bytes:
        """Return the exposition; without the pool, only this process's own figures."""
        return b"".join(self.parts(seen, sample))

    def parts(self, seen: PoolReading | None, sample: Sample | None) -> Iterator[bytes]:
        """Yield the exposition in parts; an empty one is a pause in the work."""
        yield from map(_rendered, self._shared(seen, sample))
        if seen is not None:
            yield from _of_devices(seen.devices, seen.pool)
        yield generate_latest(self._counted())

    def _counted(self) -> CollectorRegistry:
        """Return what this process has counted, or all workers together."""
        if not self._shared_in:
            return self._own
        together = CollectorRegistry()
        MultiProcessCollector(together, self._shared_in)  # type: ignore[no-untyped-call] # untyped there
        return together

    def _shared(self, seen: PoolReading | None, sample: Sample | None) -> Iterator[Metric]:
        uptime_s = time.monotonic() - self._started
        yield from families(
            uptime_s, seen.pool if seen else None, sample,
            mps=seen is not None and any(d.telemetry["mps"] for d in seen.devices),
        )  # fmt: skip
        yield InfoMetricFamily("gpu_broker_build", "This replica.", value=self._about)
        if seen is not None:
            yield from pool_families(seen)


def _share(place: WorkerPlace) -> None:
    """Keep what this process counts in files, where all workers read it at each scrape.

    The environment of a worker names their folder.
    """
    values.ValueClass = values.MultiProcessValue(lambda: place.number)  # type: ignore[no-untyped-call] # untyped there


PART: Final = 16
"""Devices whose series are made at once."""

HEAD_LINES: Final = 2
"""Lines of a family before its series: its help and its type."""

METHODS: Final = {"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"}


def _method(scope: Scope) -> str:
    """Return the method, or `other`: a client may send any word."""
    return scope["method"] if scope["method"] in METHODS else "other"


def _route(scope: Scope) -> str:
    """Return the route's template, or `other`: a client may send any path."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))


def _rendered(family: Metric) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Snapshot([family]))
    return generate_latest(registry)


def _of_devices(devices: Sequence[DeviceStatus], pool: PoolStatus) -> Iterator[bytes]:
    """Yield the families of devices, each whole, as the format wants them; they are made in parts.

    A device and its parts are told of alike, whatever part of the work each falls into.
    """
    counted = {device.uuid for device in counted_once(devices)}
    texts: dict[str, list[bytes]] = {}
    for start in range(0, max(1, len(devices)), PART):  # without any: the heads alone
        for family in device_families(devices[start : start + PART], counted, pool):
            text = _rendered(family)
            before = texts.setdefault(family.name, [])
            before.append(text.split(b"\n", HEAD_LINES)[-1] if before else text)
            yield b""
    yield from map(b"".join, texts.values())


class _Snapshot:
    """Collector of finished families."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families

"""Labelled families of the pool, equal at every replica. Memory in bytes, times in seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from agent_sdk.state.lists import shown_state
from agent_sdk.usage.totals import UsageTotals
from broker.hooks.registry import HooksSeen
from broker.metrics.health import DEVICE, MIB, findings_family, health_families
from broker.metrics.hooks import hook_families
from broker.metrics.teams import team_families
from broker.metrics.usage import usage_families

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.snapshot import HostStatus, PoolStatus
    from agent_sdk.teams.status import TeamStatus
    from broker.maintenance.store_check import StoreMemory

OTHER: Final = "other"

STATES: Final = (
    "ok", "drained", "away", "stopping", "lost", "quarantined", "dirty", "mig",
    "prohibited", OTHER,
)  # fmt: skip
"""States of a device; any other word counts as `other`."""

ENDS: Final = ("released", "expired", "revoked", "preempted")

QUEUE: Final = ("enqueued", "offered", "timed_out", "cancelled")

REFUSED: Final = "refused_"


@dataclass(frozen=True, slots=True)
class PoolReading:
    """Reading of the pool at one moment.

    Attributes:
        devices: those with series of their own, in their order.
        hosts: likewise.
        oldest_ms: the entry of the oldest waiter into the queue; None: nothing waits.
        states: how many devices of the whole pool are in each state; None: those of `devices`.
        left_out: kind -> how many have no series of their own.
        hooks: the webhooks.
        teams: those with a policy, and the default one; none, where no team has a policy.
        usage: totals of use, of those with a policy and the default one.
        memory: that of the store's server; None: it does not tell.
    """

    pool: PoolStatus
    devices: Sequence[DeviceStatus]
    hosts: Sequence[HostStatus]
    oldest_ms: int | None
    states: Mapping[str, int] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    hooks: HooksSeen = field(default_factory=HooksSeen)
    teams: Sequence[TeamStatus] = ()
    usage: UsageTotals = field(default_factory=UsageTotals)
    memory: StoreMemory | None = None


def pool_families(seen: PoolReading) -> Iterator[Metric]:
    """Yield the families that are not of single devices."""
    pool = seen.pool
    yield from _policy(pool)
    yield from _leases(pool)
    yield from _queue(pool, seen.oldest_ms)
    yield from _counts(seen)
    yield findings_family(seen.devices)
    yield from _hosts(pool, seen.hosts)
    yield from hook_families(seen.hooks)
    yield from team_families(pool, seen.teams)
    yield from usage_families(seen.usage)
    yield from _store(seen.memory)


def device_families(
    devices: Sequence[DeviceStatus], counted: Container[str], pool: PoolStatus
) -> Iterator[Metric]:
    """Yield the families of some devices.

    Args:
        devices: the devices.
        counted: ids of the devices whose memory counts: a divided GPU has its parts.
        pool: its policy says what is free.
    """
    yield from _devices(devices, counted, pool)
    yield from health_families(devices)


def _counts(seen: PoolReading) -> Iterator[Metric]:
    """Yield how many devices are in each state, and how much has no series of its own."""
    states = Counter(map(state_of, seen.devices)) if seen.states is None else seen.states
    now = GaugeMetricFamily(
        "gpu_broker_devices", "GPUs of the whole pool in this state.", labels=["state"]
    )
    for word in STATES:
        known = states.get(word, 0)
        other = sum(count for each, count in states.items() if each not in STATES)
        now.add_metric([word], known + other if word == OTHER else known)
    yield now
    left_out = GaugeMetricFamily(
        "gpu_broker_series_left_out", "GPUs and hosts without series of their own.",
        labels=["kind"],
    )  # fmt: skip
    for kind in ("devices", "hosts"):
        left_out.add_metric([kind], seen.left_out.get(kind, 0))
    yield left_out


def _hosts(pool: PoolStatus, hosts: Sequence[HostStatus]) -> Iterator[Metric]:
    age = GaugeMetricFamily(
        "gpu_broker_host_report_age_seconds", "Since a host's last report.", labels=["host"]
    )
    trouble = GaugeMetricFamily(
        "gpu_broker_host_trouble", "1 while a host that reports does not see all its GPUs.",
        labels=["host"],
    )  # fmt: skip
    warning = GaugeMetricFamily(
        "gpu_broker_host_warning", "1 while a host that reports has a warning for its operator.",
        labels=["host"],
    )  # fmt: skip
    for host in hosts:
        alive = host.alive(pool.now_ms)
        age.add_metric([host.host], max(0, pool.now_ms - host.reported_ms) / 1000)
        trouble.add_metric([host.host], float(alive and host.trouble != ""))
        warning.add_metric([host.host], float(alive and host.warning != ""))
    yield from (age, trouble, warning)


def state_of(device: DeviceStatus) -> str:
    """Return the word for a device's state: drained is one where nothing worse is."""
    return shown_state(device.state, drained=device.drained)


def _policy(pool: PoolStatus) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "gpu_broker_pool",
        "The pool's data: a new epoch is a pool that lost them.",
        value={"epoch": pool.epoch, "policy_version": str(pool.policy_version)},
    )
    yield _gauge("pool_closed", "1 while it hears holders first and grants nothing.",
                 float(pool.closed_until_ms > pool.now_ms))  # fmt: skip
    yield _gauge("safe_mode", "1 while no GPU is leased.", float(pool.safe_mode))


def _leases(pool: PoolStatus) -> Iterator[Metric]:
    now = GaugeMetricFamily("gpu_broker_leases", "Leases and waiters now.", labels=["state"])
    now.add_metric(["active"], pool.active_leases)
    now.add_metric(["active_cpu"], pool.active_cpu_leases)
    now.add_metric(["waiting"], pool.waiting)
    yield now
    granted = CounterMetricFamily("gpu_broker_grants", "Leases granted.", labels=["kind"])
    ended = CounterMetricFamily(
        "gpu_broker_lease_ends", "Leases that ended, by reason.", labels=["kind", "reason"]
    )
    for kind, prefix in (("gpu", ""), ("cpu", "cpu_")):
        granted.add_metric([kind], pool.stats.get(f"{prefix}granted", 0))
        for how in ENDS:
            ended.add_metric([kind, how], pool.stats.get(f"{prefix}{how}", 0))
    yield granted
    recovered = CounterMetricFamily(
        "gpu_broker_recoveries", "Leases that the pool had forgotten, and recovered.",
        labels=["kind"],
    )  # fmt: skip
    for kind, prefix in (("gpu", ""), ("cpu", "cpu_")):
        recovered.add_metric([kind], pool.stats.get(f"{prefix}recovered", 0))
    yield recovered
    yield ended
    refused = CounterMetricFamily(
        "gpu_broker_refusals", "Requests that were refused, by code.", labels=["reason"]
    )
    for name, count in sorted(pool.stats.items()):
        if name.startswith(REFUSED):
            refused.add_metric([name.removeprefix(REFUSED)], count)
    yield refused


def _store(memory: StoreMemory | None) -> Iterator[Metric]:
    if memory is None:
        return
    yield _gauge("redis_memory_used_bytes", "Memory that the store uses.", memory.used)
    if memory.limit:
        yield _gauge("redis_memory_limit_bytes", "Its maxmemory, at which it takes no new leases.",
                     memory.limit)  # fmt: skip


def _queue(pool: PoolStatus, oldest_ms: int | None) -> Iterator[Metric]:
    passed = CounterMetricFamily(
        "gpu_broker_queue_events", "Waiters enqueued, offered, timed out, cancelled.",
        labels=["event"],
    )  # fmt: skip
    for name in QUEUE:
        passed.add_metric([name], pool.stats.get(name, 0))
    yield passed
    since_ms = pool.now_ms if oldest_ms is None else oldest_ms
    yield _gauge("oldest_waiter_seconds", "Longest present wait; 0 = none.",
                 max(0, pool.now_ms - since_ms) / 1000)  # fmt: skip


def _devices(
    devices: Sequence[DeviceStatus], counted: Container[str], pool: PoolStatus
) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "gpu_broker_device_info", "1; joined by uuid.", labels=[*DEVICE, "name", "simulated"]
    )
    state = GaugeMetricFamily(
        "gpu_broker_device_state", "1 for the state that it is in.", labels=[*DEVICE, "state"]
    )
    leases = GaugeMetricFamily("gpu_broker_device_leases", "Leases on it.", labels=DEVICE)
    memory = {
        name: GaugeMetricFamily(f"gpu_broker_device_memory_{name}_bytes", says, labels=DEVICE)
        for name, says in (
            ("total", "All of it."),
            ("leased", "Promised to leases."),
            ("used", "In use as the driver sees it."),
            ("unleased", "In use and not leased, so not given: by processes, or by no known one."),
            ("withheld", "Of ended leases, not given again yet."),
            ("free", "Free for the next request: none where no new lease may begin."),
        )
    }
    read = {
        name: GaugeMetricFamily(f"gpu_broker_device_{name}", says, labels=DEVICE)
        for name, says in (
            ("utilization_ratio", "Share of time in which it computed."),
            ("temperature_celsius", "Temperature of the GPU."),
            ("power_watts", "Drawn now."),
        )
    }
    for device in devices:
        who = [device.host, str(device.index), device.uuid]
        info.add_metric([*who, device.name, str(device.simulated).lower()], 1)
        now = state_of(device)
        for word in STATES:
            is_it = word == (now if now in STATES else OTHER)
            state.add_metric([*who, word], float(is_it))
        leases.add_metric(who, device.leases)
        values = {
            "total": device.total_mb,
            "leased": device.leased_mb,
            "used": device.used_mb,
            "unleased": device.unleased_mb,
            "withheld": device.withheld_mb,
            "free": pool.free_mb(device),
        }
        counts = device.total_mb > 0 and device.uuid in counted
        for name, mb in values.items():
            promised = name in {"leased", "withheld"}
            if mb is not None and (promised or counts):
                memory[name].add_metric(who, mb * MIB)
        percent = device.telemetry["utilization_gpu_pct"]
        measured = {
            "utilization_ratio": None if percent is None else percent / 100,
            "temperature_celsius": device.telemetry["temperature_c"],
            "power_watts": device.telemetry["power_draw_w"],
        }
        for name, value in measured.items():
            if value is not None:
                read[name].add_metric(who, value)
    yield from (info, state, leases, *memory.values(), *read.values())


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gpu_broker_{name}", says, value=value)

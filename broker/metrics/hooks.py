"""Families of webhooks. No label names a hook: its owner chose the name."""

from __future__ import annotations

from collections import Counter as Counted
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily

from broker.hooks.hook import ACTIVE, DISABLED, FAILING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from broker.hooks.registry import HooksSeen

RESULTS: Final = ("delivered", "failed")

MISSED: Final = "missed"


class HookCounts:
    """Counts of what this process has sent.

    Args:
        registry: the registry of the counters.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        sent = Counter(
            "gpu_broker_hook_deliveries", "Messages to webhooks, by how each try ended.",
            ["result"], registry=registry,
        )  # fmt: skip
        self._counters = {result: sent.labels(result) for result in RESULTS}
        self._counters[MISSED] = Counter(
            "gpu_broker_hook_missed_events", "Events that fell out of the stream unsent.",
            registry=registry,
        )  # fmt: skip

    def __call__(self, what: str, amount: int = 1) -> None:
        """Count tries, or missed events."""
        self._counters[what].inc(amount)


def hook_families(seen: HooksSeen) -> Iterator[Metric]:
    """Yield the families that are the same at every replica."""
    states = Counted(hook.state for hook in seen.hooks)
    now = GaugeMetricFamily("gpu_broker_hooks", "Webhooks in this state.", labels=["state"])
    for state in (ACTIVE, FAILING, DISABLED):
        now.add_metric([state], states[state])
    yield now
    yield GaugeMetricFamily(
        "gpu_broker_hook_backlog_events", "Most events of the stream that are before a webhook.",
        value=max((seen.end.backlog(hook) for hook in seen.hooks), default=0),
    )  # fmt: skip

"""Processes of a device, whatever a reporter has written of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.state import snapshot
from broker.live.slices import dumped
from broker.metrics import Metrics
from broker.metrics.pool import PoolReading
from broker.serializers import device_json
from tests.pools import device

if TYPE_CHECKING:
    from tests.pools import Pool

HUGE = "1" + "0" * 400

FINE = '{"pid": 1, "memory_mb": 10, "name": "fine"}'


@pytest.mark.parametrize(
    ("processes", "known"),
    [
        (FINE, True),
        ('{"pid": 1, "busy_pct": NaN}', True),
        ('{"pid": 1, "busy_pct": -Infinity}', True),
        (f'{{"pid": 1, "busy_pct": {HUGE}}}', False),
        (f'{{"pid": 1, "memory_mb": {HUGE}}}', False),
        ('{"pid": 1, "memory_mb": Infinity}', False),
        ('{"pid": 1, "since_ms": 1e999}', False),
        ('{"pid": 1e999}', False),
        ('{"pid": 1, "start": NaN}', False),
        (r'{"pid": 1, "name": "\ud800", "user": "\udfff", "token": "\ud800"}', True),
        ('{"pid": "x"}', False),
        ("[]", False),
    ],
)
def test_processes_of_any_form_hide_nothing_else(pool: Pool, processes: str, known: bool) -> None:
    """The verb takes any text: no list of devices, no page and no metrics fail by it."""
    odd = device("gpu-b", index=1, processes=f"[{processes}]")
    pool.report((device("gpu-a", processes=f"[{FINE}]"), odd))
    devices = pool.look(snapshot.devices(pool.keys))
    rows: Any = [device_json.row(each, str) for each in devices]
    assert json.loads(dumped(rows).encode()) == rows
    assert [row["processes"] is not None for row in rows] == [True, known]
    for row in rows:
        assert all(process["busy_pct"] is None for process in row["processes"] or ())
    seen = PoolReading(pool.look(snapshot.pool(pool.keys)), devices, (), None)
    assert b'gpu_broker_device_processes{gpu="0"' in Metrics().text(seen, None)

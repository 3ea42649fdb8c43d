"""Processes, findings and health by HTTP, for each role; and the counts in the metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import LeaseClient, Store
from agent_sdk.state.finding_kinds import KINDS
from broker.metrics import Metrics
from broker.metrics.pool import PoolReading
from broker.serializers import device_json
from tests.api.brokers import GRANTING, Broker
from tests.api.keys import new_key
from tests.api.sse import following
from tests.found import BLIND, FIRST, HOST, QUARANTINE, SECOND, UNSEEN, find, report, tell
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024


class Door:
    """A broker with a viewer's and an operator's key, and a pool in which something is found.

    Attributes:
        token: of the lease that uses too much.
    """

    def __init__(self, broker: Broker, client: LeaseClient, file: Path) -> None:
        self.broker = broker
        self.client = client
        self.keys = {role: new_key(file, role, role) for role in ("viewer", "operator")}
        self.token = find(client)
        lease = client.leases()[0]
        self.name = f"{self.token[:8]}…{lease.fence}"

    def ask(self, who: str, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        return self.broker.http.get(path, headers=headers).json()

    def rows(self, who: str) -> dict[str, dict[str, Any]]:
        return {row["uuid"]: row for row in self.ask(who, "/gpu/info")["gpus"]}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    new_key(file, "first", "operator")
    away = {"GPU_BROKER_DEVICES": "none", "GPU_BROKER_HOSTNAME": "h2"}
    with (
        running() as server,
        LeaseClient(Store(server.url), hostname=HOST) as client,
    ):
        settings = GRANTING | away | {"REDIS_URL": server.url, "GPU_BROKER_KEYS_FILE": str(file)}
        with Broker(**settings) as broker:
            broker.wait()
            report(client)
            yield Door(broker, client, file)


def test_rows_have_processes_findings_and_health(door: Door) -> None:
    """Beside the documented names; what cannot be seen is null, with why."""
    rows = door.rows("operator")
    first = rows[FIRST]
    assert [p["pid"] for p in first["processes"]] == [991, 4711, 77]
    assert first["processes"][1] == {
        "pid": 4711, "name": "python3", "user": "ann", "memory_mb": 5120, "busy_pct": 79.6,
        "graphics_only": False, "token": door.token, "finding": None, "since": 1_795_607_400.0,
    }  # fmt: skip
    assert first["processes"][0]["token"] is None
    assert first["findings"] == [
        {"kind": "overuse", "subject": door.token}, {"kind": "squatter", "subject": "991"},
        {"kind": "orphan", "subject": "77"},
    ]  # fmt: skip
    health = {"mps": True, "rows_pending": False, "recovery_action": 0, "ecc_uncorrected": 0,
              "power_limit_w": 72.0, "clock_sm_mhz": 2040.0, "quarantine": "", "xid": None,
              "xid_at": None, "parent": None, "process_visibility": "host",
              "processes_unseen": None}  # fmt: skip
    assert first.items() >= health.items()
    wrong = {"quarantine": QUARANTINE, "xid": 79, "xid_at": 1_795_607_400.5, "recovery_action": 1,
             "state": "quarantined", "processes": [], "mps": None}  # fmt: skip
    assert rows[SECOND].items() >= wrong.items()
    blind = {"processes": None, "processes_unseen": UNSEEN, "process_visibility": "none",
             "parent": "GPU-0"}  # fmt: skip
    assert rows[BLIND].items() >= blind.items()


def test_viewer_is_told_the_same_with_masked_tokens(door: Door) -> None:
    """Its tokens tell a lease from others, and are too short to be used."""
    answer = str(door.ask("viewer", "/gpu/info"))
    assert door.token not in answer
    assert "0" * 16 not in answer
    first = door.rows("viewer")[FIRST]
    assert first["processes"][1]["token"] == f"{door.token[:8]}…"
    assert first["findings"][0] == {"kind": "overuse", "subject": f"{door.token[:8]}…"}
    assert first["findings"][1] == {"kind": "squatter", "subject": "991"}


def test_leases_have_findings_and_notices(door: Door) -> None:
    """Found of it now, and what its holder was told."""
    (lease,) = door.ask("operator", "/allocations")["allocations"].values()
    assert (lease["findings"], lease["notices"]) == (["overuse"], ["overuse"])
    alone = door.ask("operator", f"/lease/{door.token}")
    assert (alone["findings"], alone["notices"]) == (["overuse"], ["overuse"])


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_page_is_told_processes_by_the_names_of_its_rows(door: Door, role: str) -> None:
    """The short token finds the lease; a whole token is in the lease's own row alone."""
    headers = {"Authorization": f"Bearer {door.keys[role]}"}
    with following(door.broker, "/live", **headers) as stream:
        (reset,) = stream.take(1)
    rows = reset.data["rows"]
    assert door.name in rows["leases"]
    assert rows["devices"][FIRST]["processes"][1]["token"] == door.name
    assert rows["devices"][FIRST]["processes"][2]["token"] == "00000000…"
    assert rows["devices"][FIRST]["findings"][0]["subject"] == door.name
    assert door.token not in str(rows["devices"])
    assert rows["leases"][door.name]["findings"] == ["overuse"]
    assert rows["pool"]["pool"]["idle_action"] == "observe"


def test_page_is_told_a_finding_when_it_happens(door: Door) -> None:
    """The event names the device and the lease: both rows are read again, not after 5 s alone."""
    headers = {"Authorization": f"Bearer {door.keys['operator']}"}
    event = {"event": "finding_raised", "finding": "idle", "device": FIRST, "host": HOST,
             "token": door.token, "agent": "trainer"}  # fmt: skip
    with following(door.broker, "/live", **headers) as stream:
        stream.take(1)
        began = time.monotonic()
        tell(door.client, FIRST, idle=door.token)
        door.client.redis.xadd(door.client.keys.events, event)
        try:
            while True:
                (change,) = stream.take(1)
                if change.data["rows"].get("leases"):
                    break
        finally:
            door.client.redis.hdel(door.client.keys.device(FIRST), "idle")
            door.client.redis.hincrby(door.client.keys.pool, "sequence", 1)
    assert time.monotonic() - began < 2
    assert change.data["rows"]["leases"][door.name] == {"findings": ["overuse", "idle"]}
    kinds = [each["kind"] for each in change.data["rows"]["devices"][FIRST]["findings"]]
    assert kinds == ["idle", "overuse", "squatter", "orphan"]
    (told,) = change.data["events"]
    assert (told["event"], told["finding"], told["token"]) == ("finding_raised", "idle", door.token)


def series(door: Door) -> dict[str, float]:
    """Series -> value."""
    headers = {"Authorization": f"Bearer {door.keys['viewer']}"}
    lines = door.broker.http.get("/metrics", headers=headers).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_metrics_count_findings_and_tell_health(door: Door) -> None:
    """Every finding of every host, 0 too; of a device what its host can tell, and nothing else."""
    found = series(door)

    def of(name: str, gpu: int) -> float | None:
        labels = f'gpu="{gpu}",host="{HOST}",uuid="GPU-{gpu + 1}"'
        return found.get(f"gpu_broker_device_{name}{{{labels}}}")

    counts = {word: found[f'gpu_broker_findings{{finding="{word}",host="h1"}}'] for word in KINDS}
    assert counts == {"idle": 0, "overuse": 1, "squatter": 1, "orphan": 1, "degraded": 0}
    assert [of("processes", n) for n in range(3)] == [3, 0, None]
    assert [of("unleased_memory_bytes", n) for n in range(3)] == [500 * MIB, 0, None]
    assert [of("quarantined", n) for n in range(3)] == [0, 1, 0]
    assert [of("xid_last", n) for n in range(3)] == [None, 79, None]
    assert of("xid_last_timestamp_seconds", 1) == 1_795_607_400.5
    assert [of("recovery_action", n) for n in range(3)] == [0, 1, None]
    assert [of("ecc_uncorrected_errors", n) for n in range(3)] == [0, None, None]
    assert of("clock_sm_hertz", 0) == 2_040_000_000
    assert of("clock_memory_hertz", 0) == 6_251_000_000
    assert [of("power_limit_watts", n) for n in range(3)] == [72, None, None]
    labels = f'gpu="1",host="{HOST}",state="quarantined",uuid="{SECOND}"'
    assert found[f"gpu_broker_device_state{{{labels}}}"] == 1
    assert found["gpu_orchestrator_mps_enabled"] == 1
    assert door.token[:8] not in str(found.keys())


def test_mps_is_told_by_the_pool_and_no_device_means_none(door: Door) -> None:
    """Whichever host's it is."""
    seen = PoolReading(door.client.pool(), door.client.devices()[1:], (), None)
    assert b"gpu_orchestrator_mps_enabled 0.0" in Metrics().text(seen, None)
    assert b"gpu_orchestrator_mps_enabled 0.0" in Metrics().text(None, None)
    assert device_json.row(door.client.devices()[0], str)["mps"] is True

"""`gpu-broker top`: GPUs, agents and processes of a real pool, once and live."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.testing import running_broker
from tests.api.brokers import eventually
from tests.program import called
from tests.unit.screens import screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker

TOKEN = "lease-of-the-trainer"


def process(pid: int, memory_mb: int, busy_pct: float, **more: Any) -> dict[str, Any]:
    """Return a process as a host's report has it."""
    known = {"name": f"program-{pid}", "user": "ann", "token": "", "finding": "", "since_ms": 1}
    return known | {"pid": pid, "memory_mb": memory_mb, "busy_pct": busy_pct} | more


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    """Two devices; a lease with two processes on the one, a squatter on the other."""
    with running_broker(devices=2, memory_mb=4000) as running:
        client = running.client
        lease = client.acquire("trainer", memory_mb=1000, token=TOKEN)
        other = next(d.uuid for d in client.devices() if d.uuid != lease.devices[0].uuid)
        on = {
            lease.devices[0].uuid: [process(11, 600, 10, token=TOKEN),
                                    process(12, 300, 90, token=TOKEN)],
            other: [process(13, 2000, 0, finding="squatter")],
        }  # fmt: skip
        for uuid, listed in on.items():
            told = {"processes": json.dumps(listed), "utilization_gpu_pct": "90"}
            client.redis.hset(client.keys.device(uuid), mapping=told)
        yield running


def settings(pool: TestBroker) -> dict[str, str]:
    """Return the settings of a call."""
    return {"REDIS_URL": pool.url, "GPU_BROKER_HOSTNAME": pool.host}


def printed(pool: TestBroker, *words: str) -> str:
    """Return what a call prints."""
    done = called("top", *words, **settings(pool))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("asked", "pids"),
    [
        ((), [12, 11, 13]),
        (("--sort", "memory"), [13, 11, 12]),
        (("--agent", "trainer"), [12, 11]),
        (("--host", "nobody"), None),
    ],
)
def test_top_orders_and_filters_processes(
    pool: TestBroker, asked: tuple[str, ...], pids: list[int] | None
) -> None:
    """By use or memory; each has its agent; a wrong name is refused."""
    if pids is None:
        refused = called("top", *asked, **settings(pool)).stderr
        assert "no host and no device is called 'nobody'" in refused
        return
    told = json.loads(printed(pool, *asked, "-o", "json"))
    assert [each["pid"] for each in told["processes"]] == pids
    assert {p["pid"]: p["agent"] for p in told["processes"]}.get(13, "") == ""
    (trainer,) = told["agents"]
    assert trainer == {"agent": "trainer", "leases": 1, "gpus": 1, "leased_mb": 1000,
                       "used_mb": 900, "processes": 2,
                       "waiting": None if "--agent" in asked else 0}  # fmt: skip


def test_top_for_people_has_gpus_agents_and_processes(pool: TestBroker) -> None:
    """In three tables; a process without a lease has its finding."""
    lines = printed(pool).splitlines()
    assert any(line.startswith("test-host:0  90 %  #########·") for line in lines)
    assert any(line.split()[:3] == ["trainer", "1", "1"] for line in lines)
    (squatter,) = [line for line in lines if "program-13" in line]
    assert squatter.endswith("squatter")


def test_top_is_drawn_in_place(pool: TestBroker) -> None:
    """At once after an event, such as a new lease."""
    with screen(pool, "top", columns=120, lines=40) as shown:
        eventually(lambda: "program-12" in shown.picture, 10)
        lease = pool.client.acquire("newcomer", memory_mb=100)
        eventually(lambda: "newcomer" in shown.picture, 10)
        pool.client.release(lease)
        assert shown.end() == 0


def test_pool_to_which_no_host_has_reported_is_called_so(pool: TestBroker) -> None:
    """It has no SAFE_MODE and no processes; the message says how a host comes."""
    new = settings(pool) | {"GPU_BROKER_POOL": "new"}
    assert called("top", **new).stdout == called("status", **new).stdout
    assert "start gpu-broker serve" in called("top", **new).stdout
    refused = called("explain", "--agent", "me", **new)
    assert refused.returncode == 69
    assert refused.stderr.count("gpu-broker serve") == 1
    assert "gpu-broker host" in refused.stderr

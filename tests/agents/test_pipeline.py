"""The pipeline of three agents, with an orchestrator, without one, and while it dies."""

from __future__ import annotations

import logging
import os
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk.keys import Keys
from tests.agents.processes import BATCH_S, NOBODY, Agents, Pipeline, agents, broker_at, url_of
from tests.api.brokers import eventually
from tests.audit import audit
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.api.brokers import Broker
    from tests.servers import Server

log = logging.getLogger(__name__)

BACK_S = 5.0
"""From a broker that is ready to an analyst that leases from it."""

BATCHES, PAUSE_S = 24, 0.7
"""Batches, and pauses in seconds, that last longer than a pool is closed after Redis was killed."""

KEEPS = ("--appendonly", "yes")
"""Options of a Redis that comes back with its data."""

SOAK = os.environ.get("GPU_BROKER_SOAK") == "1"


@pytest.fixture(scope="module")
def alone() -> Iterator[Agents]:
    """Agents whose orchestrator is not there."""
    with agents(NOBODY) as line:
        yield line


def test_pipeline_without_an_orchestrator_completes(alone: Agents, tmp_path: Path) -> None:
    """All of it on the CPU, with the reason, and exit 0."""
    with Pipeline(alone, tmp_path / "out", "--articles", "5") as pipeline:
        code, done = pipeline.end()
    assert code == 0
    assert (done["articles"], done["completed"]) == (5, 5)
    told = [(step["batch"], step["device"], step["reason"]) for step in done["steps"]]
    assert told == [(n, "cpu", "unreachable") for n in (1, 2, 3)]


def test_pipeline_without_an_agent_is_an_error(alone: Agents, tmp_path: Path) -> None:
    """Exit 1, and the output says how far it got and who failed."""
    with Pipeline(alone, tmp_path / "out", critic=NOBODY) as pipeline:
        code, done = pipeline.end()
    assert (code, done["articles"], done["completed"]) == (1, 8, 0)
    assert NOBODY in done["error"]


def test_critic_agrees_with_the_analyst_on_what_is_shipped(alone: Agents) -> None:
    """None of the eight articles has a label that its words contradict; a wrong one is flagged."""
    articles = alone.scout.post("/fetch", {"limit": 8})["articles"]
    results = alone.analyst.post("/analyze", {"articles": articles})["results"]
    work: dict[str, Any] = {"articles": articles, "results": results}
    assert [x["flags"] for x in alone.critic.post("/review", work)["reviews"]] == [[]] * 8
    wrong = [{"id": result["id"], "label": "negative"} for result in results]
    reviews = alone.critic.post("/review", work | {"results": wrong})["reviews"]
    assert sum(review["consistent"] for review in reviews) == 2
    assert reviews[0]["flags"] == ["label_disagrees"]


def test_scout_begins_again_with_new_ids(alone: Agents) -> None:
    """More articles than are shipped: every one has an id of its own."""
    articles = alone.scout.post("/fetch", {"limit": 20})["articles"]
    assert len({article["id"] for article in articles}) == 20
    assert alone.scout.http.post("/fetch", json={"limit": -1}).status_code == 422


def test_pipeline_with_an_orchestrator_leases_for_the_analyst_alone(
    server: Server, tmp_path: Path
) -> None:
    """One lease for each batch, all of the analyst; scout and critic ask for none."""
    with (
        broker_at(server).wait() as broker,
        agents(url_of(broker), "--pause", "0.1") as line,
        Pipeline(line, tmp_path / "out") as pipeline,
    ):
        holders: set[str] = set()
        while pipeline.process.poll() is None:
            holders |= {lease["agent"] for lease in broker.allocations().values()}
        code, done = pipeline.end()
        assert (code, done["completed"]) == (0, 8)
        assert [step["device"] for step in done["steps"]] == ["gpu"] * 4
        assert holders == {"analyst"}
        assert broker.allocations() == {}
        assert broker.metrics()["gpu_orchestrator_lease_requests_total"] == 4


@contextmanager
def in_mid_pipeline(
    server: Server, tmp_path: Path, batches: int, pool: str, pause_s: float = 0.2
) -> Iterator[tuple[Broker, Agents, Pipeline]]:
    """A run that has had two batches on the GPU and holds a lease for another."""
    with (
        broker_at(server, GPU_BROKER_POOL=pool).wait() as broker,
        agents(url_of(broker), "--pause", "0.1") as line,
        Pipeline(
            line, tmp_path / "out", "--pause", str(pause_s), "--articles", str(2 * batches)
        ) as pipeline,
    ):
        pipeline.until(2)
        eventually(broker.allocations, 5)
        time.sleep(random.uniform(0, 0.2))
        yield broker, line, pipeline


def completed(pipeline: Pipeline, batches: int) -> list[dict[str, Any]]:
    """The steps of a run that lost no batch, and no time with one."""
    code, done = pipeline.end()
    assert (code, done["completed"]) == (0, 2 * batches), done
    assert max(step["seconds"] for step in done["steps"]) < BATCH_S, done
    assert [step["device"] for step in done["steps"][:2]] == ["gpu", "gpu"]
    return list(done["steps"])


def leases_again(broker: Broker, line: Agents) -> float:
    """Wait until the analyst is on the GPU, and nothing is leased after it; how long that took."""
    began = time.monotonic()
    eventually(lambda: line.analyst.devices() == {"gpu"}, BACK_S, every_s=0.1)
    took = time.monotonic() - began
    eventually(lambda: not broker.allocations(), BACK_S)
    return took


def all_die_and_come_back(tmp_path: Path, *redis: str) -> None:
    keys = Keys(uuid4().hex)
    with running("redis", *redis) as server:
        with in_mid_pipeline(server, tmp_path, 7, keys.pool_name) as (broker, line, pipeline):
            broker.kill()
            time.sleep(random.uniform(0, 0.5))
            server.kill()
            steps = completed(pipeline, 7)
            assert [step["device"] for step in steps[-3:]] == ["cpu"] * 3
            assert line.analyst.devices() == {"cpu"}
            server.start()
            with server.connect() as client:
                left = len(list(client.scan_iter(f"{keys.base}:lease:*")))
            with broker_at(server, broker.port, GPU_BROKER_POOL=keys.pool_name).wait() as second:
                back_s = leases_again(second, line)
        with server.connect() as client:
            audit(client, keys)
    slowest_s = max(step["seconds"] for step in steps)
    said = "slowest batch %.2f s; on the GPU again %.2f s after /ready; leases left to return: %d"
    log.info(said, slowest_s, back_s, left)


@pytest.mark.parametrize("redis", [(), KEEPS], ids=["empty", "kept"])
def test_broker_and_redis_killed_in_mid_pipeline_cost_no_batch(
    tmp_path: Path, redis: tuple[str, ...]
) -> None:
    """The run completes on the CPU; when both are back so are the leases, and none was leaked."""
    all_die_and_come_back(tmp_path, *redis)


@pytest.mark.slow
@pytest.mark.skipif(not SOAK, reason="a minute and more; GPU_BROKER_SOAK=1 runs it")
@pytest.mark.parametrize("turn", range(10))
def test_broker_and_redis_killed_in_mid_pipeline_ten_times(tmp_path: Path, turn: int) -> None:
    """The same at ten random moments, by turns with the data lost and kept."""
    all_die_and_come_back(tmp_path, *(KEEPS if turn % 2 else ()))


def test_redis_alone_killed_in_mid_pipeline_costs_no_batch(tmp_path: Path) -> None:
    """The broker says so, the run goes on on the CPU, and is on the GPU again before its end."""
    with (
        running("redis", *KEEPS) as server,
        in_mid_pipeline(server, tmp_path, BATCHES, uuid4().hex, PAUSE_S) as (
            broker,
            line,
            pipeline,
        ),
    ):
        server.kill()
        pipeline.until(5)
        server.start()
        devices = [step["device"] for step in completed(pipeline, BATCHES)]
        assert "cpu" in devices
        assert devices[-1] == "gpu"
        leases_again(broker, line)

"""The analyst's gating: when it asks for a lease, and what it does without one."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.agents.processes import NOBODY, Analyst, InBackground, articles, broker_at, url_of
from tests.api.brokers import Broker, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server

DECISION = {"use_gpu": True, "safe_mode": False, "gpu_available": True, "policy_fallback": False}

ASKED = "gpu_orchestrator_lease_requests_total"


@pytest.fixture(scope="module")
def broker(server: Server) -> Iterator[Broker]:
    """A broker that gives leases."""
    with broker_at(server).wait() as broker:
        yield broker


def test_safe_mode_asks_for_no_lease(server: Server) -> None:
    """The decision is enough: not one request, and all of it on the CPU."""
    with (
        broker_at(server, SAFE_MODE="true").wait() as broker,
        Analyst(url_of(broker)) as analyst,
    ):
        answer = analyst.analyze()
        assert {result["device"] for result in answer["results"]} == {"cpu"}
        assert answer["lease"] == {
            "gpu": "cpu", "uuids": [], "on_cpu": True, "reason": "safe_mode", "fence": 0,
        }  # fmt: skip
        assert answer["decision"]["use_gpu"] is False
        assert answer["decision"]["safe_mode"] is True
        assert broker.metrics()[ASKED] == 0
        assert analyst.get("/health")["gpu"] is False


def test_batch_holds_a_lease_and_gives_it_back(broker: Broker) -> None:
    """While it works /allocations shows the analyst alone, and nothing after it."""
    with Analyst(url_of(broker), "--pause", "0.2", "--memory", "600") as analyst:
        assert analyst.get("/decision").items() >= DECISION.items()
        before = broker.metrics()[ASKED]
        batch = InBackground(analyst, 3)
        (held,) = eventually(broker.allocations, 5).values()
        assert (held["agent"], held["gpu"], held["memory_mb"]) == ("analyst", 0, 600)
        answer = batch.end()
        assert answer["lease"] == {
            "gpu": 0, "uuids": ["SIM-h1-0"], "on_cpu": False, "reason": None,
            "fence": held["fence"],
        }  # fmt: skip
        assert [result["id"] for result in answer["results"]] == [x["id"] for x in articles(3)]
        assert {(x["device"], x["engine"]) for x in answer["results"]} == {("gpu", "numpy")}
        assert all(-1 <= x["sentiment"] <= 1 and x["keywords"] for x in answer["results"])
        assert answer["reason"] is None
        assert broker.allocations() == {}
        assert broker.metrics()[ASKED] == before + 1


def test_no_room_is_the_cpu_with_the_reason(broker: Broker) -> None:
    """Somebody else has the device; the CPU lease is given back too."""
    with Analyst(url_of(broker)) as analyst:
        other = broker.granted(agent="other", min_memory_mb=1000)
        answer = analyst.analyze()
        assert (answer["lease"]["on_cpu"], answer["lease"]["reason"]) == (True, "no_capacity")
        assert answer["reason"] == "no_capacity"
        assert {result["device"] for result in answer["results"]} == {"cpu"}
        assert list(broker.allocations()) == [other["token"]]
        broker.release(other["token"])
        assert analyst.devices() == {"gpu"}


def test_safe_mode_is_left_when_the_decision_is_asked_again(server: Server) -> None:
    """A broker with SAFE_MODE, then one without on its port; POST /decision knows at once."""
    pool = {"GPU_BROKER_POOL": "flip"}
    with (
        broker_at(server, SAFE_MODE="true", **pool).wait() as safe,
        Analyst(url_of(safe)) as analyst,
    ):
        assert analyst.devices() == {"cpu"}
        safe.stop()
        with broker_at(server, safe.port, **pool).wait():
            assert analyst.post("/decision").items() >= DECISION.items()
            assert analyst.devices() == {"gpu"}


def test_orchestrator_that_was_never_there_costs_nothing() -> None:
    """It starts, it works on the CPU, and a batch takes no longer for it."""
    with Analyst(NOBODY) as analyst:
        assert analyst.get("/decision")["policy_fallback"] is True
        began = time.monotonic()
        answers = [analyst.analyze() for _ in range(5)]
        assert time.monotonic() - began < 2
        assert {answer["reason"] for answer in answers} == {"unreachable"}
        assert analyst.stop() == 0


def test_orchestrator_that_hangs_costs_two_seconds_once(server: Server) -> None:
    """Stopped, not dead: it takes requests and answers none, until it goes on."""
    with broker_at(server).wait() as broker, Analyst(url_of(broker)) as analyst:
        assert analyst.devices() == {"gpu"}
        broker.process.send_signal(signal.SIGSTOP)
        assert analyst.devices() == {"cpu"}
        took = []
        for _ in range(3):
            time.sleep(0.8)  # longer in all than the client remembers a silence
            began = time.monotonic()
            assert analyst.devices() == {"cpu"}
            took.append(time.monotonic() - began)
        assert max(took) < 1
        broker.process.send_signal(signal.SIGCONT)
        eventually(lambda: analyst.devices() == {"gpu"}, 5, every_s=0.3)
        eventually(lambda: not broker.allocations(), 5)


def revoke(broker: Broker) -> str:
    broker.http.post("/revoke", json={"agent": "analyst", "reason": "test", "force": True})
    return "revoked"


def kill(broker: Broker) -> str:
    broker.kill()
    return "unreachable"


@pytest.mark.parametrize("end", [revoke, kill])
def test_lease_lost_in_mid_batch_falls_back(server: Server, end: Callable[[Broker], str]) -> None:
    """The rest of the batch is done on the CPU, within the ttl that the loss may take to show."""
    with (
        broker_at(server).wait() as broker,
        Analyst(url_of(broker), "--pause", "0.1", "--ttl", "1") as analyst,
    ):
        batch = InBackground(analyst, 18)
        eventually(broker.allocations, 20)
        reason = end(broker)
        answer = batch.end()
        devices = [result["device"] for result in answer["results"]]
        assert devices == sorted(devices, reverse=True)  # gpu first, and never again
        assert set(devices) == {"gpu", "cpu"}
        assert devices.count("gpu") <= 14
        assert answer["reason"] == answer["lease"]["reason"] == reason

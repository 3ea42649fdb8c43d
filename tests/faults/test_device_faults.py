"""Devices that fail under a real broker: heartbeats go on, the others are served."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, NoCapacity, Store
from tests.api.brokers import GRANTING, Broker, eventually
from tests.audit import audit

if TYPE_CHECKING:
    from tests.servers import Server

FAKE = Path(__file__).parents[1] / "fakes" / "nvml" / "nvml.c"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for NVML that the real nvidia-ml-py loads."""
    assert shutil.which("gcc"), "no gcc on PATH: apt-get install gcc libc6-dev"
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, FAKE], check=True)
    return folder


def settings(server: Server, **more: str) -> dict[str, str]:
    """A pool of its own, reported three times a second."""
    pool = f"dev-{uuid4().hex[:8]}"
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool, "GPU_BROKER_REPORT_S": "0.3"}
    return GRANTING | here | more


def nvml(server: Server, driver: Path, tmp_path: Path, scenario: str) -> dict[str, str]:
    """Eight GPUs of the stand-in, in some trouble."""
    hang = tmp_path / "hang"
    hang.touch()
    return settings(
        server,
        GPU_BROKER_DEVICES="nvml",
        ENABLE_NVML="true",
        LD_LIBRARY_PATH=str(driver),
        FAKE_NVML=scenario,
        FAKE_NVML_HANG=str(hang),
    )


def gpus(broker: Broker) -> list[dict[str, Any]]:
    """The rows of /gpu/info, by index."""
    return sorted(broker.http.get("/gpu/info").json()["gpus"], key=lambda row: row["index"])


def sdk(of: dict[str, str]) -> LeaseClient:
    """An agent on the host that reports."""
    return LeaseClient(Store(of["REDIS_URL"]), pool=of["GPU_BROKER_POOL"], hostname="h1")


def test_nvml_healthy_enriches_every_row(server: Server, driver: Path, tmp_path: Path) -> None:
    """Eight GPUs, each with what NVML alone tells; the flags say so."""
    with Broker(**nvml(server, driver, tmp_path, "")) as broker:
        rows = eventually(lambda: gpus(broker.wait()), 10)
        info = broker.http.get("/gpu/info").json()
        assert len(rows) == 8
        assert info["nvml_enriched"] is info["nvml_supported"] is info["available"] is True
        assert all(row["nvml_mem_total_mb"] for row in rows)
        assert broker.metrics()["gpu_orchestrator_nvml_supported"] == 1


@pytest.mark.parametrize("trouble", ["lost", "hang"])
def test_one_gpu_of_eight_in_trouble_costs_the_others_nothing(
    server: Server, driver: Path, tmp_path: Path, trouble: str
) -> None:
    """It says why and takes nothing; the other seven are leased; the host's heartbeat goes on."""
    of = nvml(server, driver, tmp_path, f"{trouble}=3")
    with Broker(**of) as broker, sdk(of) as agent:
        broker.wait()
        # One that has hung from the start never told its UUID: seven rows, or eight with it lost.
        eventually(lambda: sum(row["state"] == "ok" for row in gpus(broker)) == 7, 15)
        bad = [row for row in gpus(broker) if row["state"] != "ok"]
        assert all(row["reason"] for row in bad)
        most = max(row["memory_free_mb"] for row in gpus(broker) if row["state"] == "ok")
        held = [agent.acquire(f"a{n}", memory_mb=most // 2 + 1) for n in range(7)]
        assert len({lease.devices[0].uuid for lease in held}) == 7
        with pytest.raises(NoCapacity):
            agent.acquire("eighth", memory_mb=most // 2 + 1)
        time.sleep(2)
        (host,) = broker.http.get("/hosts").json()["hosts"]
        assert host["alive"] is True
        assert host["report_age_s"] < 0.9
        assert all(agent.release(lease) for lease in held)
        audit(agent.redis, agent.keys)
        Path(of["FAKE_NVML_HANG"]).unlink()


def test_nvml_that_cannot_start_is_told_and_the_host_lives(
    server: Server, driver: Path, tmp_path: Path
) -> None:
    """nvml_init_error in /gpu/info, an info metric, no device, and a host that reports."""
    with Broker(**nvml(server, driver, tmp_path, "init=9")) as broker:
        broker.wait()
        eventually(lambda: broker.http.get("/gpu/info").json().get("nvml_init_error"), 10)
        info = broker.http.get("/gpu/info").json()
        assert (info["available"], info["gpus"], info["nvml_supported"]) == (False, [], False)
        metrics = broker.metrics()
        assert metrics["gpu_orchestrator_nvml_supported"] == 0
        assert metrics["gpu_orchestrator_nvml_error_info"] == 1
        assert broker.http.get("/hosts").json()["hosts"][0]["alive"] is True


def test_device_that_vanishes_and_returns_loses_no_lease(server: Server) -> None:
    """Gone after a restart: shown lost, its lease runs on; back: its share is still taken."""
    of = settings(server)
    with sdk(of) as agent:
        with Broker(**of | {"GPU_BROKER_DEVICES": "sim:2x1000"}) as broker:
            broker.wait()
            eventually(lambda: len(agent.devices()) == 2, 5)
            held = [agent.acquire("a", memory_mb=900, ttl_s=60) for _ in range(2)]
        with Broker(**of | {"GPU_BROKER_DEVICES": "sim:1x1000"}) as broker:
            broker.wait()
            eventually(lambda: agent.devices()[1].state == "lost", 5)
            assert agent.devices()[1].reason
            for lease in held:
                agent.renew(lease)
            audit(agent.redis, agent.keys)
        with Broker(**of | {"GPU_BROKER_DEVICES": "sim:2x1000"}) as broker:
            broker.wait()
            eventually(lambda: agent.devices()[1].state == "ok", 5)
            assert [device.free_mb for device in agent.devices()] == [100, 100]
            assert all(agent.release(lease) for lease in held)
            audit(agent.redis, agent.keys)


def test_total_that_shrinks_below_what_is_leased_commits_no_more(server: Server) -> None:
    """The lease goes on, nobody else gets a share, and the sums stay exact."""
    of = settings(server)
    with sdk(of) as agent:
        with Broker(**of) as broker:
            broker.wait()
            held = agent.acquire("a", memory_mb=900, ttl_s=60)
        with Broker(**of | {"GPU_BROKER_DEVICES": "sim:1x500"}) as broker:
            broker.wait()
            eventually(lambda: agent.devices()[0].total_mb == 500, 5)
            with pytest.raises(NoCapacity):
                agent.acquire("b", memory_mb=10)
            agent.renew(held)
            audit(agent.redis, agent.keys)
            assert agent.release(held)
            assert agent.acquire("b", memory_mb=500).memory_mb == 500


def test_index_that_changes_with_a_restart_moves_no_lease(
    server: Server, driver: Path, tmp_path: Path
) -> None:
    """The UUID is the identity: after another order the lease is where it was."""
    of = nvml(server, driver, tmp_path, "")
    with sdk(of) as agent:
        with Broker(**of) as broker:
            broker.wait()
            eventually(lambda: len(agent.devices()) == 8, 10)
            held = agent.acquire("a", memory_mb=1000, ttl_s=60)
            before = {d.uuid: d.index for d in agent.devices()}
        with Broker(**of | {"FAKE_NVML": "order=reversed"}) as broker:
            broker.wait()
            eventually(lambda: {d.uuid: d.index for d in agent.devices()} != before, 10)
            (lease,) = agent.leases()
            assert lease.devices[0][0] == held.devices[0].uuid
            (row,) = (d for d in agent.devices() if d.uuid == held.devices[0].uuid)
            assert row.leased_mb == 1000
            audit(agent.redis, agent.keys)
            agent.release(held)

"""`gpu-broker doctor` against real servers, brokers and clocks: what it finds, and how it ends."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk.testing import TestBroker, running_broker
from tests.api.brokers import GRANTING, PROGRAM, Broker, environment
from tests.faults.clock import Clock
from tests.pools import Pool
from tests.program import called
from tests.servers import free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    """Two devices on one host, in a store with an append-only file."""
    with running_broker() as broker:
        yield broker


@pytest.fixture(scope="module")
def broker(server: Server) -> Iterator[Broker]:
    """A broker of a pool of its own."""
    with Broker(**at(server), **GRANTING) as running:
        yield running.wait()


NAME = f"doctor-{uuid4().hex[:6]}"


def at(server: Server) -> dict[str, str]:
    """The pool of `broker`."""
    return {"REDIS_URL": server.url, "GPU_BROKER_POOL": NAME}


def examined(code: int, **settings: str) -> dict[str, Any]:
    """Return doctor's JSON; it ends with this code."""
    done = called("doctor", "-o", "json", **settings)
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def problems(said: dict[str, Any]) -> list[str]:
    """Severity and problem of all that was found."""
    return [f"{x['severity']}: {x['problem']}" for x in said["findings"] + said["warnings"]]


def test_wrong_password_is_called_one() -> None:
    """Not a server that is away; the password is not shown."""
    with running() as server:
        with server.connect() as admin:
            admin.config_set("requirepass", "right")
        for user in ("", "somebody"):
            url = f"redis://{user}:hunter2@127.0.0.1:{server.port}"
            said = examined(2, REDIS_URL=url)
            assert any("broken: the store refuses our password" in x for x in problems(said))
            assert "USER:PASSWORD" in said["findings"][0]["remedy"]
            assert "hunter2" not in json.dumps(said)


def test_store_without_a_file_is_noted(server: Server, pool: TestBroker) -> None:
    """With the command that changes it; one that has a file is not."""
    name = f"doctor-{uuid4().hex[:6]}"
    said = examined(2, REDIS_URL=server.url, GPU_BROKER_POOL=name)
    assert any("note: the store keeps no append-only file" in x for x in problems(said))
    assert any("CONFIG SET appendonly yes" in x["remedy"] for x in said["warnings"])
    assert "broken: no host has reported to this pool" in problems(said)
    assert not any("SAFE_MODE" in line for line in said["devices"])  # no pool has one yet
    durable = examined(0, REDIS_URL=pool.url)
    assert not any("append-only" in x for x in problems(durable))


def test_safe_mode_is_noted_with_the_way_out(pool: TestBroker) -> None:
    """It may be meant: the exit code is that of a pool without findings."""
    pool.client.set_policy(safe_mode=True)
    try:
        said = examined(0, REDIS_URL=pool.url)
    finally:
        pool.client.set_policy(safe_mode=False)
    assert "note: SAFE_MODE is on: no GPU leases are given" in problems(said)
    assert any("gpu-broker policy set safe_mode=false" in x["remedy"] for x in said["warnings"])


def test_hosts_without_gpus_are_wrong(server: Server) -> None:
    """Hosts report, and there is nothing to lease."""
    with server.connect() as redis:
        empty = Pool(redis)
        empty.report((), deadline_ms=86_400_000)
    said = examined(1, REDIS_URL=server.url, GPU_BROKER_POOL=empty.keys.pool_name)
    assert "wrong: no GPUs: none of 1 hosts reports one" in problems(said)


def test_nvml_that_is_asked_for_and_absent_is_wrong(pool: TestBroker, tmp_path: Path) -> None:
    """By the setting that asks; under SAFE_MODE nothing is looked at."""
    asks = {"REDIS_URL": pool.url, "ENABLE_NVML": "true", "LD_LIBRARY_PATH": str(tmp_path)}
    said = doctor_process(**asks)
    assert any(x.startswith("wrong: ENABLE_NVML=true asks for") for x in problems(said)), said
    safe = doctor_process(**asks, SAFE_MODE="true")
    assert not any("ENABLE_NVML" in x for x in problems(safe))


def doctor_process(**settings: str) -> dict[str, Any]:
    """Doctor in a process of its own."""
    command = [PROGRAM, "doctor", "-o", "json"]
    done = subprocess.run(
        command, env=environment(**settings), capture_output=True, text=True, check=False
    )
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("shift_s", "says"), [(90, "ahead of"), (-90, "behind")])
def test_clock_that_differs_from_the_stores_is_noted(
    pool: TestBroker, tmp_path: Path, shift_s: int, says: str
) -> None:
    """Leases do not mind, people who read logs do."""
    clock = Clock.make(tmp_path / "clock")
    clock.shift(shift_s)
    said = doctor_process(REDIS_URL=pool.url, **clock.env)
    (skew,) = [x for x in problems(said) if "clock" in x]
    assert skew.startswith("note: this machine's clock is ")
    assert f" s {says} the store's" in skew
    clock.shift(0)
    assert not any("clock" in x for x in problems(doctor_process(REDIS_URL=pool.url, **clock.env)))


def test_broker_that_answers_is_named_with_its_pool(broker: Broker, server: Server) -> None:
    """At the port that this environment sets, and at the URL of its clients."""
    of = f"a broker 0.1.0 answers at http://localhost:{broker.port}, of pool {NAME}"
    said = examined(0, **at(server), GPU_ORCHESTRATOR_PORT=str(broker.port))
    assert said["http"] == of
    url = f"http://localhost:{broker.port}"
    named = {"GPU_ORCHESTRATOR_URL": url, "GPU_ORCHESTRATOR_PORT": str(broker.port)}
    assert examined(0, **at(server), **named)["http"] == of


def test_broker_of_another_pool_is_wrong(broker: Broker, pool: TestBroker) -> None:
    """The broker's pool has another name, or the same name in another store."""
    url = f"http://localhost:{broker.port}"
    named = {"GPU_ORCHESTRATOR_URL": url, "GPU_ORCHESTRATOR_PORT": str(broker.port)}
    said = examined(1, REDIS_URL=pool.url, **named)
    assert f"wrong: the broker at {url} is of pool {NAME}, and the store here has pool " in str(
        problems(said)
    )
    with running() as other:
        with Broker(REDIS_URL=other.url, GPU_BROKER_POOL=NAME, **GRANTING) as twin:
            twin.wait()
        same_name = examined(1, REDIS_URL=other.url, GPU_BROKER_POOL=NAME, **named)
    assert f"is of another store's pool {NAME}" in str(problems(same_name))


def test_url_at_which_no_broker_answers_is_wrong(pool: TestBroker) -> None:
    """It is wrong where the URL is set; without it no HTTP client is known, which is said."""
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    named = {"GPU_ORCHESTRATOR_URL": url, "GPU_ORCHESTRATOR_PORT": port}
    said = examined(1, REDIS_URL=pool.url, **named)
    assert f"wrong: no broker answers at {url}" in str(problems(said))
    unset = examined(0, REDIS_URL=pool.url, GPU_ORCHESTRATOR_PORT=port)
    assert unset["http"].startswith(f"no broker answers at http://localhost:{port}")


def test_url_and_port_that_differ_are_wrong(broker: Broker, server: Server) -> None:
    """Agents ask where no broker of this environment would listen; one that answers is enough."""
    asked, port = free_port(), free_port()
    named = {"GPU_ORCHESTRATOR_URL": f"http://localhost:{asked}"}
    said = examined(1, **at(server), **named, GPU_ORCHESTRATOR_PORT=str(port))
    assert (
        f"wrong: clients ask at port {asked} (GPU_ORCHESTRATOR_URL), and a broker started "
        f"here listens on port {port} (GPU_ORCHESTRATOR_PORT)"
    ) in problems(said)
    named = {"GPU_ORCHESTRATOR_URL": f"http://localhost:{broker.port}"}
    examined(0, **at(server), **named, GPU_ORCHESTRATOR_PORT=str(port))


def test_what_answers_and_is_no_broker_is_said(server: Server, broker: Broker) -> None:
    """A path of a broker that has no /health, as another service has none."""
    url = f"http://localhost:{broker.port}/metrics"
    named = {"GPU_ORCHESTRATOR_URL": url, "GPU_ORCHESTRATOR_PORT": str(broker.port)}
    said = examined(1, **at(server), **named)
    assert f"what answers at {url} is no broker" in str(problems(said))


def test_store_that_is_away_is_broken_and_help_says_the_codes() -> None:
    """The worst finding is said first, and is the exit code."""
    done = called("doctor", REDIS_URL="redis://127.0.0.1:1", SAFE_MODE="maybe")
    assert done.returncode == 2
    assert done.stdout.index("BROKEN  Redis cannot be reached") < done.stdout.index("WRONG  ")
    assert "0 nothing or notes alone, 1 wrong, 2 broken" in " ".join(
        called("doctor", "--help").stdout.split()
    )

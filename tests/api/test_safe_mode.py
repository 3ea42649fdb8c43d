"""SAFE_MODE in every corner: environment, store and pool; HTTP and agents direct on Redis."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, SafeMode, Store
from tests.api.brokers import SIM, Broker, environment, eventually
from tests.mcp.clients import over_http, said
from tests.program import called
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

NOTE = {"granted": False, "note": "SAFE_MODE", "agent": "analyst"}


def where(server: Server) -> dict[str, str]:
    """A pool of its own on the suite's server."""
    return {"REDIS_URL": server.url, "GPU_BROKER_POOL": f"safe-{uuid4().hex[:8]}"}


def sdk(pool: dict[str, str]) -> LeaseClient:
    """An agent direct on Redis."""
    return LeaseClient(Store(pool["REDIS_URL"]), pool=pool["GPU_BROKER_POOL"], hostname="h1")


def safe_in_effect(broker: Broker) -> bool:
    """Return SAFE_MODE as every interface of a broker says it: all must agree."""
    said = broker.http.get("/policy").json()["safe_mode_read_only"]
    denied = broker.lease(min_memory_mb=1).json() == NOTE
    assert denied == said
    assert eventually(lambda: broker.http.get("/health").json()["safe_mode"] == said, 3)
    return bool(said)


@pytest.mark.parametrize(
    ("spelt", "safe"), [("true", True), ("TRUE", True), ("False", False), ("false", False)]
)
def test_environment_decides_for_the_pool_and_for_agents_direct_on_redis(
    server: Server, spelt: str, safe: bool
) -> None:
    """A replica started with SAFE_MODE writes it into the policy, so that every door obeys it."""
    pool = where(server)
    with Broker(**SIM, **pool, SAFE_MODE=spelt) as broker, sdk(pool) as agent:
        broker.wait()
        assert safe_in_effect(broker) is safe
        eventually(lambda: agent.pool().safe_mode is safe, 3)
        if safe:
            with pytest.raises(SafeMode):
                agent.acquire("a", memory_mb=1, on_unavailable="cpu")
        else:
            assert agent.acquire("a", memory_mb=1).devices


def test_unset_on_a_named_server_starts_safe_and_follows_the_pool(server: Server) -> None:
    """Elsewhere than on the embedded store a new pool is safe until an operator says otherwise."""
    pool = where(server)
    with Broker(**SIM, **pool) as broker, sdk(pool) as operator:
        broker.wait()
        assert safe_in_effect(broker) is True
        operator.set_policy(safe_mode=False)
        assert safe_in_effect(broker) is False
        operator.set_policy(safe_mode=True)
        assert safe_in_effect(broker) is True


def test_unset_on_the_embedded_store_starts_open(tmp_path: Path) -> None:
    """The store of one machine is its owner's: leases are given at once."""
    state = Path("/tmp", f"gb-{uuid4().hex[:8]}")
    try:
        with Broker(**SIM, GPU_BROKER_STATE_DIR=str(state)) as broker:
            broker.wait()
            assert safe_in_effect(broker) is False
            assert broker.stop() == 0
    finally:
        subprocess.run(["rm", "-rf", str(state)], check=True)


def test_another_spelling_stops_the_start(server: Server) -> None:
    """A protective switch is never guessed."""
    for spelt in ("1", "yes", "on", "tru"):
        ended = called("serve", **SIM, **where(server), SAFE_MODE=spelt)
        assert ended.returncode == 2
        assert "SAFE_MODE" in ended.stderr
        assert "true or false" in ended.stderr


async def _explained_over_mcp(port: int) -> Any:
    async with over_http(port) as client:
        return await said(client, "gpu_explain", memory_mb=1)


def test_replicas_that_differ_the_last_started_decides_and_the_safe_one_stays_safe(
    server: Server,
) -> None:
    """The pool follows the last; a replica with SAFE_MODE=true is safe whatever the pool says."""
    pool = where(server)
    with ExitStack() as stack:
        careful = stack.enter_context(Broker(**SIM, **pool, SAFE_MODE="true")).wait()
        agent = stack.enter_context(sdk(pool))
        eventually(lambda: agent.pool().safe_mode, 3)
        bold = stack.enter_context(Broker(**SIM, **pool, SAFE_MODE="false")).wait()
        eventually(lambda: not agent.pool().safe_mode, 3)
        assert agent.acquire("a", memory_mb=1).devices
        assert safe_in_effect(bold) is False
        assert careful.lease().json() == NOTE
        assert careful.http.get("/policy").json()["safe_mode_read_only"] is True
        codes = [
            b.http.post("/explain", json={"agent": "a", "min_memory_mb": 1}).json()["code"]
            for b in (careful, bold)
        ]
        assert codes == ["safe_mode", "fits"]
        outlook = asyncio.run(_explained_over_mcp(careful.port))
        assert (outlook["code"], outlook["fits_now"]) == ("safe_mode", [])
        third = stack.enter_context(Broker(**SIM, **pool, SAFE_MODE="true")).wait()
        eventually(lambda: agent.pool().safe_mode, 3)
        assert safe_in_effect(bold) is True
        acts = [f for _, f in agent.redis.xrange(agent.keys.events) if f["event"] == "policy"]
        replicas = [b.http.get("/health").json()["replica"] for b in (careful, bold, third)]
        assert [act["by"].split()[-1] for act in acts] == replicas


def test_holders_go_on_under_safe_mode_and_a_restart_flips_it(server: Server) -> None:
    """Renew and release never depend on it; a new start decides anew."""
    pool = where(server)
    with sdk(pool) as agent:
        with Broker(**SIM, **pool, SAFE_MODE="false") as broker:
            broker.wait()
            eventually(lambda: not agent.pool().safe_mode, 3)
            held = agent.acquire("a", memory_mb=1)
            token = broker.granted(min_memory_mb=1)["token"]
        with Broker(**SIM, **pool, SAFE_MODE="true") as broker:
            broker.wait()
            eventually(lambda: agent.pool().safe_mode, 3)
            assert safe_in_effect(broker) is True
            agent.renew(held)
            assert agent.release(held)
            assert broker.http.post("/renew", json={"token": token}).status_code == 200
            assert broker.release(token).status_code == 200
            with pytest.raises(SafeMode):
                agent.acquire("a", memory_mb=1)


def test_policy_under_safe_mode_is_validated_accepted_and_not_enacted(server: Server) -> None:
    """POST /policy: 422 comes first; then 200 with a note, and nothing has changed."""
    pool = where(server)
    with Broker(**SIM, **pool, SAFE_MODE="true") as broker:
        broker.wait()
        before = broker.http.get("/policy").json()
        assert broker.http.post("/policy", json={"kill_on_oom": 1}).status_code == 422
        answer = broker.http.post("/policy", json={"kill_on_oom": True})
        assert answer.status_code == 200
        assert "not enacted" in answer.json().pop("note")
        after = broker.http.get("/policy").json()
        assert after == before
        assert after["kill_on_oom"] is False


def test_without_redis_and_unset_the_value_is_true(server: Server) -> None:
    """A pool that cannot be asked is safe, where the environment says nothing."""
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    with Broker(**SIM, **nowhere) as unset, Broker(**SIM, **nowhere, SAFE_MODE="false") as off:
        assert unset.wait("/health").http.get("/health").json()["safe_mode"] is True
        assert off.wait("/health").http.get("/health").json()["safe_mode"] is False


@pytest.fixture
def poisoned(tmp_path: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """A driver's library, its Python module and its program that tell when they are touched."""
    marker = tmp_path / "touched"
    (tmp_path / "pynvml.py").write_text(f"open({str(marker)!r}, 'a').write('pynvml')\n")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho smi >> {marker}\n")
    program.chmod(0o755)
    source = tmp_path / "nvml.c"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void touched(void) {\n"
        f'  FILE *f = fopen("{marker}", "a"); fputs("library", f); fclose(f); }}\n'
    )
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    paths = environment()["PATH"]
    return (
        {
            "PYTHONPATH": str(tmp_path),
            "LD_LIBRARY_PATH": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{tmp_path}:{paths}",
            "GPU_BROKER_HOSTNAME": "h1",
            "GPU_BROKER_REPORT_S": "0.2",
        },
        marker,
    )


@pytest.mark.parametrize("asked", ["auto", "nvml", "smi"])
def test_serve_in_safe_mode_touches_no_driver(
    server: Server, poisoned: tuple[dict[str, str], Path], asked: str
) -> None:
    """SAFE_MODE=true: neither NVML nor nvidia-smi is loaded, imported or started."""
    settings, marker = poisoned
    settings |= {"GPU_BROKER_DEVICES": asked, "ENABLE_NVML": "true", "SAFE_MODE": "true"}
    with Broker(**settings, **where(server)) as broker:
        broker.wait()
        time.sleep(0.6)
        assert broker.http.get("/gpu/info").json()["available"] is False
    assert not marker.exists()


@pytest.mark.parametrize(("asked", "touched"), [("nvml", "pynvml"), ("smi", "smi")])
def test_serve_without_safe_mode_touches_what_it_is_asked_to(
    server: Server, poisoned: tuple[dict[str, str], Path], asked: str, touched: str
) -> None:
    """The same traps do close: the test above can fail."""
    settings, marker = poisoned
    settings |= {"GPU_BROKER_DEVICES": asked, "ENABLE_NVML": "true", "SAFE_MODE": "false"}
    with Broker(**settings, **where(server)) as broker:
        broker.wait()
        assert eventually(marker.exists, 5)
    assert touched in marker.read_text()

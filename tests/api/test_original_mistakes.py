"""Mistakes of the documented service's first implementation, each shown to be none of ours.

The numbers are those of its list. Roles, keys and masked tokens are in `test_auth` and
`test_findings`; the HTTP client that fails closed is in `test_orchestrator_client`.
"""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk import AgentCapExceeded, LeaseClient, Store
from tests.api.brokers import GRANTING, PROGRAM, Broker, at_once, environment, eventually
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.conftest import Fleet
    from tests.pools import Pool
    from tests.servers import Server

TESTS = Path(__file__).parents[1]

HAND_ON_S = 1
"""Seconds within which capacity comes back after an end: simulated devices have no grace."""

SMI = """#!/bin/sh
echo asked >> {log}
cat <<'END'
index, uuid, name, driver_version, memory.total [MiB], memory.used [MiB], \
utilization.gpu [%], temperature.gpu, power.draw [W]
0, GPU-well, NVIDIA T4, 550.54, 15360, 12, 3, 35, 9.5
1, GPU-mute, NVIDIA T4, 550.54, 15360, [N/A], [N/A], [N/A], [N/A]
2, GPU-sizeless, NVIDIA T4, 550.54, [N/A], [N/A], 3, 35, 9.5
END
"""
"""A driver's program that counts how often it is started."""


@dataclass(frozen=True)
class Apart:
    """Brokers on pools of their own, which a test may end.

    Attributes:
        mortal: it may be killed; `settings` start it again.
        smi: its devices come from nvidia-smi, asked once a minute; each start is a line of `log`.
        insecure: it listens on every interface, as it was told to.
    """

    mortal: Broker
    settings: dict[str, str]
    smi: Broker
    log: Path
    insecure: Broker


@pytest.fixture(scope="module")
def apart(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """Start all of them together."""
    folder = tmp_path_factory.mktemp("smi")
    log, program = folder / "log", folder / "nvidia-smi"
    program.write_text(SMI.format(log=log))
    program.chmod(0o755)
    mortal, smi, insecure = (
        GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": f"six-{uuid4().hex[:8]}"}
        for _ in range(3)
    )
    smi |= {"GPU_BROKER_DEVICES": "smi", "GPU_BROKER_REPORT_S": "60"}
    smi |= {"PATH": f"{folder}:{environment()['PATH']}"}
    with ExitStack() as stack:
        started = [
            stack.enter_context(Broker(*args, **settings))
            for args, settings in (
                ((), mortal),
                ((), smi),
                (("--host", "0.0.0.0", "--insecure"), insecure),
            )
        ]
        for broker in started:
            broker.wait()
        yield Apart(started[0], mortal, started[1], log, started[2])


def listening(port: int) -> set[str]:
    """Return the IPv4 addresses on which a process listens on a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {
        socket.inet_ntoa(int(address, 16).to_bytes(4, "little"))
        for address, number in ends
        if int(number, 16) == port
    }


def test_1_a_lease_reserves(plain: Broker) -> None:
    """Twenty requests of 900 MB at once on a GPU of 1000: one has it, nineteen are told why not."""
    ask = ("POST", "/lease", {"agent": "analyst", "min_memory_mb": 900})
    got = [answer.http.json() for answer in at_once(plain, [ask] * 20)]
    assert all(lease["granted"] for lease in got)
    assert [lease["gpu"] for lease in got].count(0) == 1
    assert [(x["gpu"], x["reason"]) for x in got].count(("cpu", "no_capacity")) == 19
    [gpu] = plain.http.get("/gpu/info").json()["gpus"]
    assert (gpu["memory_reserved_mb"], gpu["memory_free_mb"], gpu["leases"]) == (900, 100, 1)
    assert plain.metrics()["gpu_orchestrator_active_leases"] == 1


def test_2_state_outlives_the_process_and_is_one_for_all(apart: Apart) -> None:
    """After a SIGKILL a new process knows the lease, its fence and its end, and can end it."""
    before = apart.mortal.granted(min_memory_mb=900, ttl_s=600)
    listed = apart.mortal.allocations()
    apart.mortal.kill()
    with Broker(**apart.settings) as reborn:
        reborn.wait()
        after = reborn.allocations()
        assert list(after) == list(listed) == [before["token"]]
        for name in ("agent", "gpu", "fence", "expires_at", "timestamp", "memory_mb"):
            assert after[before["token"]][name] == before[name]
        assert reborn.granted(min_memory_mb=900)["gpu"] == "cpu"
        assert reborn.release(before["token"]).status_code == 200
        assert reborn.granted(min_memory_mb=900)["gpu"] == 0


def test_3_a_heartbeat_keeps_a_lease_and_silence_hands_it_on(plain: Broker, api_pool: Pool) -> None:
    """Renewed, it outlives its ttl; silent, its key dies natively and the next has the GPU soon."""
    held = plain.granted(min_memory_mb=900, ttl_s=1)
    key = f"{api_pool.keys.base}:lease:{held['gpus'][0]['uuid']}:{held['token']}"
    for _ in range(3):
        time.sleep(0.5)
        renewed = plain.http.post("/renew", json={"token": held["token"]})
        assert renewed.status_code == 200
    assert 0 < api_pool.redis.pttl(key) <= 1000
    ask = {"min_memory_mb": 900, "on_unavailable": "refuse"}
    assert plain.lease(**ask).status_code == 409

    def handed_on() -> Any:
        answer = plain.lease(**ask)
        return answer.json() if answer.status_code == 200 else None

    heir = eventually(handed_on, 1 + 2 * HAND_ON_S)
    assert 0 <= heir["timestamp"] - renewed.json()["expires_at"] <= 2 * HAND_ON_S
    assert api_pool.redis.exists(key) == 0


def test_4_a_retry_is_the_same_lease_and_an_older_fence_is_refused(
    fleet: Fleet, plain: Broker
) -> None:
    """A client that hangs up before the answer and asks again holds one lease; fences grow."""
    older = plain.granted(min_memory_mb=100)
    ask = {"agent": "analyst", "min_memory_mb": 800, "host": "h1", "token": str(uuid4())}
    body = json.dumps(ask)
    head = (
        "POST /lease HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", plain.port), 5) as gone:
        gone.sendall((head + body).encode())
    eventually(lambda: ask["token"] in plain.allocations(), 2)
    retries = [fleet.replica.granted(**ask), plain.granted(**ask)]
    assert [(x["gpu"], x["fence"]) for x in retries] == [(0, retries[0]["fence"])] * 2
    assert set(plain.allocations()) == {older["token"], ask["token"]}
    assert retries[0]["fence"] > older["fence"]
    stale = {"token": ask["token"], "fence": older["fence"]}
    answer = plain.http.post("/renew", json=stale)
    assert (answer.status_code, answer.json()["reason"]) == (409, "superseded")


def test_5_policy_is_enforced_inside_the_grant(plain: Broker, fleet: Fleet, server: Server) -> None:
    """Twenty requests at once, at any interface, give an agent no more than its cap."""
    before = plain.http.get("/policy").json()["max_memory_per_agent_mb"]
    plain.http.post("/policy", json={"max_memory_per_agent_mb": 256})
    try:
        ask = ("POST", "/lease", {"agent": "greedy", "min_memory_mb": 100, "host": "h1"})
        got = [a.http.json() for b in (plain, fleet.replica) for a in at_once(b, [ask] * 10)]
        assert [lease["gpu"] for lease in got].count(0) == 2
        assert {x["reason"] for x in got if x["gpu"] == "cpu"} == {"agent_cap"}
        pool = fleet.keys.pool_name
        with LeaseClient(Store(server.url), pool=pool, hostname="h1") as agent:
            with pytest.raises(AgentCapExceeded):
                agent.acquire("greedy", memory_mb=100)
            assert agent.release(agent.acquire("modest", memory_mb=100))
    finally:
        plain.http.post("/policy", json={"max_memory_per_agent_mb": before})


def test_6_expiry_needs_no_traffic_no_scan_and_no_clock_but_redis_own(
    plain: Broker, api_pool: Pool, server: Server
) -> None:
    """Thirty leases end by Redis's clock, without a request, and no key space is walked for it."""
    got = [plain.granted(agent=f"a{n}", min_memory_mb=10, ttl_s=1) for n in range(30)]
    base, redis = api_pool.keys.base, api_pool.redis
    for lease in got[-5:]:
        key = f"{base}:lease:{lease['gpus'][0]['uuid']}:{lease['token']}"
        assert redis.execute_command("PEXPIRETIME", key) / 1000 == pytest.approx(
            lease["expires_at"], abs=0.01
        )
    walks = {"cmdstat_keys", "cmdstat_scan", "cmdstat_hscan", "cmdstat_zscan", "cmdstat_sort"}

    def walked() -> dict[str, int]:
        stats: Any = redis.info("commandstats")
        return {name: stats[name]["calls"] for name in walks & stats.keys()}

    tokens = {lease["token"]: lease["expires_at"] for lease in got}
    before = walked()

    def ended() -> Any:
        entries: Any = redis.xrevrange(api_pool.keys.events, count=100)
        found = {f["token"]: int(at.split("-")[0]) / 1000 for at, f in entries
                 if f["event"] == "expired" and f["token"] in tokens}  # fmt: skip
        return found if len(found) == len(tokens) else None

    for token, at in eventually(ended, 1 + 2 * HAND_ON_S, every_s=0.1).items():
        assert 0 <= at - tokens[token] <= 2 * HAND_ON_S
    assert walked() == before


def test_7_ready_is_not_ready_without_the_store(fleet: Fleet) -> None:
    """503 where no lease can be granted, so a gate of `curl --fail` stays shut; health is 200."""
    answer = fleet.storeless.http.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert answer.json()["reason"]
    assert fleet.storeless.http.get("/health").status_code == 200
    for broker, opens in ((fleet.storeless, True), (fleet.plain, False)):
        url = f"http://127.0.0.1:{broker.port}/ready"
        gate = subprocess.run(
            ["curl", "--silent", "--fail", "--output", os.devnull, url], timeout=10, check=False
        )
        assert (gate.returncode == 22) is opens


def test_8_safe_mode_fails_closed(fleet: Fleet) -> None:
    """Unset is safe on a named server, NVML obeys it, and no GPUs are never available ones."""
    denied = {"granted": False, "note": "SAFE_MODE", "agent": "analyst"}
    assert fleet.unset.lease(min_memory_mb=1).json() == denied
    assert fleet.unset.http.get("/policy").json()["safe_mode_read_only"] is True
    asked, safe = (b.http.get("/gpu/info").json() for b in (fleet.nvml, fleet.safe))
    assert "nvml_init_error" in asked
    assert "nvml_init_error" not in safe
    assert (safe["nvml_supported"], safe["nvml_enriched"]) == (False, False)
    for broker in (fleet.none, fleet.safe, fleet.storeless):
        info = broker.http.get("/gpu/info").json()
        assert (info["gpus"], info["available"]) == ([], False)
        assert info["message"]
    fleet.unset.http.post("/policy", json={"kill_on_oom": True})
    assert fleet.unset.http.get("/policy").json()["kill_on_oom"] is False


def test_9_what_a_driver_cannot_tell_drops_no_gpu_and_no_lease_asks_the_driver(
    apart: Apart,
) -> None:
    """`[N/A]` is null in a row that stays; twenty leases start nvidia-smi not once."""
    rows = {row["uuid"]: row for row in apart.smi.http.get("/gpu/info").json()["gpus"]}
    assert list(rows) == ["GPU-well", "GPU-mute", "GPU-sizeless"]
    assert rows["GPU-well"]["temperature_c"] == 35
    for name in ("memory_used_mb", "utilization_gpu_pct", "temperature_c", "power_draw_w"):
        assert rows["GPU-mute"][name] is None
    assert rows["GPU-sizeless"]["memory_total_mb"] is None
    asked = apart.log.read_text()
    ask = ("POST", "/lease", {"agent": "analyst", "min_memory_mb": 1000})
    got = Counter(answer.http.json()["gpu"] for answer in at_once(apart.smi, [ask] * 20))
    assert set(got) == {0, 1, "cpu"}
    assert got[1] == 1  # of an unknown use: to one lease at a time
    assert apart.log.read_text() == asked


def test_10_only_this_machine_is_listened_to_unless_told_otherwise(apart: Apart) -> None:
    """Loopback by default; elsewhere exit 2 with the way out; --insecure takes it and says so."""
    assert listening(apart.smi.port) == {"127.0.0.1"}
    refused = subprocess.run(
        [PROGRAM, "serve", "--host", "0.0.0.0"],
        env=environment(**apart.settings, GPU_ORCHESTRATOR_PORT=str(free_port())),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (refused.returncode, "--insecure" in refused.stderr) == (2, True)
    assert listening(apart.insecure.port) == {"0.0.0.0"}
    assert apart.insecure.granted(min_memory_mb=1)["gpu"] == 0
    said = apart.insecure.said().lower()
    assert "insecure" in said or "api key" in said, said


def test_11_the_store_of_these_tests_is_a_real_server(server: Server, api_pool: Pool) -> None:
    """A redis-server that the suite started answers; fakeredis judges the Lua of scripts alone."""
    about: Any = api_pool.redis.info("server")
    assert server.process is not None
    assert about["process_id"] == server.process.pid
    assert Path(about["executable"]).name in {"redis-server", "valkey-server"}
    stand_ins = {"mock", "unittest", "fakeredis"}
    used = {
        (path.name, name)
        for path in TESTS.rglob("*.py")
        for name in imported_packages(path) & stand_ins
    }
    assert used == {("test_scripts.py", "fakeredis")}


def imported_packages(path: Path) -> set[str]:
    """Return the top-level names of the packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}

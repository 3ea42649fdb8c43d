"""A pool with the previous schema: every door refuses it in one sentence, and changes nothing."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import LeaseClient, ProtocolMismatch, Store
from agent_sdk.protocol.messages import SCHEMA
from tests.api.brokers import GRANTING, PROGRAM, Broker, environment
from tests.faults.previous import THIS, schema_of, start, unpacked
from tests.pools import device
from tests.program import called
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server

OLD = """
import sys
from agent_sdk import LeaseClient, Store

name, *pairs = sys.argv[2:]
fields = tuple(zip(pairs[::2], pairs[1::2]))
with LeaseClient(Store(sys.argv[1]), hostname="h1") as client:
    client.report("h1", ((name, fields),), deadline_ms=60000, sampled_ms=0, epoch="",
                  safe_mode=False, version="old")
    print(client.acquire("agent", memory_mb=100, ttl_s=60).token)
"""

T = "0123456789abcdef"

WAY_OUT = (
    f"the pool has schema {SCHEMA - 1}, and this version works on schema {SCHEMA}: stop what uses "
    "the pool, delete its keys (gpu:{POOL}:*), then start anew"
)

VERBS: dict[str, Callable[[LeaseClient], Any]] = {
    "acquire": lambda c: c.acquire("agent", memory_mb=100, ttl_s=5),
    "wait": lambda c: c.acquire("agent", memory_mb=100, ttl_s=5, wait_s=5),
    "renew": lambda c: c.renew(T),
    "release": lambda c: c.release(T),
    "reap": lambda c: c.reap(),
    "report": lambda c: c.report(
        "h1", (("gpu-a", tuple(device("gpu-a", 1000)[1].items())),), deadline_ms=60000,
        sampled_ms=0, epoch="", safe_mode=False, version="new",
    ),
    "revoke": lambda c: c.revoke(T),
    "revoke_where": lambda c: c.revoke_where(agent="agent"),
    "drain": lambda c: c.drain("host", "h1"),
    "undrain": lambda c: c.undrain("device", "gpu-a"),
    "forget": lambda c: c.forget("host", "h1"),
    "release_driver": lambda c: c.release_driver("h1"),
    "set_policy": lambda c: c.set_policy(default_memory_mb=1),
    "set_teams": lambda c: c.set_teams({}),
    "teams": lambda c: c.teams(),
    "extend_hold": lambda c: c.extend_hold(T, 5),
    "request_yield": lambda c: c.request_yield(T, T),
    "lookup": lambda c: c.lookup(T),
    "adopt": lambda c: c.adopt(T),
    "explain": lambda c: c.explain(T),
    "explain_request": lambda c: c.explain_request("agent", memory_mb=1),
    "scene": lambda c: c.scene(),
    "events": lambda c: c.events(),
    "queue": lambda c: c.queue(),
    "pool": lambda c: c.pool(),
    "devices": lambda c: c.devices(),
    "leases": lambda c: c.leases(),
    "holders": lambda c: c.holders("h1", 0),
    "hosts": lambda c: c.hosts(),
}  # fmt: skip
"""Everything that a client asks a pool."""

COMMANDS = (
    "status", "leases", "hosts", "queue", "events", "policy get", "policy set safe_mode=true",
    f"explain {T}", "explain --agent me", f"revoke {T} --reason x", "drain h1", "undrain gpu-a",
    "forget h1",
)  # fmt: skip
"""Every command that asks the store, but for `run`."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis with a pool that the previous version made, and a lease in it."""
    with running("redis") as server:
        old = unpacked(tmp_path_factory.mktemp("previous"))
        assert schema_of(old) == SCHEMA - 1
        name, fields = device("gpu-a", 1000)
        pairs = [word for pair in fields.items() for word in map(str, pair)]
        out, err = start(old, OLD, server.url, name, *pairs).communicate(timeout=60)
        assert len(out.strip()) == 32, err
        yield server


@pytest.fixture(autouse=True)
def unchanged(server: Server) -> Iterator[None]:
    """Nothing is written to the pool."""
    with server.connect() as redis:
        keys = sorted(redis.keys("*"))
        before = {key: redis.dump(key) for key in keys}
        yield
        assert sorted(redis.keys("*")) == keys
        assert {key: redis.dump(key) for key in keys} == before


def test_schema_of_the_scripts_is_that_of_the_sdk() -> None:
    """Two files say which schema this version works on."""
    assert schema_of(THIS) == SCHEMA


@pytest.mark.parametrize("verb", VERBS)
def test_client_refuses_a_pool_of_the_previous_schema(server: Server, verb: str) -> None:
    """Each call of the SDK: one sentence that says what to do."""
    with (
        LeaseClient(Store(server.url), hostname="h1") as client,
        pytest.raises(ProtocolMismatch) as refused,
    ):
        VERBS[verb](client)
    assert str(refused.value) == WAY_OUT


@pytest.mark.parametrize("command", COMMANDS)
def test_command_refuses_a_pool_of_the_previous_schema(server: Server, command: str) -> None:
    """Each command says so on stderr, and ends with an exit code of failure."""
    done = called(*command.split(), REDIS_URL=server.url, GPU_BROKER_HOSTNAME="h1")
    assert done.returncode not in {0, 2}, (done.stdout, done.stderr)
    assert WAY_OUT in done.stderr


def test_run_refuses_a_pool_of_the_previous_schema(server: Server) -> None:
    """The program that runs a command under a lease does not start it."""
    env = environment(REDIS_URL=server.url, GPU_BROKER_HOSTNAME="h1")
    done = subprocess.run(
        [PROGRAM, "run", "--memory", "1MiB", "--", "echo", "started"],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert WAY_OUT in done.stderr


def test_broker_refuses_a_pool_of_the_previous_schema(server: Server) -> None:
    """Over HTTP: 503 with the code and the sentence."""
    with Broker(REDIS_URL=server.url, **GRANTING).wait("/health") as broker:
        answers = [
            broker.lease(min_memory_mb=100),
            broker.release(T),
            broker.http.get("/allocations"),
            broker.http.get("/queue"),
            broker.http.get("/ready"),
            broker.http.post("/policy", json={"default_memory_mb": 1}),
        ]
        for answer in answers:
            assert answer.status_code == 503, answer.text
            assert WAY_OUT in answer.text

"""The previous version's client beside this one, on one pool, as during an upgrade of many hosts.

`tests/previous/` has the SDK as it was, with its own scripts. A change that it cannot live with has
to raise the pool's schema, and then it is refused, in words: `test_schema.py` has the other side.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, Store
from agent_sdk.protocol.messages import SCHEMA
from tests.audit import audit
from tests.faults.previous import THIS, schema_of, start, unpacked
from tests.pools import device
from tests.reports import register
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

ROUNDS = 40

WORKER = """
import agent_sdk, json, os, sys, time
from agent_sdk import LeaseClient, Store

url, name, rounds = sys.argv[1:]
assert agent_sdk.__file__.startswith(os.environ["PYTHONPATH"])
with LeaseClient(Store(url), hostname="h1") as client:
    for _ in range(int(rounds)):
        lease = client.acquire(name, memory_mb=600, ttl_s=5, wait_s=30)
        began = time.monotonic()
        client.renew(lease)
        time.sleep(0.002)
        print(json.dumps([lease.fence, began, time.monotonic()]), flush=True)
        client.release(lease)
"""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The previous SDK, to be put on PYTHONPATH."""
    return unpacked(tmp_path_factory.mktemp("previous"))


@pytest.fixture
def server() -> Iterator[Server]:
    """A Redis of its own, and a host with one device of 1000 MiB."""
    with running("redis") as server, LeaseClient(Store(server.url), hostname="h1") as client:
        register(client, device("gpu-a"))
        yield server


def test_versions_of_one_schema_take_turns_on_one_device(server: Server, previous: Path) -> None:
    """They wait in one queue; none holds it beside another, and the newer has the larger fence.

    While the previous version has another schema, this one takes turns with itself.
    """
    other = previous if schema_of(previous) == SCHEMA else THIS
    workers = [
        start(sdk, WORKER, server.url, f"agent-{n}", str(ROUNDS))
        for n, sdk in enumerate((other, THIS, other, THIS))
    ]
    held = []
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err
        held += [tuple(json.loads(line)) for line in out.splitlines()]
    assert len(held) == 4 * ROUNDS
    for (_, _, ended), (_, began, _) in zip(sorted(held), sorted(held)[1:], strict=False):
        assert ended <= began
    with LeaseClient(Store(server.url), hostname="h1") as client:
        left = client.holders("h1", 0).gone["gpu-a"]
        gone = (("gpu-a", (("gone", ",".join(left)),)),)
        client.report(
            "h1", gone, deadline_ms=60000, sampled_ms=0, epoch="", safe_mode=False, version="this"
        )  # as this version's reporter does
        audit(client.redis, client.keys)
        assert client.devices()[0].free_mb == 1000


def test_previous_client_on_a_pool_of_another_schema_is_refused_in_words(
    server: Server, previous: Path
) -> None:
    """A schema that the previous version cannot know ends its calls with one sentence."""
    later = str(schema_of(previous) + 1)
    with server.connect() as redis:
        redis.hset("gpu:{default}:pool", "schema", later)
        before = redis.hgetall("gpu:{default}:pool")
        worker = start(previous, WORKER, server.url, "agent", "1")
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 1
        says = (
            f"the pool has schema {later}, and this version works on schema {schema_of(previous)}"
        )
        assert f"ProtocolMismatch: {says}: upgrade this version" in err
        assert redis.hgetall("gpu:{default}:pool") == before


@pytest.mark.parametrize(
    ("schema", "known"),
    [(f"{SCHEMA}-{SCHEMA + 1}", True), (f"{SCHEMA + 1}", False), (f"{SCHEMA + 1}-9", False)],
)
def test_a_pool_of_a_later_version_says_which_versions_may_work_on_it(
    server: Server, schema: str, known: bool
) -> None:
    """A later layout that this version may know, and one that it may not."""
    with server.connect() as redis:
        redis.hset("gpu:{default}:pool", "schema", schema)
    worker = start(THIS, WORKER, server.url, "agent", "1")
    _, err = worker.communicate(timeout=60)
    assert (worker.returncode == 0) == known
    assert known or f"the pool has schema {schema}, and this version works on schema" in err
    assert known or "upgrade this version" in err

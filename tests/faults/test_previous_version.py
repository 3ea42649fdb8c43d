"""The previous version's client beside this one, on one pool, as during an upgrade of many hosts.

`tests/previous/` has the SDK as it was, with its own scripts. A change that it cannot live with has
to raise the pool's schema, and then it is refused, in words.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, Store
from tests.audit import audit
from tests.pools import device
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

PREVIOUS = Path(__file__).parents[1] / "previous" / "sdk-schema-1.zip"

THIS = Path(__file__).parents[2]

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
    folder = tmp_path_factory.mktemp("previous")
    with zipfile.ZipFile(PREVIOUS) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    """A Redis of its own, and a host with one device of 1000 MiB."""
    with running("redis") as server, LeaseClient(Store(server.url), hostname="h1") as client:
        name, fields = device("gpu-a", 1000)
        client.report(
            "h1", ((name, tuple(fields.items())),), deadline_ms=60000, sampled_ms=0, epoch="",
            safe_mode=False, version="this",
        )  # fmt: skip
        yield server


def start(sdk: Path, code: str, *args: str) -> subprocess.Popen[str]:
    """A Python process with that SDK."""
    environ = os.environ | {"PYTHONPATH": str(sdk), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_both_versions_take_turns_on_one_device(server: Server, previous: Path) -> None:
    """They wait in one line; nobody holds it beside another, and the newer has the larger fence."""
    workers = [
        start(sdk, WORKER, server.url, f"agent-{n}", str(ROUNDS))
        for n, sdk in enumerate((previous, THIS, previous, THIS))
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


def test_a_pool_that_the_previous_version_cannot_know_refuses_it_in_words(
    server: Server, previous: Path
) -> None:
    """A schema of its own ends the previous client's calls with one sentence."""
    with server.connect() as redis:
        redis.hset("gpu:{default}:pool", "schema", "2")
    worker = start(previous, WORKER, server.url, "agent", "1")
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "ProtocolMismatch: this version and the pool's do not match: upgrade the older" in err


@pytest.mark.parametrize(("schema", "known"), [("1-2", True), ("2", False), ("2-3", False)])
def test_a_pool_of_a_later_version_says_who_may_work_on_it(
    server: Server, schema: str, known: bool
) -> None:
    """A later layout that this version may know, and one that it may not."""
    with server.connect() as redis:
        redis.hset("gpu:{default}:pool", "schema", schema)
    worker = start(THIS, WORKER, server.url, "agent", "1")
    _, err = worker.communicate(timeout=60)
    assert (worker.returncode == 0) == known
    assert known or f"this version does not know pools of schema {schema}: upgrade the" in err

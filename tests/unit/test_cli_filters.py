"""Parts of lists: `--host`, `--agent`, `--state` and `--limit` of status, leases, queue, hosts."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.errors import StillWaiting
from agent_sdk.testing import running_broker
from tests.pools import device
from tests.program import called
from tests.reports import register

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from agent_sdk.testing import TestBroker

HERE, THERE = "SIM-test-host-0", "SIM-test-host-1"


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    """Three devices on two hosts; leases of ann and bob, one of ann's on the CPU; two waiters."""
    with running_broker(devices=2, memory_mb=1000) as running:
        client = running.client
        register(client, device("D-other"), host="other")
        client.acquire("ann", memory_mb=1000, host="other", token="lease-of-ann-there")
        client.acquire("ann", memory_mb=600, token="lease-of-ann-here1")
        client.acquire("bob", memory_mb=700, token="lease-of-bob-here1")
        safe = {"memory_mb": 900, "on_unavailable": "cpu", "host": "any"}
        client.acquire("ann", token="lease-of-ann-cpu01", **safe)
        for agent, host in (("ann", "other"), ("bob", running.host)):
            with pytest.raises(StillWaiting):
                client.acquire(agent, memory_mb=900, host=host, wait_s=0.01, keep_place=True,
                               token=f"wait-of-{agent}-000000")  # fmt: skip

        client.drain("host", "other")
        yield running


def on(pool: TestBroker, *words: str) -> CompletedProcess[str]:
    """Return one call."""
    return called(*words, REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)


def found(pool: TestBroker, *words: str) -> Any:
    """Return what a call prints as JSON."""
    return json.loads(on(pool, *words, "-o", "json").stdout)


@pytest.mark.parametrize(
    ("asked", "devices", "leases"),
    [
        ((), {HERE, THERE, "D-other"}, 4),
        (("--limit", "0"), {HERE, THERE, "D-other"}, 4),
        (("--host", "other"), {"D-other"}, 1),
        (("--host", "test-host:1"), {THERE}, 1),
        (("--agent", "ann"), {"D-other", "ann's"}, 3),
        (("--agent", "ann", "--host", "other"), {"D-other"}, 1),
        (("--state", "drained"), {"D-other"}, 1),
        (("--state", "lost"), set(), 0),
        (("--agent", "nobody"), set(), 0),
    ],
)
def test_status_shows_the_part_that_is_asked_for(
    pool: TestBroker, asked: tuple[str, ...], devices: set[str], leases: int
) -> None:
    """By host, GPU, agent and state, in JSON, in text and by name."""
    ((anns, _),) = pool.client.leases_of(["lease-of-ann-here1"])[0].devices
    want = {anns if name == "ann's" else name for name in devices}
    data = found(pool, "status", *asked)
    assert {device["uuid"] for device in data["devices"]} == want
    assert (len(data["leases"]), data["left_out"]) == (leases, 0)
    assert {*on(pool, "status", *asked, "-o", "name").stdout.split()} == want
    text = on(pool, "status", *asked).stdout
    assert ("nothing matches" in text) == (not want)
    assert f"{len(want)} GPU" in text


def test_part_without_a_gpu_says_what_matches(pool: TestBroker) -> None:
    """Nothing, of `status` and `top` alike; a lease on the CPU is something."""
    held = pool.client.acquire("cay", host="elsewhere", on_unavailable="cpu")
    for command in (("status",), ("top", "--once")):
        none = on(pool, *command, "--agent", "nobody").stdout
        assert "nothing matches --agent nobody: gpu-broker status shows all" in none
        assert "no process" not in none
        text = on(pool, *command, "--agent", "cay").stdout
        assert "nothing matches" not in text
        assert "cay" in text
    pool.client.release(held)


@pytest.mark.parametrize("command", [("status",), ("top", "--once")])
def test_closed_pool_says_why_nothing_is_free(pool: TestBroker, command: tuple[str, ...]) -> None:
    """Its GPUs are well; an open pool has no such line."""
    client, until_ms = pool.client, pool.client.pool().now_ms + 9_500
    assert "closed" not in on(pool, *command).stdout
    client.redis.hset(client.keys.pool, "closed_until_ms", until_ms)
    text = on(pool, *command).stdout
    client.redis.hset(client.keys.pool, "closed_until_ms", 0)
    assert " 0 MiB free of" in text
    assert re.search(r"\nclosed for [1-9] s more: it may have lost data, so nothing new", text)


@pytest.mark.parametrize("asked", [("--host", "elsewhere"), ("--state", "away")])
def test_hosts_that_a_filter_leaves_out_are_no_such_hosts(
    pool: TestBroker, asked: tuple[str, str]
) -> None:
    """The pool has others."""
    assert on(pool, "hosts", *asked).stdout.startswith("no such hosts")
    assert found(pool, "hosts", *asked)["total"] == 0


@pytest.mark.parametrize("command", ["status", "top", "leases", "hosts", "queue"])
def test_state_that_there_is_none_of_is_refused(pool: TestBroker, command: str) -> None:
    """With those that there are; it is no word that nothing matches."""
    refused = on(pool, command, "--state", "drainde")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'drainde' is not one of" in refused.stderr


def test_status_of_a_part_tells_the_same_as_of_the_whole(pool: TestBroker) -> None:
    """Each device with all its fields, and sums of all that match, also beyond the limit."""
    whole = {d["uuid"]: d for d in found(pool, "status")["devices"]}
    part = found(pool, "status", "--host", "test-host", "--limit", "1")
    assert part["left_out"] == 1
    assert all(whole[device["uuid"]] == device for device in part["devices"])
    text = on(pool, "status", "--limit", "1").stdout
    assert text.partition("\n")[0] == on(pool, "status").stdout.partition("\n")[0]
    assert "2 more GPUs: --limit 0 shows all" in text


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        (("--agent", "ann"), {"lease-of-ann-there", "lease-of-ann-here1", "lease-of-ann-cpu01"}),
        (("--host", "other"), {"lease-of-ann-there"}),
        (("--host", "other:0", "--agent", "bob"), set()),
        (("--state", "cpu"), {"lease-of-ann-cpu01"}),
        (("--state", "active", "--agent", "ann", "--limit", "1"), {"lease-of-ann-there"}),
    ],
)
def test_leases_of_a_part(pool: TestBroker, asked: tuple[str, ...], tokens: set[str]) -> None:
    """Oldest first, by agent, place and kind."""
    assert {lease["token"] for lease in found(pool, "leases", *asked)["leases"]} == tokens


def test_limit_says_how_many_are_left_out(pool: TestBroker) -> None:
    """In words, and as `total`."""
    assert "3 more leases: --limit 0 shows all" in on(pool, "leases", "--limit", "1").stdout
    assert found(pool, "leases", "--limit", "1")["total"] == 4
    assert "1 more request: --limit 0" in on(pool, "queue", "--limit", "1").stdout
    assert "1 more host: --limit 0" in on(pool, "hosts", "--limit", "1").stdout


@pytest.mark.parametrize(
    ("asked", "agents"),
    [
        ((), ["ann", "bob"]),
        (("--host", "other"), ["ann"]),
        (("--agent", "bob"), ["bob"]),
        (("--state", "offered"), []),
    ],
)
def test_queue_of_a_part(pool: TestBroker, asked: tuple[str, ...], agents: list[str]) -> None:
    """In the queue's order."""
    assert [x["agent"] for x in found(pool, "queue", *asked)["queue"]] == agents


def test_hosts_of_a_part(pool: TestBroker) -> None:
    """By name and by state; a misspelled name is answered."""
    drained = found(pool, "hosts", "--state", "drained")["hosts"]
    assert [host["host"] for host in drained] == ["other"]
    assert found(pool, "hosts", "--state", "away")["hosts"] == []
    assert found(pool, "hosts", "--host", "test-host")["total"] == 1
    assert "did you mean other?" in on(pool, "hosts", "--host", "othr").stdout
    assert "did you mean other or" in on(pool, "status", "--host", "othr").stderr

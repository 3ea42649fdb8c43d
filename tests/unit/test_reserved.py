"""Reservations, and memory that cannot be leased, as readers show them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from agent_sdk.state import snapshot
from broker.cli import main
from broker.live.sums import Sums
from broker.metrics import Metrics
from broker.metrics.pool import PoolReading
from broker.serializers import device_json
from tests.lua.reserved import DAY_MS, live
from tests.lua.waiters import wait
from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

    from tests.servers import Server

TWO = {"devices": 2, "memory_mb": 500}


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A plain Redis."""
    return own


@pytest.fixture
def reserved(server: Server) -> Iterator[Pool]:
    """Two devices of h1 are reserved for `two`; a little of one is held."""
    with server.connect() as client:
        pool = Pool(client)
        pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=DAY_MS)
        granted(pool.acquire(token("on"), "little", memory_mb=100, ttl_ms=0))
        wait(pool, "two", **TWO)
        live(pool, 33, "two", **TWO)
        yield pool


def run(server: Server, pool: Pool, *args: str) -> Result:
    """A command of the shell on this pool."""
    settings = {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool.keys.pool_name}
    result = CliRunner(env=settings).invoke(main, args)
    assert result.exit_code == 0, result.output
    return result


def test_status_says_for_whom_devices_are_reserved(server: Server, reserved: Pool) -> None:
    """With since when and until when; none of their memory is free."""
    text = run(server, reserved, "status", "-o", "wide").output
    assert text.count("reserved for two since") == 2
    assert "0 MiB free of 2.0 GiB" in text
    found = json.loads(run(server, reserved, "status", "-o", "json").output)["devices"]
    assert [d["free_mb"] for d in found] == [0, 0]
    assert sorted(d["left_mb"] for d in found) == [900, 1000]
    for each in found:
        of = each["reservation"]
        assert (of["agent"], of["memory_mb"]) == ("two", 2000)
        assert of["since_ms"] <= of["until_ms"] - 60_000


def test_queue_says_what_is_reserved(server: Server, reserved: Pool) -> None:
    """The sentence, the narrow column and JSON say the device, the beginning and the end."""
    assert "reserved for two since" in run(server, reserved, "queue", "-o", "wide").output
    (row,) = json.loads(run(server, reserved, "queue", "-o", "json").output)["queue"]
    assert sorted(row["reservation"]["devices"]) == ["gpu-a", "gpu-b"]
    assert "h1:0" in row["why"]
    assert "h1:1" in row["why"]


def test_explain_says_what_is_reserved(server: Server, reserved: Pool) -> None:
    """It names the waiter's own reservation to it, and the owner to others."""
    own = run(server, reserved, "explain", "--", token("two")).output
    assert "reserved for two since" in own.partition("\n")[0]
    asks = ("explain", "--agent", "ann", "--memory", "300MiB", "--host", "any")
    others = run(server, reserved, *asks).output
    (row,) = [row for row in others.splitlines() if "reserved for two since" in row]
    assert row.startswith("h1:0 h1:1 ")


def test_gpu_info_says_for_whom_devices_are_reserved(reserved: Pool) -> None:
    """The agent and the times; what is left on them is not free."""
    for each in reserved.look(snapshot.devices(reserved.keys)):
        row = device_json.row(each, str)
        assert row["reserved_for"] == "two"
        assert row["reserved_until"] - row["reserved_since"] >= 60
        assert (row["memory_free_mb"], row["memory_left_mb"] > 0) == (0, True)


def test_device_without_reservation_says_so(server: Server) -> None:
    """The fields are null, so that a reader finds them."""
    with server.connect() as client:
        pool = Pool(client)
        pool.report((device("gpu-a"),), deadline_ms=DAY_MS)
        (found,) = pool.look(snapshot.devices(pool.keys))
    row = device_json.row(found, str)
    names = ("reserved_for", "reserved_since", "reserved_until")
    assert [row[name] for name in names] == [None, None, None]
    assert (row["memory_free_mb"], row["memory_left_mb"]) == (1000, 1000)


@pytest.fixture
def mixed(server: Server) -> Iterator[Pool]:
    """A pool of seven devices: one can be had; the others are drained, lost, away, reserved..."""
    with server.connect() as client:
        pool = Pool(client)
        states = ("ok", "lost", "quarantined", "dirty", "ok")
        mine = tuple(device(f"gpu-{n}", index=n, state=s) for n, s in enumerate(states))
        pool.report(mine, deadline_ms=DAY_MS)
        pool.report((device("gone"),), host="h2", deadline_ms=1000)
        pool.report((device("whole", model="m9"),), host="h3", deadline_ms=DAY_MS)
        granted(pool.acquire(token("alone"), exclusive=1, model="m9", ttl_ms=0))
        pool.report((device("whole", 3000, model="m9"),), host="h3", deadline_ms=DAY_MS)
        pool.skew(1001)
        pool.reap()
        pool.drain("gpu-4")
        yield pool


def test_free_is_what_the_next_who_asks_can_be_given(server: Server, mixed: Pool) -> None:
    """In the status line, in its rows, in JSON, in the metrics, in `/gpu/info`."""
    text = run(server, mixed, "status").output
    assert "1000 MiB free of" in text
    found = json.loads(run(server, mixed, "status", "-o", "json").output)["devices"]
    assert {d["uuid"]: d["free_mb"] for d in found if d["free_mb"]} == {"gpu-0": 1000}
    devices = mixed.look(snapshot.devices(mixed.keys))
    assert sum(device_json.row(each, str)["memory_free_mb"] for each in devices) == 1000
    seen = PoolReading(mixed.look(snapshot.pool(mixed.keys)), devices, (), None)
    lines = Metrics().text(seen, None).decode().splitlines()
    free = [x for x in lines if x.startswith("gpu_broker_device_memory_free_bytes{")]
    assert len(free) == 7
    assert sum(float(line.rpartition(" ")[2]) for line in free) == 1000 * 1024 * 1024
    (granted_mb,) = (mb for _, mb in granted(mixed.acquire(memory_mb=1000)).devices)
    assert granted_mb == 1000


@pytest.mark.parametrize("policy", [{"safe_mode": 1}, {"allow_fractional_shares": 0}])
def test_nothing_is_free_that_the_policy_forbids(
    server: Server, reserved: Pool, policy: dict[str, int]
) -> None:
    """Under SAFE_MODE nothing is; without fractions nothing of a device that has a lease."""
    reserved.release(token("two"))
    assert "1.9 GiB free of 2.0 GiB" in run(server, reserved, "status").output
    reserved.set_policy(**policy)
    found = json.loads(run(server, reserved, "status", "-o", "json").output)["devices"]
    assert sum(d["free_mb"] for d in found) == (0 if "safe_mode" in policy else 1000)


@pytest.mark.parametrize("beside", ["a lease", "a program without a lease", "withheld memory"])
def test_device_in_part_is_not_free_where_the_policy_gives_whole_ones(
    pool: Pool, beside: str
) -> None:
    """By the metrics, `/gpu/info` and the sums of the page as by acquire."""
    pool.report((device("gpu-a", 3000, simulated=0),), deadline_ms=DAY_MS)
    if beside == "a program without a lease":
        used = device("gpu-a", 3000, simulated=0, used_mb=900, reported_unleased_mb=900)
        pool.report((used,), deadline_ms=DAY_MS)
    else:
        granted(pool.acquire(token("one"), memory_mb=100, ttl_ms=1000))
        pool.skew(2000 if beside == "withheld memory" else 0)
        pool.reap()
    for shares, safe in ((1, 0), (0, 0), (1, 1)):
        pool.set_policy(allow_fractional_shares=shares, safe_mode=safe)
        devices = pool.look(snapshot.devices(pool.keys))
        status = pool.look(snapshot.pool(pool.keys))
        lines = Metrics().text(PoolReading(status, devices, (), None), None).decode().splitlines()
        (free,) = [x for x in lines if x.startswith("gpu_broker_device_memory_free_bytes{")]
        says = {
            device_json.row(devices[0], str, status.free_mb(devices[0]))["memory_free_mb"] > 0,
            Sums(devices, status.free_mb).told()["free_mb"] > 0,
            float(free.rpartition(" ")[2]) > 0,
            pool.acquire(token(f"asks-{shares}-{safe}"), memory_mb=1)[0] == "GRANTED",
        }
        assert says == {shares and not safe}
        pool.release(token("asks-1-0"))

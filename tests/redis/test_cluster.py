"""`redis+cluster://`: each pool at the node that has its slot, wherever that goes."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import AsyncLeaseClient, BrokerUnavailable, Denied, LeaseClient, LeaseError, Store
from tests.audit import audit
from tests.redis.callers import AGAIN_S, calling
from tests.redis.clients import LOOKED_S, acquiring
from tests.redis.doors import check_doors
from tests.reports import register
from tests.servers import free_port, running
from tests.stores import DEPLOY, Cluster, cluster, pool_in, slot_of, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server

USERS = DEPLOY / "users.acl"

MOVE_S = 0.05
"""Between two steps of a slot's move: it takes a second, so that calls meet it at every step."""


KINDS = ["redis", "valkey"] if os.environ.get("GPU_BROKER_SOAK") == "1" else ["redis"]


@pytest.fixture(scope="module", params=KINDS)
def fleet(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster(request.param, replicas=1) as fleet:
        yield fleet


@pytest.fixture(params=KINDS)
def own_fleet(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A Cluster of one test's own, whose nodes may die."""
    with cluster(request.param, replicas=1) as fleet:
        yield fleet


def client_of(url: str, pool: str, deadline_s: float = 10) -> LeaseClient:
    return LeaseClient(Store(url), pool=pool, hostname="h1", deadline_s=deadline_s)


def keys_at(fleet: Cluster, node: Server, pool: str) -> int:
    return int(fleet.call(node, "CLUSTER COUNTKEYSINSLOT", slot_of(pool)))


async def test_pools_live_at_the_nodes_of_their_slots(fleet: Cluster) -> None:
    """Both clients find each; one node that answers is enough to begin with."""
    for part, node in enumerate(fleet.nodes):
        pool = pool_in(part, f"at-{uuid4().hex[:4]}")
        seeds = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{fleet.nodes[-1].port}"
        with client_of(seeds, pool) as client:
            register(client)
            lease = client.acquire("a", memory_mb=10)
        async with AsyncLeaseClient(Store(fleet.url), pool=pool) as other:
            assert [row.token for row in await other.leases()] == [lease.token]
        assert [keys_at(fleet, each, pool) > 0 for each in fleet.nodes] == [
            each is node for each in fleet.nodes
        ]


async def test_use_is_read_at_the_node_of_its_pool(fleet: Cluster) -> None:
    """Sums are read in transactions, by both clients, wherever the pool is."""
    for part in range(len(fleet.nodes)):
        pool = pool_in(part, f"use-{uuid4().hex[:4]}")
        with client_of(fleet.url, pool) as client:
            register(client)
            client.acquire("a", memory_mb=10).release()
            held = client.acquire("a", memory_mb=10)
            (row,) = client.usage(by=("agent",)).rows
            assert (row.agent, row.leases, row.running) == ("a", 1, 1)
            async with AsyncLeaseClient(Store(fleet.url), pool=pool) as other:
                (row,) = (await other.usage(by=("host", "day"))).rows
                assert (row.host, row.leases, row.running) == ("h1", 1, 1)
                assert (await other.history()).leases == client.history().leases == ()
            held.release()


def test_plain_url_of_a_node_says_how_to_find_the_others(fleet: Cluster) -> None:
    """A pool that is elsewhere: MOVED, told in words."""
    url = f"redis://127.0.0.1:{fleet.nodes[0].port}"
    with (
        client_of(url, pool_in(1), deadline_s=0.2) as client,
        pytest.raises(LeaseError, match=r"another node.*redis\+cluster://"),
    ):
        client.devices()


def test_server_that_is_no_cluster_says_so(server: Server) -> None:
    """The Cluster's form of URL for a plain server."""
    url = f"redis+cluster://127.0.0.1:{server.port}"
    with (
        client_of(url, "default", deadline_s=0.2) as client,
        pytest.raises(LeaseError, match="cluster support disabled"),
    ):
        client.devices()


def test_slot_that_nobody_has_is_store_unavailable() -> None:
    """CLUSTERDOWN of the node itself, and to who asks where the slot is."""
    bus = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with running("redis", *bus) as alone:
        for url, told in (
            (alone.url, "Hash slot not served"),
            (f"redis+cluster://127.0.0.1:{alone.port}", "knows none"),
        ):
            with (
                client_of(url, "default", deadline_s=0.2) as client,
                pytest.raises(LeaseError, match=told) as raised,
            ):
                client.acquire("a", memory_mb=10)
            assert raised.value.code == "store_unavailable"


def test_every_door_works_on_a_cluster(fleet: Cluster) -> None:
    """The broker, its stream of events and the commands, with a pool of the last node."""
    pool = pool_in(2, f"doors-{uuid4().hex[:4]}")
    assert f"port {fleet.nodes[2].port}, replicas: 0" in check_doors(fleet.url, pool)


@pytest.mark.parametrize("user", ["agent", "viewer"])
def test_users_of_the_acl_file_find_their_pool(user: str) -> None:
    """They may ask where it is."""
    bus = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    line = next(x for x in USERS.read_text().splitlines() if x.startswith(f"user {user} "))
    with running("redis", *bus) as server, server.connect() as root:
        root.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        until(lambda: "'cluster_state': 'ok'" in str(root.execute_command("CLUSTER INFO")))
        root.execute_command("ACL", "SETUSER", *line.split()[1:], ">secret")
        with client_of(f"redis+cluster://{user}:secret@127.0.0.1:{server.port}", "p") as client:
            assert client.devices() == ()
        wrong = f"redis+cluster://{user}:wrong@127.0.0.1:{server.port}"
        with client_of(wrong, "p") as client, pytest.raises(Denied):
            client.devices()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_call_while_its_slot_moves_runs_nowhere(fleet: Cluster, kind: str) -> None:
    """Half of the pool is on either node: no script may see that. When the move ends, the new node
    answers: closed at first, as after a failover.
    """
    pool = pool_in(1, f"half-{kind}-{uuid4().hex[:4]}")
    source, target = fleet.nodes[1], fleet.nodes[2]
    with (
        client_of(fleet.url, pool) as client,
        acquiring(kind, Store(fleet.url), pool, 1) as hasty,
    ):
        register(client)
        hasty(str(uuid4()))
        move = fleet.move(pool, source, target)
        next(move)
        next(move)  # ten keys have moved
        before = [keys_at(fleet, node, pool) for node in (source, target)]
        assert min(before) > 0
        with pytest.raises(LeaseError, match="on its way to another node") as raised:
            hasty(str(uuid4()))
        assert raised.value.code == "store_unavailable"
        assert [keys_at(fleet, node, pool) for node in (source, target)] == before
        list(move)
        time.sleep(LOOKED_S)
        with pytest.raises(BrokerUnavailable) as raised:
            hasty(str(uuid4()))
        assert raised.value.code == "closed"
        assert len(client.leases()) == 1
        with target.connect() as admin:
            audit(admin, client.keys)


def test_slot_that_moves_under_load_loses_no_lease_and_grants_none_twice(fleet: Cluster) -> None:
    """Leases come, go and are renewed all the while, by both clients and in the background."""
    pool = pool_in(1, f"busy-{uuid4().hex[:4]}")
    source, target = fleet.nodes[1], fleet.nodes[2]
    with client_of(fleet.url, pool) as client, asyncio.Runner() as runner:
        register(client)
        other = AsyncLeaseClient(Store(fleet.url), pool=pool, hostname="h1", deadline_s=10)
        kept = client.acquire("a", memory_mb=100, ttl_s=3)
        client.keep(kept)

        async def several() -> None:
            async def one() -> None:
                lease = await other.acquire("c", memory_mb=100)
                assert await other.release(lease)

            await asyncio.gather(*(one() for _ in range(4)))

        def one() -> None:
            with client.lease("b", memory_mb=400):
                pass

        with calling(sync=one, many=lambda: runner.run(several())) as callers:
            until(lambda: all(len(caller.done) > 2 for caller in callers.values()))
            for _ in fleet.move(pool, source, target):
                time.sleep(MOVE_S)
            moved_at = time.monotonic()
            until(lambda: all(c.first_after(moved_at) < float("inf") for c in callers.values()))
        runner.run(other.close())
        failed = [error for caller in callers.values() for error in caller.failed]
        assert {getattr(error, "code", error) for error in failed} <= {"closed"}
        renewed = kept.expires_at_ms
        until(lambda: kept.expires_at_ms > renewed)
        assert not kept.lost
        assert [lease.token for lease in client.leases()] == [kept.token]
        assert keys_at(fleet, source, pool) == 0
        with target.connect() as admin:
            audit(admin, client.keys)


def test_replica_that_takes_over_is_found_within_a_second(own_fleet: Cluster) -> None:
    """SIGKILL of the pool's node."""
    fleet = own_fleet
    pool, (replica,) = pool_in(0, "fails"), fleet.replicas
    with client_of(fleet.url, pool) as client, asyncio.Runner() as runner:
        register(client)
        other = AsyncLeaseClient(Store(fleet.url), pool=pool, hostname="h1", deadline_s=15)
        client.deadline_s = 15
        lease = client.acquire("a", memory_mb=10, ttl_s=60)
        kept = client.acquire("a", memory_mb=10, ttl_s=10)
        client.keep(kept)
        calls: dict[str, Callable[[], object]] = {
            "sync": lambda: client.renew(lease.token),
            "async": lambda: runner.run(other.renew(lease.token)),
        }
        with calling(**calls) as callers:
            with fleet.nodes[0].connect() as admin:
                assert admin.wait(1, 2000) == 1
            fleet.nodes[0].kill()
            until(lambda: fleet.call(replica, "ROLE")[0] == "master", every_s=0.01)
            over_at = time.monotonic()
            until(lambda: all(c.first_after(over_at) < float("inf") for c in callers.values()))
        runner.run(other.close())
        late = {name: caller.first_after(over_at) - over_at for name, caller in callers.items()}
        assert max(late.values()) < 2 * AGAIN_S, late
        assert [caller.failed for caller in callers.values()] == [[], []]
        renewed = kept.expires_at_ms
        until(lambda: kept.expires_at_ms > renewed)
        assert not kept.lost

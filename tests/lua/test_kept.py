"""State that a function library keeps of a pool between its calls: void, never wrong."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ResponseError

from tests.audit import audit
from tests.pools import OTHER, OWN, SCRIPTS, Pool, device, granted, token
from tests.rollback import Earlier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

MANY = 600
"""More agents, and more leases, than a library keeps."""


@pytest.fixture
def pool(server: Server) -> Iterator[Pool]:
    """A pool whose verbs are functions, and whose two devices the library keeps; one is idle."""
    with server.connect() as client:
        pool = Pool(client, functions=True)
        pool.freeze()
        pool.report((device("gpu-a", 100_000), device("gpu-b", 100_000, index=1)))
        granted(pool.acquire(token("first"), memory_mb=1000))
        for name in ("warm", "warmer"):
            granted(pool.acquire(token(name), memory_mb=100))
        for name in ("warm", "warmer"):
            assert pool.release(token(name))[0] == "RELEASED"
        yield pool


@contextmanager
def broken(pool: Pool, name: str) -> Iterator[None]:
    """A key of another type in a key's place: a call ends there, with some of its writes done."""
    key, aside = f"{pool.keys.base}:{name}", f"{pool.keys.base}:test_aside"
    pool.redis.rename(key, aside)
    pool.redis.set(key, "no hash")
    yield
    pool.redis.rename(aside, key)


def commands(pool: Pool, call: Any) -> dict[str, int]:
    """Run a call, and count its commands by name."""
    pool.redis.config_resetstat()
    call()
    stats: Any = pool.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}


def test_second_call_reads_the_pool_by_one_field(pool: Pool) -> None:
    """It is the straight path that is under test here, by what the library keeps."""
    ran = commands(pool, lambda: granted(pool.acquire(token("second"), memory_mb=100)))
    assert (ran["hget"], "hmget" in ran) == (1, False)
    ran = commands(pool, lambda: pool.renew(token("second")))
    assert (ran["hget"], "hmget" in ran) == (1, False)
    ran = commands(pool, lambda: pool.release(token("second")))
    assert (ran["hget"], "hmget" in ran) == (1, False)
    audit(pool.redis, pool.keys)


def test_each_call_moves_the_sequence_forward(pool: Pool) -> None:
    """Also while the clock stands still, by each way, and by a call that decides nothing."""
    calls = [
        lambda: pool.acquire(token("a")), lambda: pool.renew(token("a")), pool.reap,
        lambda: pool.acquire(token("x"), memory_mb=10**9), lambda: pool.renew(token("nobody")),
        lambda: pool.drain("gpu-b"), lambda: pool.release(token("a")),
    ]  # fmt: skip
    found = []
    for way in (OWN, OTHER, SCRIPTS):
        pool.way = way
        for call in calls:
            call()
            found.append(int(pool.hash("pool")["sequence"]))
    assert found == sorted(set(found))


@pytest.mark.parametrize("way", [OTHER, SCRIPTS])
def test_call_by_another_way_makes_what_is_kept_void(pool: Pool, way: str) -> None:
    """Another version's library, and a client that has scripts alone, on the same pool."""
    for number in range(4):
        pool.way = way if number % 2 else OWN
        granted(pool.acquire(token(f"t{number}"), memory_mb=100))
        assert sum(pool.number(uuid, "leased_mb") for uuid in ("gpu-a", "gpu-b")) == (
            1000 + 100 * (number + 1)
        )
    pool.way = OWN
    assert pool.release(token("t3"))[0] == "RELEASED"
    assert pool.agents() == {"agent": "1300", "agent#leases": "4"}
    audit(pool.redis, pool.keys)


@pytest.mark.parametrize(
    ("way", "key"), [(OWN, "agents"), (OTHER, "idle:h1/m1"), (SCRIPTS, "idle:h1/m1")]
)
def test_call_that_ends_in_an_error_leaves_nothing_believed(pool: Pool, way: str, key: str) -> None:
    """Writes before the error are read again, by the other ways' callers too."""
    with broken(pool, key):
        pool.way = way
        with pytest.raises(ResponseError):
            pool.acquire(token("half"), memory_mb=100)
        pool.way = OWN
    leased = {uuid: pool.number(uuid, "leased_mb") for uuid in ("gpu-a", "gpu-b")}
    assert leased == {"gpu-a": 100, "gpu-b": 1000}, "the device was written before the error"
    ((uuid, _),) = granted(pool.acquire(token("next"), memory_mb=100)).devices
    assert (uuid, pool.number(uuid, "leased_mb")) == ("gpu-a", 200)
    assert pool.agents() == {"agent": "1100", "agent#leases": "2"}


def test_edit_by_hand_counts_once_the_sequence_is_moved(pool: Pool) -> None:
    """The way that docs/reference/keys.md tells."""
    pool.redis.hset(pool.keys.pool, "max_leases_per_agent", 1)
    pool.redis.hincrby(pool.keys.pool, "sequence", 1)
    assert pool.acquire(token("a"))[:1] + pool.acquire(token("a"))[5:6] == ["REFUSED", "limit"]


def test_library_keeps_a_bounded_part_and_is_right_beyond_it(pool: Pool) -> None:
    """More agents, leases and requests than it keeps: all of a kind go, and are read again."""
    for number in range(MANY):
        granted(pool.acquire(token(f"m{number}"), f"agent{number}", memory_mb=1 + number % 300))
    for number in range(MANY):
        assert pool.renew(token(f"m{number}"))[0] == "RENEWED"
        assert pool.release(token(f"m{number}"))[0] == "RELEASED"
    assert pool.agents() == {"agent": "1000", "agent#leases": "1"}
    audit(pool.redis, pool.keys)


def test_pool_made_anew_is_another_pool(pool: Pool) -> None:
    """FLUSHALL under a running library: nothing of the old pool is believed."""
    names = [name for name in pool.redis.scan_iter(f"{pool.keys.base}:*") if ":test_" not in name]
    pool.redis.delete(*names)
    pool.skew(1000)
    pool.report((device("gpu-a", 1000),))
    assert pool.acquire(token("a"), memory_mb=1001)[5] == "never_fits"
    assert pool.agents() == {}


def test_renewal_of_a_key_that_is_gone_sets_it_anew(pool: Pool) -> None:
    """A lease key that a hand removed, or that expired early, is back with the lease's fence."""
    found = granted(pool.acquire(token("a"), memory_mb=100))
    key = pool.keys.lease(found.devices[0][0], token("a"))
    pool.redis.delete(key)
    assert pool.renew(token("a"), ttl_ms="030000")[0] == "RENEWED"
    assert pool.redis.get(key) == str(found.fence)
    assert 0 < pool.redis.pttl(key) <= 30_000


def test_pool_that_went_back_comes_to_no_sequence_that_was_there(pool: Pool) -> None:
    """A plain counter would: so the sequence follows Redis's clock."""

    def moved() -> set[str]:
        found = set()
        for _ in range(3):
            pool.reap()
            found.add(pool.hash("pool")["sequence"])
        return found

    earlier = Earlier.take(pool)
    before = moved()
    earlier.put_back()
    pool.redis.incrby(f"{pool.keys.base}:test_frozen_us", 1000)
    assert not before & moved()

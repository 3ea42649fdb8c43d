"""acquire: which device a share of GPU memory is put on, and what the answer and the keys say."""

from __future__ import annotations

from agent_sdk.keys import AGENT, DEVICE, HOST, TOKEN
from tests.pools import Pool, device, granted, said, token, uuids

HALF_FULL = (
    device("gpu-a", 1000, model="m1"),
    device("gpu-b", 2000, model="m2"),
    device("gpu-c", 3000, model="m1"),
)


def test_acquire_share_that_fits_is_granted_on_the_device_with_most_room(pool: Pool) -> None:
    """`spread`, the default, takes the device that has most memory free."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 2000)))
    reply = pool.acquire("t" * 16)
    tag, now, *_, fence, expires, remaining, reason, uuid, mb, _, host, name, total_mb, _, _ = reply
    assert (tag, remaining, reason) == ("GRANTED", 30000, "")
    assert (uuid, mb, host, name) == ("gpu-b", "900", "h1", "Test GPU")
    assert total_mb == 2000
    assert expires == now + 30000
    assert pool.redis.get(pool.keys.lease("gpu-b", "t" * 16)) == fence
    assert 29000 < pool.redis.pttl(pool.keys.lease("gpu-b", "t" * 16)) <= 30000


def test_acquire_spread_many_times_fills_devices_evenly(pool: Pool) -> None:
    """Each share goes where most is left, so equal devices fill in turn."""
    pool.report(tuple(device(f"gpu-{n}", 1000) for n in range(4)))
    first = {uuids(pool.acquire(memory_mb=300))[0] for _ in range(4)}
    assert len(first) == 4
    second = {uuids(pool.acquire(memory_mb=300))[0] for _ in range(4)}
    assert len(second) == 4
    assert set(pool.free().values()) == {400}


def test_acquire_pack_takes_the_fullest_device_that_fits(pool: Pool) -> None:
    """`pack` is best fit: the large rooms stay for the large requests."""
    pool.report((device("gpu-a", 3000), device("gpu-b", 1000), device("gpu-c", 2000)))
    assert uuids(pool.acquire(memory_mb=500, placement="pack")) == ["gpu-b"]
    assert uuids(pool.acquire(memory_mb=501, placement="pack")) == ["gpu-c"]
    assert uuids(pool.acquire(memory_mb=500, placement="pack")) == ["gpu-b"]
    assert uuids(pool.acquire(memory_mb=1500, placement="pack")) == ["gpu-a"]


def test_acquire_share_of_exactly_what_is_left_is_granted(pool: Pool) -> None:
    """A device can be filled to its last MiB, and then is listed as free no more."""
    pool.report((device("gpu-a", 1000),))
    granted(pool.acquire(memory_mb=999))
    assert said(pool.acquire(memory_mb=2)) == ["REFUSED", "no_capacity", ""]
    granted(pool.acquire(memory_mb=1))
    assert pool.free() == {}


def test_acquire_on_a_host_looks_at_that_host_alone(pool: Pool) -> None:
    """A request for a host is placed there, or refused while others have room."""
    pool.report((device("gpu-a", 1000),), host="h1")
    pool.report((device("gpu-b", 9000),), host="h2")
    assert uuids(pool.acquire(host="h1")) == ["gpu-a"]
    assert said(pool.acquire(host="h1")) == ["REFUSED", "no_capacity", ""]
    assert uuids(pool.acquire(host="h2")) == ["gpu-b"]


def test_acquire_of_a_model_looks_at_that_model_alone(pool: Pool) -> None:
    """A request for a model is placed on its devices, on whichever host."""
    pool.report(HALF_FULL[:2], host="h1")
    pool.report(HALF_FULL[2:], host="h2")
    assert uuids(pool.acquire(model="m2", memory_mb=2000)) == ["gpu-b"]
    assert said(pool.acquire(model="m2", memory_mb=1)) == ["REFUSED", "no_capacity", ""]
    assert uuids(pool.acquire(model="m1", placement="pack")) == ["gpu-a"]


def test_acquire_of_a_host_and_a_model_satisfies_both(pool: Pool) -> None:
    """With both named, a roomier device of another model or host is passed over."""
    pool.report(HALF_FULL, host="h1")
    pool.report((device("gpu-d", 9000, model="m2"),), host="h2")
    for placement in ("spread", "pack"):
        ask = {"host": "h1", "model": "m2", "placement": placement, "memory_mb": 1000}
        assert uuids(pool.acquire(**ask)) == ["gpu-b"]
    assert said(pool.acquire(host="h1", model="m2", memory_mb=1)) == ["REFUSED", "no_capacity", ""]


def test_acquire_memory_zero_takes_the_policys_default(pool: Pool) -> None:
    """memory_mb=0 asks for default_memory_mb of the policy, as it is at that moment."""
    pool.report((device("gpu-a", 9000),))
    assert granted(pool.acquire(memory_mb=0)).devices == (("gpu-a", 2048),)
    pool.policy(default_memory_mb=100)
    assert granted(pool.acquire(memory_mb=0)).devices == (("gpu-a", 100),)


def test_acquire_grant_leaves_a_record_that_says_all(pool: Pool) -> None:
    """The ledger holds who, what, until when, and the request as it was asked."""
    pool.report((device("gpu-a", 1000),))
    got = granted(
        pool.acquire(token("a"), "agent:1@x/y", priority=7, owner="me@there", pid="12:99")
    )
    record = pool.hash(f"record:{token('a')}")
    assert record == {
        "state": "active", "agent": "agent:1@x/y", "devices": "gpu-a=900", "fence": str(got.fence),
        "granted_at_ms": str(got.now_ms), "expires_at_ms": str(got.expires_at_ms),
        "ttl_ms": "30000", "request": "900|1|0|30000|0|7|*|*|spread|refuse", "client": "client",
        "pid": "12:99", "owner": "me@there",
    }  # fmt: skip
    assert pool.hash("agents") == {
        name: value
        for party in ("agent:1@x/y", "key me@there", "team default")
        for name, value in ((party, "900"), (f"{party}#leases", "1"))
    }


def test_acquire_with_the_longest_names_is_granted(pool: Pool) -> None:
    """Every name may be as long as its form allows and hold every character of it."""
    long = {"token": "aZ0._-" * 10 + "9999", "agent": "aZ0._:@/-" * 14 + "99"}
    host, uuid = "aZ0._ -" * 9 + "9", "aZ0._:/-" * 10
    pool.report((device(uuid, 1000, model=host),), host=host)
    for form, name in (
        (TOKEN, long["token"]),
        (AGENT, long["agent"]),
        (HOST, host),
        (DEVICE, uuid),
    ):
        assert form.fullmatch(name)
        assert not form.fullmatch(name + "9")
    got = pool.acquire(
        long["token"], long["agent"], host=host, model=host,
        client="c" * 64, pid="1" * 20 + ":" + "1" * 19, owner="o" * 128,
    )  # fmt: skip
    assert uuids(got) == [uuid]
    assert said(pool.release(long["token"])) == ["RELEASED"]


def test_acquire_limits_of_every_number_are_taken(pool: Pool) -> None:
    """The least and the greatest value of each argument are inside its range."""
    pool.report((device("gpu-a", 16777216),))
    pool.policy(max_memory_per_agent_mb=16777216)
    granted(pool.acquire(token("least"), memory_mb=1, ttl_ms=1000, max_hold_ms=1, priority=0))
    pool.release(token("least"))
    most = {"memory_mb": 16777216, "ttl_ms": 604800000, "max_hold_ms": 9999999999999, "priority": 9}
    assert granted(pool.acquire(**most)).remaining_ms == 604800000


def test_acquire_ttl_zero_lasts_ten_years(pool: Pool) -> None:
    """A lease without expiry is a lease of ten years, with a native TTL like any other."""
    pool.report((device("gpu-a", 1000),))
    got = granted(pool.acquire(token("a"), ttl_ms=0))
    assert got.remaining_ms == 315_360_000_000
    assert pool.redis.pttl(pool.keys.lease("gpu-a", token("a"))) > 315_359_000_000
    assert said(pool.renew(token("a"), str(got.fence)))[0] == "RENEWED"


def test_acquire_max_hold_shorter_than_ttl_ends_the_lease_there(pool: Pool) -> None:
    """The first ttl already stops at max_hold_ms, also for a lease without expiry."""
    pool.report((device("gpu-a", 1000),))
    assert granted(pool.acquire(memory_mb=1, max_hold_ms=20000)).remaining_ms == 20000
    assert granted(pool.acquire(memory_mb=1, max_hold_ms=40000)).remaining_ms == 30000
    assert granted(pool.acquire(memory_mb=1, max_hold_ms=40000, ttl_ms=0)).remaining_ms == 40000


def test_acquire_on_a_drained_device_or_one_that_is_not_ok_is_refused(pool: Pool) -> None:
    """Only devices that are reported ok and not drained take new leases."""
    pool.report((device("gpu-a"), device("gpu-b", state="lost")))
    pool.drain("gpu-a")
    assert said(pool.acquire()) == ["REFUSED", "no_capacity", ""]
    assert said(pool.acquire(exclusive=1)) == ["REFUSED", "no_capacity", ""]

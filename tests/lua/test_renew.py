"""renew: a lease lives on while its holder asks in time, and not a moment after it was lost."""

from __future__ import annotations

from tests.pools import Pool, device, granted, said, token

T = token("t")


def test_renew_extends_the_lease_from_now(gpu: Pool) -> None:
    """A renewal gives a full ttl from now, in the record, as a deadline and on the lease key."""
    fence = str(granted(gpu.acquire(T)).fence)
    gpu.live_on(20000)
    reply = gpu.renew(T, fence)
    tag, now, _, _, _, expires_at_ms, remaining_ms, _ = reply
    assert (tag, expires_at_ms, remaining_ms) == ("RENEWED", now + 30000, 30000)
    assert gpu.hash(f"record:{T}")["expires_at_ms"] == str(expires_at_ms)
    assert gpu.redis.zscore(gpu.keys.deadlines, T) == expires_at_ms
    assert 29000 < gpu.redis.pttl(gpu.keys.lease("gpu-a", T)) <= 30000
    gpu.live_on(29000)
    assert gpu.renew(T, fence)[0] == "RENEWED"


def test_renew_with_a_ttl_of_its_own_uses_it_this_once(gpu: Pool) -> None:
    """The ttl of a call holds for that call; the next without one is again as at the grant."""
    gpu.acquire(T)
    assert said(gpu.renew(T, ttl_ms=60000))[2] == 60000
    gpu.live_on(40000)
    assert said(gpu.renew(T))[2] == 30000
    assert said(gpu.renew(T, ttl_ms=0))[2] == 315_360_000_000


def test_renew_never_shortens(gpu: Pool) -> None:
    """S7: a holder was told an end; no later call moves it nearer."""
    first = granted(gpu.acquire(T))
    assert said(gpu.renew(T, ttl_ms=1000)) == ["RENEWED", first.expires_at_ms, 30000, ""]
    gpu.skew(5000)
    assert said(gpu.renew(T, ttl_ms=1000)) == ["RENEWED", first.expires_at_ms, 25000, ""]
    assert 24000 < gpu.redis.pttl(gpu.keys.lease("gpu-a", T)) <= 25000


def test_renew_never_goes_past_max_hold(gpu: Pool) -> None:
    """However often and however long is asked, max_hold_ms after the grant it is over."""
    end = granted(gpu.acquire(T, max_hold_ms=50000)).now_ms + 50000
    for _ in range(4):
        gpu.live_on(10000)
        assert said(gpu.renew(T, ttl_ms=604800000))[:2] == ["RENEWED", end]
    gpu.live_on(9999)
    assert said(gpu.renew(T)) == ["RENEWED", end, 1, ""]
    gpu.skew(2)
    assert said(gpu.renew(T)) == ["LOST", "expired"]


def test_renew_with_another_fence_is_lost(gpu: Pool) -> None:
    """Another fence is another holder: superseded, and the lease itself is untouched."""
    fence = granted(gpu.acquire(T)).fence
    before = gpu.stored()
    for other in (fence - 1, fence + 1, 0, f"0{fence}", str(fence)[:-1]):
        assert said(gpu.renew(T, str(other)[:16])) == ["LOST", "superseded"]
    assert gpu.stored() == before
    assert gpu.renew(T, str(fence))[0] == "RENEWED"
    assert gpu.renew(T, "")[0] == "RENEWED", "empty is not compared"


def test_renew_of_a_token_nobody_had_is_unknown(gpu: Pool) -> None:
    """Nothing is known of it, and nothing is written about it."""
    before = gpu.stored()
    assert said(gpu.renew(T, "5")) == ["UNKNOWN"]
    assert gpu.stored() == before


def test_renew_after_expiry_is_lost_and_stays_lost(gpu: Pool) -> None:
    """S4: one millisecond late is late, for every later call too."""
    fence = str(granted(gpu.acquire(T, ttl_ms=5000)).fence)
    gpu.skew(5000)
    assert gpu.renew(T, fence, 1000)[0] == "RENEWED", "at its last millisecond it is held"
    gpu.skew(1001)
    for _ in range(2):
        assert said(gpu.renew(T, fence)) == ["LOST", "expired"]
    assert gpu.free() == {"gpu-a": 1000}
    assert not gpu.redis.exists(gpu.keys.lease("gpu-a", T))


def test_renew_after_release_is_lost(gpu: Pool) -> None:
    """A renewal that the release overtook brings nothing back."""
    gpu.acquire(T)
    gpu.release(T)
    assert said(gpu.renew(T)) == ["LOST", "released"]
    assert gpu.free() == {"gpu-a": 1000}


def test_renew_while_its_lease_cools_is_lost(pool: Pool) -> None:
    """Withheld memory is not held: nobody comes back to it."""
    pool.report((device("gpu-a", 1000, simulated=0),))
    pool.acquire(T, ttl_ms=1000)
    pool.skew(1001)
    for _ in range(2):
        assert said(pool.renew(T)) == ["LOST", "expired"]
    assert pool.hash(f"record:{T}")["state"] == "cooling"
    pool.live_on(6000)
    assert said(pool.renew(T)) == ["LOST", "expired"]


def test_renew_makes_a_lost_lease_key_anew(pool: Pool) -> None:
    """The public proof of life is SET again, on every device."""
    pool.report(tuple(device(f"gpu-{n}") for n in range(3)))
    got = granted(pool.acquire(T, devices=3))
    keys = [pool.keys.lease(uuid, T) for uuid, _ in got.devices]
    pool.redis.delete(*keys[:2])
    pool.by_hand()
    assert pool.renew(T, str(got.fence))[0] == "RENEWED"
    assert pool.redis.mget(keys) == [str(got.fence)] * 3
    assert all(29000 < pool.redis.pttl(key) <= 30000 for key in keys)


def test_renew_of_a_lease_whose_keys_are_gone_still_holds(gpu: Pool) -> None:
    """No key's absence ever ends a lease: the ledger alone decides."""
    gpu.acquire(T)
    gpu.redis.delete(gpu.keys.lease("gpu-a", T))
    gpu.by_hand()
    assert said(gpu.acquire(memory_mb=500)) == ["REFUSED", "no_capacity", ""]
    assert gpu.renew(T)[0] == "RENEWED"


def test_renew_of_a_cpu_lease_extends_it(gpu: Pool) -> None:
    """A CPU lease lives and ends like any other, but has no lease key."""
    fence = str(granted(gpu.acquire(T, memory_mb=9999, on_unavailable="cpu")).fence)
    gpu.live_on(20000)
    assert said(gpu.renew(T, fence))[2] == 30000
    assert not list(gpu.redis.scan_iter(f"{gpu.keys.base}:lease:*"))
    gpu.live_on(31000)
    assert said(gpu.renew(T, fence)) == ["LOST", "expired"]
    assert gpu.stats()["cpu_expired"] == 1


def test_renew_leaves_the_rest_of_the_pool_alone(gpu: Pool) -> None:
    """A renewal is no event, moves no capacity and counts nothing; the pool remembers the time."""
    gpu.acquire(T)
    before = gpu.stored()
    gpu.skew(100)
    gpu.renew(T)
    after = gpu.stored()
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed - {gpu.keys.pool} == {gpu.keys.record(T), gpu.keys.deadlines}


def test_renew_works_in_safe_mode_and_in_a_closed_pool(gpu: Pool) -> None:
    """Holders renew whatever the policy says."""
    gpu.acquire(T)
    gpu.policy(safe_mode=1, closed_until_ms=9_999_999_999_999)
    assert gpu.renew(T)[0] == "RENEWED"

"""revoke: an operator ends a lease; its holder learns it at its next renewal, or too late."""

from __future__ import annotations

import pytest

from tests.pools import Pool, device, granted, said, token

T = token("t")
REVOKED = ["LOST", "revoked"]


@pytest.fixture
def gpu(pool: Pool) -> Pool:
    """A pool with one simulated device of 1000 MiB, leased to T for ten minutes."""
    pool.report((device("gpu-a", 1000),))
    granted(pool.acquire(T, ttl_ms=600_000))
    return pool


def test_revoke_ends_the_lease_at_its_holders_next_renewal(gpu: Pool) -> None:
    """The holder keeps the trusted lease until it asks; then the device is free at once."""
    reply = gpu.revoke(T)
    assert said(reply) == ["REVOKED", reply[1] + 60_000]
    assert gpu.free() == {"gpu-a": 100}
    assert said(gpu.renew(T)) == REVOKED
    assert gpu.free() == {"gpu-a": 1000}
    assert said(gpu.renew(T)) == said(gpu.acquire(T, ttl_ms=600_000)) == REVOKED
    assert said(gpu.release(T)) == ["ALREADY", "revoked"]
    assert gpu.stats() == {"granted": 1, "revoked": 1}


def test_revoke_ends_a_lease_whose_holder_never_asks_within_a_minute(gpu: Pool) -> None:
    """60 s later it is over, in the ledger, as a deadline and on the lease key."""
    gpu.revoke(T)
    assert 59_000 < gpu.redis.pttl(gpu.keys.lease("gpu-a", T)) <= 60_000
    gpu.live_on(60_000)
    assert gpu.free() == {"gpu-a": 100}
    gpu.skew(1)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 1000}
    assert said(gpu.renew(T)) == REVOKED


def test_revoke_never_lengthens(pool: Pool) -> None:
    """A lease that ends before the minute ends when it would have, and is told as revoked."""
    pool.report((device("gpu-a", 1000),))
    end = granted(pool.acquire(T, ttl_ms=5000)).expires_at_ms
    assert said(pool.revoke(T)) == ["REVOKED", end]
    pool.skew(3000)
    assert said(pool.revoke(T)) == ["REVOKED", end]
    pool.skew(2001)
    assert said(pool.acquire(T, ttl_ms=5000)) == REVOKED


def test_revoke_by_force_ends_the_lease_now(gpu: Pool) -> None:
    """Although its holder still trusts it: only force may do that."""
    reply = gpu.revoke(T, force=1)
    assert said(reply) == ["REVOKED", reply[1]]
    assert gpu.free() == {"gpu-a": 1000}
    assert not gpu.redis.exists(gpu.keys.lease("gpu-a", T))
    assert said(gpu.renew(T)) == REVOKED
    assert gpu.events()[-2:] == ["revoke", "revoked"]


@pytest.mark.parametrize("force", [0, 1])
def test_revoke_on_a_real_device_cools_like_an_expiry(pool: Pool, force: int) -> None:
    """The process may still be there: its memory is withheld for the grace."""
    pool.report((device("gpu-a", 1000, simulated=0),))
    pool.acquire(T)
    pool.revoke(T, force)
    pool.renew(T)
    assert pool.number("gpu-a", "withheld_mb") == 900
    assert said(pool.revoke(T)) == ["ALREADY", "revoked"]
    assert said(pool.acquire(T)) == said(pool.renew(T)) == REVOKED
    pool.live_on(5001)
    assert pool.free() == {"gpu-a": 1000}
    assert said(pool.revoke(T)) == ["ALREADY", "revoked"]


def test_revoke_of_what_is_over_or_unknown_says_so(gpu: Pool) -> None:
    """Nothing is revoked twice, and nothing is written of what nobody had."""
    before = gpu.stored()
    assert said(gpu.revoke(token("nobody"))) == ["UNKNOWN"]
    assert gpu.stored() == before
    gpu.release(T)
    for force in (0, 1):
        assert said(gpu.revoke(T, force)) == ["ALREADY", "released"]


def test_revoke_of_a_cpu_lease_ends_it(gpu: Pool) -> None:
    """CPU leases are revoked like any other, and counted apart."""
    granted(gpu.acquire(token("cpu"), memory_mb=9999, on_unavailable="cpu"))
    gpu.revoke(token("cpu"))
    assert said(gpu.renew(token("cpu"))) == REVOKED
    assert gpu.stats()["cpu_revoked"] == 1


def test_revoke_of_several_devices_gives_all_back(pool: Pool) -> None:
    """All or none, at its end too."""
    pool.report(tuple(device(f"gpu-{n}") for n in range(3)))
    pool.acquire(T, devices=3)
    pool.revoke(T)
    keys = [pool.keys.lease(f"gpu-{n}", T) for n in range(3)]
    assert pool.redis.exists(*keys) == 3
    pool.revoke(T, force=1)
    assert pool.redis.exists(*keys) == 0
    assert len(pool.free()) == 3


def test_revoke_in_the_window_after_a_leap_ends_the_lease_at_its_renewal(pool: Pool) -> None:
    """An overdue lease that may still be renewed is not, once revoked."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(T, ttl_ms=5000)
    pool.skew(11_000)
    assert said(pool.revoke(T))[0] == "REVOKED"
    assert said(pool.renew(T)) == REVOKED
    assert pool.free() == {"gpu-a": 1000}


def test_revoke_malformed_argument_is_refused_by_name(gpu: Pool) -> None:
    """It is refused as by every verb: nothing has changed."""
    before = gpu.stored()
    for name, args in {
        "token": ("short", 0, "op", ""), "force": (T, 2, "op", ""), "by": (T, 0, "", ""),
        "why": (T, 0, "op", "a\nb"),
    }.items():  # fmt: skip
        assert said(gpu.run("revoke", 1, *args)) == ["REFUSED", "bad_request", name]
    assert said(gpu.run("revoke", 2, T, 0, "op", "")) == ["REFUSED", "protocol_mismatch", ""]
    assert gpu.stored() == before

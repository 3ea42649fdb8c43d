"""acquire: one decision, atomically, whatever is asked and however often."""

from __future__ import annotations

from tests.pools import Pool, device


def test_acquire_share_that_fits_is_granted_on_the_device_with_most_room(pool: Pool) -> None:
    """`spread`, the default, takes the device that has most memory free."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 2000)))
    tag, now, *_, fence, expires, remaining, reason, uuid, mb, _, host, name = pool.acquire("t" * 16)
    assert (tag, remaining, reason) == ("GRANTED", 30000, "")
    assert (uuid, mb, host, name) == ("gpu-b", "900", "h1", "Test GPU")
    assert expires == now + 30000
    assert pool.redis.get(pool.keys.lease("gpu-b", "t" * 16)) == fence
    assert 29000 < pool.redis.pttl(pool.keys.lease("gpu-b", "t" * 16)) <= 30000

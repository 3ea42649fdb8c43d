"""acquire: whole devices, one or several, and what an agent's cap and limit leave of them."""

from __future__ import annotations

from tests.pools import Pool, device, granted, said, token, uuids

CROWDED = ["REFUSED", "no_capacity", ""]
CAPPED = ["REFUSED", "agent_cap", ""]
NEVER = ["REFUSED", "never_fits", ""]


def four(prefix: str, total_mb: int = 1000, **more: object) -> tuple[object, ...]:
    """A host's four devices."""
    return tuple(device(f"{prefix}-{n}", total_mb, index=n, **more) for n in range(4))


def test_acquire_exclusive_takes_and_counts_the_whole_device(pool: Pool) -> None:
    """memory_mb is the least that the device must have; the lease takes all it can give."""
    pool.report((device("gpu-a", 1000, system_mb=100, used_mb=50),))
    assert granted(pool.acquire(token("a"), memory_mb=500, exclusive=1)).devices == (
        ("gpu-a", 850),
    )
    assert pool.agents()["agent"] == "850"
    assert pool.hash("device:gpu-a")["exclusive"] == token("a")


def test_acquire_exclusive_means_alone_in_both_directions(pool: Pool) -> None:
    """Nothing joins an exclusive lease, and an exclusive lease joins nothing."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(token("share"), memory_mb=1)
    assert said(pool.acquire(memory_mb=1, exclusive=1)) == CROWDED
    pool.release(token("share"))
    granted(pool.acquire(memory_mb=1, exclusive=1))
    assert said(pool.acquire(memory_mb=1)) == CROWDED
    assert said(pool.acquire(memory_mb=1, exclusive=1)) == CROWDED


def test_acquire_exclusive_device_that_grows_stays_alone(pool: Pool) -> None:
    """More memory on an exclusively held device goes to no other lease."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(exclusive=1)
    pool.report((device("gpu-a", 2000),))
    assert said(pool.acquire(memory_mb=1)) == CROWDED


def test_acquire_exclusive_prefers_the_smallest_device_that_fits(pool: Pool) -> None:
    """Best fit within a host: the large device stays for who needs it."""
    pool.report((device("gpu-a", 3000), device("gpu-b", 1000), device("gpu-c", 2000)))
    assert uuids(pool.acquire(memory_mb=900, exclusive=1)) == ["gpu-b"]
    assert uuids(pool.acquire(memory_mb=900, exclusive=1)) == ["gpu-c"]
    assert uuids(pool.acquire(memory_mb=2500, exclusive=1)) == ["gpu-a"]


def test_acquire_exclusive_ignores_what_a_desktop_uses(pool: Pool) -> None:
    """Up to 512 MiB used by others a device still counts as idle; above, it does not."""
    pool.report((device("gpu-a", 2000, used_mb=512), device("gpu-b", 2000, used_mb=513)))
    assert granted(pool.acquire(exclusive=1)).devices == (("gpu-a", 1488),)
    assert said(pool.acquire(exclusive=1)) == CROWDED
    assert uuids(pool.acquire()) == ["gpu-b"]


def test_acquire_several_takes_idle_devices_of_one_host_and_model(pool: Pool) -> None:
    """Several devices come whole, from one host and one model, or not at all."""
    pool.report((*four("a"), device("a-other", 1000, model="m2")), host="h1")
    pool.report(four("b")[:2], host="h2")
    pool.acquire(token("share"), memory_mb=1, host="h1", model="m1")
    got = granted(pool.acquire(token("three"), devices=3))
    assert {uuid.partition("-")[0] for uuid, _ in got.devices} == {"a"}
    assert [mb for _, mb in got.devices] == [1000, 1000, 1000]
    keys = [pool.keys.lease(uuid, token("three")) for uuid, _ in got.devices]
    assert pool.redis.mget(keys) == [str(got.fence)] * 3
    before = pool.stored()
    assert said(pool.acquire(token("more"), devices=3)) == CROWDED
    after = pool.stored()
    stats = f"{pool.keys.base}:stats"
    assert before.pop(stats, {}) != after.pop(stats)
    assert before == after, "S5: a refusal took something"


def test_acquire_several_takes_the_host_that_fits_best(pool: Pool) -> None:
    """The host with the fewest idle devices that suffice is taken, so that large groups last."""
    pool.report(four("a"), host="h1")
    pool.report(four("b")[:2], host="h2")
    assert set(uuids(pool.acquire(devices=2))) == {"b-0", "b-1"}
    assert len(uuids(pool.acquire(devices=4))) == 4


def test_acquire_several_on_a_named_host_and_model_is_held_to_both(pool: Pool) -> None:
    """Naming host and model narrows several devices to that group."""
    pool.report((*four("a"), *four("x", model="m2")), host="h1")
    pool.report(four("b"), host="h2")
    assert {u[0] for u in uuids(pool.acquire(devices=2, host="h1", model="m2"))} == {"x"}
    assert {u[0] for u in uuids(pool.acquire(devices=4, host="h2"))} == {"b"}
    assert {u[0] for u in uuids(pool.acquire(devices=4, model="m1"))} == {"a"}
    assert said(pool.acquire(devices=3, host="h1", model="m2")) == CROWDED


def test_acquire_several_of_different_sizes_counts_each_as_it_is(pool: Pool) -> None:
    """Each device is taken with its own capacity, and given back with it."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 3000), device("gpu-c", 500)))
    got = granted(pool.acquire(token("a"), devices=2, memory_mb=800))
    assert dict(got.devices) == {"gpu-a": 1000, "gpu-b": 3000}
    assert pool.agents()["agent"] == "4000"
    pool.release(token("a"))
    assert pool.free() == {"gpu-a": 1000, "gpu-b": 3000, "gpu-c": 500}


def test_acquire_several_that_no_group_holds_never_fits(pool: Pool) -> None:
    """More devices than any host has of a model, or larger ones, are refused for good."""
    pool.report(four("a"), host="h1")
    pool.report(four("b"), host="h2")
    assert said(pool.acquire(devices=5)) == NEVER
    assert said(pool.acquire(devices=4, memory_mb=1001)) == NEVER
    assert said(pool.acquire(devices=5, host="h1")) == NEVER


def test_acquire_64_devices_are_granted_and_given_back(pool: Pool) -> None:
    """The most devices that one lease may have."""
    pool.report(tuple(device(f"gpu-{n}") for n in range(64)))
    assert len(uuids(pool.acquire(token("a"), devices=64))) == 64
    assert pool.free() == {}
    pool.release(token("a"))
    assert len(pool.free()) == 64


def test_acquire_several_where_small_hosts_come_first_finds_the_large_one(pool: Pool) -> None:
    """Devices of one model may differ in size: hosts too small must not hide the one that fits."""
    for n in range(5):
        pool.report((device(f"small-{n}a"), device(f"small-{n}b")), host=f"small{n}")
    pool.report((device("large-a", 9000), device("large-b", 9000)), host="zlarge")
    assert set(uuids(pool.acquire(devices=2, memory_mb=5000))) == {"large-a", "large-b"}


def test_acquire_exclusive_where_small_hosts_come_first_finds_the_large_one(pool: Pool) -> None:
    """One whole device is found wherever it is, however many hosts with smaller ones there are."""
    for n in range(5):
        pool.report((device(f"small-{n}"),), host=f"small{n}")
    pool.report((device("large", 9000),), host="zlarge")
    assert uuids(pool.acquire(exclusive=1, memory_mb=5000)) == ["large"]


def test_acquire_share_with_fractions_switched_off_takes_the_whole_device(pool: Pool) -> None:
    """allow_fractional_shares=0: from then on every grant is a whole idle device."""
    pool.report((device("gpu-a", 3000), device("gpu-b", 1000)))
    pool.acquire(token("before"), memory_mb=100)
    pool.policy(allow_fractional_shares=0)
    assert granted(pool.acquire(memory_mb=100)).devices == (("gpu-b", 1000),)
    assert said(pool.acquire(memory_mb=100)) == CROWDED
    pool.release(token("before"))
    assert granted(pool.acquire(memory_mb=100)).devices == (("gpu-a", 3000),)
    pool.policy(allow_fractional_shares=1)
    assert said(pool.acquire(memory_mb=100)) == CROWDED


def test_acquire_over_the_agents_cap_is_refused_for_that_agent_alone(pool: Pool) -> None:
    """The cap holds for the sum of one agent's leases, to the MiB, and comes back with them."""
    pool.report((device("gpu-a", 9000),))
    pool.policy(max_memory_per_agent_mb=1000)
    granted(pool.acquire(token("a"), "one", memory_mb=900))
    assert said(pool.acquire(agent="one", memory_mb=101)) == CAPPED
    granted(pool.acquire(agent="one", memory_mb=100))
    assert said(pool.acquire(agent="one", memory_mb=1)) == CAPPED
    granted(pool.acquire(agent="other", memory_mb=1000))
    pool.release(token("a"))
    granted(pool.acquire(agent="one", memory_mb=900))


def test_acquire_whole_device_is_capped_by_what_it_takes(pool: Pool) -> None:
    """A whole device counts with all of it; a smaller one elsewhere may still be had."""
    pool.report((device("gpu-a", 2000),), host="h1")
    pool.policy(max_memory_per_agent_mb=1500)
    assert said(pool.acquire(memory_mb=500, exclusive=1)) == CAPPED
    pool.report((device("gpu-b", 1200),), host="h2")
    assert granted(pool.acquire(memory_mb=500, exclusive=1)).devices == (("gpu-b", 1200),)


def test_acquire_several_is_capped_by_their_sum(pool: Pool) -> None:
    """Several devices count together."""
    pool.report(four("a"))
    pool.policy(max_memory_per_agent_mb=2999)
    assert said(pool.acquire(devices=3, memory_mb=1)) == CAPPED
    assert said(pool.acquire(devices=3, memory_mb=1000)) == CAPPED
    assert len(uuids(pool.acquire(devices=2, memory_mb=1))) == 2


def test_acquire_beyond_max_leases_is_refused_even_on_the_cpu(pool: Pool) -> None:
    """The limit is against runaway clients: a CPU lease counts in it and is no way around it."""
    pool.report((device("gpu-a", 9000),))
    pool.policy(max_leases_per_agent=2)
    granted(pool.acquire(token("gpu")))
    granted(pool.acquire(token("cpu"), memory_mb=9999, on_unavailable="cpu"))
    for way in ("refuse", "cpu"):
        assert said(pool.acquire(on_unavailable=way)) == ["REFUSED", "limit", ""]
    granted(pool.acquire(agent="other"))
    pool.release(token("cpu"))
    granted(pool.acquire())

"""Devices and hosts that are there no more leave the pool: after a while, at once, or on demand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit import audit
from tests.pools import Pool, device, granted, said, token

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
A, B = device("gpu-a"), device("gpu-b", model="m2")


def known(pool: Pool) -> set[str]:
    """The registered devices, by the index of all; everything else is the audit's."""
    audit(pool.redis, pool.keys)
    return set(pool.redis.zrange(pool.keys.fits, 0, -1))


def live(pool: Pool, ms: int, *devices: Any, host: str = "h1") -> None:
    """A host lists these devices every minute for so long."""
    for left in range(ms, 0, -60_000):
        pool.skew(min(left, 60_000))
        pool.report(devices, host=host, deadline_ms=120_000)


def told(pool: Pool, event: str) -> list[dict[str, str]]:
    """The fields of all events of this name."""
    return [row for _, row in pool.redis.xrange(pool.keys.events) if row["event"] == event]


def silent(pool: Pool, ms: int) -> None:
    """No client calls for so long; then the pool hears holders first, and is open again."""
    pool.skew(ms)
    for _ in range(60):
        pool.skew(9000)
        pool.reap()


@pytest.fixture
def gpus(pool: Pool) -> Pool:
    """A host with two devices, of which it has listed one alone since."""
    pool.report((A, B), deadline_ms=120_000)
    return pool


def test_device_that_its_host_lists_no_more_is_forgotten_after_an_hour(gpus: Pool) -> None:
    """With its indexes, its model and its totals; an event says so."""
    live(gpus, HOUR_MS - 60_000, A)
    assert known(gpus) == {"gpu-a", "gpu-b"}
    live(gpus, 120_000, A)
    assert known(gpus) == {"gpu-a"}
    assert gpus.redis.zrange(f"{gpus.keys.base}:models", 0, -1) == ["m1"]
    assert told(gpus, "device_forgotten") == [{
        "event": "device_forgotten", "device": "gpu-b", "host": "h1", "by": "",
        "reason": "its host lists it no more",
    }]  # fmt: skip


def test_device_is_forgotten_after_as_long_as_the_policy_says(gpus: Pool) -> None:
    """From the next look on, which comes within five minutes."""
    assert said(gpus.set_policy(forget_devices_after_s=600))[0] == "POLICY"
    live(gpus, 590_000, A)
    assert "gpu-b" in known(gpus)
    live(gpus, 20_000, A)
    assert known(gpus) == {"gpu-a"}


def test_device_of_a_host_that_is_silent_or_tells_of_no_devices_stays(gpus: Pool) -> None:
    """A driver that hangs, or a machine that is off, is no evidence that a card is gone."""
    live(gpus, 2 * HOUR_MS)
    assert known(gpus) == {"gpu-a", "gpu-b"}
    gpus.skew(2 * HOUR_MS)
    gpus.reap()
    gpus.skew(1000)
    live(gpus, 60_000, A, B)
    live(gpus, 400_000, A, B)
    assert known(gpus) == {"gpu-a", "gpu-b"}


def test_device_that_comes_back_in_time_is_not_forgotten(gpus: Pool) -> None:
    """The hour begins anew."""
    live(gpus, HOUR_MS - 120_000, A)
    live(gpus, 60_000, A, B)
    live(gpus, HOUR_MS - 120_000, A)
    assert known(gpus) == {"gpu-a", "gpu-b"}


def test_device_that_is_said_to_be_there_no_more_is_not_listed_by_that(gpus: Pool) -> None:
    """A reporter with a working driver says so, for as long as the pool knows the device."""
    uuid, fields = device("gpu-b", model="m2", state="lost", listed=0)
    live(gpus, HOUR_MS + 60_000, A, (uuid, fields))
    live(gpus, 120_000, A, (uuid, fields))
    assert known(gpus) == {"gpu-a"}, "and is not registered by that"
    assert len(told(gpus, "device_forgotten")) == 1


def test_device_with_a_lease_stays_until_the_lease_is_over(gpus: Pool) -> None:
    """A lease outlives the hour; what cools does too."""
    granted(gpus.acquire(token("a"), model="m2", ttl_ms=7 * DAY_MS))
    live(gpus, 2 * HOUR_MS, A)
    assert "gpu-b" in known(gpus)
    assert gpus.release(token("a"))[0] == "RELEASED"
    live(gpus, 360_000, A)
    assert known(gpus) == {"gpu-a"}


def test_device_that_is_kept_for_a_waiter_is_forgotten_and_kept_no_more(gpus: Pool) -> None:
    """Its waiter is answered on its next poll: nothing could ever hold it."""
    waits = {"model": "m2", "memory_mb": 900, "wait_ms": HOUR_MS, "ttl_ms": 7 * DAY_MS}
    granted(gpus.acquire(token("a"), model="m2", memory_mb=900))
    assert said(gpus.acquire(token("w"), **waits)) == ["WAITING", 0]
    for n in range(2):
        assert said(gpus.acquire(token(f"v{n}"), **waits)) == ["WAITING", n + 1]
    for _ in range(4):
        gpus.skew(9000)
        gpus.renew(token("a"))
        for name in ("w", "v0", "v1"):
            gpus.acquire(token(name), **waits)
    assert gpus.hash("device:gpu-b")["reserved_for"] == token("w")
    gpus.drain("gpu-b")
    gpus.release(token("a"))
    assert said(gpus.forget("gpu-b")) == ["FORGOTTEN", 1, 0]
    assert known(gpus) == {"gpu-a"}
    for name in ("v1", "v0", "w"):
        assert said(gpus.acquire(token(name), **waits)) == ["REFUSED", "model_unknown", ""]


@pytest.mark.parametrize("how", ["model", "host"])
def test_waiters_for_a_name_that_no_device_has_any_more_are_told(gpus: Pool, how: str) -> None:
    """Also those behind others, at their next polls: each had waited until it was the head."""
    name = {"model": "m2"} if how == "model" else {"host": "h1"}
    waits = name | {"memory_mb": 900, "wait_ms": HOUR_MS}
    for n in range(2):
        granted(gpus.acquire(token(f"on-{n}"), memory_mb=900, ttl_ms=7 * DAY_MS))
    for n in range(3):
        assert said(gpus.acquire(token(f"w{n}"), **waits)) == ["WAITING", n]
    renamed = tuple(device(f"gpu-{x}", model="m3") for x in "ab")
    gpus.report(renamed, host="h1" if how == "model" else "h2", deadline_ms=15_000)
    for n in (2, 1, 0):
        answer = said(gpus.acquire(token(f"w{n}"), **waits))
        assert answer[:2] == ["REFUSED", f"{how}_unknown"], n


def test_slices_go_at_once_when_their_gpu_is_listed_without_them(pool: Pool) -> None:
    """A new MIG layout: what is not there any more is in no total, and gets no lease."""
    parent = device("gpu-a", state="mig")
    old = [device(f"mig-{n}", model="MIG", parent="gpu-a") for n in range(7)]
    pool.report((parent, *old))
    granted(pool.acquire(token("a"), model="MIG", placement="pack", memory_mb=1000))
    new = device("mig-new", model="MIG", parent="gpu-a")
    pool.skew(1000)
    pool.report((parent, new))
    [held] = pool.hash(f"record:{token('a')}")["devices"].split("=")[:1]
    assert known(pool) == {"gpu-a", "mig-new", held}, "the one with a lease stays"
    pool.release(token("a"))
    pool.report((parent, new))
    assert known(pool) == {"gpu-a", "mig-new"}
    pool.report((device("gpu-a"),))
    assert known(pool) == {"gpu-a"}, "MIG is off"


def test_row_of_a_gpu_without_a_name_goes_when_its_host_unlists_it(pool: Pool) -> None:
    """At once, a drain on it too; a GPU with a name stays as lost."""
    unnamed = device("UNKNOWN-h1-1", state="error", total_mb=0)
    pool.report((A, B, unnamed))
    pool.run("drain", 1, "device", "UNKNOWN-h1-1", 1, "test", "why")
    pool.report((A, B))
    assert known(pool) == {"gpu-a", "gpu-b", "UNKNOWN-h1-1"}
    over = {"state": "lost", "listed": 0}
    pool.report((A, device("gpu-b", **over), device("UNKNOWN-h1-1", **over)))
    assert known(pool) == {"gpu-a", "gpu-b"}
    assert [row["device"] for row in told(pool, "device_forgotten")] == ["UNKNOWN-h1-1"]
    assert pool.redis.zcard(pool.keys.base + ":drains") == 0


def test_slices_of_a_host_with_more_devices_than_a_report_has_go_when_said_to(pool: Pool) -> None:
    """One report of several may leave devices to the next; what it calls gone is gone."""
    parents = [device(f"gpu-{n}", state="mig") for n in range(10)]
    slices = [device(f"mig-{n}", parent=f"gpu-{n // 7}") for n in range(70)]
    pool.report((*parents, *slices[:50]))
    pool.report(tuple(slices[50:]))
    pool.report((*parents, *slices[:50]))
    assert len(known(pool)) == 80
    uuid, fields = device("mig-69", parent="gpu-9", state="lost", listed=0)
    pool.report((*parents, (uuid, fields)))
    assert len(known(pool)) == 79


def test_host_is_forgotten_after_a_day_of_silence(gpus: Pool) -> None:
    """With all it has; the other one stays."""
    gpus.report((device("gpu-c"),), host="h2", deadline_ms=120_000)
    for _ in range(23):
        live(gpus, 60_000, device("gpu-c"), host="h2")
        gpus.skew(HOUR_MS - 60_000)
    live(gpus, HOUR_MS - 180_000, device("gpu-c"), host="h2")
    assert gpus.redis.smembers(gpus.keys.hosts) == {"h1", "h2"}
    live(gpus, 360_000, device("gpu-c"), host="h2")
    assert known(gpus) == {"gpu-c"}
    assert gpus.redis.smembers(gpus.keys.hosts) == {"h2"}
    assert [row["host"] for row in told(gpus, "host_forgotten")] == ["h1"]


def test_hosts_without_devices_are_forgotten_by_reap_alone(pool: Pool) -> None:
    """Hosts that are named after pods, and are not reported any more."""
    for n in range(150):
        pool.report((), host=f"pod-{n}")
    for _ in range(2):
        pool.skew(9000)
        pool.reap_all()
    silent(pool, DAY_MS)
    assert known(pool) == set()
    assert pool.redis.smembers(pool.keys.hosts) == set()
    assert not pool.redis.keys(f"{pool.keys.base}:host*")


def test_host_with_a_lease_stays(gpus: Pool) -> None:
    """Its holder may go on for longer than a day without a word of its host."""
    granted(gpus.acquire(token("a"), model="m2", ttl_ms=7 * DAY_MS))
    gpus.skew(130_000)
    gpus.reap()
    silent(gpus, 2 * DAY_MS)
    assert known(gpus) == {"gpu-b"}
    assert gpus.renew(token("a"))[0] == "RENEWED"


def test_forget_takes_a_device_or_a_host_out_now(gpus: Pool) -> None:
    """Both are unknown from then on; what is reported again is registered again."""
    assert said(gpus.forget("gpu-b")) == ["FORGOTTEN", 1, 0]
    assert known(gpus) == {"gpu-a"}
    assert said(gpus.forget("gpu-b")) == ["REFUSED", "device_unknown", ""]
    assert said(gpus.forget("h1", "host")) == ["FORGOTTEN", 1, 0]
    assert known(gpus) == set()
    assert said(gpus.forget("h1", "host")) == ["REFUSED", "host_unknown", ""]
    (event,) = told(gpus, "host_forgotten")
    assert (event["by"], event["reason"]) == ("operator", "why")
    gpus.report((A, B))
    assert known(gpus) == {"gpu-a", "gpu-b"}


@pytest.mark.parametrize("ended", [False, True], ids=["active", "cooling"])
def test_forget_of_what_has_a_lease_is_refused_and_changes_nothing(pool: Pool, ended: bool) -> None:
    """A lease, or what is withheld of one that ended."""
    pool.report((A, device("gpu-b", simulated=0, model="m2")))
    granted(pool.acquire(token("a"), model="m2", ttl_ms=2000))
    pool.skew(2001 if ended else 0)
    pool.reap()
    for name, what in (("gpu-b", "device"), ("h1", "host")):
        assert said(pool.forget(name, what)) == ["REFUSED", "in_use", "gpu-b"]
    assert known(pool) == {"gpu-a", "gpu-b"}


def test_forget_of_a_host_with_many_devices_takes_several_calls(pool: Pool) -> None:
    """Each of them is bounded, and says how many devices are left."""
    for part in range(3):
        pool.report(tuple(device(f"gpu-{part}-{n}") for n in range(50)))
    assert said(pool.forget("h1", "host")) == ["FORGOTTEN", 64, 86]
    assert said(pool.forget("h1", "host")) == ["FORGOTTEN", 64, 22]
    assert said(pool.forget("h1", "host")) == ["FORGOTTEN", 22, 0]
    assert known(pool) == set()


def test_drain_of_what_was_forgotten_by_itself_holds_when_it_comes_back(gpus: Pool) -> None:
    """No report undoes a drain: not even one that comes after the device was forgotten."""
    gpus.drain("gpu-b")
    live(gpus, HOUR_MS + 120_000, A)
    assert known(gpus) == {"gpu-a"}
    gpus.report((A, B))
    assert gpus.hash("device:gpu-b")["drained"] == "1"
    assert gpus.drain("gpu-b", drained=0)[0] == "UNDRAINED"
    assert gpus.hash("device:gpu-b")["drained"] == "0"


def test_drain_of_a_host_that_was_forgotten_holds_when_it_comes_back(gpus: Pool) -> None:
    """For all its devices, until it is undrained."""
    gpus.drain("h1", "host")
    gpus.skew(130_000)
    gpus.reap()
    silent(gpus, DAY_MS)
    assert known(gpus) == set()
    gpus.report((A, B))
    assert gpus.free() == {}
    assert gpus.hash("host:h1")["drained"] == "1"


def test_undrain_and_forget_of_what_was_forgotten_end_its_drain(gpus: Pool) -> None:
    """It comes back as any new device does."""
    for end in (lambda: gpus.drain("gpu-b", drained=0), lambda: gpus.forget("gpu-b")):
        gpus.report((A, B))
        gpus.drain("gpu-b")
        live(gpus, HOUR_MS + 120_000, A)
        assert said(end())[0] in {"UNDRAINED", "FORGOTTEN"}
        gpus.report((A, B))
        assert gpus.hash("device:gpu-b")["drained"] == "0"


def test_forget_by_an_operator_ends_a_drain(gpus: Pool) -> None:
    """To forget a device is to give up its drain."""
    gpus.drain("gpu-b")
    gpus.forget("gpu-b")
    gpus.report((A, B))
    assert gpus.hash("device:gpu-b")["drained"] == "0"


def test_nothing_is_forgotten_while_the_pool_is_closed(gpus: Pool) -> None:
    """Holders may bring back leases that it has forgotten."""
    live(gpus, HOUR_MS - 60_000, A)
    gpus.policy(closed_until_ms=int(gpus.hash("pool")["last_ms"]) + 400_000)
    live(gpus, 360_000, A)
    assert known(gpus) == {"gpu-a", "gpu-b"}
    live(gpus, 120_000, A)
    assert known(gpus) == {"gpu-a"}


def test_pool_of_an_older_version_forgets_an_hour_after_it_was_first_looked_at(gpus: Pool) -> None:
    """It knows of no time at which a device was listed."""
    gpus.redis.hdel(gpus.keys.device("gpu-b"), "listed_ms")
    gpus.by_hand()
    gpus.redis.hdel(gpus.keys.pool, "forget_devices_after_s", "forget_hosts_after_s", "sweep_ms")
    gpus.by_hand()
    live(gpus, HOUR_MS, A)
    assert known(gpus) == {"gpu-a", "gpu-b"}
    live(gpus, 420_000, A)
    assert known(gpus) == {"gpu-a"}

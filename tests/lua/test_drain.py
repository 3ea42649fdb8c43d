"""drain: a device or a host takes no new leases until it is undrained, whatever else happens."""

from __future__ import annotations

from tests.pools import Pool, device, granted, said, token, uuids

FULL = ["REFUSED", "no_capacity", ""]
DRAINING = ["REFUSED", "draining", ""]


def two_hosts(pool: Pool) -> None:
    """Two devices on h1, one on h2."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 1000)), host="h1")
    pool.report((device("gpu-c", 500),), host="h2")


def test_drain_of_a_device_takes_it_out_and_undrain_back(pool: Pool) -> None:
    """Its leases run on; what comes back while it drains is there when it is undrained."""
    two_hosts(pool)
    pool.acquire(token("a"), memory_mb=600, host="h1", model="m1")
    [busy] = [uuid for uuid, mb in pool.free().items() if mb == 400]
    assert said(pool.drain(busy)) == ["DRAINED", 1]
    assert busy not in pool.free()
    assert pool.renew(token("a"))[0] == "RENEWED"
    pool.release(token("a"))
    assert busy not in pool.free()
    assert said(pool.drain(busy, drained=0)) == ["UNDRAINED", 1]
    assert pool.free()[busy] == 1000


def test_drain_twice_changes_nothing_more(pool: Pool) -> None:
    """Draining is a state, not a count."""
    two_hosts(pool)
    for _ in range(2):
        assert said(pool.drain("gpu-a")) == ["DRAINED", 1]
    pool.drain("gpu-a", drained=0)
    assert pool.free()["gpu-a"] == 1000


def test_drain_of_a_host_takes_all_its_devices_out(pool: Pool) -> None:
    """Asked for that host, the reason is draining; asked for any, others are taken."""
    two_hosts(pool)
    assert said(pool.drain("h1", "host")) == ["DRAINED", 2]
    assert pool.free() == {"gpu-c": 500}
    assert said(pool.acquire(host="h1")) == DRAINING
    assert said(pool.acquire(host="h1", devices=2)) == DRAINING
    assert uuids(pool.acquire(memory_mb=100)) == ["gpu-c"]
    assert granted(pool.acquire(host="h1", on_unavailable="cpu")).reason == "draining"
    assert said(pool.drain("h1", "host", 0)) == ["UNDRAINED", 2]
    assert len(uuids(pool.acquire(host="h1", devices=2))) == 2


def test_drain_of_a_host_holds_for_devices_that_it_reports_later(pool: Pool) -> None:
    """New ones and ones that come from another host."""
    two_hosts(pool)
    pool.drain("h1", "host")
    pool.report((device("gpu-new", 1000),), host="h1")
    assert pool.free() == {"gpu-c": 500}
    pool.report((device("gpu-c", 500),), host="h1")
    assert pool.free() == {}


def divided(pool: Pool) -> None:
    """Report a GPU with two parts, and one that is whole."""
    parts = (device(f"mig-{n}", model="MIG", parent="gpu-p") for n in range(2))
    pool.report((device("gpu-p", state="mig"), *parts, device("gpu-w")), host="h5")


def drained(pool: Pool) -> set[str]:
    """The host's devices that are drained."""
    there = pool.redis.smembers(f"{pool.keys.base}:devices:h5")
    return {uuid for uuid in there if field_of(pool, uuid, "drained") == "1"}


def field_of(pool: Pool, uuid: str, field: str) -> str | None:
    return pool.redis.hget(f"{pool.keys.base}:device:{uuid}", field)


def test_drain_of_a_divided_gpu_is_one_of_its_parts(pool: Pool) -> None:
    """They are what is leased of it; each part can be undrained by itself, and drained."""
    divided(pool)
    assert said(pool.drain("gpu-p")) == ["DRAINED", 3]
    assert drained(pool) == {"gpu-p", "mig-0", "mig-1"}
    assert (
        granted(pool.acquire(token(1), host="h5", model="MIG", on_unavailable="cpu")).devices == ()
    )
    assert said(pool.drain("mig-1", drained=0)) == ["UNDRAINED", 1]
    assert uuids(pool.acquire(token(2), host="h5", model="MIG")) == ["mig-1"]
    pool.redis.hset(f"{pool.keys.base}:device:mig-0", "quarantine", "XID 79")
    assert said(pool.drain("gpu-p", drained=0)) == ["UNDRAINED", 3]
    assert drained(pool) == set()
    assert field_of(pool, "mig-0", "quarantine") == ""


def test_drained_gpu_that_is_divided_anew_stays_drained(pool: Pool) -> None:
    """Its new parts are drained, and no drain of an old one outlives its GPU's."""
    divided(pool)
    pool.drain("gpu-p")
    whole, parent = device("gpu-w"), device("gpu-p", state="mig")
    pool.report((parent, device("mig-2", model="MIG", parent="gpu-p"), whole), host="h5")
    assert drained(pool) == {"gpu-p", "mig-2"}
    pool.drain("gpu-p", drained=0)
    divided(pool)
    assert drained(pool) == set()


def test_drain_outlives_absence(pool: Pool) -> None:
    """A drained host that goes away and comes back is still drained."""
    two_hosts(pool)
    pool.drain("h1", "host")
    pool.live_on(20_000, host="h2")
    pool.report((device("gpu-a", 1000), device("gpu-b", 1000)), host="h1")
    assert pool.free() == {"gpu-c": 500}
    pool.drain("h1", "host", 0)
    assert pool.free("host/h1") == {"gpu-a": 1000, "gpu-b": 1000}


def test_drain_of_a_lost_device_does_not_list_it_when_undrained(pool: Pool) -> None:
    """Undrained is not alive."""
    pool.report((device("gpu-a", 1000, state="lost"),))
    pool.drain("gpu-a")
    pool.drain("gpu-a", drained=0)
    assert pool.free() == {}
    assert said(pool.acquire()) == FULL


def test_drain_of_what_is_unknown_is_refused(pool: Pool) -> None:
    """And writes nothing."""
    two_hosts(pool)
    before = pool.stored()
    assert said(pool.drain("gpu-z"))[:2] == ["REFUSED", "device_unknown"]
    assert said(pool.drain("h9", "host"))[:2] == ["REFUSED", "host_unknown"]
    assert pool.stored() == before


def test_drain_writes_one_event(pool: Pool) -> None:
    """It has the operator, the subject and the reason."""
    two_hosts(pool)
    for name, what, drained in (("h1", "host", 1), ("h1", "host", 0), ("gpu-c", "device", 1)):
        seen = len(pool.events())
        pool.drain(name, what, drained)
        [(_, event)] = pool.redis.xrange(pool.keys.events)[seen:]
        event_name = "drained" if drained else "undrained"
        assert event == {"event": event_name, what: name, "by": "operator", "reason": "why"}


def test_drain_malformed_argument_is_refused_by_name(pool: Pool) -> None:
    """It is refused as by every verb: nothing has changed."""
    two_hosts(pool)
    before = pool.stored()
    for name, args in {
        "what": ("rack", "h1", 1, "op", ""), "host": ("host", "h/1", 1, "op", ""),
        "device": ("device", "a b", 1, "op", ""), "drained": ("host", "h1", 2, "op", ""),
        "by": ("host", "h1", 1, "", ""), "why": ("host", "h1", 1, "op", "\0"),
    }.items():  # fmt: skip
        assert said(pool.run("drain", 1, *args)) == ["REFUSED", "bad_request", name]
    assert pool.stored() == before

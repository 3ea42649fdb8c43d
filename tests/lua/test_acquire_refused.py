"""acquire: why a request is refused, which reason speaks first, and when the CPU is given."""

from __future__ import annotations

import pytest

from tests.pools import Pool, device, granted, said, token


def refused(reason: str) -> list[str]:
    """Return the refusal for this reason."""
    return ["REFUSED", reason, ""]


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        ({"memory_mb": 1001}, "never_fits"),
        ({"memory_mb": 9999999999999}, "never_fits"),
        ({"memory_mb": 9999999999999, "devices": 64}, "never_fits"),
        ({"memory_mb": 1001, "exclusive": 1}, "never_fits"),
        ({"memory_mb": 801, "host": "h2"}, "never_fits"),
        ({"memory_mb": 801, "model": "m2"}, "never_fits"),
        ({"memory_mb": 801, "model": "m2", "host": "h2"}, "never_fits"),
        ({"memory_mb": 1, "model": "m1", "host": "h2"}, "never_fits"),
        ({"devices": 2}, "never_fits"),
        ({"host": "nowhere"}, "host_unknown"),
        ({"host": "nowhere", "exclusive": 1}, "host_unknown"),
        ({"host": "nowhere", "model": "m1"}, "host_unknown"),
        ({"model": "M1"}, "model_unknown"),
        ({"model": "m3", "devices": 4}, "model_unknown"),
        ({"model": "m3", "host": "nowhere"}, "model_unknown"),
    ],
)
def test_acquire_that_nothing_could_ever_hold_is_refused_for_good(
    pool: Pool, ask: dict[str, object], reason: str
) -> None:
    """A request that no registered device could hold is refused with the most helpful reason."""
    pool.report((device("gpu-a", 1000),), host="h1")
    pool.report((device("gpu-b", 1000, model="m2", system_mb=200),), host="h2")
    assert said(pool.acquire(token("a"), **ask)) == refused(reason)
    assert pool.stats() == {f"refused_{reason}": 1}
    assert not pool.redis.exists(pool.keys.record(token("a")))
    assert pool.ended(token("a")) is None


def test_acquire_when_all_is_taken_has_no_capacity(pool: Pool) -> None:
    """A request that would fit an empty device is refused for now, not for good."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(agent="other")
    assert said(pool.acquire()) == refused("no_capacity")
    assert said(pool.acquire(exclusive=1)) == refused("no_capacity")


def test_acquire_reasons_speak_in_a_fixed_order(pool: Pool) -> None:
    """The strongest of several reasons is told: pool, limit, never, cap, room, in this order."""
    reply = pool.report((device("gpu-a", 1000),))
    pool.acquire(token("all"), memory_mb=1000, agent="other")
    pool.acquire(agent="me", on_unavailable="cpu")
    pool.policy(safe_mode=1, closed_until_ms=reply[1] + 60000, max_leases_per_agent=1)
    pool.policy(max_memory_per_agent_mb=10)
    ask = {"memory_mb": 1001, "model": "m9", "host": "h9"}
    assert said(pool.acquire(agent="me", **ask)) == refused("safe_mode")
    pool.policy(safe_mode=0)
    assert said(pool.acquire(agent="me", **ask)) == refused("closed")
    pool.policy(closed_until_ms=0)
    assert said(pool.acquire(agent="me", **ask)) == refused("limit")
    pool.policy(max_leases_per_agent=9)
    assert said(pool.acquire(agent="me", **ask)) == refused("model_unknown")
    del ask["model"]
    assert said(pool.acquire(agent="me", **ask)) == refused("host_unknown")
    del ask["host"]
    assert said(pool.acquire(agent="me", **ask)) == refused("never_fits")
    assert said(pool.acquire(agent="me", memory_mb=900)) == refused("agent_cap")
    pool.policy(max_memory_per_agent_mb=5000)
    assert said(pool.acquire(agent="me", memory_mb=900)) == refused("no_capacity")
    pool.release(token("all"))
    granted(pool.acquire(agent="me", memory_mb=900))


def test_acquire_refused_changes_nothing_but_a_counter(pool: Pool) -> None:
    """A refusal leaves no record, no event, no agent; the same token may be used again."""
    pool.report((device("gpu-a", 1000),))
    before = pool.stored()
    assert said(pool.acquire(token("a"), memory_mb=1001)) == refused("never_fits")
    after = pool.stored()
    assert after.pop(pool.keys.stats) == {"refused_never_fits": "1"}
    assert after == before
    granted(pool.acquire(token("a"), memory_mb=1000))


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        ({"memory_mb": 900}, "no_capacity"),
        ({"exclusive": 1}, "agent_cap"),
        ({"memory_mb": 2000}, "agent_cap"),
        ({"memory_mb": 9000}, "never_fits"),
        ({"host": "nowhere"}, "host_unknown"),
        ({"model": "m9", "devices": 3}, "model_unknown"),
    ],
)
def test_acquire_with_cpu_as_way_out_gets_a_cpu_lease(
    pool: Pool, ask: dict[str, object], reason: str
) -> None:
    """A CPU lease has a fence, a reason and an end, no devices and no lease key, counted apart."""
    pool.report((device("gpu-a", 3000),))
    pool.policy(max_memory_per_agent_mb=1500)
    pool.acquire(memory_mb=1500, agent="one")
    pool.acquire(memory_mb=1500, agent="two")
    if reason == "agent_cap":
        pool.report((device("gpu-b", 3000),))
    got = granted(pool.acquire(token("cpu"), "me", on_unavailable="cpu", **ask))
    assert (got.reason, got.devices, got.remaining_ms) == (reason, (), 30000)
    assert got.fence > 0
    assert pool.hash(f"record:{token('cpu')}")["devices"] == ""
    assert pool.agents()["me"] == "0"
    assert pool.agents()["me#leases"] == "1"
    assert not list(pool.redis.scan_iter(pool.keys.lease("*", token("cpu"))))
    assert pool.stats() == {"granted": 2, "cpu_granted": 1}


def test_acquire_cpu_lease_repeated_is_the_same_though_room_came(pool: Pool) -> None:
    """The lease stays as it was given: it does not move to a GPU that came free."""
    pool.report((device("gpu-a", 1000),))
    pool.acquire(token("gpu"))
    first = granted(pool.acquire(token("cpu"), on_unavailable="cpu"))
    pool.release(token("gpu"))
    again = granted(pool.acquire(token("cpu"), on_unavailable="cpu"))
    assert (again.fence, again.reason, again.devices) == (first.fence, "no_capacity", ())


def test_acquire_with_cpu_as_way_out_takes_the_gpu_that_is_free(pool: Pool) -> None:
    """The CPU is only the way out."""
    pool.report((device("gpu-a", 1000),))
    got = granted(pool.acquire(on_unavailable="cpu"))
    assert (got.devices, got.reason) == ((("gpu-a", 900),), "")


@pytest.mark.parametrize("way", ["refuse", "cpu"])
def test_acquire_in_safe_mode_is_refused_whatever_the_way_out(pool: Pool, way: str) -> None:
    """SAFE_MODE gives nobody anything, and no CPU lease hides it."""
    pool.report((device("gpu-a", 1000),), safe_mode=1)
    assert said(pool.acquire(on_unavailable=way)) == refused("safe_mode")
    pool.policy(safe_mode=0)
    granted(pool.acquire(on_unavailable=way))


def test_acquire_repeated_in_safe_mode_still_tells_the_lease(pool: Pool) -> None:
    """SAFE_MODE ends no lease: its holder may ask, renew and release."""
    pool.report((device("gpu-a", 1000),))
    first = granted(pool.acquire(token("a")))
    pool.policy(safe_mode=1)
    assert granted(pool.acquire(token("a"))).fence == first.fence
    assert pool.renew(token("a"))[0] == "RENEWED"
    assert pool.release(token("a"))[0] == "RELEASED"


@pytest.mark.parametrize("way", ["refuse", "cpu"])
def test_acquire_in_a_closed_pool_is_refused_until_it_opens(pool: Pool, way: str) -> None:
    """A pool that lost its data grants nothing for 60 s, and no CPU lease hides it."""
    pool.report((device("gpu-a", 1000),), epoch="123")
    assert said(pool.acquire(on_unavailable=way)) == refused("closed")
    pool.live_on(59999)
    assert said(pool.acquire(on_unavailable=way)) == refused("closed")
    pool.skew(1)
    granted(pool.acquire(on_unavailable=way))


@pytest.mark.parametrize("verb", ["acquire", "renew", "release", "reap"])
def test_verb_without_a_pool_is_not_ready_and_writes_nothing(pool: Pool, verb: str) -> None:
    """Only a report creates the pool; everybody else learns that there is none."""
    args = {"renew": (token("a"),), "release": (token("a"),)}.get(verb, ())
    assert said(getattr(pool, verb)(*args)) == refused("not_ready")
    assert pool.stored() == {}


@pytest.mark.parametrize("verb", ["acquire", "renew", "release", "reap", "report"])
def test_verb_of_another_protocol_is_refused_and_writes_nothing(pool: Pool, verb: str) -> None:
    """A caller that speaks another protocol is told so, before and after there is a pool."""
    others = ("2", "0", "", "01", "1 ", "1.0", "x")
    args = {
        "acquire": (
            token("a"), "agent", 1, 1, 0, 30000, 0, 0, "*", "*", "spread", "cpu", "", "", "",
        ),
        "renew": (token("a"), "", ""), "release": (token("a"), 1), "reap": (),
        "report": ("h1", 15000, 0, "", 0, "test"),
    }  # fmt: skip
    expected = ["REFUSED", "protocol_mismatch", ""]
    for other in others:
        assert said(pool.run(verb, other, *args[verb])) == expected
    assert pool.stored() == {}
    pool.report((device("gpu-a", 1000),))
    before = pool.stored()
    for other in others:
        assert said(pool.run(verb, other, *args[verb])) == expected
    assert pool.stored() == before


@pytest.mark.parametrize("schema", ["0", "2", "3", "5", "x"])
def test_verb_on_a_pool_of_another_schema_is_refused_and_writes_nothing(
    pool: Pool, schema: str
) -> None:
    """Scripts never touch a pool whose keys they do not understand."""
    pool.report((device("gpu-a", 1000),))
    pool.redis.hset(pool.keys.pool, "schema", schema)
    pool.by_hand()
    before = pool.stored()
    calls = (
        pool.acquire, lambda: pool.renew(token("a")), lambda: pool.release(token("a")), pool.reap,
        lambda: pool.report((device("gpu-a", 2000),)),
    )  # fmt: skip
    for call in calls:
        assert said(call()) == ["REFUSED", "protocol_mismatch", schema]
    assert pool.stored() == before

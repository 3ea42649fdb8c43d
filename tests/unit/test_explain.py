"""Explanations of a wait: reasons, waiters ahead, estimates, and changes that really fit."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import LeaseLost, UnknownToken
from agent_sdk.request import Caller
from agent_sdk.state import placement, pool_state
from agent_sdk.state.explain import STANDING, Explanation, explain, explain_request
from agent_sdk.state.placement import REASONS
from tests.found import process
from tests.lua.waiters import wait
from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk.state.pool_state import PoolState

DAY_MS = 86_400_000


@pytest.fixture
def pool(pool: Pool) -> Pool:
    """A pool whose time only the test moves."""
    pool.freeze()
    return pool


def why(pool: Pool, name: str) -> Explanation:
    """Explain a request that waits."""
    found: Explanation = pool.look(explain(pool.keys, token(name)))
    return found


def asked(pool: Pool, **ask: Any) -> Explanation:
    """Explain a request that is not made."""
    request = Caller("h1").request("me", **{"memory_mb": 900, "host": "any"} | ask)
    found: Explanation = pool.look(explain_request(pool.keys, request))
    return found


def reasons(found: Explanation) -> dict[str, str]:
    """Device -> reason."""
    return {d.uuid: d.reason for d in found.devices}


def report(pool: Pool, *devices: tuple[str, dict[str, Any]], host: str = "h1") -> None:
    """A host that lives for a day."""
    pool.report(devices, host=host, deadline_ms=DAY_MS)


def keep_for_another(pool: Pool) -> None:
    """Somebody has waited for half a minute."""
    granted(pool.acquire(token("on"), "on", memory_mb=100, ttl_ms=0))
    wait(pool, "old", memory_mb=1000)
    for _ in range(11):
        pool.skew(3000)
        wait(pool, "old", memory_mb=1000)


def cool(pool: Pool) -> None:
    """A lease on a real device expires."""
    report(pool, device("gpu-a", simulated=0))
    granted(pool.acquire(token("on"), "on", memory_mb=500, ttl_ms=1000))
    pool.skew(1001)
    pool.reap()


def take_the_only_place(pool: Pool) -> None:
    """A lease of some memory on a device that is shared from then on no more."""
    granted(pool.acquire(token("on"), "on", memory_mb=100))
    report(pool, device("gpu-a", one_lease="its compute mode is exclusive"))


def use_the_quota_of_the_model(pool: Pool) -> None:
    """A lease of its team leaves too little of the team's quota of that model."""
    report(pool, device("gpu-a", model="L4"))
    pool.set_teams(a="nominal_mb@L4=700 borrow_mb@L4=0")
    granted(pool.acquire(token("on"), "on", team="a", memory_mb=200))


CASES: dict[str, tuple[Callable[[Pool], object], dict[str, Any]]] = {
    "fits": (lambda _: None, {}),
    "other_host": (lambda p: report(p, device("gpu-b"), host="h2"), {"host": "h2"}),
    "other_model": (lambda p: report(p, device("gpu-b", model="m2", index=1)), {"model": "m2"}),
    "part": (lambda p: report(p, device("gpu-a", parent="gpu-p")), {"devices": 2}),
    "down": (lambda p: report(p, device("gpu-a", state="lost", reason="XID 79")), {}),
    "quarantined": (lambda p: report(p, device("gpu-a", state="quarantined")), {}),
    "dirty": (lambda p: report(p, device("gpu-a", state="dirty")), {}),
    "mig": (lambda p: report(p, device("gpu-a", state="mig")), {}),
    "prohibited": (lambda p: report(p, device("gpu-a", state="prohibited")), {}),
    "drained": (lambda p: p.drain("gpu-a"), {}),
    "too_small": (lambda p: report(p, device("gpu-b", 2000, index=1)), {"memory_mb": 1500}),
    "reserved": (keep_for_another, {"memory_mb": 300}),
    "exclusive": (lambda p: p.acquire(token("on"), exclusive=1), {"memory_mb": 1}),
    "not_idle": (lambda p: p.acquire(token("on"), memory_mb=100), {"exclusive": True}),
    "one_lease": (take_the_only_place, {"memory_mb": 300}),
    "withheld": (cool, {}),
    "used_by_others": (lambda p: report(p, device("gpu-a", used_mb=700)), {}),
    "full": (lambda p: p.acquire(token("on"), memory_mb=500), {}),
    "no_quota": (use_the_quota_of_the_model, {"memory_mb": 600, "team": "a"}),
}
"""Reason -> what brings gpu-a, of 1000 MiB on h1, there, and for whom."""


@pytest.mark.parametrize("reason", REASONS)
def test_device_has_the_reason_that_it_has(pool: Pool, reason: str) -> None:
    """Each word of the closed set, and that acquire agrees about whether it fits."""
    report(pool, device("gpu-a"))
    setup, ask = CASES[reason]
    setup(pool)
    found = asked(pool, **ask)
    assert reasons(found)["gpu-a"] == reason
    said = next(d.says for d in found.devices if d.uuid == "gpu-a")
    of_this = {
        "down": "its host says: lost XID 79",
        "used_by_others": "700 MiB used by processes without a lease",
        "one_lease": f"{REASONS['one_lease']}: its compute mode is exclusive",
    }
    if reason == "reserved":  # with the agent, since when and until when
        assert re.fullmatch(r"reserved for old since \d s, for \d+ s more .* waited long", said)
        return
    assert said == of_this.get(reason, REASONS[reason])
    request = Caller("h1").request("me", **{"memory_mb": 900, "host": "any"} | ask)
    got = pool.run("acquire", 1, *request)
    on_it = got[0] == "GRANTED" and "gpu-a" in got
    assert on_it == (reason == "fits")


def test_reason_against_a_whole_device_names_the_policy(pool: Pool) -> None:
    """A desktop uses more of it than the policy allows: the sentence says which number to raise."""
    report(pool, device("gpu-a", used_mb=700, idle_unleased_mb=600))
    (found,) = asked(pool, exclusive=True, memory_mb=100).devices
    assert found.reason == "used_by_others"
    assert "700 MiB used by processes" in found.says
    assert "600 MiB beside which a whole device is lent (policy idle_foreign_mb)" in found.says


def test_reason_names_processes_and_quarantine(pool: Pool) -> None:
    """At most three of them, the largest first, and none that a lease there has."""
    report(pool, device("gpu-a", used_mb=900), device("gpu-b", index=1, state="dirty"),
           device("gpu-c", index=2, state="quarantined"))  # fmt: skip
    granted(pool.acquire(token("on"), memory_mb=50))
    mine = process(1, token=token("on"), memory_mb=9999)
    strangers = [process(pid, memory_mb=pid * 10) for pid in range(2, 7)]
    over = process(9, token=token("over"), finding="orphan")
    for uuid, fields in {
        "gpu-a": {"processes": json.dumps([mine, *strangers])},
        "gpu-b": {"processes": json.dumps([over])},
        "gpu-c": {"quarantine": "XID 48", "processes": ""},
    }.items():
        pool.redis.hset(pool.keys.device(uuid), mapping=fields)
    says = {d.uuid: d.says for d in asked(pool, memory_mb=500).devices}
    assert says == {
        "gpu-a": "900 MiB used by processes without a lease "
        "(pid 6 python3, pid 5 python3, pid 4 python3 and 2 more)",
        "gpu-b": f"{REASONS['dirty']} (pid 9 python3)",
        "gpu-c": f"{REASONS['quarantined']}: XID 48",
    }


def test_several_partitions_of_one_amd_card_fit(pool: Pool) -> None:
    """A program uses them as it uses GPUs; parts of other GPUs it does not."""
    for ids, code in ((("amd:a/0", "amd:a/1"), "fits"), (("MIG-a", "MIG-b"), "never_fits")):
        parts = [device(x, index=n, parent="p", model=ids[0][:3]) for n, x in enumerate(ids)]
        report(pool, *parts)
        assert asked(pool, devices=2, model=ids[0][:3], memory_mb=100).code == code


def test_queue_looks_at_the_devices_once_for_all_sizes_of_a_kind(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever they are; and says of each what explain says of it alone."""
    devices = [device(f"gpu-{n}", index=n) for n in range(10)]
    report(pool, *devices)
    pool.policy(max_memory_per_agent_mb=1000)
    for n in range(10):
        granted(pool.acquire(token(f"on-{n}"), f"on-{n % 9}", memory_mb=400, ttl_ms=0))
    names = [f"w-{n}" for n in range(20)]
    for n, name in enumerate(names):
        wait(pool, name, agent=f"on-{n}", memory_mb=700 + 100 * (n % 2))
    found: PoolState = pool.look(pool_state.read(pool.keys))
    looks = 0
    obstacle = placement.obstacle

    def counting(*args: Any) -> str:
        nonlocal looks
        looks += 1
        return obstacle(*args)

    monkeypatch.setattr(placement, "obstacle", counting)
    stands = pool_state.standings(found)
    assert len(stands) == 20
    # Two sizes of one kind; where they fit, and in what way not.
    assert looks == 2 * len(devices)
    for name in names:
        alone = why(pool, name)
        standing = stands[token(name)]
        assert (standing.code, standing.says) == (alone.code, alone.summary)
    assert {standing.code for standing in stands.values()} == {"agent_cap", "behind", "next"}


def test_waiter_is_told_who_is_ahead_and_what_ends_first(pool: Pool) -> None:
    """Ahead in its queue, the first end on a device that could be it, and the estimate's basis."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("short"), "short", memory_mb=200, ttl_ms=20_000))
    granted(pool.acquire(token("long"), "long", memory_mb=800, ttl_ms=0, max_hold_ms=60_000))
    wait(pool, "ann", memory_mb=900, priority=2)
    wait(pool, "bob", memory_mb=900)
    found = why(pool, "bob")
    assert (found.state, found.code) == ("waiting", "behind")
    assert [(x.agent, x.memory_mb, x.priority) for x in found.ahead] == [("ann", 900, 2)]
    assert found.first_end is not None
    assert (found.first_end.agent, found.first_end.basis) == ("short", "expiry")
    assert found.estimate_s == pytest.approx(60, abs=0.1)
    assert "long" in found.basis
    assert "max_hold" in found.basis
    assert "1 ahead not reckoned in" in found.basis
    first = why(pool, "ann")
    assert (first.code, first.ahead) == ("next", ())
    assert first.summary.startswith(STANDING["next"])


@pytest.mark.parametrize("gpus", [1, 2])
def test_estimate_counts_what_is_reserved_for_the_waiter(pool: Pool, gpus: int) -> None:
    """The leases there are those that it waits for; to others their ends say nothing."""
    report(pool, *(device(f"gpu-{n}", index=n) for n in range(gpus)))
    ask = {"memory_mb": 900, "devices": gpus}
    for _ in range(gpus):
        granted(pool.acquire(memory_mb=200, exclusive=1, ttl_ms=0, max_hold_ms=180_000))
    for _ in range(12):
        wait(pool, "large", **ask)
        pool.skew(3000)
    found = why(pool, "large")
    assert found.reservation is not None
    assert found.estimate_s == pytest.approx(180 - 36, abs=0.1)
    assert "max_hold" in found.basis
    assert asked(pool, memory_mb=800).estimate_s is None


def test_request_is_ahead_of_those_with_a_lower_priority(pool: Pool) -> None:
    """Each step is worth a minute in the queue: what waited longer than that stays ahead."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("on"), "on", memory_mb=1000, ttl_ms=20_000))
    wait(pool, "ann", memory_mb=900)
    wait(pool, "bob", memory_mb=900, priority=2)
    pool.live_on(9000)
    behind = {n: asked(pool, priority=n) for n in (0, 1, 2, 3)}
    assert [(x.code, x.ahead_count) for x in behind.values()] == [
        ("behind", 2), ("behind", 1), ("behind", 1), ("next", 0),
    ]  # fmt: skip
    assert [[x.agent for x in found.ahead] for found in behind.values()] == [
        ["bob", "ann"], ["bob"], ["bob"], [],
    ]  # fmt: skip
    assert behind[3].summary.startswith(STANDING["next"])
    assert behind[3].estimate_s == pytest.approx(11, abs=0.1)
    for n, found in behind.items():
        assert wait(pool, f"me-{n}", agent="me", memory_mb=900, priority=n)[1] == found.ahead_count
        pool.release(token(f"me-{n}"))


@pytest.mark.parametrize("ask", [{}, {"exclusive": True}, {"devices": 2}, {"host": "h2"}])
@pytest.mark.parametrize("hold_s", [0, 40, 100])
def test_request_that_ends_in_time_is_told_that_it_fits(
    pool: Pool, ask: dict[str, Any], hold_s: int
) -> None:
    """Devices that are reserved for another are lent to it, as by acquire; also behind others."""
    gpus = tuple(device(f"gpu-{n}", index=n) for n in range(3))
    report(pool, *gpus)
    granted(pool.acquire(memory_mb=1000, ttl_ms=0, max_hold_ms=100_000, agent="on"))
    for _ in range(12):
        wait(pool, "large", memory_mb=500, devices=3)
        pool.skew(3000)
    assert why(pool, "large").reservation is not None
    assert wait(pool, "endless", memory_mb=200) == ["WAITING", 0]
    wanted = {"memory_mb": 200, "max_hold_s": hold_s, "host": "any"} | ask
    found = asked(pool, **wanted)
    reply = pool.run("acquire", *Caller("h1").request("me", **wanted).call().args)
    fits = 0 < hold_s < 60 and "host" not in ask
    assert (found.code == "fits", reply[0] == "GRANTED") == (fits, fits), found


def test_estimate_needs_an_end(pool: Pool) -> None:
    """A lease without expiry, or what no end of a lease changes: nobody can know when."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("ever"), "ever", memory_mb=1000, ttl_ms=0))
    assert (asked(pool).estimate_s, asked(pool).code) == (None, "no_capacity")
    pool.drain("h1", "host")
    assert asked(pool, host="h1").code == "draining"
    assert asked(pool, memory_mb=5000).code == "never_fits"
    assert asked(pool, memory_mb=5000).estimate_s is None


@pytest.mark.parametrize(("unleased", "known"), [(400, True), (600, False)])
def test_estimate_of_a_whole_device_knows_who_stays(pool: Pool, unleased: int, known: bool) -> None:
    """The lease ends, processes without one do not; a little of them leaves a device idle."""
    report(pool, device("gpu-a", used_mb=unleased))
    granted(pool.acquire(token("on"), "on", memory_mb=100, ttl_ms=20_000))
    found = asked(pool, memory_mb=100, exclusive=True)
    assert (found.estimate_s is not None) == known


@pytest.mark.parametrize(("memory_mb", "known"), [(600, True), (900, False)])
def test_estimate_after_a_whole_lease_knows_who_stays(
    pool: Pool, memory_mb: int, known: bool
) -> None:
    """Its end frees what it holds, not what others use there."""
    report(pool, device("gpu-a", used_mb=400))
    granted(pool.acquire(token("on"), "on", memory_mb=100, exclusive=1, ttl_ms=20_000))
    found = asked(pool, memory_mb=memory_mb)
    assert (found.estimate_s is not None) == known


def test_estimate_of_several_devices_is_of_the_last_of_them(pool: Pool) -> None:
    """Two whole ones of a host: when the second of them is idle."""
    report(pool, device("gpu-a"), device("gpu-b", index=1))
    for n, seconds in enumerate((10, 30)):
        ask = {"memory_mb": 1000, "ttl_ms": 1000 * seconds}
        granted(pool.acquire(token(f"t{n}"), f"t{n}", **ask))
    wait(pool, "two", devices=2, memory_mb=100)
    assert why(pool, "two").estimate_s == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"safe_mode": 1}, "safe_mode"),
        ({"max_leases_per_agent": 1}, "limit"),
        ({"max_memory_per_agent_mb": 950}, "agent_cap"),
    ],
)
def test_refusal_is_explained_by_its_code(pool: Pool, policy: dict[str, int], code: str) -> None:
    """A refusal by the policy has the code that acquire has."""
    report(pool, device("gpu-a"), device("gpu-b", index=1))
    granted(pool.acquire(token("mine"), "me", memory_mb=100))
    pool.policy(**policy)
    assert asked(pool).code == code
    request = Caller("h1").request("me", memory_mb=900, host="any")
    assert pool.run("acquire", 1, *request)[5] == code


CHANGES: dict[str, tuple[Callable[[Pool], object], dict[str, Any], dict[str, Any]]] = {
    "another host": (
        lambda p: report(p, device("gpu-b", 1000), host="h2"), {"host": "h1"}, {"host": "h2"},
    ),
    "another model": (
        lambda p: report(p, device("gpu-b", model="m2", index=1), device("gpu-a")),
        {"model": "m1"}, {"model": "m2"},
    ),
    "not alone": (lambda _: None, {"exclusive": True, "memory_mb": 200}, {"exclusive": False}),
    "fewer": (
        lambda p: report(p, *(device(f"g{n}", 3000, index=n) for n in range(2)), host="h2"),
        {"devices": 3, "memory_mb": 2000}, {"devices": 2},
    ),
    "less": (lambda _: None, {}, {"memory_mb": 400}),
    "less elsewhere": (
        lambda p: report(p, device("gpu-b", 500), host="h2"), {"host": "h1"},
        {"memory_mb": 500, "host": "h2"},
    ),
}  # fmt: skip
"""Devices beside gpu-a, of which 400 of 1000 MiB are free; the request; the change that fits."""


@pytest.mark.parametrize("name", CHANGES)
def test_change_that_is_said_to_fit_is_granted(pool: Pool, name: str) -> None:
    """Each suggestion, taken up, is a lease: none is only a hope."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("on"), "on", memory_mb=600, ttl_ms=0))
    setup, ask, change = CHANGES[name]
    setup(pool)
    ask = {"memory_mb": 900, "host": "any"} | ask
    if name == "fewer":  # that there are three somewhere, so that it is not refused for good
        report(pool, *(device(f"k{n}", 3000, index=n) for n in range(3)), host="h3")
        pool.drain("k0")
    found = asked(pool, **ask)
    assert change in [x.change for x in found.fits_now], found
    for n, said in enumerate(found.fits_now):
        request = Caller("h1").request("me", token=token(f"try{n}"), **ask | said.change)
        reply = pool.run("acquire", 1, *request)
        assert reply[0] == "GRANTED", (said, reply)
        pool.release(token(f"try{n}"))


def test_less_is_not_said_of_a_host_that_has_room_for_all(pool: Pool) -> None:
    """The same fits there: one change, not two; less is said of the host that was asked."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("on"), "on", memory_mb=600, ttl_ms=0))
    report(pool, device("gpu-b"), host="h2")
    found = asked(pool, memory_mb=900, host="h1").fits_now
    assert [x.change for x in found] == [{"host": "h2"}, {"memory_mb": 400}]
    found = asked(pool, memory_mb=900, host="elsewhere").fits_now
    assert [x.change for x in found] == [{"host": "h2"}]


def test_change_is_not_said_where_others_wait_for_it(pool: Pool) -> None:
    """A request that would queue behind others is not told that it fits now."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("on"), "on", memory_mb=600, ttl_ms=0))
    assert [x.change for x in asked(pool).fits_now] == [{"memory_mb": 400}]
    wait(pool, "before", memory_mb=500)
    assert asked(pool).fits_now == ()


def test_token_that_waits_for_nothing_is_said_so(pool: Pool) -> None:
    """Active, offered; and what is over or unknown is the error that it is everywhere."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("on"), "on", memory_mb=900))
    assert why(pool, "on").code == "active"
    wait(pool, "ann")
    pool.release(token("on"))
    assert why(pool, "ann").code == "offered"
    with pytest.raises(LeaseLost) as lost:
        why(pool, "on")
    assert lost.value.code == "released"
    with pytest.raises(UnknownToken):
        why(pool, "nobody")


def test_capped_waiter_is_told_of_its_cap(pool: Pool) -> None:
    """At its cap it is not behind anybody: its own leases are what it waits for."""
    report(pool, device("gpu-a"))
    pool.policy(max_memory_per_agent_mb=1000)
    granted(pool.acquire(token("mine"), "ann", memory_mb=900))
    wait(pool, "ann", memory_mb=500)
    assert why(pool, "ann").code == "agent_cap"


def test_capped_waiter_for_a_whole_device_is_told_of_its_cap(pool: Pool) -> None:
    """The whole of a device counts: the cap holds back one who asks for little of it, alone."""
    report(pool, device("gpu-a"), device("gpu-b", index=1))
    pool.policy(max_memory_per_agent_mb=1500)
    granted(pool.acquire(token("mine"), "ann", memory_mb=900))
    assert wait(pool, "ann", memory_mb=100, exclusive=1) == ["WAITING", -1]
    found = why(pool, "ann")
    assert found.code == "agent_cap"
    assert found.basis.startswith("it hangs on the agent's own leases")


def test_cap_that_a_whole_device_would_break_is_the_reason(pool: Pool) -> None:
    """A refusal by the cap is not told as a lack of room."""
    report(pool, device("gpu-a"))
    pool.policy(max_memory_per_agent_mb=500)
    assert asked(pool, memory_mb=100, exclusive=True).code == "agent_cap"
    assert pool.acquire(token("me"), memory_mb=100, exclusive=1)[5] == "agent_cap"


@pytest.mark.parametrize(("what", "code"), [("device", "no_capacity"), ("host", "draining")])
def test_draining_is_said_of_a_host_alone(pool: Pool, what: str, code: str) -> None:
    """A host that is drained, though a device of it is lost; not one whose devices are drained."""
    lost = device("gpu-b", index=1, state="lost")
    report(pool, device("gpu-a"), *([lost] if what == "host" else []))
    pool.drain("gpu-a" if what == "device" else "h1", what)
    assert asked(pool, host="h1").code == code
    assert pool.acquire(token("me"), host="h1")[5] == code


def test_waiter_on_a_drained_host_is_told_so(pool: Pool) -> None:
    """It is next, but no lease that ends serves it: an operator does."""
    report(pool, device("gpu-a"))
    pool.drain("h1", "host")
    assert wait(pool, "ann", host="h1") == ["WAITING", 0]
    assert why(pool, "ann").code == "draining"


@pytest.mark.parametrize("waited", ["just now", "long enough to have its device kept"])
def test_waiter_is_told_what_fits_if_it_leaves(pool: Pool, waited: str) -> None:
    """Its own place, and what is kept for it, are not in its own way."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("on"), "on", memory_mb=400, ttl_ms=0))
    wait(pool, "ann", memory_mb=900)
    for _ in range(0 if waited == "just now" else 11):
        pool.skew(3000)
        wait(pool, "ann", memory_mb=900)
    assert bool(pool.hash("device:gpu-a")["reserved_for"]) == (waited != "just now")
    assert [x.change for x in why(pool, "ann").fits_now] == [{"memory_mb": 600}]
    pool.release(token("ann"))
    granted(pool.acquire(token("less"), "ann", memory_mb=600))


def test_waiter_is_not_told_what_another_would_get_if_it_left(pool: Pool) -> None:
    """Behind its place, or for the device that is kept for it, somebody else waits."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("on"), "on", memory_mb=400, ttl_ms=0))
    wait(pool, "ann", memory_mb=900)
    wait(pool, "bob", memory_mb=800)
    assert why(pool, "ann").fits_now == ()
    pool.release(token("bob"))
    for _ in range(11):
        pool.skew(3000)
        wait(pool, "ann", memory_mb=900)
    wait(pool, "eve", memory_mb=100)
    assert why(pool, "ann").fits_now == ()


def test_lease_on_the_cpu_is_said_to_be_one(pool: Pool) -> None:
    """With the reason for which it got no GPU."""
    report(pool, device("gpu-a"))
    granted(pool.acquire(token("on"), "on", memory_mb=900))
    granted(pool.acquire(token("cpu"), "cpu", memory_mb=900, on_unavailable="cpu"))
    found = why(pool, "cpu")
    assert found.code == "active"
    assert found.summary == "it is granted, on the CPU: no device has that much free memory now"


@pytest.mark.parametrize("simulated", [0, 1])
def test_estimate_on_a_real_device_says_that_its_memory_comes_later(
    pool: Pool, simulated: int
) -> None:
    """After an expiry a real device's memory cools; the estimate is of the end of the lease."""
    report(pool, device("gpu-a", simulated=simulated))
    granted(pool.acquire(token("on"), "on", memory_mb=900, ttl_ms=20_000))
    assert asked(pool).basis.endswith("; its memory follows within 5 s") == (not simulated)

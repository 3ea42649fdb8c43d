"""Data loss: another server took over, or everything is gone; holders get back what they hold."""

from __future__ import annotations

import pytest

from tests.pools import Granted, Pool, device, granted, said, token

A, B = token("a"), token("b")

REQUEST = "900|1|0|30000|0|0|*|*|spread|refuse"

FAILOVER_MS, FORGOT_MS = 10_000, 60_000

SHARE = {"memory_mb": 400, "placement": "pack"}


@pytest.fixture
def gpu(pool: Pool) -> Pool:
    """A pool with two simulated devices of 1000 MiB."""
    pool.report((device("gpu-a", 1000), device("gpu-b", 1000)))
    return pool


def fail_over(pool: Pool, after_ms: int = 2000) -> None:
    """Another server has the pool now, as a script finds it: under a name that is not its own."""
    pool.redis.hset(pool.keys.pool, "run_id", "1")
    pool.by_hand()
    pool.skew(after_ms)


def forgotten(pool: Pool, name: str, **ask: object) -> Granted:
    """A grant that a failover lost: its holder knows of it, and the ledger does not."""
    grant = granted(pool.acquire(name, **ask))
    pool.release(name)
    pool.redis.delete(pool.keys.done(name))
    pool.by_hand()
    return grant


def recover(pool: Pool, name: str, grant: Granted, **other: str) -> list[object]:
    """Renew as a holder whose lease was unknown a moment ago."""
    claim = {
        "fence": str(grant.fence), "ttl_ms": "30000", "owner": "",
        "epoch": pool.hash("pool")["epoch"], "agent": "agent",
        "devices": ",".join(f"{uuid}={mb}" for uuid, mb in grant.devices), "request": REQUEST,
        "client": "client", "pid": "1:1",
    } | other  # fmt: skip
    return said(pool.run("renew", 1, name, *claim.values()))


def test_another_server_closes_the_pool_for_ten_seconds(gpu: Pool) -> None:
    """No new grants until holders have renewed; queueing, renew and release go on."""
    held = granted(gpu.acquire(A))
    fail_over(gpu)
    assert said(gpu.acquire(B)) == ["REFUSED", "closed", ""]
    assert said(gpu.acquire(B, wait_ms=60000)) == ["WAITING", 0]
    assert gpu.renew(A, str(held.fence))[0] == "RENEWED"
    assert gpu.release(A)[0] == "RELEASED"
    assert gpu.events().count("closed") == 1
    gpu.skew(FAILOVER_MS - 1)
    assert gpu.acquire(B, wait_ms=60000)[0] == "WAITING"
    gpu.skew(1)
    assert gpu.acquire(B, wait_ms=60000)[0] == "GRANTED"


def test_the_same_server_is_looked_at_and_nothing_happens(gpu: Pool) -> None:
    """However often: only another one's name closes the pool."""
    for _ in range(4):
        gpu.skew(600)
        gpu.reap()
    assert gpu.hash("pool")["closed_until_ms"] == "0"
    assert "closed" not in gpu.events()


def test_a_pool_left_by_a_clean_stop_is_not_closed(gpu: Pool) -> None:
    """A stop in good order takes the server's name away: nothing was lost."""
    gpu.redis.hdel(gpu.keys.pool, "run_id")
    gpu.by_hand()
    gpu.skew(2000)
    assert gpu.acquire(A)[0] == "GRANTED"
    assert gpu.hash("pool")["run_id"]


def test_a_clock_that_steps_back_does_not_hide_another_server(gpu: Pool) -> None:
    """The new server's clock is behind: the pool's stands still, and the server is looked at."""
    fail_over(gpu, -1500)
    assert said(gpu.acquire(A)) == ["REFUSED", "closed", ""]


def test_what_a_failover_may_have_renewed_is_not_reaped_while_closed(gpu: Pool) -> None:
    """A renewal that was lost: the ledger's end is too early, and the holder comes in time."""
    held = granted(gpu.acquire(A, ttl_ms=3000))
    gpu.skew(1000)
    gpu.reap()
    fail_over(gpu, 4000)
    gpu.reap()
    assert gpu.renew(A, str(held.fence))[0] == "RENEWED"
    gpu.live_on(FAILOVER_MS + 1)
    assert said(gpu.renew(A, str(held.fence))) == ["LOST", "expired"]


def test_a_forgotten_lease_is_recovered_as_it_was(gpu: Pool) -> None:
    """The same devices, fence and request: a repeat of its acquire finds it again."""
    held = forgotten(gpu, A)
    fail_over(gpu)
    assert recover(gpu, A, held)[0] == "RENEWED"
    record = gpu.hash(f"record:{A}")
    assert (record["state"], record["fence"]) == ("active", str(held.fence))
    assert record["granted_at_ms"] == str(held.fence // 1000)
    assert gpu.number(held.devices[0][0], "leased_mb") == 900
    assert granted(gpu.acquire(A)).devices == held.devices
    assert (gpu.stats()["recovered"], gpu.events().count("recovered")) == (1, 1)
    assert gpu.release(A)[0] == "RELEASED"


def test_a_lease_recovered_for_an_owner_is_theirs_and_ends_in_time(gpu: Pool) -> None:
    """It was recovered, then found to be nobody's, and left to live for ever without a deadline."""
    held = forgotten(gpu, A)
    fail_over(gpu)
    assert recover(gpu, A, held, owner="me")[0] == "RENEWED"
    assert gpu.hash(f"record:{A}")["owner"] == "me"
    assert said(gpu.run("renew", 1, A, "", "", "another")) == ["UNKNOWN"]
    gpu.live_on(30_001)
    assert said(gpu.renew(A, str(held.fence))) == ["LOST", "expired"]


def test_who_waits_is_recovered_for_its_own_owner_only(gpu: Pool) -> None:
    """The pool still knows it as it was before its grant, and whose it is."""
    held = forgotten(gpu, A)
    fail_over(gpu)
    gpu.acquire(A, owner="me", memory_mb=900, wait_ms=60_000)
    assert recover(gpu, A, held, owner="another") == ["UNKNOWN"]
    assert recover(gpu, A, held)[0] == "RENEWED"
    assert gpu.hash(f"record:{A}")["owner"] == "me"


def test_a_failover_closes_the_pool_for_who_remembers_an_older_one_too(gpu: Pool) -> None:
    """Both are found by one call, and the later end holds: it was overwritten by the earlier."""
    held = forgotten(gpu, A)
    older = str(int(gpu.hash("pool")["epoch"]) - 1)
    gpu.skew(FORGOT_MS + 1000)
    fail_over(gpu)
    assert recover(gpu, A, held, epoch=older)[0] == "RENEWED"
    closed_ms = int(gpu.hash("pool")["closed_until_ms"]) - int(gpu.hash("pool")["last_ms"])
    assert closed_ms == FAILOVER_MS
    assert said(gpu.acquire(B)) == ["REFUSED", "closed", ""]


def test_a_forgotten_whole_device_is_recovered_whole(gpu: Pool) -> None:
    """Alone on it again; and not where somebody else is."""
    held = forgotten(gpu, A, exclusive=1)
    fail_over(gpu)
    whole = REQUEST.replace("900|1|0", "900|1|1")
    assert recover(gpu, A, held, request=whole)[0] == "RENEWED"
    assert gpu.hash(f"device:{held.devices[0][0]}")["exclusive"] == A
    assert recover(gpu, B, held, request=REQUEST.replace("900", "1")) == ["AGAIN"]


def test_a_forgotten_cpu_lease_is_recovered(gpu: Pool) -> None:
    """It needs no room."""
    held = forgotten(gpu, A, memory_mb=900, model="m1", on_unavailable="cpu")
    fail_over(gpu)
    assert recover(gpu, A, held, devices="")[0] == "RENEWED"
    assert gpu.stats()["cpu_recovered"] == 1


def test_the_fence_goes_on_from_a_recovered_one(gpu: Pool) -> None:
    """S3: the next grant is greater, although the server's clock may be behind."""
    held = forgotten(gpu, A)
    fail_over(gpu)
    gpu.redis.hset(gpu.keys.pool, "fence", held.fence - 5)
    gpu.by_hand()
    recover(gpu, A, held)
    assert gpu.hash("pool")["fence"] == str(held.fence)


def test_a_lease_that_the_pool_knows_as_a_waiter_is_recovered(gpu: Pool) -> None:
    """The new server has seen it join the queue, and not the grant that came of it."""
    held = forgotten(gpu, A)
    fail_over(gpu)
    assert said(gpu.acquire(A, wait_ms=60000)) == ["WAITING", 0]
    assert gpu.renew(A, str(held.fence))[0] == "UNKNOWN"
    assert recover(gpu, A, held)[0] == "RENEWED"
    assert (gpu.hash(f"record:{A}")["state"], gpu.hash("pool")["waiting"]) == ("active", "0")


def test_a_lease_that_the_pool_knows_as_an_offer_is_recovered(gpu: Pool) -> None:
    """The new server has seen the offer, and not its claim."""
    fence = forgotten(gpu, B).fence
    for uuid in ("gpu-a", "gpu-b"):
        gpu.acquire(token(uuid), exclusive=1)
    gpu.acquire(A, wait_ms=60000)
    gpu.release(token("gpu-a"))
    record = gpu.hash(f"record:{A}")
    assert record["state"] == "offered"
    fail_over(gpu)
    claim = recover(gpu, A, Granted(0, fence, 0, 0, "", ()), devices=record["devices"])
    assert claim[0] == "RENEWED"
    assert gpu.number(record["devices"].partition("=")[0], "leased_mb") == 900


def test_nothing_is_recovered_by_a_pool_that_lost_nothing(gpu: Pool) -> None:
    """S4: what such a pool does not know has ended."""
    assert recover(gpu, A, forgotten(gpu, A)) == ["UNKNOWN"]


def test_a_lease_of_this_very_pool_is_not_recovered(gpu: Pool) -> None:
    """S4: granted after the loss, so if it is unknown it has ended."""
    fail_over(gpu)
    gpu.reap()
    gpu.skew(FAILOVER_MS + 1)
    assert recover(gpu, A, forgotten(gpu, A)) == ["UNKNOWN"]


def test_what_has_a_tombstone_is_not_recovered(gpu: Pool) -> None:
    """S4: nothing resurrects a lease once its end was answered."""
    held = granted(gpu.acquire(A))
    gpu.release(A)
    fail_over(gpu)
    assert recover(gpu, A, held) == ["LOST", "released"]


def test_a_lease_past_its_longest_hold_is_not_recovered(gpu: Pool) -> None:
    """max_hold_ms counts from the grant, which the fence tells."""
    held = forgotten(gpu, A, max_hold_ms=1500)
    fail_over(gpu)
    assert recover(gpu, A, held, request=REQUEST.replace("30000|0", "30000|1500")) == [
        "LOST", "expired",
    ]  # fmt: skip


def test_two_honest_holders_are_both_recovered_whatever_their_order(gpu: Pool) -> None:
    """Room alone decides: the younger one, recovered first, does not push the older one out."""
    older, younger = granted(gpu.acquire(A, **SHARE)), granted(gpu.acquire(B, **SHARE))
    assert older.devices == younger.devices
    for name in (A, B):
        gpu.release(name)
        gpu.redis.delete(gpu.keys.done(name))
        gpu.by_hand()
    fail_over(gpu)
    assert recover(gpu, B, younger)[0] == "RENEWED"
    assert recover(gpu, A, older)[0] == "RENEWED"


@pytest.mark.parametrize("devices", ["gpu-a=900", "gpu-unknown=900", "gpu-b=900,gpu-unknown=1"])
def test_no_room_is_again_while_closed_and_lost_after_that(gpu: Pool, devices: str) -> None:
    """Its host may have yet to report, or who has the room to give it up; then it is over."""
    gpu.drain("gpu-b")
    granted(gpu.acquire(B))
    gpu.drain("gpu-b", drained=0)
    held = forgotten(gpu, A)
    fail_over(gpu)
    before = gpu.hash("device:gpu-b")
    assert recover(gpu, A, held, devices=devices) == ["AGAIN"]
    assert gpu.hash("device:gpu-b") == before
    gpu.skew(FAILOVER_MS + 1)
    assert recover(gpu, A, held, devices=devices) == ["LOST", "superseded"]


def test_what_could_not_be_recovered_is_over_for_its_late_calls(gpu: Pool) -> None:
    """S4: once its holder was told so, a delayed repeat of its acquire is no new lease."""
    held = forgotten(gpu, A)
    fail_over(gpu)
    gpu.reap()
    gpu.skew(FAILOVER_MS + 1)
    for name in ("one", "two"):
        granted(gpu.acquire(token(name)))
    assert recover(gpu, A, held) == ["LOST", "superseded"]
    for name in ("one", "two"):
        gpu.release(token(name))
    assert said(gpu.acquire(A)) == ["LOST", "superseded"]
    assert recover(gpu, A, held) == ["LOST", "superseded"]


@pytest.mark.parametrize(("silent_ms", "left_ms"), [(0, 20_000), (6000, 14_000), (27_000, 20_000)])
def test_recovered_lease_keeps_the_time_limit_of_its_team(
    gpu: Pool, silent_ms: int, left_ms: int
) -> None:
    """From its grant; one that is past it was extended, and has as long from its recovery."""
    gpu.set_teams(red="nominal_mb=2000 max_hold_s=20")
    held = forgotten(gpu, A, team="red")
    gpu.skew(silent_ms)
    fail_over(gpu, 200)
    now_ms = gpu.reap()[1]
    claim = (held.fence, "30000", "", gpu.hash("pool")["epoch"], "agent",
             f"{held.devices[0][0]}=900", REQUEST, "client", "1:1", "red")  # fmt: skip
    assert said(gpu.run("renew", 1, A, *claim))[0] == "RENEWED"
    left = int(gpu.hash(f"record:{A}")["hold_until_ms"]) - now_ms
    assert left_ms - 1000 < left <= left_ms + 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fence", ""), ("fence", "9000000000000000"), ("epoch", "x"), ("agent", "a b"),
        ("devices", "gpu-a"), ("devices", "gpu-a=1,gpu-a=1"), ("devices", "gpu-a=1e3"),
        ("devices", ",".join(f"g{n}=1" for n in range(65))), ("request", "900|1|0"),
        ("request", "900|1|2|30000|0|0|*|*|spread|refuse"), ("client", "a b"), ("pid", "x"),
        ("request", f"900|1|0|{'9' * 99}|0|0|*|*|spread|refuse"),
        ("request", "900|1|0|999|0|0|*|*|spread|refuse"),
        ("request", "900|1|0|604800001|0|0|*|*|spread|refuse"),
        ("request", f"900|1|0|30000|{'9' * 99}|0|*|*|spread|refuse"),
    ],
)  # fmt: skip
def test_a_claim_that_is_not_well_formed_is_refused(gpu: Pool, field: str, value: str) -> None:
    """S9: and nothing else becomes of it."""
    held = forgotten(gpu, A)
    fail_over(gpu)
    gpu.reap()
    before = gpu.stored()
    assert recover(gpu, A, held, **{field: value}) == ["REFUSED", "bad_request", field]
    assert gpu.stored() == before


def test_a_claim_that_is_not_well_formed_closes_no_pool(gpu: Pool) -> None:
    """S9: it named an older pool, which closed this one before its form was looked at."""
    held = forgotten(gpu, A)
    gpu.reap()
    before = gpu.stored()
    assert recover(gpu, A, held, epoch="1", pid="x") == ["REFUSED", "bad_request", "pid"]
    assert gpu.stored() == before


def test_a_pool_that_somebody_remembers_is_closed_for_a_minute(gpu: Pool) -> None:
    """FLUSHALL: the first report makes it anew, and says that there was one before."""
    epoch, held = gpu.hash("pool")["epoch"], granted(gpu.acquire(A))
    gpu.redis.delete(*gpu.stored())
    gpu.by_hand()
    gpu.skew(1000)
    gpu.report((device("gpu-a", 1000),), epoch=epoch)
    assert said(gpu.acquire(B, memory_mb=100)) == ["REFUSED", "closed", ""]
    assert recover(gpu, A, held, epoch=epoch)[0] in {"RENEWED", "AGAIN"}
    gpu.live_on(FORGOT_MS)
    assert gpu.acquire(B, memory_mb=100)[0] == "GRANTED"


def test_a_holder_tells_a_pool_that_was_made_by_who_knew_of_none(gpu: Pool) -> None:
    """Its first renewal closes it, up to a minute after its making and not again after that."""
    epoch, held = gpu.hash("pool")["epoch"], granted(gpu.acquire(A))
    gpu.redis.delete(*gpu.stored())
    gpu.by_hand()
    gpu.skew(1000)
    gpu.report((device("gpu-a", 1000), device("gpu-b", 1000)))
    assert gpu.hash("pool")["closed_until_ms"] == "0"
    assert recover(gpu, A, held, epoch=epoch)[0] == "RENEWED"
    assert said(gpu.acquire(B)) == ["REFUSED", "closed", ""]
    gpu.live_on(FORGOT_MS)
    assert recover(gpu, A, held, epoch=epoch)[0] in {"LOST", "RENEWED"}
    assert gpu.acquire(B)[0] == "GRANTED"


def test_memory_used_by_a_recovered_lease_is_not_a_stranger_s(gpu: Pool) -> None:
    """The device was registered anew while its holder used it: what it uses counts once."""
    epoch, held = gpu.hash("pool")["epoch"], granted(gpu.acquire(A))
    gpu.redis.delete(*gpu.stored())
    gpu.by_hand()
    gpu.skew(1000)
    busy = [device(uuid, 1000, used_mb=950) for uuid in ("gpu-a", "gpu-b")]
    gpu.report(tuple(busy), epoch=epoch)
    assert recover(gpu, A, held, epoch=epoch)[0] == "RENEWED"
    assert gpu.number(held.devices[0][0], "unleased_mb") == 50


def test_worklist_of_a_closed_pool_has_the_ranks_of_present_firsts(gpu: Pool) -> None:
    """L1: a head that left takes its rank along; who came before its heir is served before it."""
    gpu.drain("gpu-b")
    fail_over(gpu)
    whole = {"exclusive": 1, "memory_mb": 1000, "wait_ms": 60_000, "ttl_ms": 0}
    gpu.acquire(token("left"), priority=9, **whole)
    gpu.acquire(token("share"), memory_mb=500, wait_ms=60_000, priority=1)
    gpu.acquire(token("heir"), **whole)
    gpu.release(token("left"))
    gpu.live_on(FAILOVER_MS // 2, devices=(device("gpu-a"), device("gpu-b")))
    for name, ask in (("share", {"memory_mb": 500, "priority": 1}), ("heir", whole)):
        gpu.acquire(token(name), **{"wait_ms": 60_000} | ask)
    gpu.skew(FAILOVER_MS // 2)
    gpu.reap()
    states = [gpu.hash(f"record:{token(name)}")["state"] for name in ("share", "heir")]
    assert states == ["offered", "waiting"]

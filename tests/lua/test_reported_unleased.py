"""Reports with process data: what no lease explains, what cooling leases use, what was found."""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit import audit
from tests.pools import Pool, device, granted, said, token, uuids

A, B = token("a"), token("b")


def real(reported_unleased_mb: int | str = 0, **more: Any) -> tuple[Any, ...]:
    """A report of one real device of 1000 MiB whose processes are known."""
    fields = {
        "simulated": 0,
        "used_mb": reported_unleased_mb,
        "reported_unleased_mb": reported_unleased_mb,
        "cooling_used_mb": 0,
    }
    return (device("gpu-a", 1000, **(fields | more)),)


@pytest.fixture
def gpu(pool: Pool) -> Pool:
    """A pool with one real device of 1000 MiB."""
    pool.report(real())
    return pool


def look(gpu: Pool, reported_unleased_mb: int | str = 0, **more: Any) -> None:
    """A report of a sample that was taken a moment ago."""
    gpu.skew(10)
    gpu.report(real(reported_unleased_mb, **more), sampled_ms=gpu.reap()[1] - 1)
    audit(gpu.redis, gpu.keys)


def test_report_of_what_is_unleased_is_what_counts(gpu: Pool) -> None:
    """Leased memory that its own processes use is counted once, and what is unleased beside it."""
    granted(gpu.acquire(A, memory_mb=400))
    look(gpu, 100, used_mb=500)
    assert gpu.number("gpu-a", "unleased_mb") == 100
    assert gpu.free() == {"gpu-a": 500}
    look(gpu, 30, used_mb=430)
    assert gpu.free() == {"gpu-a": 570}, "it falls as soon as the processes say so"


def test_report_of_what_is_unleased_may_be_of_leases_whose_processes_are_not_known(
    gpu: Pool,
) -> None:
    """Memory counted already is not counted twice; more never is, and proven use stays."""
    granted(gpu.acquire(A, memory_mb=400))
    look(gpu, 300, unattributed_mb=400)
    assert gpu.free() == {"gpu-a": 600}
    look(gpu, 550, unattributed_mb=400)
    assert gpu.free() == {"gpu-a": 450}
    look(gpu, 300, unattributed_mb=400)
    assert gpu.free() == {"gpu-a": 450}, "the 150 of others may be among the 300"
    look(gpu, 100, unattributed_mb=400)
    assert gpu.free() == {"gpu-a": 500}, "others have no more than all"


def test_report_of_a_stale_sample_can_only_raise_what_is_unleased(gpu: Pool) -> None:
    """The older of two samples that come in the wrong order proves nothing for the present."""
    look(gpu, 300)
    newest = int(gpu.hash("device:gpu-a")["sampled_ms"])
    gpu.report(real(100), sampled_ms=newest - 5)
    assert gpu.free() == {"gpu-a": 700}
    gpu.report(real(400), sampled_ms=newest - 5)
    assert gpu.free() == {"gpu-a": 600}


def test_report_without_process_data_after_one_with_falls_back_to_what_is_used(gpu: Pool) -> None:
    """A sample in which the processes were not to be had is judged by the memory alone."""
    granted(gpu.acquire(A, memory_mb=400))
    look(gpu, 100, used_mb=500)
    look(gpu, "", used_mb=500, cooling_used_mb="")
    assert gpu.free() == {"gpu-a": 500}
    look(gpu, "", used_mb=700, cooling_used_mb="")
    assert gpu.free() == {"gpu-a": 300}


def test_report_that_nothing_lingers_ends_the_grace(gpu: Pool) -> None:
    """The dead holder's processes are gone: its memory is free, whatever others use."""
    granted(gpu.acquire(A, memory_mb=900, ttl_ms=1000))
    gpu.skew(1001)
    gpu.reap()
    assert said(gpu.acquire(B, memory_mb=300)) == ["REFUSED", "no_capacity", ""]
    look(gpu, 600, cooling_used_mb=0)
    assert gpu.free() == {"gpu-a": 400}
    assert uuids(gpu.acquire(B, memory_mb=300)) == ["gpu-a"]


def test_report_that_nothing_known_lingers_ends_no_grace_of_what_is_not_known(gpu: Pool) -> None:
    """Then the memory must say so: used ≤ leased + unleased."""
    granted(gpu.acquire(A, memory_mb=900, ttl_ms=1000))
    gpu.skew(1001)
    gpu.reap()
    look(gpu, 200, unattributed_mb=900, cooling_unattributed_mb=900)
    assert gpu.number("gpu-a", "withheld_mb") == 900
    look(gpu, 0, unattributed_mb=900, cooling_unattributed_mb=900)
    assert gpu.free() == {"gpu-a": 1000}


def test_report_of_what_lingers_after_its_grace_was_ended_counts_it_as_unleased(gpu: Pool) -> None:
    """A child of the dead holder begins to use the GPU when nothing is withheld for it any more."""
    granted(gpu.acquire(A, memory_mb=900, ttl_ms=1000))
    gpu.skew(1001)
    gpu.reap()
    look(gpu, 0)
    assert gpu.free() == {"gpu-a": 1000}
    look(gpu, 0, used_mb=600, cooling_used_mb=600)
    assert gpu.free() == {"gpu-a": 400}


@pytest.mark.parametrize("used_mb", [1, 900])
def test_report_that_something_lingers_ends_no_grace(gpu: Pool, used_mb: int) -> None:
    """All that a dead lease held is withheld as long as one of its processes is there."""
    granted(gpu.acquire(A, memory_mb=900, ttl_ms=1000))
    gpu.skew(1001)
    gpu.reap()
    look(gpu, 0, used_mb=used_mb, cooling_used_mb=used_mb)
    assert gpu.number("gpu-a", "withheld_mb") == 900


def test_reap_after_the_grace_keeps_back_what_lingers(gpu: Pool) -> None:
    """Memory of a dead holder's processes is not granted at the grace's end."""
    granted(gpu.acquire(A, memory_mb=900, ttl_ms=1000))
    gpu.skew(1001)
    gpu.reap()
    look(gpu, 0, used_mb=700, cooling_used_mb=700)
    gpu.skew(5001)
    gpu.reap()
    assert gpu.number("gpu-a", "withheld_mb") == 0
    assert gpu.free() == {"gpu-a": 300}
    assert gpu.redis.smembers(gpu.keys.holders("gpu-a")) == set()
    look(gpu, 700, cooling_used_mb=0)
    assert gpu.free() == {"gpu-a": 300}, "the next report finds it unleased, once"
    look(gpu, 0)
    assert gpu.free() == {"gpu-a": 1000}


def test_reap_of_two_that_linger_keeps_back_no_more_than_lingers(gpu: Pool) -> None:
    """Memory that is seen of both together is kept back once."""
    granted(gpu.acquire(A, memory_mb=300, ttl_ms=1000))
    granted(gpu.acquire(B, memory_mb=400, ttl_ms=1000))
    gpu.skew(1001)
    gpu.reap()
    look(gpu, 0, used_mb=350, cooling_used_mb=350)
    gpu.skew(5001)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 650}


def cools(gpu: Pool, name: str, uses_mb: int, unsure_mb: int = 0) -> str:
    """Give the word of a host about a lease that cools."""
    ended_ms = gpu.hash(f"record:{name}").get("expires_at_ms", "1")
    return f"{name}={ended_ms}:{uses_mb}:{unsure_mb}"


def expire(gpu: Pool, name: str, memory_mb: int) -> None:
    """A lease is granted, and its holder dies without a word."""
    granted(gpu.acquire(name, memory_mb=memory_mb, ttl_ms=1000))
    gpu.skew(1001)
    gpu.reap()


def after_the_grace_of_a(gpu: Pool) -> None:
    """A and B cool; of A a sample has shown that nothing was left."""
    expire(gpu, A, 400)
    look(gpu)
    assert gpu.number("gpu-a", "withheld_mb") == 0
    expire(gpu, B, 300)
    assert gpu.number("gpu-a", "withheld_mb") == 300


def test_what_a_late_child_uses_is_not_kept_back_again_at_the_end_of_another_s_grace(
    gpu: Pool,
) -> None:
    """It is unleased since the report that showed it: 320 MiB in use are 320 MiB, not 640."""
    expire(gpu, A, 400)
    look(gpu)
    look(gpu, used_mb=320, cooling_used_mb=320)
    expire(gpu, B, 500)
    gpu.live_on(5001)
    assert gpu.free() == {"gpu-a": 680}


def test_what_a_late_child_uses_is_beside_what_is_withheld_of_another(gpu: Pool) -> None:
    """B's processes may still use all that it held, so what A's child uses is not part of it."""
    after_the_grace_of_a(gpu)
    of_each = f"{cools(gpu, A, 200)},{cools(gpu, B, 50)}"
    look(gpu, used_mb=250, cooling_used_mb=250, cooling=of_each)
    assert gpu.free() == {"gpu-a": 500}


def test_report_that_a_late_child_uses_something_ends_another_s_grace(gpu: Pool) -> None:
    """Nothing is used by B, whose memory is the only one that is withheld."""
    after_the_grace_of_a(gpu)
    look(gpu, used_mb=200, cooling_used_mb=200, cooling=cools(gpu, A, 200))
    assert gpu.number("gpu-a", "withheld_mb") == 0
    assert gpu.free() == {"gpu-a": 800}


def test_reap_keeps_back_what_the_lease_itself_was_seen_to_use(gpu: Pool) -> None:
    """B uses 100 and A none: the end of A's grace keeps back nothing, that of B 100."""
    granted(gpu.acquire(A, memory_mb=300, ttl_ms=1000))
    granted(gpu.acquire(B, memory_mb=400, ttl_ms=3000))
    gpu.skew(1001)
    gpu.reap()
    gpu.skew(2000)
    gpu.reap()
    look(gpu, used_mb=100, cooling_used_mb=100, cooling=f"{cools(gpu, A, 0)},{cools(gpu, B, 100)}")
    gpu.skew(3001)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 600}, "of A nothing stays, of B all is withheld"
    gpu.skew(2000)
    gpu.reap()
    assert gpu.free() == {"gpu-a": 900}


def test_report_of_a_lease_that_cools_no_more_counts_what_it_uses_as_unleased(gpu: Pool) -> None:
    """The report was made before the end of the grace, and comes after it."""
    expire(gpu, A, 400)
    said_of_a = cools(gpu, A, 250)
    gpu.live_on(5001)
    assert gpu.free() == {"gpu-a": 1000}
    look(gpu, used_mb=250, cooling_used_mb=250, cooling=said_of_a)
    assert gpu.free() == {"gpu-a": 750}


def test_report_of_what_may_be_of_a_lease_that_is_not_withheld_counts_it_as_unleased(
    gpu: Pool,
) -> None:
    """Its processes are not known; that nothing is withheld for it any more is."""
    expire(gpu, A, 400)
    look(gpu)
    more = {
        "unattributed_mb": 400,
        "cooling_unattributed_mb": 400,
        "cooling": cools(gpu, A, 0, 400),
    }
    look(gpu, 320, **more)
    assert gpu.free() == {"gpu-a": 680}


def test_report_of_unknown_use_within_an_idle_lease_ends_no_grace(gpu: Pool) -> None:
    """B's memory that is leased and not used explains nothing of what is used beside it."""
    granted(gpu.acquire(B, memory_mb=500))
    expire(gpu, A, 400)
    more = {
        "unattributed_mb": 400,
        "cooling_unattributed_mb": 400,
        "cooling": cools(gpu, A, 0, 400),
    }
    look(gpu, 350, **more)
    assert gpu.free() == {"gpu-a": 100}


def test_reap_keeps_back_what_the_newest_sample_showed_though_an_older_one_came_later(
    gpu: Pool,
) -> None:
    """The rise by the older sample and what lingers are not added up."""
    expire(gpu, A, 400)
    look(gpu, used_mb=350, cooling_used_mb=350, cooling=cools(gpu, A, 350))
    gpu.report(real(300, cooling=cools(gpu, A, 0)), sampled_ms=gpu.reap()[1] - 5)
    assert gpu.number("gpu-a", "unleased_mb") == 300
    gpu.live_on(5001)
    assert gpu.free() == {"gpu-a": 650}


def test_reap_keeps_back_what_lingered_when_the_driver_told_of_processes_last(gpu: Pool) -> None:
    """A sample without processes does not show that what lingered is gone."""
    expire(gpu, A, 400)
    look(gpu, used_mb=350, cooling_used_mb=350, cooling=cools(gpu, A, 350))
    look(gpu, "", used_mb=350, cooling_used_mb="", cooling="")
    gpu.live_on(5001)
    assert gpu.free() == {"gpu-a": 650}


def test_holders_of_a_device_are_those_who_have_it_or_cool(gpu: Pool) -> None:
    """From the grant, or the offer, to the release, or the end of the cooling."""
    holders = gpu.keys.holders("gpu-a")
    granted(gpu.acquire(A, memory_mb=900, ttl_ms=2000))
    assert gpu.redis.smembers(holders) == {A}
    assert gpu.acquire(B, memory_mb=900, wait_ms=60000, ttl_ms=2000)[0] == "WAITING"
    assert gpu.redis.smembers(holders) == {A}
    gpu.release(A)
    assert gpu.redis.smembers(holders) == {B}, "it has been offered to who waited"
    granted(gpu.acquire(B, memory_mb=900, wait_ms=60000, ttl_ms=2000))
    gpu.skew(2001)
    gpu.reap()
    assert gpu.redis.smembers(holders) == {B}, "it cools"
    gpu.live_on(5001)
    assert not gpu.redis.exists(holders)


def test_report_forgets_holders_without_a_record(gpu: Pool) -> None:
    """A version that knows of no holders has ended their leases; a living one is left alone."""
    granted(gpu.acquire(A))
    gpu.redis.sadd(gpu.keys.holders("gpu-a"), B)
    gpu.by_hand()
    look(gpu, gone=f"{A},{B}")
    assert gpu.redis.smembers(gpu.keys.holders("gpu-a")) == {A}


def events_of(gpu: Pool, *names: str) -> list[dict[str, str]]:
    """The fields of all events of these names."""
    return [row for _, row in gpu.redis.xrange(gpu.keys.events) if row["event"] in names]


def test_report_tells_once_what_is_found_and_once_that_it_is_over(gpu: Pool) -> None:
    """An event when it begins and one when it ends, with the agent of a lease; none in between."""
    granted(gpu.acquire(A, agent="analyst"))
    for _ in range(2):
        look(gpu, idle=A, squatter="17,18", orphan="", overuse="", degraded="")
    look(gpu, idle="", squatter="18", orphan="", overuse="", degraded="")
    told = [
        (row["event"], row["finding"], row.get("token") or row.get("pid"), row["agent"])
        for row in events_of(gpu, "finding_raised", "finding_cleared")
    ]
    assert told == [
        ("finding_raised", "idle", A, "analyst"), ("finding_raised", "squatter", "17", ""),
        ("finding_raised", "squatter", "18", ""), ("finding_cleared", "idle", A, "analyst"),
        ("finding_cleared", "squatter", "17", ""),
    ]  # fmt: skip
    assert gpu.hash("device:gpu-a")["squatter"] == "18"


def test_report_without_findings_leaves_those_that_stand(gpu: Pool) -> None:
    """A report without findings says nothing, and the findings stand as they were."""
    look(gpu, squatter="17")
    look(gpu)
    assert gpu.hash("device:gpu-a")["squatter"] == "17"
    assert len(events_of(gpu, "finding_raised", "finding_cleared")) == 1


def test_renew_tells_the_holder_what_is_found_of_it(gpu: Pool) -> None:
    """From its next renewal on, until it is found no more; only while the lease lives."""
    granted(gpu.acquire(A))
    look(gpu, tell=f"{A}=idle+overuse,{token('gone')}=idle")
    assert gpu.renew(A)[7] == "idle,overuse"
    assert gpu.renew(A)[7] == "idle,overuse"
    look(gpu, tell=f"{A}=")
    assert gpu.renew(A)[7] == ""
    assert "notice" not in gpu.hash(f"record:{A}")
    assert not gpu.redis.exists(gpu.keys.record(token("gone")))


def test_report_of_a_quarantine_withholds_the_device_until_it_is_over(gpu: Pool) -> None:
    """Nobody gets it, who has it goes on, and the reason is on the device."""
    granted(gpu.acquire(A, memory_mb=100))
    look(gpu, state="quarantined", reason="XID 48", quarantine="XID 48")
    assert gpu.free() == {}
    assert gpu.renew(A)[0] == "RENEWED"
    look(gpu, state="quarantined", reason="XID 48")
    look(gpu, state="ok", quarantine="")
    assert gpu.free() == {"gpu-a": 900}
    assert [row["event"] for row in events_of(gpu, "quarantined", "unquarantined")] == [
        "quarantined", "unquarantined",
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["device", "host"])
def test_undrain_ends_a_quarantine(gpu: Pool, what: str) -> None:
    """An operator's word is enough: the device takes leases at once."""
    look(gpu, state="quarantined", reason="XID 79", quarantine="XID 79")
    gpu.drain({"device": "gpu-a", "host": "h1"}[what], what, 0)
    assert gpu.free() == {"gpu-a": 1000}
    assert gpu.hash("device:gpu-a")["quarantine"] == ""
    assert gpu.events()[-2:] == ["unquarantined", "undrained"]


def test_undrain_of_a_lost_device_in_quarantine_does_not_make_it_ok(gpu: Pool) -> None:
    """The host's state of it stands until the host sees another."""
    look(gpu, state="lost", reason="gone", quarantine="XID 79")
    gpu.drain("gpu-a", drained=0)
    assert gpu.free() == {}
    assert gpu.hash("device:gpu-a")["state"] == "lost"


def test_report_of_error_codes_keeps_the_last_and_tells_each(gpu: Pool) -> None:
    """Each code is an event with what is made of it; the last one stays on the device."""
    look(gpu, xids="79:hold,94:ignore,13:ignore")
    row = gpu.hash("device:gpu-a")
    assert row["xid"] == "13"
    assert int(row["xid_ms"]) == gpu.reap()[1]
    assert [(x["xid"], x["action"]) for x in events_of(gpu, "xid")] == [
        ("79", "hold"), ("94", "ignore"), ("13", "ignore"),
    ]  # fmt: skip


def test_report_of_an_ended_process_is_an_event(gpu: Pool) -> None:
    """It has the process, the signal, the lease and the reason."""
    look(gpu, ended=f"123 TERM {A} out of memory: 300 MiB too many")
    look(gpu, ended="124 NONE - squatter: it has no lease")
    first, second = events_of(gpu, "process_ended")
    assert (first["pid"], first["signal"], first["token"]) == ("123", "TERM", A)
    assert first["reason"] == "out of memory: 300 MiB too many"
    assert (second["signal"], second["token"]) == ("NONE", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reported_unleased_mb", "-1"), ("cooling_used_mb", "x"), ("cooling", "t"),
        ("cooling", "t=1:2"), ("cooling", "t=1:2:x"), ("cooling", "t=1:2:12345678901234"),
        ("cooling", "t=1:2:3\n"),
        ("idle", "a b"), ("tell", "a=b\n"),
        ("xids", "79;hold"), ("processes", "x" * 16385), ("quarantine", "a\nb"), ("parent", "a b"),
        ("xid", "79"), ("xid_ms", "1"), ("unleased", "1"),
    ],
)  # fmt: skip
def test_report_of_what_is_not_well_formed_changes_nothing(
    gpu: Pool, field: str, value: str
) -> None:
    """Each field has its form, and the ledger's own are not a reporter's."""
    before = gpu.state()
    assert said(gpu.report(real(**{field: value})))[:2] == ["REFUSED", "bad_request"]
    assert gpu.state() == before


def test_acquire_of_several_takes_no_mig_devices(pool: Pool) -> None:
    """A CUDA process can use but one of them: several are never granted together."""
    parts = {"model": "NVIDIA H100 1g.10gb", "parent": "gpu-a"}
    whole = device("gpu-a", 4000, state="mig")
    pool.report((whole, *(device(f"mig-{n}", 1000, **parts) for n in range(4))))
    for more in (
        {},
        {"host": "h1"},
        {"model": parts["model"]},
        {"host": "h1", "model": parts["model"]},
    ):
        assert said(pool.acquire(devices=2, **more)) == ["REFUSED", "never_fits", ""]
        wait = pool.acquire(devices=2, wait_ms=5000, **more)
        assert said(wait) == ["REFUSED", "never_fits", ""]
    granted(pool.acquire(exclusive=1))
    granted(pool.acquire())


def test_acquire_of_several_takes_partitions_of_amd_s_cards(pool: Pool) -> None:
    """A HIP process uses them as it uses GPUs."""
    parts = {"model": "MI300X CPX", "parent": "amd:a1"}
    pool.report(tuple(device(f"amd:a1/{n}", 1000, **parts) for n in range(2)))
    granted(pool.acquire(devices=2))

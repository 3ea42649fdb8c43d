"""Preemption whose end the pool has forgotten, and the one that it was for has not."""

from __future__ import annotations

import pytest

from tests.audit import audit
from tests.pools import Granted, Pool, device, granted, said, token
from tests.rollback import Earlier

DAY_MS, GRACE_MS, CLOSED_MS = 24 * 3600 * 1000, 20_000, 10_000
VICTIM, ASKER = token("victim"), token("asker")
REQUEST = "4000|1|0|60000|0|0|*|*|spread|refuse"


@pytest.fixture
def lab(pool: Pool) -> Pool:
    """A GPU that is team a's own; b's lease on it is to end for a."""
    pool.report((device("gpu-a", 4000),), deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb=4000", b="")
    pool.policy(reclaim_after_s=1, preempt_grace_s=GRACE_MS // 1000, min_runtime_s=0)
    granted(pool.acquire(VICTIM, "victim", team="b", memory_mb=4000, ttl_ms=60_000))
    ask(pool)
    pool.skew(1500)
    ask(pool)
    assert pool.hash(f"record:{VICTIM}")["preempt_for"] == ASKER
    return pool


def ask(lab: Pool) -> list[object]:
    """Wait, or poll."""
    return lab.acquire(
        ASKER, "asker", team="a", memory_mb=4000, ttl_ms=60_000, wait_ms=600_000
    )  # fmt: skip


def recover(lab: Pool, grant: Granted) -> list[object]:
    """Renew as the asker, whose lease was unknown a moment ago."""
    claim = (grant.fence, "", "", lab.hash("pool")["epoch"], "asker", "gpu-a=4000", REQUEST,
             "client", "1:1", "a")  # fmt: skip
    return said(lab.run("renew", 1, ASKER, *claim))


def forgotten(lab: Pool, *, early: bool) -> Granted:
    """Return what the asker was granted before the data went back; `early`: given back early."""
    earlier = Earlier.take(lab)
    if early:
        lab.skew(500)
        lab.release(VICTIM)
    else:
        lab.skew(GRACE_MS + 500)
        assert said(lab.renew(VICTIM)) == ["LOST", "preempted"]
    grant = granted(ask(lab))
    earlier.put_back()
    lab.redis.hset(lab.keys.pool, "run_id", "1")
    lab.by_hand()
    return grant


def test_asker_recovers_what_its_victim_had(lab: Pool) -> None:
    """The notice is over, so the victim has ended: it does, once, and the asker goes on."""
    grant = forgotten(lab, early=False)
    lab.skew(100)
    assert recover(lab, grant)[0] == "RENEWED"
    assert said(lab.renew(VICTIM)) == ["LOST", "preempted"]
    assert lab.events().count("preempted") == 1
    assert lab.events().count("preemption_withdrawn") == 0
    assert lab.stats()["preempted"] == 1
    assert lab.hash("device:gpu-a")["leased_mb"] == "4000"
    audit(lab.redis, lab.keys)


def test_asker_waits_for_a_notice_that_is_not_over(lab: Pool) -> None:
    """The victim gave it back early, which is forgotten: it may still live, and has its time."""
    grant = forgotten(lab, early=True)
    lab.skew(100)
    assert recover(lab, grant) == ["AGAIN"]
    assert lab.hash(f"record:{VICTIM}")["preempt_for"] == ASKER
    audit(lab.redis, lab.keys)
    for _ in range(3):
        lab.skew(4000)
        assert recover(lab, grant) == ["AGAIN"], "also when the pool is open again"
    for _ in range(2):
        lab.skew(4000)
        reply = recover(lab, grant)
    assert reply[0] == "RENEWED"
    assert lab.ended(VICTIM) == "preempted"
    audit(lab.redis, lab.keys)


def test_lease_that_is_not_noticed_for_it_does_not_give_way(lab: Pool) -> None:
    """Another asker's word ends nothing."""
    grant = forgotten(lab, early=False)
    lab.skew(100)
    claim = (grant.fence, "", "", lab.hash("pool")["epoch"], "other", "gpu-a=4000", REQUEST,
             "client", "1:1", "a")  # fmt: skip
    assert said(lab.run("renew", 1, token("other"), *claim)) == ["AGAIN"]
    assert lab.hash(f"record:{VICTIM}")["state"] == "active"
    lab.skew(CLOSED_MS)
    assert said(lab.run("renew", 1, token("other"), *claim)) == ["LOST", "superseded"]
    assert lab.hash(f"record:{VICTIM}")["state"] == "active"


def test_notices_are_withdrawn_when_the_recovery_is_refused(lab: Pool) -> None:
    """The asker's lease is over by its longest hold: nothing ends for it."""
    grant = forgotten(lab, early=True)
    lab.skew(100)
    claim = (grant.fence, "", "", lab.hash("pool")["epoch"], "asker", "gpu-a=4000",
             REQUEST.replace("60000|0", "60000|1"), "client", "1:1", "a")  # fmt: skip
    assert said(lab.run("renew", 1, ASKER, *claim)) == ["LOST", "expired"]
    assert "preempt_for" not in lab.hash(f"record:{VICTIM}")
    audit(lab.redis, lab.keys)

"""The audit of quotas is audited: it finds what no verb does, and not what an operator may do."""

from __future__ import annotations

import pytest

from tests.audit import audit
from tests.pools import Pool, device, granted, token

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def lab(pool: Pool) -> Pool:
    """Two GPUs of 4,000 MiB; team a lends 1,000 MiB of its 4,000, and b borrows 1,000."""
    pool.report((device("gpu-a", 4000), device("gpu-b", 4000, index=1)), deadline_ms=DAY_MS)
    pool.set_teams(a="nominal_mb=4000 lend_mb=1000", b="nominal_mb=3000")
    for name in ("b1", "b2", "b3", "b4"):
        granted(pool.acquire(token(name), name, team="b", memory_mb=1000, priority=2))
    audit(pool.redis, pool.keys)
    return pool


def rewrite(lab: Pool, **lines: str) -> None:
    """Make the policies other than those under which leases were given, behind the verbs' back."""
    key = f"{lab.keys.base}:teams"
    lab.redis.delete(key)
    lab.redis.hset(key, mapping=lines)
    lends = any("lend_mb" in line for line in lines.values())
    lab.policy(teams=len(lines), team_lend_limits=int(lends))


WRONG = {
    "borrowed more than it may": ({"b": "nominal_mb=3000 borrow_mb=500"}, "Q2: team b has 4000"),
    "more leases than it may": ({"b": "nominal_mb=4000 max_leases=3"}, "Q2: team b has 4 leases"),
    "what nobody lends": ({"a": "nominal_mb=5000 lend_mb=0", "b": "nominal_mb=3000"}, "Q1: team b"),
    "too high a priority": ({"b": "nominal_mb=4000 max_priority=1"}, "Q2: priority"),
    "too long a ttl": ({"b": "nominal_mb=4000 max_ttl_s=20"}, "Q2: ttl"),
    "too long a hold": ({"b": "nominal_mb=4000 max_hold_s=20"}, "Q2: .* is held for 0 ms"),
}


@pytest.mark.parametrize(("lines", "found"), WRONG.values(), ids=WRONG)
def test_grant_beyond_a_limit_is_found(lab: Pool, lines: dict[str, str], found: str) -> None:
    """Each limit: as if the verbs had given what they may not."""
    was = lab.hash("teams")
    rewrite(lab, **lines)
    with pytest.raises(AssertionError, match=found):
        audit(lab.redis, lab.keys)
    rewrite(lab, **was)


@pytest.mark.parametrize(("lines", "found"), WRONG.values(), ids=WRONG)
def test_lower_limit_finds_no_fault_with_what_is_held(
    lab: Pool, lines: dict[str, str], found: str
) -> None:
    """An operator may lower every one; what is above it can only fall."""
    del found
    lab.set_teams(**lines)
    audit(lab.redis, lab.keys)
    for end in ("b1", "b2"):
        lab.acquire(token("b5"), "b5", team="b", memory_mb=1000, priority=2)
        audit(lab.redis, lab.keys)
        lab.release(token(end))
        audit(lab.redis, lab.keys)


def test_owner_that_takes_its_own_finds_no_fault_with_its_borrower(lab: Pool) -> None:
    """Team b borrowed what was lent then; a and its quota come before."""
    for name in ("a1", "a2", "a3", "a4"):
        granted(lab.acquire(token(name), name, team="a", memory_mb=1000))
    audit(lab.redis, lab.keys)
    assert lab.acquire(token("b5"), "b5", team="b", memory_mb=1)[0] == "REFUSED"


def test_sum_of_all_devices_is_audited(lab: Pool) -> None:
    """Teams lend by it."""
    lab.policy(capacity_mb=9000)
    with pytest.raises(AssertionError, match="capacity"):
        audit(lab.redis, lab.keys)
    lab.policy(capacity_mb=8000)

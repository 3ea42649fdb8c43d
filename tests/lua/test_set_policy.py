"""set_policy: all fields or none, one version, one event; in SAFE_MODE nothing but itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pools import Pool, device, granted, said, token

ALL = {
    "safe_mode": 0, "max_memory_per_agent_mb": 4096, "allow_fractional_shares": 0, "kill_on_oom": 1,
    "default_memory_mb": 100, "expiry_grace_s": 0, "max_leases_per_agent": 7,
    "max_waiters_per_agent": 8,
}  # fmt: skip


def test_set_policy_of_every_field_is_one_version_and_one_event(gpu: Pool) -> None:
    """The pool's hash has each field that was set, in full."""
    assert said(gpu.set_policy(**ALL)) == ["POLICY", 2]
    row = gpu.hash("pool")
    assert {name: int(row[name]) for name in ALL} == ALL
    assert row["policy_version"] == "2"
    [(_, event)] = gpu.redis.xrevrange(gpu.keys.events, count=1)
    assert (event["event"], event["version"], event["by"]) == ("policy", "2", "operator")
    assert set(event["policy"].split()) == {f"{name}={value}" for name, value in ALL.items()}
    assert said(gpu.set_policy(kill_on_oom=0)) == ["POLICY", 3]


def test_set_policy_is_obeyed_by_the_next_grant(gpu: Pool) -> None:
    """Policy is read at every grant; leases that run are left alone."""
    granted(gpu.acquire(token("a"), memory_mb=0, ttl_ms=600_000, on_unavailable="cpu"))
    gpu.set_policy(default_memory_mb=300)
    assert granted(gpu.acquire(memory_mb=0)).devices == (("gpu-a", 300),)
    gpu.set_policy(safe_mode=1)
    assert said(gpu.acquire(memory_mb=1)) == ["REFUSED", "safe_mode", ""]
    assert gpu.renew(token("a"))[0] == "RENEWED"
    gpu.set_policy(safe_mode=0)
    granted(gpu.acquire(memory_mb=1))


def test_set_policy_in_safe_mode_sets_nothing_but_safe_mode(gpu: Pool) -> None:
    """While it is on, no policy is written; switching it off is."""
    gpu.set_policy(safe_mode=1)
    before = gpu.stored()
    for fields in ({"default_memory_mb": 5}, {"safe_mode": 1, "default_memory_mb": 5}):
        assert said(gpu.set_policy(**fields)) == ["REFUSED", "safe_mode", ""], fields
    assert gpu.stored() == before
    assert said(gpu.set_policy(safe_mode=0))[0] == "POLICY"
    assert said(gpu.set_policy(default_memory_mb=5))[0] == "POLICY"


@pytest.mark.parametrize(
    ("fields", "naming"),
    [
        ({}, "policy"), ({"unheard_of": 1}, "policy"), ({"fence": 1}, "policy"),
        ({"closed_until_ms": 0}, "policy"), ({"safe_mode": 2}, "safe_mode"),
        ({"safe_mode": "true"}, "safe_mode"), ({"max_memory_per_agent_mb": 255}, None),
        ({"max_memory_per_agent_mb": "1e4"}, None), ({"default_memory_mb": 0}, None),
        ({"expiry_grace_s": 3601}, None), ({"expiry_grace_s": -1}, None),
        ({"max_leases_per_agent": 0}, None), ({"max_waiters_per_agent": 1000001}, None),
        ({"allow_fractional_shares": ""}, None), ({"kill_on_oom": "nan"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_set_policy_with_one_bad_field_sets_none(
    gpu: Pool, fields: dict[str, Any], naming: str | None
) -> None:
    """All or nothing, and the bad one is named."""
    before = gpu.stored()
    good = {"default_memory_mb": 77} if fields and "default_memory_mb" not in fields else {}
    naming = naming or next(iter(fields))
    assert said(gpu.set_policy(**(good | fields))) == ["REFUSED", "bad_request", naming]
    assert gpu.stored() == before


def test_set_policy_with_a_field_that_lacks_its_value_sets_none(gpu: Pool) -> None:
    """A list that stops early is refused; so is a caller without a name."""
    before = gpu.stored()
    odd = ("default_memory_mb", 77, "expiry_grace_s")
    assert said(gpu.run("set_policy", 1, "op", *odd))[:2] == ["REFUSED", "bad_request"]
    answer = said(gpu.run("set_policy", 1, "", "expiry_grace_s", 1))
    assert answer == ["REFUSED", "bad_request", "by"]
    assert gpu.stored() == before


def test_what_a_change_still_hands_on_is_under_one_policy(pool: Pool) -> None:
    """An offer by the script that changes the policy is claimed as the new one allows."""
    day_ms, many = 86_400_000, tuple(device(f"g{n}") for n in range(6))
    pool.report(many, deadline_ms=day_ms)
    pool.drain("h1", "host")
    share: dict[str, int] = {"memory_mb": 400, "ttl_ms": 0, "wait_ms": 60_000}
    for n in range(12):
        pool.acquire(token(n), **share)
    pool.drain("h1", "host", 0)
    pool.set_policy(allow_fractional_shares=0)
    for n in range(12):
        reply = pool.acquire(token(n), **share)
        assert reply[0] == "WAITING" or granted(reply).devices[0][1] == 1000

"""Findings, as an interface reads them from the pool; and a policy that is set in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.errors import BadRequest
from agent_sdk.protocol import operator
from agent_sdk.protocol.messages import PROTOCOL, Call
from agent_sdk.state import devices, findings, snapshot
from tests.found import process
from tests.pools import device, granted, token

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus
    from tests.pools import Pool

HELD, OTHER = token("held"), token("other")


def told(pool: Pool, **fields: Any) -> DeviceStatus:
    """A device of which its host tells so."""
    pool.report((device("gpu-a"),))
    said = {k: json.dumps(v) if isinstance(v, list) else v for k, v in fields.items()}
    pool.redis.hset(pool.keys.device("gpu-a"), mapping=said)
    pool.redis.hincrby(pool.keys.pool, "sequence", 1)
    (found,) = pool.look(snapshot.devices(pool.keys))
    return found


def test_processes_of_a_lease_and_those_without_one(pool: Pool) -> None:
    """By the leases that live on the device, or by what its host said; the largest first."""
    found = told(
        pool,
        processes=[
            process(1, token=HELD, memory_mb=5), process(2, token=HELD, memory_mb=50),
            process(3, memory_mb=None), process(4, token=OTHER, finding="orphan"),
        ],
    )  # fmt: skip
    granted(pool.acquire(HELD, memory_mb=1))
    leases = {lease.token: lease for lease in pool.look(snapshot.leases(pool.keys))}
    assert [p.pid for p in findings.held_by(found, HELD)] == [2, 1]
    assert [p.pid for p in findings.unleased(found)] == [4, 3]
    assert [p.pid for p in findings.unleased(found, leases)] == [4, 3]
    assert [p.pid for p in findings.unleased(found, {})] == [4, 2, 1, 3]


def test_host_that_sees_no_processes_says_nothing_of_them(pool: Pool) -> None:
    """A host without sight of processes does not claim that there are none."""
    found = told(pool, processes="", unseen="why")
    assert (found.processes, found.unseen) == (None, "why")
    assert findings.unleased(found) == findings.held_by(found, HELD) == ()


def test_findings_of_a_lease_are_its_own_the_worst_first(pool: Pool) -> None:
    """A lease has the findings of now and its holder's notices, and none of another lease."""
    found = told(pool, idle=f"{OTHER},{HELD}", degraded=HELD, overuse=OTHER, squatter="7,8")
    granted(pool.acquire(HELD, memory_mb=1))
    pool.redis.hset(pool.keys.record(HELD), "notice", "overuse,idle")
    pool.redis.hincrby(pool.keys.pool, "sequence", 1)
    (lease,) = pool.look(snapshot.leases(pool.keys))
    assert findings.of_lease(lease, {"gpu-a": found}) == ("degraded", "overuse", "idle")
    assert findings.of_lease(lease, {}) == ("overuse", "idle")
    assert findings.counted([found]) == {
        ("h1", "idle"): 2, ("h1", "degraded"): 1, ("h1", "overuse"): 1, ("h1", "squatter"): 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pids", "says"),
    [([], ""), ([1], "pid 1 python3"), ([1, 2, 3], "pid 1 python3, pid 2 python3, pid 3 python3"),
     ([1, 2, 3, 4], "pid 1 python3, pid 2 python3, pid 3 python3 and 1 more")],
)  # fmt: skip
def test_sentence_names_three_at_most(pids: list[int], says: str) -> None:
    """The others are counted."""
    assert findings.named(devices.ProcessStatus(**process(pid)) for pid in pids) == says


def test_policy_in_words_is_sent_as_it_is() -> None:
    """Beside numbers and switches."""
    steps = operator.set_policy(
        "ann",
        idle_action="notify",
        idle_after_s=30,
        xid_actions="31=suspect,79=hold",
        safe_mode=True,
    )
    words = ("idle_action", "notify", "idle_after_s", 30, "xid_actions", "31=suspect,79=hold")
    assert next(steps) == Call("set_policy", (PROTOCOL, "ann", *words, "safe_mode", 1))
    assert next(operator.set_policy("ann", xid_actions="")).args[2:] == ("xid_actions", "")


@pytest.mark.parametrize("value", ["Enforce", "a b", "a\n", "31:hold"])
def test_policy_in_what_is_no_words_is_refused_before_it_is_sent(value: str) -> None:
    """With the field that it is of."""
    with pytest.raises(BadRequest, match="idle_action"):
        next(operator.set_policy("ann", idle_action=value))

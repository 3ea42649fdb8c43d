"""Operators over HTTP: policy, drain, revoke, hosts; enforced in the next grant, at every door."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import LeaseClient, LeaseLost, Store
from tests.pools import device
from tests.reports import register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.brokers import Broker
    from tests.api.conftest import Fleet
    from tests.pools import Pool
    from tests.servers import Server

DEFAULTS = {
    "max_memory_per_agent_mb": 1048576, "allow_fractional_shares": True, "kill_on_oom": False,
    "default_memory_mb": 2048, "expiry_grace_s": 5, "max_leases_per_agent": 256,
    "max_waiters_per_agent": 256,
}  # fmt: skip

DEVICE = "SIM-h1-0"


FINDINGS = {
    "idle_action": "observe", "overuse_action": "observe", "squatter_action": "observe",
    "orphan_action": "observe", "idle_after_s": 600, "enforce_after_s": 60,
    "overuse_slack_mb": 512, "idle_foreign_mb": 512, "xid_actions": "", "memory_limit": "off",
    "mps_thread_share": False,
    "reservation_idle_s": 60,
}  # fmt: skip
"""A new pool's policy about what its hosts find."""


@pytest.fixture
def operated(plain: Broker) -> Iterator[Broker]:
    """The plain broker; its policy and drains are put back."""
    yield plain
    assert plain.http.post("/policy", json=DEFAULTS).status_code == 200
    assert plain.http.post("/undrain", json={"host": "h1"}).status_code == 200


@pytest.fixture
def agent(fleet: Fleet, server: Server) -> Iterator[LeaseClient]:
    """An agent direct on the same pool."""
    with LeaseClient(Store(server.url), pool=fleet.keys.pool_name, hostname="h1") as client:
        yield client


def post(broker: Broker, path: str, **body: Any) -> Any:
    """A POST that must succeed, its answer."""
    answer = broker.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_policy_changes_what_is_named_and_answers_the_whole(operated: Broker) -> None:
    """Absent or null stays; the version counts the changes; an empty body changes nothing."""
    before = operated.http.get("/policy").json()
    after = post(operated, "/policy", default_memory_mb=10, kill_on_oom=None)
    assert after == before | {"default_memory_mb": 10, "version": before["version"] + 1}
    assert post(operated, "/policy") == after


def test_policy_of_findings_is_set_and_told(operated: Broker) -> None:
    """Words, times and sizes; what is not named stays."""
    assert operated.http.get("/policy").json().items() >= FINDINGS.items()
    changed = {"idle_action": "notify", "overuse_action": "enforce", "idle_after_s": 60,
               "enforce_after_s": 0, "overuse_slack_mb": 0,
               "reservation_idle_s": 0, "xid_actions": "31=suspect,79=hold"}  # fmt: skip
    assert post(operated, "/policy", **changed).items() >= (FINDINGS | changed).items()
    assert post(operated, "/policy", **FINDINGS).items() >= FINDINGS.items()


@pytest.mark.parametrize(
    "body",
    [
        {"max_memory_per_agent_mb": 255},
        {"max_memory_per_agent_mb": "1024"},
        {"max_memory_per_agent_mb": 1024.0},
        {"max_memory_per_agent_mb": True},
        {"allow_fractional_shares": 1},
        {"kill_on_oom": "true"},
        {"default_memory_mb": 0},
        {"expiry_grace_s": 3601},
        {"max_leases_per_agent": 0},
        {"max_leases_per_agent": 2**63},
        {"idle_action": "kill"},
        {"overuse_action": 1},
        {"squatter_action": ""},
        {"orphan_action": "Observe"},
        {"idle_after_s": 9},
        {"idle_after_s": 604801},
        {"idle_after_s": "600"},
        {"enforce_after_s": -1},
        {"enforce_after_s": 86401},
        {"overuse_slack_mb": 10**13},
        {"reservation_idle_s": -1},
        {"reservation_idle_s": 604801},
        {"reservation_idle_s": 60.0},
        {"xid_actions": "79"},
        {"xid_actions": "79=hold,"},
        {"xid_actions": "79=reset"},
        {"xid_actions": "12345=hold"},
        {"xid_actions": "79=hold\n"},
        {"xid_actions": ",".join(["79=hold"] * 33)},
    ],
)
def test_policy_out_of_bounds_is_422_and_changes_nothing(
    plain: Broker, body: dict[str, Any]
) -> None:
    """Strict types, and the bounds that the contract names."""
    before = plain.http.get("/policy").json()
    answer = plain.http.post("/policy", json=body | {"expiry_grace_s": 1} | body)
    assert answer.status_code == 422
    assert set(answer.json()["detail"][0]) == {"type", "loc", "msg"}
    assert plain.http.get("/policy").json() == before


def test_policy_is_enforced_inside_the_next_grant_at_every_door(
    operated: Broker, fleet: Fleet, agent: LeaseClient
) -> None:
    """Cap, whole devices and default size hold at once for a replica and for the SDK."""
    post(operated, "/policy", max_memory_per_agent_mb=300, default_memory_mb=200)
    assert fleet.replica.http.get("/policy").json()["max_memory_per_agent_mb"] == 300
    first = agent.acquire("capped")
    assert first.memory_mb == 200
    refused = fleet.replica.lease(agent="capped", host="h1", on_unavailable="refuse")
    assert (refused.status_code, refused.json()["code"]) == (409, "agent_cap")
    agent.release(first)
    post(operated, "/policy", max_memory_per_agent_mb=2000, allow_fractional_shares=False)
    assert agent.acquire("whole", memory_mb=1).memory_mb == 1000
    assert operated.lease(min_memory_mb=1).json()["reason"] == "no_capacity"


def test_limit_of_leases_per_agent_is_409_and_never_a_cpu_lease(operated: Broker) -> None:
    """A runaway client is told, not served elsewhere."""
    post(operated, "/policy", max_leases_per_agent=2)
    for _ in range(2):
        operated.granted(min_memory_mb=1)
    answer = operated.lease(min_memory_mb=1)
    assert (answer.status_code, answer.json()["code"]) == (409, "limit")


def test_forget_takes_out_what_is_there_no_more(operated: Broker, agent: LeaseClient) -> None:
    """A host that was reported once is in no list and no metric; one with a lease stays."""
    register(agent, device("gpu-gone", model="gone"), host="pod-1", deadline_ms=60_000)
    lease = agent.acquire("analyst", host="pod-1", memory_mb=10)
    refused = operated.http.post("/forget", json={"device": "gpu-gone"})
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    agent.release(lease)
    assert "gpu-gone" in operated.http.get("/metrics").text
    assert post(operated, "/forget", host="pod-1", reason="sent back") == {"forgotten": 1}
    for path in ("/gpu/info", "/hosts", "/metrics"):
        text = operated.http.get(path).text
        assert "pod-1" not in text
        assert "gpu-gone" not in text
    assert agent.events(1)[0].event == "host_forgotten"
    assert operated.http.post("/forget", json={"host": "pod-1"}).status_code == 409


@pytest.mark.parametrize("target", [{"device": DEVICE}, {"host": "h1"}])
def test_drain_takes_no_new_leases_whatever_is_reported(
    operated: Broker, target: dict[str, str]
) -> None:
    """Leases that run go on; two reports later it is still drained; undrain brings it back."""
    held = operated.granted(min_memory_mb=100)
    assert post(operated, "/drain", reason="driver", **target) == {"drained": 1}
    time.sleep(1.2)
    assert operated.http.get("/gpu/info").json()["gpus"][0]["state"] == "drained"
    cpu = operated.granted(min_memory_mb=1)
    assert (cpu["gpu"], cpu["reason"]) == ("cpu", "draining" if "host" in target else "no_capacity")
    assert operated.http.post("/renew", json={"token": held["token"]}).status_code == 200
    assert post(operated, "/undrain", **target) == {"undrained": 1}
    assert operated.granted(min_memory_mb=1)["gpu"] == 0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/drain", {"device": "GPU-nobody"}, 404),
        ("/drain", {"host": "nowhere"}, 409),
        ("/drain", {}, 422),
        ("/drain", {"host": "h1", "device": DEVICE}, 422),
        ("/undrain", {}, 422),
        ("/drain", {"host": "h1", "reason": "a\nb"}, 422),
        ("/revoke", {}, 422),
        ("/revoke", {"token": "t" * 16}, 404),
        ("/revoke", {"token": "t" * 16, "agent": "a"}, 422),
        ("/revoke", {"token": "short"}, 422),
        ("/revoke", {"agent": "a", "force": 1}, 422),
    ],
)
def test_operators_bad_call_says_why_and_changes_nothing(
    plain: Broker, api_pool: Pool, path: str, body: dict[str, Any], status: int
) -> None:
    """Neither, both, unknown, malformed: an error that says so."""
    events = api_pool.redis.xlen(api_pool.keys.events)
    answer = plain.http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
    assert api_pool.redis.xlen(api_pool.keys.events) == events


def test_revoke_of_an_sdk_lease_is_told_at_its_next_renewal(
    plain: Broker, agent: LeaseClient
) -> None:
    """The holder learns it within a third of its ttl, and nothing resurrects it."""
    with agent.lease("analyst", memory_mb=100, ttl_s=1) as lease:
        assert post(plain, "/revoke", token=lease.token, reason="runaway")["revoked"]
        assert lease.wait_lost(2)
        assert lease.lost_reason == "revoked"
        with pytest.raises(LeaseLost):
            agent.renew(lease)
    assert agent.leases() == ()


def test_revoke_of_a_lease_that_never_renews_ends_within_a_minute(plain: Broker) -> None:
    """An hour's lease over HTTP has at most 60 s left, unless it is forced: then none."""
    token = plain.granted(min_memory_mb=100)["token"]
    ends = post(plain, "/revoke", token=token)["expires_at"]
    assert ends <= time.time() + 60
    assert plain.http.get(f"/lease/{token}").json()["expires_in_s"] <= 60
    again = plain.http.post("/renew", json={"token": token})
    assert (again.status_code, again.json()["reason"]) == (409, "revoked")
    forced = plain.granted(min_memory_mb=100)["token"]
    post(plain, "/revoke", token=forced, force=True)
    assert plain.http.get(f"/lease/{forced}").status_code == 404
    assert plain.granted(min_memory_mb=1000)["gpu"] == 0


def test_revoke_by_agent_and_host_ends_theirs_alone(plain: Broker) -> None:
    """Others' leases live on."""
    mine = [plain.granted(agent="mine", min_memory_mb=10)["token"] for _ in range(3)]
    other = plain.granted(agent="other", min_memory_mb=10)["token"]
    assert set(post(plain, "/revoke", agent="mine", force=True)["revoked"]) == set(mine)
    assert set(plain.allocations()) == {other}
    assert post(plain, "/revoke", host="h2")["revoked"] == []
    assert post(plain, "/revoke", host="h1", agent="other")["revoked"] == [other]


def test_max_hold_is_never_passed_by_renewals(plain: Broker) -> None:
    """A lease with max_hold_s ends by then, however often it is renewed."""
    got = plain.granted(min_memory_mb=10, ttl_s=60, max_hold_s=2)
    assert got["expires_in_s"] <= 2
    renewed = plain.http.post("/renew", json={"token": got["token"], "ttl_s": 600})
    assert renewed.json()["expires_at"] == pytest.approx(got["expires_at"], abs=0.001)


def test_hosts_lists_each_with_the_age_of_its_report(plain: Broker, fleet: Fleet) -> None:
    """Each host has its devices' number, its version and the age of its last report."""
    fleet.replica.wait()  # it reports h2, which has none
    hosts = {h["host"]: h for h in plain.http.get("/hosts").json()["hosts"]}
    assert hosts["h1"]["devices"] == 1
    assert hosts["h1"]["alive"] is True
    assert 0 <= hosts["h1"]["report_age_s"] < 2
    assert hosts["h2"]["devices"] == 0

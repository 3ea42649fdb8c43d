"""POST /lease, GET /lease/{token}, GET /allocations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.api.conftest import TOKEN

if TYPE_CHECKING:
    from tests.api.brokers import Answered, Broker
    from tests.api.conftest import Fleet

    Storeless = dict[tuple[str, str], Answered]

SHARED = (
    "agent", "gpu", "token", "timestamp", "gpus", "host", "memory_mb", "fence", "expires_at",
    "ttl_s", "state", "reason",
)  # fmt: skip
"""Fields that mean the same in a grant, a lookup and a listing."""


def lookup(broker: Broker, token: str) -> Any:
    """GET /lease/{token}."""
    return broker.http.get(f"/lease/{token}")


def test_lease_that_fits_is_granted_with_all_fields(plain: Broker) -> None:
    """A GPU lease has every documented field and ours, and they agree with each other."""
    before = time.time()
    lease = plain.granted(min_memory_mb=900)
    assert (lease["agent"], lease["gpu"], lease["state"]) == ("analyst", 0, "active")
    assert abs(lease["timestamp"] - before) < 5
    assert lease["gpus"] == [
        {
            "uuid": "SIM-h1-0",
            "index": 0,
            "host": "h1",
            "name": "Simulated GPU 1000 MiB",
            "memory_mb": 900,
            "memory_total_mb": 1000,
            "memory_used_mb": 0,
            "runtime_id": "0",
        }
    ]
    assert (lease["host"], lease["memory_mb"]) == ("h1", 900)
    assert 0 < lease["fence"] < 2**53
    assert (lease["ttl_s"], lease["expires_in_s"]) == (3600, 3600)
    assert lease["expires_at"] == pytest.approx(lease["timestamp"] + 3600)
    assert (lease["reason"], lease["code"]) == (None, None)
    assert lease["env"] == {
        "CUDA_VISIBLE_DEVICES": "SIM-h1-0",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": "SIM-h1-0",
        "ROCR_VISIBLE_DEVICES": "",
        "GPU_LEASE_MEMORY_FRACTION": "0.9",
        "GPU_LEASE_TOKEN": lease["token"],
        "GPU_LEASE_FENCE": str(lease["fence"]),
        "GPU_LEASE_MEMORY_MB": "900",
    }


def test_lease_by_the_alias_memory_mb_reserves_as_much(plain: Broker) -> None:
    """`memory_mb` is another name of `min_memory_mb`."""
    assert plain.granted(memory_mb=123)["memory_mb"] == 123


@pytest.mark.parametrize("size", [{}, {"min_memory_mb": None}, {"min_memory_mb": 0}])
def test_lease_without_a_size_asks_for_the_default(plain: Broker, size: dict[str, None]) -> None:
    """No size, null and 0 are the policy's 2048 MiB, more than this device ever has."""
    lease = plain.granted(**size)
    assert (lease["gpu"], lease["reason"]) == ("cpu", "never_fits")


def test_lease_that_does_not_fit_falls_back_to_the_cpu(plain: Broker) -> None:
    """Without room the lease is granted on the CPU, with the reason; it reserves no GPU."""
    plain.granted(min_memory_mb=900)
    lease = plain.granted(min_memory_mb=900, ttl_s=30)
    assert (lease["gpu"], lease["gpus"], lease["host"], lease["memory_mb"]) == ("cpu", [], None, 0)
    assert (lease["state"], lease["reason"], lease["code"]) == ("cpu", "no_capacity", "no_capacity")
    assert lease["expires_in_s"] == 30
    assert lease["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert lookup(plain, lease["token"]).json()["state"] == "cpu"
    assert plain.release(lease["token"]).status_code == 200


def test_lease_that_does_not_fit_and_refuses_is_409(plain: Broker) -> None:
    """With on_unavailable=refuse the answer says when to ask again."""
    plain.granted(min_memory_mb=900)
    answer = plain.lease(min_memory_mb=900, on_unavailable="refuse")
    assert answer.status_code == 409
    body = answer.json()
    assert (body["code"], body["retryable"]) == ("no_capacity", True)
    assert body["detail"]
    assert body["retry_after_s"] >= 0
    assert int(answer.headers["Retry-After"]) >= max(1, body["retry_after_s"])


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        ({"min_memory_mb": 1001}, "never_fits"),
        ({"min_memory_mb": 10**13 - 1}, "agent_cap"),
        ({"host": "h9"}, "host_unknown"),
        ({"host": "h2"}, "host_unknown"),
        ({"model": "no such"}, "model_unknown"),
        ({"devices": 2}, "never_fits"),
    ],
)
def test_lease_that_can_never_fit_says_why(plain: Broker, ask: dict[str, Any], code: str) -> None:
    """A request that no device could hold is refused with the reason, or falls back with it."""
    ask = {"min_memory_mb": 1} | ask
    refused = plain.lease(**ask, on_unavailable="refuse")
    assert refused.status_code == 409
    assert refused.json()["code"] in {code, "never_fits"}
    lease = plain.granted(**ask)
    assert (lease["gpu"], lease["reason"]) == ("cpu", refused.json()["code"])


def test_lease_exclusive_takes_the_whole_device(plain: Broker) -> None:
    """An exclusive lease holds all of the device, alone."""
    assert plain.granted(min_memory_mb=1, exclusive=True)["memory_mb"] == 1000
    assert plain.granted(min_memory_mb=1)["gpu"] == "cpu"


@pytest.mark.parametrize("where", [{}, {"host": "h1"}, {"host": "any"}])
def test_lease_with_or_without_a_host_finds_the_device(
    plain: Broker, where: dict[str, str]
) -> None:
    """No host is this broker's own, which has the device; `any` is any."""
    assert plain.granted(min_memory_mb=1, **where)["host"] == "h1"


def test_lease_from_a_replica_without_devices_finds_them_elsewhere(
    fleet: Fleet, plain: Broker
) -> None:
    """A broker whose host has no devices leases those of any host."""
    assert fleet.replica.granted(min_memory_mb=900)["host"] == "h1"
    assert plain.granted(min_memory_mb=900)["gpu"] == "cpu"


def test_lease_with_unknown_fields_ignores_them(plain: Broker) -> None:
    """A client that sends more than we know is served."""
    assert plain.granted(min_memory_mb=1, colour="blue", nested={"a": [1]})["gpu"] == 0


def test_lease_without_expiry_has_a_null_end(plain: Broker) -> None:
    """ttl_s 0 is a lease without an end: null wherever an end is told."""
    lease = plain.granted(min_memory_mb=1, ttl_s=0)
    assert (lease["expires_at"], lease["expires_in_s"], lease["ttl_s"]) == (None, None, 0)
    found = lookup(plain, lease["token"]).json()
    assert (found["expires_at"], found["expires_in_s"]) == (None, None)


def test_lease_without_expiry_and_with_a_limit_tells_its_end(plain: Broker) -> None:
    """Null means never: a client that took it for that would go on after `max_hold_s`."""
    lease = plain.granted(min_memory_mb=10, ttl_s=0, max_hold_s=604_800)
    assert lease["expires_at"] == pytest.approx(lease["timestamp"] + 604_800, abs=0.01)
    assert lease["expires_in_s"] == pytest.approx(604_800, abs=0.01)
    found = plain.http.get(f"/lease/{lease['token']}").json()
    assert found["expires_at"] == lease["expires_at"]


def test_lease_without_expiry_that_is_to_end_says_so_when_it_is_asked_for_again(
    plain: Broker,
) -> None:
    """A repeated request answers with the end that the lease has by now."""
    body = {"min_memory_mb": 10, "ttl_s": 0, "token": "no-expiry-0123456789"}
    assert plain.granted(**body)["expires_at"] is None
    ends = plain.http.post("/revoke", json={"token": body["token"]}).json()["expires_at"]
    again = plain.lease(**body).json()
    assert again["expires_at"] == pytest.approx(ends, abs=0.01)


def test_lease_repeated_with_its_token_is_the_same_lease(fleet: Fleet, plain: Broker) -> None:
    """The token is the idempotency key, at any replica: one lease, with what is left of it."""
    ask = {"token": str(uuid4()), "min_memory_mb": 600, "ttl_s": 30, "host": "h1"}
    first = plain.granted(**ask)
    time.sleep(0.01)
    second = fleet.replica.granted(**ask)
    assert first["token"] == second["token"] == ask["token"]
    for name in ("fence", "gpus", "expires_at", "gpu", "memory_mb"):
        assert first[name] == second[name]
    assert second["expires_in_s"] < first["expires_in_s"]
    assert list(plain.allocations()) == [ask["token"]]


def test_lease_repeated_tells_when_it_was_granted(plain: Broker) -> None:
    """`timestamp` is the time of the grant in the first answer, its repeats and the listing."""
    ask = {"token": str(uuid4()), "min_memory_mb": 1}
    first = plain.granted(**ask)
    time.sleep(0.01)
    assert lookup(plain, ask["token"]).json()["timestamp"] == first["timestamp"]
    assert plain.granted(**ask)["timestamp"] == first["timestamp"]


def test_lease_repeated_on_the_cpu_stays_there(plain: Broker) -> None:
    """A CPU lease is a real lease: room that comes later does not move it."""
    held = plain.granted(min_memory_mb=900)
    ask = {"token": str(uuid4()), "min_memory_mb": 900}
    first = plain.granted(**ask)
    plain.release(held["token"])
    second = plain.granted(**ask)
    assert (first["gpu"], second["gpu"]) == ("cpu", "cpu")
    assert second["fence"] == first["fence"]
    assert second["reason"] == "no_capacity"


def test_lease_of_another_request_under_a_known_token_is_409(plain: Broker) -> None:
    """A token names one request for ever; the first lease stands."""
    token = str(uuid4())
    plain.granted(token=token, min_memory_mb=100)
    answer = plain.lease(token=token, min_memory_mb=200)
    assert answer.status_code == 409
    assert (answer.json()["code"], answer.json()["retryable"]) == ("conflict", False)
    assert plain.allocations()[token]["memory_mb"] == 100


def test_lease_again_after_its_release_is_409(plain: Broker) -> None:
    """A token that was released is not granted a second time."""
    ask = {"token": str(uuid4()), "min_memory_mb": 100}
    plain.release(plain.granted(**ask)["token"])
    answer = plain.lease(**ask)
    assert answer.status_code == 409
    assert (answer.json()["detail"], answer.json()["reason"]) == ("lost", "released")


def test_lease_under_safe_mode_is_not_granted(fleet: Fleet) -> None:
    """SAFE_MODE of the environment or of the pool: 200, not granted, neither GPU nor token."""
    for broker in (fleet.safe, fleet.unset):
        for more in ({}, {"on_unavailable": "refuse"}):
            answer = broker.lease(min_memory_mb=1, **more)
            denied = {"granted": False, "note": "SAFE_MODE", "agent": "analyst"}
            assert (answer.status_code, answer.json()) == (200, denied)
        assert broker.allocations() == {}


@pytest.mark.parametrize("path", ["/lease", "/lease/cpu"])
def test_lease_without_redis_is_503_within_2_s(storeless: Storeless, path: str) -> None:
    """Without the store no lease is made up, not even on the CPU; the answer comes in time."""
    answer = storeless["POST", path].http
    assert storeless["POST", path].seconds < 2 * 2
    assert answer.status_code == 503
    body = answer.json()
    assert (body["code"], body["retryable"]) == ("store_unavailable", True)
    assert "Redis" in body["detail"]
    assert int(answer.headers["Retry-After"]) >= 1


def test_lease_with_a_bad_body_is_422_without_an_echo(plain: Broker) -> None:
    """The detail has type, loc and msg of each mistake and nothing of what was sent."""
    answer = plain.lease(agent="secret words", min_memory_mb=-1)
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert {tuple(item) for item in detail} == {("type", "loc", "msg")}
    assert [item["loc"] for item in detail] == [["body", "agent"], ["body", "min_memory_mb"]]
    assert "secret" not in answer.text


def test_get_lease_of_a_living_one_tells_the_same(fleet: Fleet, plain: Broker) -> None:
    """A lookup and the listing, at any replica, say what the grant said."""
    lease = plain.granted(min_memory_mb=900, ttl_s=30, priority=3)
    for broker in (plain, fleet.replica):
        found = lookup(broker, lease["token"])
        assert found.status_code == 200
        listed = broker.allocations()
        assert list(listed) == [lease["token"]]
        for name in SHARED:
            assert found.json()[name] == listed[lease["token"]][name] == lease[name], name
        assert 29 < found.json()["expires_in_s"] <= 30


def test_get_lease_of_an_unknown_token_is_404(plain: Broker) -> None:
    """Nothing is known of a token that nobody used."""
    answer = lookup(plain, str(uuid4()))
    assert answer.status_code == 404
    assert answer.json()["detail"] == "unknown_token"


def test_get_lease_after_its_release_is_404(plain: Broker) -> None:
    """A lease that was given back does not live."""
    lease = plain.granted(min_memory_mb=1)
    plain.release(lease["token"])
    answer = lookup(plain, lease["token"])
    assert (answer.status_code, answer.json()["detail"]) == (404, "unknown_token")


def test_allocations_lists_live_leases_only(fleet: Fleet, plain: Broker) -> None:
    """GPU and CPU leases are listed while they live, on every replica."""
    assert plain.allocations() == {}
    gpu, cpu = plain.granted(min_memory_mb=900), plain.granted(min_memory_mb=900, agent="other")
    short = plain.granted(min_memory_mb=1, ttl_s=6)
    listed = fleet.replica.allocations()
    assert set(listed) == {gpu["token"], cpu["token"], short["token"]}
    for lease in (gpu, cpu):
        row = listed[lease["token"]]
        assert {k: row[k] for k in ("agent", "gpu", "token", "timestamp")} == {
            k: lease[k] for k in ("agent", "gpu", "token", "timestamp")
        }
    plain.release(gpu["token"])
    time.sleep(6.2)
    assert set(fleet.replica.allocations()) == {cpu["token"]}


def test_allocations_without_redis_is_503(storeless: Storeless) -> None:
    """A list that cannot be read is not an empty one, nor is a lease unknown."""
    assert storeless["GET", "/allocations"].http.status_code == 503
    assert storeless["GET", f"/lease/{TOKEN['token']}"].http.status_code == 503

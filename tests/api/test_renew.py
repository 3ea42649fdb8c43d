"""POST /renew and POST /release."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, Store

if TYPE_CHECKING:
    from tests.api.brokers import Answered, Broker
    from tests.api.conftest import Fleet
    from tests.servers import Server

    Storeless = dict[tuple[str, str], Answered]


def renew(broker: Broker, **body: Any) -> Any:
    """POST /renew."""
    return broker.http.post("/renew", json=body)


def test_renew_of_a_living_lease_moves_its_end(fleet: Fleet, plain: Broker) -> None:
    """A renewal is from now, by the ttl of the grant or the one it names, at any replica."""
    lease = plain.granted(min_memory_mb=1, ttl_s=30)
    time.sleep(0.02)
    began = time.time()
    answer = renew(fleet.replica, token=lease["token"])
    ended = time.time()
    assert answer.status_code == 200
    body = answer.json()
    assert (body["renewed"], body["token"]) == (True, lease["token"])
    assert lease["expires_at"] < body["expires_at"]
    assert began + 29.99 <= body["expires_at"] <= ended + 30.01
    longer = renew(plain, token=lease["token"], ttl_s=60, fence=lease["fence"]).json()
    assert longer["expires_at"] > body["expires_at"] + 25
    found = plain.http.get(f"/lease/{lease['token']}").json()
    assert found["expires_at"] == longer["expires_at"]


def test_renew_with_a_shorter_ttl_shortens_nothing(plain: Broker) -> None:
    """A holder is never told a later end than the broker keeps."""
    lease = plain.granted(min_memory_mb=1, ttl_s=30)
    assert renew(plain, token=lease["token"], ttl_s=1).json()["expires_at"] == lease["expires_at"]


def test_renew_of_a_lease_without_expiry_has_a_null_end(plain: Broker) -> None:
    """A lease without an end still has none after a renewal."""
    lease = plain.granted(min_memory_mb=1, ttl_s=0)
    answer = renew(plain, token=lease["token"])
    assert answer.status_code == 200
    assert answer.json()["expires_at"] is None


def test_renewal_tells_how_long_a_lease_without_expiry_may_be_held(
    broker: Broker, own: Server
) -> None:
    """Null means never, and not longer than any ttl."""
    month_s = 30 * 86_400
    with LeaseClient(Store(own.url)) as client:
        lease = client.acquire("a", memory_mb=1, ttl_s=0, max_hold_s=month_s, host="any")
        said = renew(broker, token=lease.token).json()
        assert said["expires_at"] == pytest.approx(lease.expires_at_ms / 1000, abs=0.01)
        assert said["expires_in_s"] == pytest.approx(month_s, abs=60)
        client.release(lease)


@pytest.mark.parametrize("ttl_s", [0.0004, 0.5])
def test_renew_with_a_ttl_below_the_least_is_refused(plain: Broker, ttl_s: float) -> None:
    """A ttl below a second is refused; above all it never rounds to 0, a lease without an end."""
    lease = plain.granted(min_memory_mb=1, ttl_s=30)
    assert renew(plain, token=lease["token"], ttl_s=ttl_s).status_code == 422
    found = plain.http.get(f"/lease/{lease['token']}").json()
    assert found["expires_at"] == lease["expires_at"]


def test_renew_of_a_cpu_lease_moves_its_end(plain: Broker) -> None:
    """A CPU lease is renewed like any other."""
    lease = plain.granted(min_memory_mb=1001, ttl_s=30)
    assert renew(plain, token=lease["token"], ttl_s=60).status_code == 200


def test_renew_by_another_fence_is_lost(plain: Broker) -> None:
    """A holder with an older fence has been superseded, and changes nothing."""
    lease = plain.granted(min_memory_mb=1, ttl_s=30)
    answer = renew(plain, token=lease["token"], ttl_s=60, fence=lease["fence"] - 1)
    assert answer.status_code == 409
    assert (answer.json()["detail"], answer.json()["reason"]) == ("lost", "superseded")
    found = plain.http.get(f"/lease/{lease['token']}").json()
    assert found["expires_at"] == lease["expires_at"]


def test_renew_after_the_end_is_lost(plain: Broker) -> None:
    """Nothing brings back a lease that expired or was released."""
    expired = plain.granted(min_memory_mb=1, ttl_s=1)
    released = plain.granted(min_memory_mb=1)
    plain.release(released["token"])
    time.sleep(1.1)
    for lease, reason in ((expired, "expired"), (released, "released")):
        answer = renew(plain, token=lease["token"])
        assert answer.status_code == 409
        assert (answer.json()["detail"], answer.json()["reason"]) == ("lost", reason)


def test_renew_of_an_unknown_token_is_404(plain: Broker) -> None:
    """Nothing is known of a token that nobody used."""
    answer = renew(plain, token=str(uuid4()))
    assert (answer.status_code, answer.json()["detail"]) == (404, "unknown_token")


def test_release_of_a_living_lease_is_200_then_404(fleet: Fleet, plain: Broker) -> None:
    """A lease is given back once; afterwards its token is as unknown as any."""
    lease = plain.granted(min_memory_mb=900)
    first = fleet.replica.http.post("/release", json={"token": lease["token"]})
    assert first.status_code == 200
    assert first.json() == {"released": True, "token": lease["token"]}
    second = plain.release(lease["token"])
    assert (second.status_code, second.json()["detail"]) == (404, "unknown_token")
    assert plain.granted(min_memory_mb=900)["gpu"] == 0


def test_release_of_an_expired_lease_is_404(plain: Broker) -> None:
    """A release that comes too late releases nothing."""
    lease = plain.granted(min_memory_mb=1, ttl_s=1)
    time.sleep(1.1)
    answer = plain.release(lease["token"])
    assert (answer.status_code, answer.json()["detail"]) == (404, "unknown_token")


def test_release_of_an_unknown_token_leaves_it_usable(plain: Broker) -> None:
    """Over HTTP an unknown token is 404 and nothing more: it may still be leased."""
    token = str(uuid4())
    answer = plain.release(token)
    assert (answer.status_code, answer.json()["detail"]) == (404, "unknown_token")
    assert plain.granted(token=token, min_memory_mb=1)["gpu"] == 0


@pytest.mark.parametrize("path", ["/renew", "/release"])
def test_renew_or_release_without_redis_is_503(storeless: Storeless, path: str) -> None:
    """Nothing is promised without the store; both may be repeated."""
    answer = storeless["POST", path].http
    assert answer.status_code == 503
    assert answer.json()["retryable"] is True
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("token", ["nope", "", "a b", "x" * 200])
def test_release_and_get_of_a_token_that_can_be_none_is_404(plain: Broker, token: str) -> None:
    """It is as unknown as any other, and nothing of it is echoed."""
    released = plain.http.post("/release", json={"token": token})
    assert (released.status_code, released.json()["detail"]) == (404, "unknown_token")
    if token:
        found = plain.http.get(f"/lease/{token}")
        assert (found.status_code, found.json()["detail"]) == (404, "unknown_token")


def test_renew_with_a_ttl_between_none_and_a_second_says_which_there_are(plain: Broker) -> None:
    """A 422 is a list of type, loc and msg, and teaches."""
    token = plain.granted(min_memory_mb=1)["token"]
    answer = plain.http.post("/renew", json={"token": token, "ttl_s": 0.5})
    (detail,) = answer.json()["detail"]
    assert (answer.status_code, set(detail)) == (422, {"type", "loc", "msg"})
    assert "at least 1 second" in detail["msg"]

"""POST /lease with wait_s, GET /queue, GET /lease/{token}/explain."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import eventually
from tests.api.waits import Asking, queue, waits

if TYPE_CHECKING:
    from tests.api.brokers import Broker
    from tests.pools import Pool


def test_lease_that_waits_is_granted_when_room_appears(plain: Broker) -> None:
    """The request is held, and answered with a GPU as soon as the holder releases it."""
    held = plain.granted(min_memory_mb=900)
    asking = Asking(lambda: plain.lease(agent="next", min_memory_mb=900, wait_s=15))
    waits(plain, 1)
    released = time.monotonic()
    plain.release(held["token"])
    status, body = asking.result()
    assert (status, body["granted"], body["gpu"]) == (200, True, 0)
    assert time.monotonic() - released < 1
    assert queue(plain) == []


def test_lease_past_its_wait_keeps_its_place_and_is_asked_again(plain: Broker) -> None:
    """202 with token, place and Location; the same request with the token goes on waiting."""
    held = plain.granted(min_memory_mb=900)
    ask = {"agent": "next", "min_memory_mb": 900, "wait_s": 0.3}
    answer = plain.lease(**ask)
    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/lease/{body['token']}"
    assert (body["granted"], body["state"], body["place"], body["code"]) == (
        False, "waiting", 0, "waiting",
    )  # fmt: skip
    seen = plain.http.get(answer.headers["Location"]).json()
    assert (seen["state"], seen["place"], seen["agent"]) == ("waiting", 0, "next")
    assert [waiter["token"] for waiter in queue(plain)] == [body["token"]]
    again = Asking(lambda: plain.lease(**ask | {"token": body["token"], "wait_s": 15}))
    time.sleep(0.2)
    plain.release(held["token"])
    status, granted = again.result()
    assert (status, granted["token"], granted["gpu"]) == (200, body["token"], 0)


@pytest.mark.parametrize(("how", "status"), [("cpu", 200), ("refuse", 409)])
def test_lease_asked_again_without_a_wait_decides(plain: Broker, how: str, status: int) -> None:
    """A waiter that will wait no more gets the CPU, or a refusal, as asked."""
    plain.granted(min_memory_mb=900)
    ask = {"agent": "next", "min_memory_mb": 900, "on_unavailable": how}
    token = plain.lease(**ask, wait_s=0.05).json()["token"]
    answer = plain.lease(**ask, token=token)
    assert answer.status_code == status
    assert answer.json()["code"] == "no_capacity"
    assert queue(plain) == []


def test_lease_whose_client_hangs_up_leaves_the_queue(plain: Broker, api_pool: Pool) -> None:
    """Nobody would read the answer: the place is given up at once."""
    plain.granted(min_memory_mb=900)
    connection = http.client.HTTPConnection("127.0.0.1", plain.port, timeout=5)
    body = {"agent": "gone", "min_memory_mb": 900, "wait_s": 30}
    connection.request("POST", "/lease", json.dumps(body), {"Content-Type": "application/json"})
    waits(plain, 1)
    connection.close()
    eventually(lambda: not queue(plain), 2)
    assert "cancelled" in api_pool.events()


def test_lease_that_can_never_fit_does_not_wait(plain: Broker) -> None:
    """A request that no device could ever hold is refused at once, whatever the wait."""
    began = time.monotonic()
    answer = plain.lease(min_memory_mb=5000, wait_s=20, on_unavailable="refuse")
    assert (answer.status_code, answer.json()["code"]) == (409, "never_fits")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("wait_s", [-1, 60.1, "5", True, None])
def test_lease_with_a_bad_wait_is_refused(plain: Broker, wait_s: Any) -> None:
    """A wait is a number of seconds from 0 to 60."""
    assert plain.lease(wait_s=wait_s).status_code == 422


def test_explain_says_why_and_what_would_fit(plain: Broker) -> None:
    """The reason of each device, who ends first, and the smallest change that fits now."""
    held = plain.granted(min_memory_mb=700)
    token = plain.lease(agent="next", min_memory_mb=900, wait_s=0.05).json()["token"]
    why = plain.http.get(f"/lease/{token}/explain").json()
    assert (why["token"], why["state"]) == (token, "waiting")
    assert [(d["uuid"], d["reason"], d["free_mb"]) for d in why["devices"]] == [
        ("SIM-h1-0", "full", 300)
    ]
    assert why["first_end"]["token"] == held["token"]
    assert why["fits_now"][0]["change"] == {"memory_mb": 300}
    assert plain.http.get(f"/lease/{'x' * 20}/explain").status_code == 404
    plain.release(token)


def test_explain_of_a_refusal_says_the_same(plain: Broker) -> None:
    """The body of a /lease that was refused: its code, and what would have fit."""
    plain.granted(min_memory_mb=700)
    ask = {"agent": "next", "min_memory_mb": 900, "on_unavailable": "refuse"}
    refused = plain.lease(**ask)
    why = plain.http.post("/explain", json=ask).json()
    assert (refused.status_code, why["code"]) == (409, refused.json()["code"])
    assert why["fits_now"][0]["says"] == "300 MiB fits now on h1 GPU 0"
    assert plain.lease(**ask | why["fits_now"][0]["change"] | {"min_memory_mb": 300}).is_success
    assert plain.http.post("/explain", json={"agent": "a b"}).status_code == 422

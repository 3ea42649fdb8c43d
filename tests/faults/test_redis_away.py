"""Redis dies, hangs, and comes back."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import GRANTING, Broker, at_once, eventually
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

ANSWER_S = 2
"""Within which a request is answered when Redis does not."""

CLOSED_S = 10
"""For which a Redis that was started anew grants nothing: it may lack the last writes."""

NOTICE_S = 1 + ANSWER_S
"""Within which a broker notices by itself that Redis went or came: a tick and a call."""


@pytest.fixture(scope="module")
def durable() -> Iterator[Server]:
    """A Redis of its own that writes what it knows to disk, so that it can be killed."""
    with running("redis", "--appendonly", "yes", "--appendfsync", "everysec") as server:
        yield server


@pytest.fixture(scope="module")
def broker(durable: Server) -> Iterator[Broker]:
    """A broker on it."""
    with Broker(**GRANTING | {"REDIS_URL": durable.url}) as broker:
        yield broker.wait()


def health(broker: Broker) -> str:
    """Return Redis's part of /health, which must be there whatever happens, and at once."""
    began = time.monotonic()
    answer = broker.http.get("/health")
    assert time.monotonic() - began < 1
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    return str(answer.json()["redis"])


def check_away(broker: Broker) -> None:
    """Redis is away: alive, not ready, and every answer says so in time."""
    body, token = {"agent": "analyst", "min_memory_mb": 900}, {"token": str(uuid4())}
    asked = [
        ("GET", "/ready", None),
        ("GET", "/gpu/info", None),
        ("POST", "/renew", token),
        ("POST", "/release", token),
        ("POST", "/lease", body),
        ("POST", "/lease", body | {"on_unavailable": "refuse"}),
    ]
    answers = at_once(broker, asked)
    assert max(answer.seconds for answer in answers) < 2 * ANSWER_S
    ready, info, renew, release, *leases = [answer.http for answer in answers]
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert "Redis" in ready.json()["reason"]
    assert info.json()["available"] is False
    assert (renew.status_code, release.status_code) == (503, 503)
    for lease in leases:
        assert lease.status_code == 503, lease.text
        assert lease.json()["code"] in {"store_unavailable", "outcome_unknown"}
        assert lease.json()["retryable"] is True
        assert int(lease.headers["Retry-After"]) >= 1
    eventually(lambda: health(broker) == "down", 2 * NOTICE_S)


def check_back(broker: Broker) -> None:
    """Redis is back: without anybody's help all is as before."""
    eventually(lambda: broker.http.get("/ready").status_code == 200, CLOSED_S + 2 * NOTICE_S)
    assert health(broker) == "up"

    def granted() -> str | None:
        answer = broker.lease(min_memory_mb=900, ttl_s=5, on_unavailable="refuse")
        return answer.json()["token"] if answer.status_code == 200 else None

    token = eventually(granted, 2 * NOTICE_S, 0.1)
    assert broker.release(token).status_code == 200


def test_lease_while_redis_is_killed_is_503_until_it_returns(
    durable: Server, broker: Broker
) -> None:
    """A killed Redis makes the broker not ready, never dead; it recovers on the same port."""
    durable.kill()
    try:
        check_away(broker)
    finally:
        durable.start()
    check_back(broker)
    assert broker.allocations() == {}


def test_lease_while_redis_hangs_is_503_until_it_goes_on(durable: Server, broker: Broker) -> None:
    """A Redis that hangs is as good as a dead one, and what was asked meanwhile leaves no lease."""
    assert durable.process is not None
    os.kill(durable.process.pid, signal.SIGSTOP)
    try:
        check_away(broker)
    finally:
        os.kill(durable.process.pid, signal.SIGCONT)
    check_back(broker)
    eventually(lambda: broker.allocations() == {}, 2 * NOTICE_S)


def test_lease_of_an_sdk_across_a_restart_of_redis_is_still_held(
    durable: Server, broker: Broker
) -> None:
    """A lease outlives 2 s without Redis: renewed again when it is back, with the same fence."""
    with (
        LeaseClient(Store(durable.url), hostname="h1") as client,
        client.lease("agent", memory_mb=900, ttl_s=5) as lease,
    ):
        time.sleep(1.2)  # AOF everysec: what is a second old is on disk
        durable.kill()
        try:
            time.sleep(2)
            assert not lease.lost
        finally:
            durable.start()
        end_ms = lease.expires_at_ms
        eventually(lambda: lease.expires_at_ms > end_ms, 2 * NOTICE_S)
        assert not lease.lost
        assert not lease.jeopardy
        assert broker.http.get("/ready").json()["reason"].startswith("the pool may have lost data")
        assert broker.allocations()[lease.token]["fence"] == lease.fence
    assert broker.allocations() == {}

"""The one sender among replicas: killed, stopped, come back. Nothing is lost or out of order."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from agent_sdk.keys import Keys
from tests.api.brokers import GRANTING, Broker, eventually
from tests.hooks.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

KEYS = Keys("default")


@pytest.fixture
def pair(own: Server) -> Iterator[tuple[Broker, Broker]]:
    """Two replicas: the first delivers."""
    settings = GRANTING | {"REDIS_URL": own.url, "GPU_BROKER_HOOKS_ALLOW": "127.0.0.1"}
    with Broker(**settings) as first, Broker(**settings | {"GPU_BROKER_HOSTNAME": "h2"}) as second:
        yield first.wait(), second.wait()


def replica(broker: Broker) -> str:
    return str(broker.http.get("/health").json()["replica"])


def sender_of(own: Server, pair: tuple[Broker, Broker]) -> tuple[Broker, Broker]:
    """The broker that delivers, and the other."""
    named = eventually(lambda: name_of_sender(own), 20)
    first, second = pair
    return (first, second) if named == replica(first) else (second, first)


def name_of_sender(own: Server) -> str:
    """The replica that has the right to deliver, if there is one."""
    with own.connect() as redis:
        return str(redis.get(KEYS.hooks_sender) or "").partition(":")[0]


def granted(own: Server) -> list[str]:
    """The ids of all grants."""
    with own.connect() as redis:
        return [name for name, row in redis.xrange(KEYS.events) if row["event"] == "granted"]


def first_arrivals(receiver: Receiver) -> list[str]:
    return list(dict.fromkeys(receiver.ids()))


def busy(broker: Broker, times: int) -> None:
    for _ in range(times):
        broker.release(broker.granted(min_memory_mb=10, host="any")["token"])


def test_sender_is_followed_by_another(
    own: Server, pair: tuple[Broker, Broker], tmp_path: Path
) -> None:
    """One is stopped for a while, one is killed, both in mid-delivery.

    The other goes on with the message that was on its way; the one that comes back has lost the
    right to deliver, ends its deliveries and leaves the cursor where it is.
    """
    with Receiver(tmp_path / "receiver") as receiver:
        receiver.does("slow:0.2")
        pair[0].http.post("/hooks", json={"url": receiver.url, "on": ["granted"], "name": "ops"})
        sender, other = sender_of(own, pair)
        busy(other, 6)
        eventually(lambda: len(receiver.got) >= 2, 30)
        os.kill(sender.process.pid, signal.SIGSTOP)
        try:
            busy(other, 2)
            eventually(lambda: first_arrivals(receiver) == granted(own), 60)
        finally:
            os.kill(sender.process.pid, signal.SIGCONT)
        arrived = len(receiver.got)
        assert arrived - len(granted(own)) <= 1  # what was on its way, and no other
        busy(sender, 6)
        eventually(lambda: len(receiver.got) >= arrived + 2, 30)
        assert replica(other) == eventually(lambda: name_of_sender(own), 10)
        other.kill()
        eventually(lambda: first_arrivals(receiver) == granted(own), 60)
        assert receiver.ids()[arrived : arrived + 2] == granted(own)[8:10]
        assert len(receiver.got) - len(granted(own)) <= 2
        assert replica(sender) == name_of_sender(own)

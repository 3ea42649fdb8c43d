"""Clients that follow and say nothing, or do not read: kept alive, or dropped before they cost."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient
from agent_sdk.store.store import Store
from tests.api.brokers import Broker, eventually
from tests.api.sse import following

if TYPE_CHECKING:
    from tests.servers import Server

log = logging.getLogger(__name__)

FILL = 100
"""Pairs of events, each pair some 600 bytes, that are sent at once."""

DROPPED_S = 30
COSTS_MB = 20


def rss_mb(broker: Broker) -> float:
    """Resident memory of the broker, MB."""
    status = Path(f"/proc/{broker.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def connections(broker: Broker) -> int:
    """Count the connections of the broker with its clients."""
    table = Path("/proc/net/tcp").read_text().splitlines()
    port = f":{broker.port:04X}"
    return sum(line.split()[1].endswith(port) and line.split()[3] == "01" for line in table)


@pytest.mark.slow
def test_client_that_stops_reading_is_dropped(broker: Broker, own: Server) -> None:
    """Within 30 s of being sent more than the buffers hold, for less than 20 MB; others go on."""
    with (
        socket.socket() as stalled,
        LeaseClient(Store(own.url)) as client,
        following(broker, silent_s=20) as reading,
    ):
        for _ in range(50):  # what the first events cost is not what the client costs
            client.release(client.acquire("analyst", memory_mb=1, host="any"))
        reading.take(100)
        open_before, rss_before = connections(broker), rss_mb(broker)
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", broker.port))
        stalled.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stalled.recv(15) == b"HTTP/1.1 200 OK"
        eventually(lambda: connections(broker) == open_before + 1, 5)
        began, most_mb, pairs = time.monotonic(), 0.0, 0
        while connections(broker) > open_before:
            assert time.monotonic() - began < DROPPED_S
            many = FILL if pairs < 3 * FILL else 1  # some MB: more than the buffers hold
            for _ in range(many):
                client.release(client.acquire("analyst", memory_mb=1, host="any"))
            reading.take(2 * many)  # whoever reads is told all
            pairs += many
            most_mb = max(most_mb, rss_mb(broker) - rss_before)
            time.sleep(0.1)
        log.info("dropped after %.1f s, at most %.1f MB", time.monotonic() - began, most_mb)
        assert most_mb < COSTS_MB
        assert "error" not in broker.said()


@pytest.mark.slow
def test_silent_streams_are_kept_alive(broker: Broker) -> None:
    """By a comment every 15 s, which no client takes for a message."""
    with following(broker, "/events?type=policy", silent_s=20) as stream:
        began = time.monotonic()
        assert stream.comment() == "keep-alive"
        assert time.monotonic() - began > 10

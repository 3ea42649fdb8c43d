"""A network between the SDK and Redis that loses or delays replies."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.faults.proxy import Proxy
from tests.pools import device

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from agent_sdk import Lease, LeaseClient
    from tests.pools import Pool

PAIRS, CLIENTS, ONE_IN = 10_000, 4, 20


class Watcher(threading.Thread):
    """Reads the pool's events as they come, before the stream is trimmed, and counts them."""

    def __init__(self, client: redis.Redis, stream: str) -> None:
        super().__init__(daemon=True)
        self._client, self._stream, self._last = client, stream, "0"
        self.granted: Counter[str] = Counter()
        self.released: Counter[str] = Counter()
        self.stopping = threading.Event()

    def run(self) -> None:
        """Relay until told to stop and nothing is left to read."""
        while self._read() or not self.stopping.is_set():
            time.sleep(0.05)

    def _read(self) -> int:
        answer: Any = self._client.xread({self._stream: self._last}, count=2000)
        entries = answer[0][1] if answer else []
        for self._last, entry in entries:
            if entry["event"] in {"granted", "released"}:
                counts = self.granted if entry["event"] == "granted" else self.released
                counts[entry["token"]] += 1
        return len(entries)


def acquire_and_release(client: LeaseClient, tokens: list[str], errors: list[Exception]) -> None:
    """Each token acquired, then released."""
    try:
        for token in tokens:
            client.release(client.acquire("agent", memory_mb=100, ttl_s=60, token=token))
    except Exception as error:  # noqa: BLE001 - the test asserts that there is none
        errors.append(error)


def test_acquire_with_1_reply_in_20_lost_grants_each_token_once(
    pool: Pool, connect: Callable[..., LeaseClient], server: Any
) -> None:
    """10,000 acquires and releases over a network that loses replies: not one lease too many."""
    pool.report((device("SIM-h1-0", 100_000),), deadline_ms=86_400_000)
    replies, dropped = itertools.count(1), itertools.count()

    def passes(_: bytes) -> bool:
        if next(replies) % ONE_IN:
            return True
        next(dropped)
        return False

    tokens = [str(uuid4()) for _ in range(PAIRS)]
    errors: list[Exception] = []
    with server.connect() as watching, Proxy(server.port, passes) as proxy:
        watcher = Watcher(watching, pool.keys.events)
        watcher.start()
        threads = [
            threading.Thread(
                target=acquire_and_release, args=(connect(proxy.url), tokens[n::CLIENTS], errors)
            )
            for n in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        watcher.stopping.set()
        watcher.join(10)
    assert errors == []
    assert next(dropped) >= 2 * PAIRS / ONE_IN
    once = dict.fromkeys(tokens, 1)
    assert dict(watcher.granted) == once
    assert dict(watcher.released) == once
    assert connect().leases() == ()
    stats = pool.stats()
    assert (stats["granted"], stats["released"]) == (PAIRS, PAIRS)
    assert pool.number("SIM-h1-0", "leased_mb") == 0


class Delay:
    """Holds one reply with that tag back for a second, once armed: others tell of other things."""

    def __init__(self, tag: bytes) -> None:
        self.armed = threading.Event()
        self._tag = tag

    def __call__(self, reply: bytes) -> bool:
        """Let every reply pass, the one after `armed` late."""
        if self.armed.is_set() and self._tag in reply:
            self.armed.clear()
            time.sleep(1)
        return True


def know_the_server(client: LeaseClient) -> None:
    """Have the client learn which words the server knows: the next reply is that of the verb."""
    client.release(client.acquire("agent", memory_mb=1))


def check_trust(lease: Lease, client: LeaseClient) -> None:
    """S7: the holder believes no longer than the broker does."""
    now_ms = client.pool().now_ms  # before: the trust runs down while it is asked
    trusted_s = lease.trusted_s
    found = client.lookup(lease.token)
    assert found is not None
    assert not isinstance(found, str)
    assert found.expires_at_ms is not None
    assert trusted_s > 0
    assert now_ms + trusted_s * 1000 <= found.expires_at_ms


@pytest.mark.parametrize("verb", ["acquire", "renew"])
def test_acquire_or_renew_with_a_reply_1_s_late_is_trusted_no_longer(
    pool: Pool, connect: Callable[..., LeaseClient], server: Any, verb: str
) -> None:
    """S7: trust counts from when the request left, so a late reply does not lengthen it."""
    pool.report((device("SIM-h1-0"),), deadline_ms=60_000)
    delay = Delay(b"GRANTED" if verb == "acquire" else b"RENEWED")
    with Proxy(server.port, delay) as proxy:
        client, direct = connect(proxy.url, timeout_s=3), connect()
        know_the_server(client)
        lease = None
        if verb == "renew":
            lease = client.acquire("agent", memory_mb=900, ttl_s=2)
        delay.armed.set()
        began = time.monotonic()
        if lease:
            client.renew(lease)
        else:
            lease = client.acquire("agent", memory_mb=900, ttl_s=2)
        assert time.monotonic() - began >= 1
        check_trust(lease, direct)
        assert client.release(lease) is True


def test_acquire_repeated_after_a_late_reply_learns_what_is_left(
    pool: Pool, connect: Callable[..., LeaseClient], server: Any
) -> None:
    """A call that timed out is repeated with its token: the same lease, and only its rest."""
    pool.report((device("SIM-h1-0"),), deadline_ms=60_000)
    delay = Delay(b"GRANTED")
    with Proxy(server.port, delay) as proxy:
        client, direct = connect(proxy.url, timeout_s=0.5), connect()
        know_the_server(client)
        granted = pool.events().count("granted")
        delay.armed.set()
        lease = client.acquire("agent", memory_mb=900, ttl_s=3)
        assert lease.remaining_ms <= 2500
        check_trust(lease, direct)
        assert pool.events().count("granted") == granted + 1
        assert client.release(lease) is True

"""A store that answers what no Redis would: a LeaseError by the deadline, never another error."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agent_sdk import AsyncLeaseClient, LeaseClient, LeaseError, OutcomeUnknown, Store
from tests.faults.proxy import Proxy
from tests.redis.clients import acquiring
from tests.reports import register

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Server

CASES = int(os.environ.get("GPU_BROKER_FUZZ", "25"))

DEADLINE_S = 0.2

TIMEOUT_S = 0.2

ANSWERS = (
    b"", b"\r\n", b"?\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"+OK\r\n", b"-\r\n", b"-ERR\r\n",
    b"$-1\r\n",
    b"*-1\r\n", b"*0\r\n", b"_\r\n", b"$5\r\nab\r\n", b"$99999999999\r\n", b"$-7\r\n", b"$x\r\n",
    b"*99999999999\r\n", b"*2\r\n+GRANTED\r\n", b":nan\r\n", b":99999999999999999999999999\r\n",
    b",inf\r\n", b",nan\r\n", b"#t\r\n", b"#x\r\n", b"(" + b"9" * 500 + b"\r\n", b"*1\r\n" * 5000,
    b"%1\r\n+a\r\n+b\r\n", b"%1\r\n*0\r\n+b\r\n", b"~1\r\n*0\r\n", b">2\r\n+a\r\n+b\r\n",
    b"!3\r\nERR\r\n",
    b"=7\r\ntxt:abc\r\n", b"|1\r\n+a\r\n+b\r\n", b"+" + b"\xff" * 40 + b"\r\n",
    b"$2\r\n\xc3\x28\r\n",
    b"*6\r\n+WAITING\r\n+soon\r\n:5\r\n+1\r\n:0\r\n:0\r\n", b"*1\r\n-ERR inner\r\n",
    b"-NOSCRIPT No matching script.\r\n" * 3, b"-MOVED nowhere\r\n", b"-ASK\r\n",
    b"-WRONGTYPE no\r\n", b"$2\r\nOK\r\n$2\r\nOK\r\n",
    b"+*10\r\n+x\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n",
    b"*10\r\n+GRANTED\r\n:1\r\n+\r\n+1\r\n:0\r\n+7\r\n:5000\r\n+soon\r\n+\r\n+x\r\n",
)  # fmt: skip
"""To whatever is asked: of another protocol, cut off, too long, nested, and of RESP3."""

BYTES = b"+-:$*_,#(!=%~>|\r\n0123456789GRANTEDnan \xff\x00"


def noise(rng: random.Random) -> bytes:
    """One of the above, spoilt."""
    answer = bytearray(rng.choice(ANSWERS)[:60])
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(answer) + 1)
        answer[at:at] = rng.choices(BYTES, k=rng.randint(1, 6))
    return bytes(answer)


def saying(answer: bytes) -> Callable[[bytes], bytes | None]:
    """Verbs, loads and readings are answered so; the rest is Redis's own."""

    ours = (b"FCALL", b"EVALSHA", b"SCRIPT", b"HGETALL")

    def meddle(chunk: bytes) -> bytes | None:
        return answer if any(word in chunk for word in ours) else None

    return meddle


def outcomes(kind: str, url: str, pool: str) -> list[str]:
    """Acquire, renew, release, reap and a look: what each came to."""
    store, token = Store(url, TIMEOUT_S), str(uuid4())
    about = {"pool": pool, "hostname": "h1", "deadline_s": DEADLINE_S}
    said = []

    def did(what: Callable[[], object]) -> None:
        try:
            said.append(type(what()).__name__)
        except LeaseError as error:
            said.append(error.code)

    if kind == "sync":
        with LeaseClient(store, **about) as client:
            did(lambda: client.acquire("a", memory_mb=1, token=token))
            did(lambda: client.adopt(token))
            did(client.reap)
            did(client.devices)
        return said
    with asyncio.Runner() as runner:
        other = AsyncLeaseClient(store, **about)
        did(lambda: runner.run(other.acquire("a", memory_mb=1, token=token)))
        did(lambda: runner.run(other.reap()))
        did(lambda: runner.run(other.devices()))
        runner.run(other.close())
    return said


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_store_that_answers_nonsense_is_a_lease_error_by_the_deadline(
    own: Server, kind: str, record_property: Callable[[str, object], None]
) -> None:
    """By the list and by chance; afterwards the same pool is leased from as before."""
    seed = random.SystemRandom().randrange(2**32)
    rng, pool = random.Random(seed), f"m-{uuid4().hex[:8]}"

    def met(answer: bytes) -> float:
        with Proxy(own.port, answers=saying(answer)) as proxy:
            began = time.monotonic()
            try:
                said = outcomes(kind, proxy.url, pool)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {answer!r} became {error!r}") from error
            return (time.monotonic() - began) / len(said)

    cases = [*ANSWERS, *(noise(rng) for _ in range(CASES))]
    with LeaseClient(Store(own.url), pool=pool, hostname="h1") as client:
        register(client)
        with ThreadPoolExecutor(8) as threads:
            slowest_s = max(threads.map(met, cases))
        assert client.acquire("after", memory_mb=1000).devices
    record_property("answers", len(cases))
    record_property("slowest_s", round(slowest_s, 2))
    assert slowest_s < 5


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_acquire_whose_answer_cannot_be_read_may_have_been_executed(own: Server, kind: str) -> None:
    """It was, and the answer is repeated until it can be read; else it is outcome_unknown: it was
    BrokerUnavailable, and nothing gave back what had been granted.
    """
    pool, broken = f"m-{uuid4().hex[:8]}", [0]

    def executed(chunk: bytes) -> bytes | None:
        if not (b"FCALL" in chunk or b"EVALSHA" in chunk) or not broken[0]:
            return None
        broken[0] -= 1
        with socket.create_connection(("127.0.0.1", own.port)) as server:
            server.sendall(chunk)
            server.recv(65536)
        return b"%1\r\n*0\r\n+b\r\n"

    with LeaseClient(Store(own.url), pool=pool, hostname="h1") as client:
        register(client)
        client.release(client.acquire("warm", memory_mb=10))
        with (
            Proxy(own.port, answers=executed) as proxy,
            acquiring(kind, Store(proxy.url), pool, 1) as acquire,
        ):
            broken[0] = 2
            token = str(uuid4())
            assert acquire(token) == token
            assert client.pool().stats["granted"] == 2
            broken[0] = 1000
            with pytest.raises(OutcomeUnknown):
                acquire(str(uuid4()))
            broken[0] = 0
        assert client.pool().stats["granted"] == 3

"""The frequent routes beside FastAPI's own of the same description: one answer to each request.

Two brokers, each on a pool of its own, get the same bytes in the same order. One is
`gpu-broker serve`; in the other all requests are FastAPI's.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from broker.api_keys import add
from broker.app import Facade
from broker.http.hot_routes import HotRoutes
from broker.settings import Settings
from tests.api.bodies import BODIES
from tests.api.brokers import GRANTING, Broker, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

ORDINARY = (
    sys.executable,
    "-c",
    """
import broker.app
broker.app.HotRoutes = lambda app, behind, routes, most_bytes: behind
from broker.cli import main
main()
""",
)
"""`gpu-broker`, without the plain ASGI of the frequent routes."""

FAILING = (
    sys.executable,
    "-c",
    """
from agent_sdk import AsyncLeaseClient
def fail(*_, **__):
    raise ZeroDivisionError("planted")
AsyncLeaseClient.release = fail
from broker.cli import main
main()
""",
)
"""`gpu-broker`, with an endpoint that fails."""

PATHS = ("/lease", "/renew", "/release")

TOKEN = b"00000000-0000-4000-8000-00000000000"

GOOD = {
    "/lease": b'{"agent": "bot-1", "min_memory_mb": 5, "token": "' + TOKEN + b'1"}',
    "/renew": b'{"token": "' + TOKEN + b'1", "ttl_s": 60}',
    "/release": b'{"token": "' + TOKEN + b'1"}',
}
"""Bodies that a broker grants, renews and releases, one after the other."""

JSON = b"Content-Type: application/json"

TYPES = (
    b"application/json; charset=utf-8", b"application/json;charset=utf-8", b"APPLICATION/JSON",
    b"application/json; charset=utf-16", b"application/vnd.api+json", b"text/plain", b"",
    b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"json", b"\xff",
)  # fmt: skip

METHODS = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "post")

TARGETS = (
    "/v1{0}", "/v1{0}/", "/v1/v1{0}", "/v1{0}?a=1", "{0}/", "/{0}", "{0}?a=1", "/%{1:x}{2}",
    "{0}%20", "/broker{0}", "{0}/../lease", "*",
)  # fmt: skip
"""Forms of a path: `{1:x}` is its first letter's code."""


class Both:
    """The two brokers."""

    def __init__(self, ours: Broker, theirs: Broker, keys: dict[str, str]) -> None:
        self.brokers = (ours, theirs)
        self.keys = keys
        self._number = 0

    def agree(self, request: bytes, *more: bytes, key: str = "bot", shut: bool = False) -> bytes:
        """Send a request, in these parts, to both; return the answer, which must be the same.

        `shut`: hang up after the last part; then there need not be an answer.
        """
        self._number += 1
        own = [f"X-Request-ID: n{self._number}".encode()]
        if key:
            own.append(f"Authorization: Bearer {self.keys[key]}".encode())
        line, _, rest = request.partition(b"\r\n")
        first = b"\r\n".join([line, b"Host: localhost", *own, rest])
        ours, theirs = (answer_of(broker, first, *more, shut=shut) for broker in self.brokers)
        assert ours == theirs, (request, more)
        assert ours or shut
        return ours


@pytest.fixture(scope="module")
def both(own: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    keys = {
        "bot": add(file, "bot", "agent", ("bot-*",)),
        "other": add(file, "other", "agent"),
        "eye": add(file, "eye", "viewer"),
        "ann": add(file, "ann", "operator"),
    }
    with ExitStack() as stack:
        brokers = []
        for name, program in (("ours", None), ("theirs", ORDINARY)):
            here = GRANTING | {
                "REDIS_URL": own.url,
                "GPU_BROKER_POOL": name,
                "GPU_BROKER_KEYS_FILE": str(file),
                "GPU_BROKER_CORS_ORIGINS": "https://page.example",
            }
            brokers.append(stack.enter_context(Broker(program=program, **here)).wait())
        yield Both(brokers[0], brokers[1], keys)


def post(path: str, body: bytes, *headers: bytes, kind: bytes = JSON) -> bytes:
    """A POST with a body of known length."""
    head = [f"POST {path} HTTP/1.1".encode(), b"Connection: close", kind, *headers]
    length = f"Content-Length: {len(body)}".encode()
    return b"\r\n".join([*filter(None, head), length, b"", body])


def answer_of(broker: Broker, *parts: bytes, shut: bool) -> bytes:
    """All that a broker answers, without what no two answers share."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = b""
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
            if shut:
                connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while chunk := connection.recv(65536):
                said += chunk
    return masked(said)


def masked(said: bytes) -> bytes:
    """The answers of a connection without times, and without what a pool makes of them."""
    answers = b""
    while said:
        head, end, rest = said.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        interim = head.startswith(b"HTTP/1.1 1")  # 100 Continue: the answer is behind it
        size = int(length[1]) if length else 0 if interim else len(rest)
        answers += masked_one(head, end, rest[:size])
        said = rest[size:]
    return answers


def masked_one(head: bytes, end: bytes, body: bytes) -> bytes:
    """One answer without them."""
    head = re.sub(rb"(?m)^date: .*\r$", b"date\r", head)
    with suppress(ValueError):
        content = json.loads(body)
        if isinstance(content, dict) and mask(content):
            head = re.sub(rb"content-length: \d+", b"content-length", head)
            return head + end + json.dumps(content).encode()
    return head + end + body


def mask(content: dict[str, Any]) -> bool:
    """Replace what differs by the kind of it; tell whether anything did."""
    changing = {"timestamp", "fence", "expires_at", "expires_in_s", "GPU_LEASE_FENCE"}
    if "env" in content:
        mask(content["env"])
    found = changing & content.keys()
    for name in found:
        content[name] = type(content[name]).__name__
    return bool(found)


def test_good_requests_of_a_life_are_answered_alike(both: Both) -> None:
    """Granted, granted again, another request under its token, renewed, released, unknown."""
    for path in ("/lease", "/lease", "/renew", "/release", "/release", "/renew", "/lease"):
        both.agree(post(path, GOOD[path]))
    taken = both.agree(post("/lease", b'{"agent": "bot-2", "token": "' + TOKEN + b'2"}'))
    assert taken.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"granted": true' in taken
    again = b'{"agent": "bot-3", "token": "' + TOKEN + b'2"}'
    assert b" 409 " in both.agree(post("/lease", again))
    for key in ("other", "ann"):
        both.agree(post("/renew", b'{"token": "' + TOKEN + b'2"}'), key=key)
        both.agree(post("/release", b'{"token": "' + TOKEN + b'2"}'), key=key)
    big = b'{"agent": "bot-1", "min_memory_mb": 900000, "on_unavailable": "%s", "token": "%s5"}'
    for how in (b"refuse", b"cpu"):
        both.agree(post("/lease", big % (how, TOKEN)))
    both.agree(post("/release", b'{"token": "' + TOKEN + b'5"}'))


@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_are_none_are_answered_alike(both: Both, path: str) -> None:
    """Each fault of a body, and bodies that only look like one."""
    good = GOOD[path]
    odd = {
        "unknown field": good[:-1] + b', "hue": 1, "\xc3\xa9": 2}',
        "twice": good[:-1] + b', "token": "' + TOKEN + b'9"}',
        "UTF-16": good.decode().encode("utf-16"),
        "UTF-8 with a mark": b"\xef\xbb\xbf" + good,
        "blanks to the limit": good.ljust(16_384),
        "a blank too many": good.ljust(16_385),
        "huge": good.ljust(100_000),
        "numbers": b'{"token": 5, "fence": 1.0, "agent": "bot-1", "min_memory_mb": 1e2}',
        "names": b'{"agent": "a b", "token": "short", "host": "\xff"}',
    }
    for body in (BODIES | odd).values():
        both.agree(post(path, body))
        both.agree(post("/release", GOOD["/release"]))


@pytest.mark.parametrize("path", PATHS)
def test_heads_are_answered_alike(both: Both, path: str) -> None:
    """Content types, methods, paths, keys, and headers that are sent twice."""
    good = GOOD[path]
    for kind in TYPES:
        both.agree(post(path, good, kind=b"Content-Type: " + kind if kind else b""))
    both.agree(post(path, good, JSON))
    both.agree(post(path, good, b"Content-Type: text/plain"))
    for method in METHODS:
        both.agree(post(path, good).replace(b"POST", method.encode(), 1))
        both.agree(post(path, b"").replace(b"POST", method.encode(), 1))
    for target in TARGETS:
        both.agree(post(target.format(path, ord(path[1]), path[2:]), good))
    for key in ("", "eye", "ann", "other"):
        both.agree(post(path, good), key=key)
        both.agree(post(path, b"{}"), key=key)
    for header in (
        b"Accept: application/problem+json, */*;q=0.1",
        b"Authorization: Bearer wrong", b"X-Request-ID: \xff", b"X-Forwarded-Prefix: /broker",
        b"X-Forwarded-Prefix: //broker", b"Content-Encoding: gzip", b"Accept-Encoding: gzip",
        b"Origin: https://page.example", b"Origin: https://other.example", b"Expect: 100-continue",
        b"Connection: Upgrade\r\nUpgrade: h2c", b"X-Forwarded-For: 10.0.0.9",
    ):  # fmt: skip
        both.agree(post(path, good, header))
    both.agree(post(path, good).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    both.agree(post("/broker" + path, good, b"X-Forwarded-Prefix: /broker"))


@pytest.mark.parametrize("path", PATHS)
def test_bodies_in_parts_are_answered_alike(both: Both, path: str) -> None:
    """In two packets, in chunks, too long, with a wrong length, several at once, or broken off."""
    whole = post(path, GOOD[path])
    both.agree(whole[:-10], whole[-10:])
    head = f"POST {path} HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n".encode()
    for body in (GOOD[path], b"{}", GOOD[path].ljust(20_000)):
        chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:9], body[9:])]
        both.agree(head + JSON + b"\r\n\r\n", *chunks, b"0\r\n\r\n")
    open_ended = whole.replace(b"Connection: close\r\n", b"")
    second = f"Host: x\r\nX-Request-ID: second\r\nAuthorization: Bearer {both.keys['bot']}"
    both.agree(open_ended + post(path, GOOD[path], second.encode()))
    both.agree(whole[:-10], shut=True)
    both.agree(whole.replace(b"Content-Length: ", b"Content-Length: -"))
    both.agree(whole.replace(b"Content-Length: ", b"Content-Length: 1\r\nContent-Length: "))


def test_log_lines_and_counters_are_the_same(both: Both) -> None:
    """One line for each request, these and those of other tests, and the same figures."""

    def lines(broker: Broker) -> list[str]:
        found = [line for line in broker.said().splitlines() if "request_id=n" in line]
        kept = [re.sub(r" (ms|fence|replica)=\S+", "", line.split(" ", 1)[1]) for line in found]
        return sorted(kept, key=lambda line: int(line.split("request_id=n")[1].split()[0]))

    def counters(broker: Broker) -> dict[str, str]:
        key = {"Authorization": f"Bearer {both.keys['ann']}"}
        text = broker.http.get("/metrics", headers=key).text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines())
        counted = r"gpu_broker_http_requests_total.*POST|gpu_orchestrator_\w+_requests_total"
        return {name: value for name, value in pairs if re.match(counted, name)}

    ours, theirs = both.brokers
    for path in GOOD:
        for _ in range(101 // len(GOOD) + 1):
            both.agree(post(path, b"[]"))
    for path in ("/renew", "/release"):
        both.agree(post(path, b'{"token": "' + TOKEN + b'9"}'))
    assert b" 403 " in both.agree(post("/lease", b'{"agent": "stranger"}'))
    eventually(lambda: len(lines(ours)) == len(lines(theirs)), 5)
    assert lines(ours) == lines(theirs)
    assert len(lines(ours)) > 100
    assert counters(ours) == counters(theirs)
    assert len(counters(ours)) > 10


def test_error_of_an_endpoint_is_a_500_with_an_id(tmp_path: Path) -> None:
    """Unforeseen errors are answered and logged here as they are in FastAPI."""
    here = GRANTING | {"GPU_BROKER_STATE_DIR": str(tmp_path / "s")}
    with Broker(program=FAILING, **here) as broker:
        broker.wait()
        answer = broker.http.post("/release", json={"token": TOKEN.decode() + "1"})
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        assert answer.headers["x-request-id"]
        eventually(lambda: "ZeroDivisionError: planted" in broker.said(), 5)
        assert "status=500" in broker.said()
        assert broker.stop() == 0  # the last one ends the embedded store


def test_frequent_routes_are_in_plain_asgi() -> None:
    """None of the three is FastAPI's by mistake."""
    app = Facade()
    app.wrap(Settings(), Settings().keyring(), None)  # type: ignore[arg-type] # nothing is asked
    assert isinstance(app.hot, HotRoutes)
    assert app.hot.paths == set(PATHS)

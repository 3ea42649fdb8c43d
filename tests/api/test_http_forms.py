"""Forms of HTTP that clients, proxies and browsers use: HEAD, offers, Host, prefixes, origins."""

from __future__ import annotations

import socket
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.api_keys import add
from tests.api.brokers import GRANTING, Broker
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server


@pytest.fixture(scope="module")
def broker(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """In an environment of gunicorn's: PROMETHEUS_MULTIPROC_DIR names no folder."""
    nowhere = str(tmp_path_factory.mktemp("mp") / "nosuch")
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "forms"}
    with Broker(**GRANTING | here, PROMETHEUS_MULTIPROC_DIR=nowhere) as broker:
        yield broker.wait()


def raw(broker: Broker, *requests: bytes, answers: int) -> bytes:
    """Send bytes and give the answers, until so many came."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as connection:
        got = b""
        for request in requests:
            connection.sendall(request)
        while got.count(b"HTTP/1.1 ") < answers or not got.endswith(b"}"):
            more = connection.recv(65536)
            assert more, got
            got += more
        return got


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/policy", "/gpu/info", "/metrics",
                                  "/allocations", "/static/main.js", "/docs"])  # fmt: skip
def test_head_says_what_get_would(broker: Broker, path: str) -> None:
    """The same status and type, without a body, and the connection goes on."""
    head, get = broker.http.head(path), broker.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert broker.http.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["/events", "/live"])
def test_head_of_a_stream_ends(broker: Broker, path: str) -> None:
    """Its headers are all of it; the next request is answered on the same connection."""
    head = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    got = raw(broker, head, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", answers=2)
    assert b"text/event-stream" in got
    assert got.endswith(b"}")


def test_head_of_what_has_no_get_is_refused(broker: Broker) -> None:
    """HEAD is refused where GET is."""
    assert broker.http.head("/lease").status_code == broker.http.get("/lease").status_code == 405


OFFER = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


def lease(offer: str, body: str, *, chunked: bool = False) -> bytes:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    text = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n" if chunked else body
    return (
        f"POST /lease HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{offer}"
        f"{length}\r\n\r\n{text}"
    ).encode()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_offer_of_another_protocol_is_passed_over(
    broker: Broker, *, chunked: bool, at_once: bool
) -> None:
    """Its body is read, in pieces too, and so is what follows on the connection."""
    request = lease(OFFER, '{"agent": "java", "min_memory_mb": 1}', chunked=chunked)
    request += b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    pieces = [request] if at_once else [request[at : at + 11] for at in range(0, len(request), 11)]
    got = raw(broker, *pieces, answers=2)
    assert got.count(b"HTTP/1.1 200 OK") == 2
    assert b'"granted":true' in got
    for token in broker.allocations():
        broker.release(token)


@pytest.mark.parametrize("offer", [OFFER, "Connection: Upgrade\r\nUpgrade: websocket\r\n"])
def test_offer_without_a_body_is_passed_over(broker: Broker, offer: str) -> None:
    """Several on one connection."""
    request = f"GET /health HTTP/1.1\r\nHost: localhost\r\n{offer}\r\n".encode()
    got = raw(broker, request, request, request, answers=3)
    assert got.count(b"HTTP/1.1 200 OK") == 3


HOSTS = {
    "localhost": 200, "LOCALHOST": 200, "foo.LocalHost:8014": 200, "127.0.0.1:8014": 200,
    "10.0.0.1": 200, "[::1]": 200, "[::1]:8014": 200, "evil.example": 403, "": 403,
    "127.0.0.1.nip.io": 403, "localhost.evil.example": 403, "localhost:1@evil": 403,
    "[::1].evil.com": 403, "[evil": 403, "127.0.0.1]evil": 403, "2130706433": 403, "0x7f.1": 403,
    "::1": 403, "[127.0.0.1]": 403, "localhost/": 403, "localhost evil.example": 403,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_host_without_keys_is_this_machine(broker: Broker, host: str) -> None:
    """A name that is always ours, in any case, or an address; what is no host is refused."""
    connection = HTTPConnection("127.0.0.1", broker.port, timeout=10)
    connection.putrequest("GET", "/policy", skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status == HOSTS[host]
    connection.close()


def test_two_hosts_are_none_and_no_host_is_a_probe(broker: Broker) -> None:
    """HTTP/1.0 has none."""
    two = b"GET /policy HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"
    assert raw(broker, two, answers=1).startswith(b"HTTP/1.1 403")
    assert raw(broker, b"GET /policy HTTP/1.0\r\n\r\n", answers=1).startswith(b"HTTP/1.1 200")


def test_prefix_of_a_proxy(broker: Broker) -> None:
    """Addresses in answers begin with the prefix; a header that is no prefix is ignored."""
    held = broker.granted(min_memory_mb=900)
    said = {"X-Forwarded-Prefix": "/gpu/broker/"}
    ask = {"agent": "next", "min_memory_mb": 900, "wait_s": 0.05}
    waits = broker.http.post("/lease", json=ask, headers=said)
    assert waits.headers["Location"] == f"/gpu/broker/lease/{waits.json()['token']}"
    slash = broker.http.get("/metrics/", headers=said, follow_redirects=False)
    assert slash.headers["Location"].endswith("/gpu/broker/metrics")
    for prefix in ("//evil.example", "https://evil.example", "/a b", "/../x//y", "gpu"):
        slash = broker.http.get(
            "/metrics/", headers={"X-Forwarded-Prefix": prefix}, follow_redirects=False
        )
        assert slash.headers["Location"] == f"http://127.0.0.1:{broker.port}/metrics"
    broker.release(held["token"])
    broker.release(waits.json()["token"])


def test_prefix_by_the_settings(server: Server, tmp_path: Path) -> None:
    """With it in the path or without, as proxies do either; with keys the open paths stay open."""
    here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "prefixed"}
    keys = str(tmp_path / "keys")
    add(Path(keys), "ann", "operator")
    settings = {"GPU_BROKER_ROOT_PATH": "/gpu", "GPU_BROKER_KEYS_FILE": keys}
    with Broker(**GRANTING | here | settings) as broker:
        broker.wait()
        for path in ("/health", "/", "/static/main.js"):
            assert broker.http.get(f"/gpu{path}").status_code == 200
            assert broker.http.get(path).status_code == 200
        assert broker.http.get("/gpu/policy").status_code == 401
        assert broker.http.get("/gpuhealth").status_code == 401
        assert servers(broker, "/openapi.json") == ["/gpu", "/gpu/v1"]
        for path in ("/v1/openapi.json", "/gpu/v1/openapi.json"):
            assert servers(broker, path) == ["/gpu/v1", "/gpu"]


def servers(broker: Broker, path: str) -> list[str]:
    """The servers of a document, in their order."""
    return [server["url"] for server in broker.http.get(path).json()["servers"]]


def test_version_is_a_prefix_of_every_path(broker: Broker) -> None:
    """`/v1` once is the same route, also in addresses and metrics; twice, or as a part, is none."""
    held = broker.granted(min_memory_mb=900)
    ask = {"agent": "next", "min_memory_mb": 900, "wait_s": 0.05}
    before = broker.metrics()
    for prefix in ("", "/gpu"):
        said = {"X-Forwarded-Prefix": prefix} if prefix else {}
        waits = broker.http.post("/v1/lease", json=ask, headers=said)
        token = waits.json()["token"]
        assert waits.headers["Location"] == f"{prefix}/v1/lease/{token}"
        assert broker.http.get(f"/v1/lease/{token}", headers=said).json()["state"] == "waiting"
        broker.release(token)
    assert servers(broker, "/openapi.json") == ["/", "/v1"]
    assert servers(broker, "/v1/openapi.json") == ["/v1", "/"]
    assert "openapi.json" in broker.http.get("/v1/docs/init.js").text
    for path in ("/v1", "/v1/v1/policy", "/v12/policy", "/V1/policy", "/policy/v1"):
        assert broker.http.get(path).status_code == 404
    after = broker.metrics()
    assert not [name for name in after if "/v1" in name]
    counted = "gpu_orchestrator_lease_requests_total"
    assert after[counted] == before[counted] + 2
    broker.release(held["token"])


def test_counters_are_this_process_own(broker: Broker) -> None:
    """PROMETHEUS_MULTIPROC_DIR of a base image neither breaks nor moves them."""
    before = broker.metrics()
    assert before["gpu_orchestrator_uptime_seconds"] > 0
    after = broker.metrics()
    name = "gpu_orchestrator_requests_total"
    assert after[name] == before[name] + 1


def refused(**settings: str) -> str:
    """Give the words of a `serve` that is refused at the start."""
    done = called("serve", "--demo", **settings)
    assert done.returncode == 2
    return done.stderr


@pytest.mark.parametrize("origins", ["*", "https://a.example, *", "null"])
def test_every_origin_without_keys_is_refused(tmp_path: Path, origins: str) -> None:
    """Any page that a person looks at would be an operator; also sandboxed ones, which are null."""
    here = {"GPU_BROKER_STATE_DIR": str(tmp_path)}
    said = refused(GPU_BROKER_CORS_ORIGINS=origins, **here)
    assert "GPU_BROKER_CORS_ORIGINS" in said
    assert "gpu-broker keys new" in said


def test_wrong_prefix_is_refused(tmp_path: Path) -> None:
    """It stops the start."""
    for wrong in ("gpu", "/gpu/", "//gpu", "/a b"):
        said = refused(GPU_BROKER_ROOT_PATH=wrong, GPU_BROKER_STATE_DIR=str(tmp_path))
        assert "GPU_BROKER_ROOT_PATH" in said

"""The documented HTTP client: what it answers, how long that takes, and that it never raises."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import GPUOrchestratorClient
from agent_sdk.orchestrator import DECISION_S, FALLBACK
from tests.api.brokers import GRANTING, Broker, eventually
from tests.faults.proxy import Proxy
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.api.conftest import Fleet
    from tests.servers import Server

PROMISED_S = DECISION_S + 0.3
"""Seconds that a call may take here: its promise, and room for a busy machine."""

UNREACHABLE = {"available": False, "gpus": [], "message": "unreachable"}


@pytest.fixture
def client(fleet: Fleet) -> Iterator[GPUOrchestratorClient]:
    """Return a client of the broker with a device."""
    with of(fleet.plain) as client:
        yield client


def of(broker: Broker, **options: Any) -> GPUOrchestratorClient:
    return GPUOrchestratorClient(f"http://127.0.0.1:{broker.port}", **options)


class Wire:
    """A TCP server whose `answer` does with each connection what it likes.

    Attributes:
        asked: how many connections came.
    """

    def __init__(self, answer: Callable[[socket.socket], object]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.asked += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if connection.recv(65536):
                self._answer(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


@contextmanager
def wire(answer: Callable[[socket.socket], object]) -> Iterator[Wire]:
    found = Wire(answer)
    try:
        yield found
    finally:
        found.close()


def http(status: int, body: Any, after_s: float = 0.0) -> Callable[[socket.socket], object]:
    """Answers every request so, as JSON unless it is text already."""
    text = body if isinstance(body, str) else json.dumps(body)
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"

    def answer(connection: socket.socket) -> None:
        time.sleep(after_s)
        connection.sendall(f"{head}\r\n\r\n{text}".encode())
        connection.close()

    return answer


def hang(_: socket.socket) -> None:
    time.sleep(10)


def drip(connection: socket.socket) -> None:
    """A byte now and then: no timeout of a single read ever fires."""
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Never: ends\r\n" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.2)


def drip_body(connection: socket.socket) -> None:
    """The same once the headers are there."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b" ")
        time.sleep(0.2)


SILENT: dict[str, Callable[[socket.socket], object]] = {
    "hang": hang,
    "drip": drip,
    "drip_body": drip_body,
    "closed": lambda connection: connection.shutdown(socket.SHUT_RDWR),
    "not_http": lambda connection: connection.sendall(b"+PONG\r\n" * 3),
    "torn": lambda c: (c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), c.close()),
}
"""Servers that give no answer of HTTP in time."""

WRONG: dict[str, tuple[int, Any]] = {
    "error": (500, {"detail": "no"}),
    "redirect": (302, {}),
    "list": (200, [1, 2]),
    "text": (200, "GPU here"),
    "deep": (200, "[" * 100_000),
    "empty": (200, {}),
    "wrong_types": (200, {"gpus": "all", "available": "yes", "safe_mode_read_only": 0,
                          "granted": True, "token": 1, "gpu": 0}),
    "infinite": (200, ('{"granted": true, "token": "t", "fence": 1, "expires_at": 1e999, '
                      '"expires_in_s": 1e999, "code": null, "gpus": [], "available": true}')),
    "no_gpus": (200, {"gpus": [], "available": True, "safe_mode_read_only": False}),
}  # fmt: skip
"""Answers that give nobody a GPU: status, body."""


def promised(call: Callable[[], Any]) -> Any:
    """Return a call's result, in the time that it may take."""
    began = time.monotonic()
    found = call()
    assert time.monotonic() - began < PROMISED_S
    return found


def fails_closed(client: GPUOrchestratorClient) -> None:
    """Every call falls back, and none takes longer than it may."""
    decision = promised(client.cpu_fallback_decision)
    assert decision["use_gpu"] is False
    assert promised(client.get_gpu_info)["available"] in {False, True, "yes"}
    lease = promised(lambda: client.lease("analyst", 100))
    assert (lease.on_cpu, lease.local, lease.fence, lease.lost) == (True, True, 0, False)
    assert lease.env()["CUDA_VISIBLE_DEVICES"] == ""
    assert promised(lambda: client.renew(lease)) is True
    assert promised(lambda: client.release(lease)) is True


def test_answers_of_a_broker_with_a_device(client: GPUOrchestratorClient) -> None:
    """The bodies as they are, and a decision for the GPU."""
    info = client.get_gpu_info()
    assert (info["available"], len(info["gpus"])) == (True, 1)
    assert client.get_policy()["safe_mode_read_only"] is False
    assert "_fallback" not in client.get_policy()
    assert client.safe_mode_active() is False
    assert client.cpu_fallback_decision() == {
        "use_gpu": True, "safe_mode": False, "gpu_available": True, "policy_fallback": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("which", "decision"),
    [
        ("none", {"use_gpu": False, "safe_mode": False, "gpu_available": False}),
        ("safe", {"use_gpu": False, "safe_mode": True, "gpu_available": False}),
        ("storeless", {"use_gpu": False, "safe_mode": True, "gpu_available": False}),
    ],
)
def test_decision_is_against_the_gpu(fleet: Fleet, which: str, decision: dict[str, bool]) -> None:
    """No device, SAFE_MODE, or a broker that cannot tell."""
    with of(getattr(fleet, which)) as client:
        found = promised(client.cpu_fallback_decision)
    assert found == decision | {"policy_fallback": which == "storeless"}


@pytest.mark.parametrize("kind", SILENT)
def test_server_that_does_not_answer_costs_two_seconds_once(kind: str) -> None:
    """One call finds out; the others of that second do not even ask."""
    with wire(SILENT[kind]) as server, GPUOrchestratorClient(server.url, down_s=60) as client:
        assert promised(client.get_gpu_info) == UNREACHABLE
        asked, began = server.asked, time.monotonic()
        fails_closed(client)
        assert client.get_policy() == FALLBACK
        assert time.monotonic() - began < 0.5
        assert (server.asked, asked) == (1, 1)


@pytest.mark.parametrize("kind", WRONG)
def test_server_that_answers_wrongly_gives_no_gpu(kind: str) -> None:
    """An unexpected status, or a body that is not what it should be."""
    status, body = WRONG[kind]
    with wire(http(status, body)) as server, GPUOrchestratorClient(server.url) as client:
        if status != 200:
            said = f"unexpected_status:{status}"
            assert client.get_gpu_info() == UNREACHABLE | {"message": said}
        fails_closed(client)
        assert isinstance(client.get_gpu_info()["gpus"], list)


@pytest.mark.parametrize(
    "url",
    ["", "not a url", "ftp://x", "http://", "http://127.0.0.1:1", "http://my host:8014",
     "http://[::1]", "http://[fe80::abcd]", "http://u:secret@[x"],
)  # fmt: skip
def test_nobody_there_is_no_gpu_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that is none, or a port that nobody listens on."""
    monkeypatch.setenv("GPU_ORCHESTRATOR_URL", url or "http://127.0.0.1:1")
    began = time.monotonic()
    with GPUOrchestratorClient(url or None) as client:
        fails_closed(client)
        assert client.get_gpu_info() == UNREACHABLE
    assert time.monotonic() - began < 1


def test_decision_has_one_deadline_for_both_questions() -> None:
    """Two answers of 1.5 s each would be 3 s."""
    slow = http(200, {"safe_mode_read_only": False, "gpus": [{}], "available": True}, after_s=1.5)
    with wire(slow) as server, GPUOrchestratorClient(server.url) as client:
        assert promised(client.cpu_fallback_decision)["use_gpu"] is False


def test_service_that_came_back_is_asked_again() -> None:
    """The silence is remembered for down_s, no longer."""
    awake = http(200, {"gpus": [{"index": 0}], "available": True})

    def hangs_once(connection: socket.socket) -> None:
        (awake if server.asked > 1 else hang)(connection)

    with wire(hangs_once) as server:
        client = GPUOrchestratorClient(server.url, request_timeout=0.2, down_s=0.3)
        assert client.get_gpu_info() == UNREACHABLE
        assert client.get_gpu_info() == UNREACHABLE
        time.sleep(0.35)
        assert client.get_gpu_info()["available"] is True
        assert server.asked == 2


def test_policy_is_cached_and_never_shared() -> None:
    """One request in policy_ttl; what a caller does to its copy is its own."""
    with wire(http(200, {"safe_mode_read_only": False, "nested": {"x": 1}})) as server:
        client = GPUOrchestratorClient(server.url, policy_ttl=0.4)
        client.get_policy()["nested"]["x"] = 2
        assert client.get_policy() == {"safe_mode_read_only": False, "nested": {"x": 1}}
        assert server.asked == 1
        client.get_policy(force_refresh=True)
        assert server.asked == 2
        time.sleep(0.45)
        client.get_policy()
        assert server.asked == 3


def test_fallback_is_fresh_each_time_and_not_cached(fleet: Fleet) -> None:
    """The next call may find the truth, and nobody else's changes."""
    nobody = GPUOrchestratorClient("http://127.0.0.1:1")
    nobody.get_policy()["safe_mode_read_only"] = False
    assert nobody.get_policy() == FALLBACK
    assert nobody.safe_mode_active() is True
    with of(fleet.plain) as client:
        known = client.get_policy()
        client._web, reachable = nobody._web, client._web
        assert client.get_policy(force_refresh=True) == FALLBACK
        client._web, client._down_until = reachable, 0.0
        assert client.get_policy() == known


def test_lease_is_renewed_until_the_block_ends(fleet: Fleet, client: GPUOrchestratorClient) -> None:
    """Past its ttl, by the background; then it is gone."""
    with client.lease("analyst", 400, ttl_s=1) as lease:
        assert (lease.on_cpu, lease.memory_mb, lease.local) == (False, 400, False)
        assert lease.env()["CUDA_VISIBLE_DEVICES"] == lease.devices[0].uuid
        time.sleep(2)
        assert not lease.lost
        assert fleet.plain.allocations()[lease.token]["fence"] == lease.fence
    assert fleet.plain.allocations() == {}
    assert not lease.lost


def test_lease_block_passes_its_error_on(client: GPUOrchestratorClient) -> None:
    """Also when the lease cannot be given back."""
    lease = client.lease("analyst", 400)
    client.release(lease)
    with pytest.raises(KeyError, match="mine"), lease:
        raise KeyError("mine")


def test_lease_without_expiry_is_trusted(client: GPUOrchestratorClient) -> None:
    """ttl_s 0."""
    with client.lease("analyst", 400, ttl_s=0) as lease:
        assert lease.trusted_s > 6 * 86_400
        assert client.renew(lease) is True


@pytest.mark.parametrize(
    ("ask", "reason", "local"),
    [
        ({"min_memory_mb": 5000}, "never_fits", False),
        ({"host": "elsewhere"}, "host_unknown", False),
        ({"agent": "no good name!"}, "bad_request", True),
        ({"ttl_s": -1}, "bad_request", True),
        ({"ttl_s": float("nan")}, "bad_request", True),
        ({"model": object()}, "bad_request", True),
    ],
)
def test_lease_that_cannot_be_is_one_on_the_cpu(
    client: GPUOrchestratorClient, ask: dict[str, Any], reason: str, local: bool
) -> None:
    """By the broker, which knows of it, or by the client itself."""
    with client.lease(**{"agent": "analyst", "min_memory_mb": 100} | ask) as lease:
        assert (lease.on_cpu, lease.reason, lease.local) == (True, reason, local)
        assert client.renew(lease)


def test_lease_in_safe_mode_is_local_and_says_so(fleet: Fleet) -> None:
    """Nobody gets a GPU, and the reason is a word."""
    with of(fleet.safe) as client, client.lease("analyst", 100) as lease:
        assert (lease.on_cpu, lease.local, lease.reason) == (True, True, "safe_mode")


def test_lease_that_was_released_elsewhere_is_lost(
    fleet: Fleet, client: GPUOrchestratorClient
) -> None:
    """The background finds out, and so does a renewal."""
    told: list[str | None] = []
    lease = client.lease("analyst", 400, ttl_s=1)
    lease.on_lost(lambda lost: told.append(lost.lost_reason))
    fleet.plain.release(lease.token)
    assert lease.wait_lost(2)
    eventually(lambda: told == ["released"], 5)  # by a thread of its own
    assert client.renew(lease) is False
    assert client.release(lease) is False


def test_release_that_nobody_heard_is_said_again(server: Server) -> None:
    """The broker dies while the lease is held, and comes back on its port."""
    here = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "said-again"}
    port = str(free_port())
    with Broker("--port", port, **here) as first:
        first.port = int(port)
        first.http.base_url = f"http://127.0.0.1:{port}"
        first.wait()
        client = of(first, down_s=0.1)
        lease = client.lease("analyst", 400, ttl_s=60)
        assert not lease.on_cpu
        first.kill()
        assert promised(lambda: client.release(lease)) is False
    with Broker("--port", port, **here) as second:
        second.http.base_url = f"http://127.0.0.1:{port}"
        second.wait()
        eventually(lambda: not second.allocations(), 5)
        client.close()


def test_lease_that_comes_after_its_release_is_refused(server: Server) -> None:
    """The broker stands still while it is asked; the release may overtake the lease in it."""
    here = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "late-lease"}
    with Broker(**here) as broker:
        broker.wait()
        for _ in range(3):
            with of(broker, request_timeout=0.5, down_s=0.1) as client:
                broker.process.send_signal(signal.SIGSTOP)
                lease = client.lease("analyst", 400, ttl_s=0)
                broker.process.send_signal(signal.SIGCONT)
                assert (lease.on_cpu, lease.reason) == (True, "store_unavailable")
                eventually(lambda client=client: not client._keeper._abandoned, 5)
            assert broker.allocations() == {}


def test_request_of_who_gave_up_is_never_sent(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name server takes longer than the caller waits."""
    real = socket.getaddrinfo

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(1)
        return real(*args, **options)

    with of(fleet.plain, request_timeout=0.3) as client:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        before = fleet.plain.metrics()["gpu_orchestrator_lease_requests_total"]
        assert client.lease("analyst", 400).on_cpu
        time.sleep(1.5)
        monkeypatch.undo()
        assert fleet.plain.metrics()["gpu_orchestrator_lease_requests_total"] == before
        assert fleet.plain.allocations() == {}


def test_close_takes_no_longer_than_a_call() -> None:
    """Also while the background waits for a server that hangs."""
    grant = {"granted": True, "token": "t" * 16, "fence": 1, "expires_at": 2e9, "expires_in_s": 1,
             "code": None, "gpus": []}  # fmt: skip
    first = http(200, grant)

    def hangs_later(connection: socket.socket) -> None:
        (first if server.asked == 1 else hang)(connection)

    with wire(hangs_later) as server:
        client = GPUOrchestratorClient(server.url)
        client.lease("analyst", ttl_s=1)
        eventually(lambda: server.asked > 1, 3)
        promised(client.close)


def test_many_leases_are_renewed_one_after_another_and_none_flaps() -> None:
    """Each answer takes a moment, and counts when it comes."""
    tokens = itertools.count()

    def answer(connection: socket.socket) -> None:
        body = {"granted": True, "token": f"token-{next(tokens):016}", "fence": 1,
                "expires_at": 2e9, "expires_in_s": 6, "code": None, "gpus": []}  # fmt: skip
        http(200, body, after_s=0.1)(connection)

    with wire(answer) as server, GPUOrchestratorClient(server.url) as client:
        leases = [client.lease("analyst", ttl_s=6) for _ in range(15)]
        until, lost = time.monotonic() + 6, set()
        while time.monotonic() < until:
            lost |= {n for n, lease in enumerate(leases) if lease.lost}
            time.sleep(0.02)
        assert lost == set()


def test_keeper_survives_what_nobody_thought_of(client: GPUOrchestratorClient) -> None:
    """An error in one renewal stops neither the thread nor the others."""
    lease = client.lease("analyst", 400, ttl_s=1)
    real, broken = client._keeper._link.renew, iter([True, True])

    def sometimes(leases: Any) -> Any:
        if next(broken, False):
            raise RuntimeError("of the test")
        return real(leases)

    client._keeper._link.renew = sometimes  # type: ignore[method-assign] # the link of one client, for this test
    time.sleep(1.5)
    assert not lease.lost
    client.release(lease)


def test_lease_whose_answer_is_lost_is_given_back(fleet: Fleet) -> None:
    """It was granted, and nobody knows it here."""
    torn: list[bytes] = []

    def passes(chunk: bytes) -> bool:
        if b'"granted"' in chunk and not torn:
            torn.append(chunk)
            return False
        return True

    with Proxy(fleet.plain.port, passes) as proxy:
        url = proxy.url.replace("redis:", "http:")
        with GPUOrchestratorClient(url, down_s=0.1) as client:
            lease = client.lease("analyst", 400, ttl_s=60)
            assert (lease.on_cpu, lease.reason) == (True, "store_unavailable")
            assert torn
            eventually(lambda: not fleet.plain.allocations(), 5)

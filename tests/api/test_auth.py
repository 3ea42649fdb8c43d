"""Permissions of the HTTP API: role x endpoint x own or foreign lease, and no key at all."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import GPUOrchestratorClient
from tests.api.brokers import GRANTING, PROGRAM, Broker, environment
from tests.api.keys import new_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx2

    from tests.api.conftest import Fleet
    from tests.servers import Server


@dataclass
class Door:
    """A broker with keys.

    Attributes:
        keys: principal -> key; one of each role, two agents, and one that is bound to `bound`.
        file: the key file.
    """

    broker: Broker
    keys: dict[str, str]
    file: Path

    def ask(self, who: str | None, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {} if who is None else {"Authorization": f"Bearer {self.keys[who]}"}
        return self.broker.http.request(method, path, headers=headers, **more)

    def lease(self, who: str, **body: Any) -> dict[str, Any]:
        got = self.ask(who, "POST", "/lease", json={"agent": "a", "min_memory_mb": 100} | body)
        assert got.status_code == 200, got.text
        return dict(got.json())


@pytest.fixture(scope="module")
def door(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    keys = {
        "viewer": new_key(file, "viewer", "viewer"),
        "agent": new_key(file, "agent", "agent"),
        "other": new_key(file, "other", "agent"),
        "bound": new_key(file, "bound", "agent", "--agents", "scout,bound-*"),
        "operator": new_key(file, "operator", "operator"),
        "wrong": "gbk_" + "x" * 43,
    }
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "auth"}
    with Broker(**settings, GPU_BROKER_KEYS_FILE=str(file)) as broker:
        yield Door(broker.wait(), keys, file)


@pytest.fixture(autouse=True)
def clean(door: Door) -> Iterator[None]:
    yield
    for token in door.ask("operator", "GET", "/allocations").json()["allocations"]:
        door.ask("operator", "POST", "/release", json={"token": token})


LEASE = {"agent": "a", "min_memory_mb": 10}

ENDPOINTS: dict[tuple[str, str], tuple[Any, tuple[int, int, int, int]]] = {
    # method, path: body, the status for no key, viewer, agent, operator
    ("GET", "/health"): (None, (200, 200, 200, 200)),
    ("GET", "/ready"): (None, (200, 200, 200, 200)),
    ("GET", "/gpu/info"): (None, (401, 200, 200, 200)),
    ("GET", "/policy"): (None, (401, 200, 200, 200)),
    ("GET", "/teams"): (None, (401, 200, 200, 200)),
    ("GET", "/usage"): (None, (401, 200, 200, 200)),
    ("GET", "/history"): (None, (401, 200, 200, 200)),
    ("GET", "/policy/teams"): (None, (401, 200, 200, 200)),
    ("PUT", "/policy/teams"): ({"teams": {}}, (401, 403, 403, 200)),
    ("GET", "/allocations"): (None, (401, 200, 200, 200)),
    ("GET", "/queue"): (None, (401, 200, 200, 200)),
    ("GET", "/hosts"): (None, (401, 200, 200, 200)),
    ("GET", "/metrics"): (None, (401, 200, 200, 200)),
    ("GET", "/openapi.json"): (None, (200, 200, 200, 200)),
    ("GET", "/docs"): (None, (200, 200, 200, 200)),
    ("GET", "/orchestrator/gpu/info"): (None, (401, 200, 200, 200)),
    ("GET", "/orchestrator/gpu/policy"): (None, (401, 200, 200, 200)),
    ("HEAD", "/events"): (None, (401, 200, 200, 200)),
    ("GET", "/"): (None, (200, 200, 200, 200)),
    ("GET", "/static/main.js"): (None, (200, 200, 200, 200)),
    ("POST", "/explain"): (LEASE, (401, 200, 200, 200)),
    ("POST", "/lease"): (LEASE, (401, 403, 200, 200)),
    ("POST", "/mcp"): ({}, (401, 400, 400, 400)),  # each tool has a role: tests/mcp/test_http.py
    ("POST", "/policy"): ({}, (401, 403, 403, 200)),
    ("POST", "/drain"): ({"host": "nowhere"}, (401, 403, 403, 409)),
    ("POST", "/undrain"): ({"host": "nowhere"}, (401, 403, 403, 409)),
    ("POST", "/forget"): ({"host": "nowhere"}, (401, 403, 403, 409)),
    ("POST", "/revoke"): ({"agent": "nobody"}, (401, 403, 403, 200)),
    ("GET", "/hooks"): (None, (401, 403, 403, 200)),
    ("POST", "/hooks"): ({"url": "no url"}, (401, 403, 403, 422)),
    ("GET", "/hooks/none"): (None, (401, 403, 403, 404)),
    ("POST", "/hooks/none/enable"): (None, (401, 403, 403, 404)),
    ("POST", "/hooks/none/test"): (None, (401, 403, 403, 404)),
    ("DELETE", "/hooks/none"): (None, (401, 403, 403, 404)),
}
ROLES = (None, "viewer", "agent", "operator")


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=" ".join)
@pytest.mark.parametrize("role", ROLES)
def test_role_may_what_the_table_says(
    door: Door, endpoint: tuple[str, str], role: str | None
) -> None:
    """One cell, also under /v1."""
    body, statuses = ENDPOINTS[endpoint]
    method, path = endpoint
    for alias in (path, f"/v1{path}"):
        answer = door.ask(role, method, alias, json=body)
        assert answer.status_code == statuses[ROLES.index(role)], answer.text


OWN = {
    "lease": ("GET", "/lease/{token}", None),
    "explain": ("GET", "/lease/{token}/explain", None),
    "renew": ("POST", "/renew", {"token": "{token}"}),
    "release": ("POST", "/release", {"token": "{token}"}),
    "acquire": ("POST", "/lease", {"agent": "a", "min_memory_mb": 100, "token": "{token}"}),
}
WHO = {
    # who asks about a lease of `agent`: what lease, explain, renew, release, acquire answer
    None: (401, 401, 401, 401, 401),
    "viewer": (403, 403, 403, 403, 403),
    "agent": (200, 200, 200, 200, 200),
    "other": (404, 404, 404, 404, 409),
    "operator": (200, 200, 200, 200, 409),
}


@pytest.mark.parametrize("what", OWN)
@pytest.mark.parametrize("who", WHO)
def test_lease_is_its_owners_and_the_operators(door: Door, who: str | None, what: str) -> None:
    """To another agent's key it is as unknown as one that is not there."""
    token = door.lease("agent")["token"]
    method, path, body = OWN[what]
    if body is not None:
        body = {k: v.format(token=token) if isinstance(v, str) else v for k, v in body.items()}
    answer = door.ask(who, method, path.format(token=token), json=body)
    assert answer.status_code == WHO[who][list(OWN).index(what)], answer.text
    if answer.status_code == 404:
        unknown = door.ask(who, method, path.format(token="0" * 16), json=body and
                           body | {"token": "0" * 16})  # fmt: skip
        own = {"instance": f"#{unknown.headers['X-Request-ID']}"}
        assert (unknown.status_code, unknown.json()) == (404, answer.json() | own)
    live = door.ask("operator", "GET", "/allocations").json()["allocations"]
    assert (token in live) == (what != "release" or answer.status_code != 200)


@pytest.mark.parametrize("role", ["viewer", "other", "agent", "operator"])
def test_tokens_are_whole_for_their_owner_and_the_operator(door: Door, role: str) -> None:
    """To others they are the first eight letters, and still told apart."""
    waits = f"waits-in-the-queue-{role}"
    leases = [door.lease("agent", token=f"same-beg-{role}-{n}-0123") for n in range(2)]
    door.ask("agent", "POST", "/lease", json={"agent": "a", "min_memory_mb": 900, "wait_s": 0.05,
                                              "token": waits})  # fmt: skip
    seen = door.ask(role, "GET", "/allocations").json()["allocations"]
    queue = door.ask(role, "GET", "/queue").json()["queue"]
    explained = door.ask(role, "POST", "/explain", json={"agent": "x", "min_memory_mb": 950})
    whole = role in {"agent", "operator"}
    assert (set(seen) == {x["token"] for x in leases}) == whole
    assert len(seen) == 2
    assert all(name == entry["token"] for name, entry in seen.items())
    assert (queue[0]["token"] == waits) == whole
    text = explained.text if role != "operator" else ""
    for lease in leases:
        assert whole or lease["token"] not in str(seen)
        assert lease["token"] not in text
    door.ask("operator", "POST", "/release", json={"token": waits})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer gbk_" + "x" * 43},
        {"Authorization": "Basic {key}"},
        {"Authorization": "{key}"},
        {"Authorization": "Bearer {key}x"},
        {"X-API-Key": "{key}"},
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
def test_without_a_known_key_nothing_is_said_about_which(
    door: Door, headers: dict[str, str]
) -> None:
    """401 with the same words, whether there was no key, a wrong one, or one in a wrong place."""
    key = door.keys["operator"]
    raw = {k: v.format(key=key).encode("latin-1") for k, v in headers.items()}
    for path in ("/policy", f"/policy?key={key}", f"/policy?api_key={key}", "/no-such-path"):
        answer = door.broker.http.get(path, headers=raw)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert answer.json()["code"] == "unauthorized"
        assert key not in answer.text
    answer = door.broker.http.post("/lease", content=b"{not json", headers=raw)
    assert answer.status_code == 401


def test_two_keys_at_once_are_none(door: Door) -> None:
    """A request with two keys is refused, for it is unclear which one was meant."""
    keys = [("Authorization", f"Bearer {door.keys[x]}") for x in ("viewer", "operator")]
    assert door.broker.http.get("/policy", headers=keys).status_code == 401


def test_key_that_is_bound_to_agents_asks_for_those_alone(door: Door) -> None:
    """By name or pattern."""
    for agent, status in (("scout", 200), ("bound-7", 200), ("analyst", 403), ("scouts", 403)):
        answer = door.ask("bound", "POST", "/lease", json={"agent": agent, "min_memory_mb": 10})
        assert answer.status_code == status
    assert door.ask(
        "agent", "POST", "/lease", json={"agent": "any", "min_memory_mb": 10}
    ).is_success


def test_stolen_agent_key_cannot_end_what_the_sdk_holds(door: Door, server: Server) -> None:
    """A lease without an owner, taken straight from Redis, is not an agent key's."""
    from agent_sdk import LeaseClient, Store  # noqa: PLC0415 - one test's own

    with LeaseClient(Store(server.url), pool="auth", hostname="h1") as client:
        held = client.acquire("sdk", memory_mb=100)
        for who, status in (("agent", 404), ("operator", 200)):
            body = {"token": held.token}
            assert door.ask(who, "POST", "/renew", json=body).status_code == status
            assert door.ask(who, "POST", "/release", json=body).status_code == status


@pytest.mark.parametrize("who", ["agent", "operator"])
def test_pid_in_a_body_registers_nothing(door: Door, server: Server, who: str) -> None:
    """The process of a remote client cannot be known: such a lease has none."""
    lease = door.lease(who, pid="1:1", process="1:1", client="somebody")
    with server.connect() as redis:
        record = redis.hgetall(f"gpu:{{auth}}:record:{lease['token']}")
    assert record["pid"] == ""
    assert record["client"].startswith("broker-")


def test_key_that_is_revoked_opens_nothing_from_the_next_request_on(door: Door) -> None:
    """The running broker reads the file again; what the key holds stays the operator's to end."""
    key = new_key(door.file, "brief", "agent")
    door.keys["brief"] = key
    lease = door.lease("brief")
    subprocess.run(
        [PROGRAM, "keys", "revoke", "brief", "--file", door.file], env=environment(), check=True,
        capture_output=True,
    )  # fmt: skip
    assert door.ask("brief", "GET", "/policy").status_code == 401
    assert lease["token"] in door.ask("operator", "GET", "/allocations").json()["allocations"]


def test_operators_act_is_written_down_in_their_name(door: Door, server: Server) -> None:
    """The stream of events has the act, its reason and the operator's name."""
    door.ask("operator", "POST", "/drain", json={"host": "h1", "reason": "new driver"})
    door.ask("operator", "POST", "/undrain", json={"host": "h1", "reason": "done"})
    with server.connect() as redis:
        (last, before) = redis.xrevrange("gpu:{auth}:events", count=2)
    assert (before[1]["event"], before[1]["by"], before[1]["reason"]) == (
        "drained", "operator", "new driver",
    )  # fmt: skip
    assert (last[1]["event"], last[1]["by"]) == ("undrained", "operator")


def test_http_client_takes_its_key(
    door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By argument, environment or file; without one it fails closed."""
    url = f"http://127.0.0.1:{door.broker.port}"
    with GPUOrchestratorClient(url) as client:
        assert client.cpu_fallback_decision()["use_gpu"] is False
        assert client.lease("a", 10).reason == "unauthorized"
    with GPUOrchestratorClient(url, api_key=door.keys["agent"]) as client:
        assert client.cpu_fallback_decision()["use_gpu"] is True
        with client.lease("a", 10) as lease:
            assert not lease.on_cpu
            assert client.renew(lease)
    file = tmp_path / "key"
    file.write_text(door.keys["agent"] + "\n")
    monkeypatch.setenv("GPU_BROKER_API_KEY_FILE", str(file))
    with GPUOrchestratorClient(url) as client:
        assert client.get_gpu_info()["available"] is True
    monkeypatch.setenv("GPU_BROKER_API_KEY", door.keys["viewer"])
    with GPUOrchestratorClient(url) as client:
        assert client.lease("a", 10).reason == "forbidden"


def test_openapi_shows_what_needs_a_key(door: Door) -> None:
    """Every endpoint but those for probes."""
    paths = door.ask("viewer", "GET", "/openapi.json").json()["paths"]
    bare = {
        (path, method)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if operation.get("security") != [{"HTTPBearer": []}]
    }
    assert bare == {("/health", "get"), ("/ready", "get")}


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:8014", 200), ("[::1]:8014", 200), ("gpu.localhost", 200),
     ("evil.example", 403), ("localhost.evil.example:8014", 403), ("127.0.0.1.evil.example", 403)],
)  # fmt: skip
def test_broker_without_keys_answers_to_this_machines_names_alone(
    fleet: Fleet, door: Door, host: str, status: int
) -> None:
    """A name that somebody else makes point at 127.0.0.1 brings his page no further; a key does."""
    answer = fleet.plain.http.get("/policy", headers={"Host": host})
    assert answer.status_code == status
    assert fleet.plain.http.get("/health", headers={"Host": host}).status_code == 200
    if status == 403:
        assert answer.json()["code"] == "forbidden"
        assert "localhost" in answer.json()["detail"]
    with_key = {"Authorization": f"Bearer {door.keys['viewer']}", "Host": host}
    assert door.broker.http.get("/policy", headers=with_key).status_code == 200

"""The OpenAPI document: complete, true, and the door behind it fuzzed by what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest

from agent_sdk.keys import Keys
from broker.api_keys import add
from broker.http.document.examples import ANSWERS, REQUESTS
from tests.api.brokers import GRANTING, Broker, environment
from tests.audit import audit
from tests.servers import running

if TYPE_CHECKING:
    from tests.servers import Server

CASES = int(os.environ.get("GPU_BROKER_FUZZ", "8"))
"""Examples per operation and phase; `make soak` takes many more."""

CHECKS = (
    "not_a_server_error,status_code_conformance,"
    "content_type_conformance,response_schema_conformance"
)

STREAMS = ("/events", "/live")
"""They never end; tests/api/test_events.py and test_live.py have their bad input."""

KEY: dict[str, list[str]] = {"HTTPBearer": []}

PROBLEMS = ("application/json", "application/problem+json")

PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}

ROOT = Path(__file__).parents[2]

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"

SHORT_WAITS = {"SCHEMATHESIS_HOOKS": "tests.api.short_waits", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def document(broker: Broker) -> dict[str, Any]:
    return dict(broker.http.get("/openapi.json").json())


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation
        for path, methods in (document["paths"] | document["x-streams"]).items()
        for method, operation in methods.items()
    }


def test_every_operation_is_described_with_examples(document: dict[str, Any]) -> None:
    """A summary, a description, an example of what is sent and of what comes back."""
    found = operations(document)
    assert len(found) == 32
    assert set(found) == set(ANSWERS)
    for (method, path), operation in found.items():
        assert operation["summary"].endswith((".", "?")), path
        assert len(operation["description"]) > 20, path
        (content,) = operation["responses"]["200"]["content"].values()
        assert "example" in content, path
        if "requestBody" in operation:
            body = operation["requestBody"]["content"]["application/json"]
            assert body["example"] == REQUESTS[method, path]


def test_every_operation_is_typed_and_named(document: dict[str, Any]) -> None:
    """Ids are names for functions, errors are one type, and no answer is of any type."""
    found = operations(document)
    ids = [operation["operationId"] for operation in found.values()]
    assert len(set(ids)) == len(found)
    tags = {tag["name"] for tag in document["tags"]}
    for (_, path), operation in found.items():
        assert re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", operation["operationId"])
        assert set(operation["tags"]) < tags
        assert operation["security"] == ([] if path in {"/health", "/ready"} else [KEY])
        for status, response in operation["responses"].items():
            content = response["content"]
            if status >= "400" and path != "/ready":
                assert content == dict.fromkeys(PROBLEMS, PROBLEM), (path, status)
            for kind in content.values():
                assert kind["schema"].keys() & {"$ref", "anyOf", "type"}, (path, status)
    described = document["components"]["schemas"]
    assert described["Gpu"]["properties"]["uuid"]["description"] == "The name that never changes."
    assert described["LeaseBody"]["properties"]["wait_s"]["description"].startswith("Wait in the")


def test_errors_without_a_code_are_those_that_the_document_names(
    broker: Broker, document: dict[str, Any]
) -> None:
    """A program that goes by codes learns it from there."""
    names = {"unknown path": 404, "wrong method": 405, "too large": 413, "`If-Match`": 412}
    assert [name for name in names if name not in document["info"]["description"]] == []
    other = {"If-Match": '"999999"'}
    answers = (
        broker.http.get("/nothing"),
        broker.http.patch("/policy"),
        broker.http.post("/release", json={"token": "x" * 20_000}),
        broker.http.put("/policy/teams", json={"teams": {}}, headers=other),
    )
    assert [answer.status_code for answer in answers] == [*names.values()]
    assert [answer.json().get("code") for answer in answers] == [None] * 4


def test_streams_are_no_call_of_a_generated_client(document: dict[str, Any]) -> None:
    """They never end, so they stand apart."""
    assert set(document["x-streams"]) == set(STREAMS)
    assert "text/event-stream" not in json.dumps(document["paths"])


def test_examples_are_true(broker: Broker) -> None:
    """Each example of a request is well-formed, and each reply has the fields of its example."""
    lease = broker.granted(min_memory_mb=100)
    token = lease["token"]
    for (method, path), example in ANSWERS.items():
        body = REQUESTS.get((method, path))
        if body is not None and path in {"/renew", "/release"}:
            body = body | {"token": token}
        if body is not None and "host" in body:
            body = body | {"host": "h1"}
        # They end what the others look at, or never end.
        if path in {"/release", "/forget", "/hooks/{name}/test"} or path in STREAMS:
            continue
        answer = broker.http.request(method, path.format(token=token, name="ops"), json=body)
        assert answer.status_code == 200, (path, answer.text)
        if isinstance(example, dict):
            assert example.keys() <= answer.json().keys(), path
    assert broker.release(token).json().keys() == ANSWERS["post", "/release"].keys()


def test_page_loads_nothing_from_elsewhere(broker: Broker) -> None:
    """Swagger UI with files of our own, under a policy that allows no others."""
    page = broker.http.get("/docs")
    assert page.status_code == 200
    assert "script-src" not in page.headers["Content-Security-Policy"]
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 4
    for path in loaded:  # beside the page, also behind a proxy's prefix
        assert not path.startswith(("http", "//"))
        assert broker.http.get(urljoin("/docs", path)).status_code == 200, path
    assert "http" not in page.text


def fuzz(broker: Broker, *more: str, cases: int = CASES) -> str:
    """Run schemathesis over the document; what it says, when it finds nothing."""
    done = subprocess.run(
        [SCHEMATHESIS, "run", f"http://127.0.0.1:{broker.port}/openapi.json", "-n", str(cases),
         "--checks", CHECKS, "--suppress-health-check", "all", "--seed", "7", *more],
        env=environment(NO_COLOR="1", **SHORT_WAITS),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.timeout(max(120, CASES * 3))
def test_fuzzed_door_keeps_its_word() -> None:
    """No 500, no status that the document has not, and afterwards it grants as before."""
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        said = fuzz(broker.wait())
        generated = re.search(r"(\d+) generated, \1 passed", said)
        assert generated
        assert int(generated[1]) >= 300
        for token in broker.allocations():
            broker.release(token)
        broker.http.post("/undrain", json={"host": "h1"})
        with server.connect() as redis:
            audit(redis, Keys("default"))
            unknown = [key for key in redis.scan_iter() if not key.startswith("gpu:{default}:")]
            assert unknown == []
        assert broker.http.get("/ready").json() == {"ready": True}


def test_fuzzed_door_without_a_key_stays_shut(own: Server, tmp_path: Path) -> None:
    """Whatever is sent: 401, and nothing reaches the pool."""
    add(tmp_path / "keys", "ann", "operator")
    settings = {"REDIS_URL": own.url, "GPU_BROKER_POOL": "shut",
                "GPU_BROKER_KEYS_FILE": str(tmp_path / "keys")}  # fmt: skip
    with Broker(**GRANTING | settings) as broker:
        broker.wait()
        with own.connect() as redis:
            before = (
                redis.hget("gpu:{shut}:pool", "policy_version"),
                redis.xlen("gpu:{shut}:events"),
            )
            # Strangers have a rate; and one answer, for which fewer examples do.
            fuzz(broker, "--rate-limit", "40/s", cases=CASES // 2)
            after = redis.hget("gpu:{shut}:pool", "policy_version"), redis.xlen("gpu:{shut}:events")
        assert after == before

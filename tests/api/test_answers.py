"""Answers beside their description: each real one is of the type that the document says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse

from broker.http.etag import MOST_BYTES, tagged_list
from tests.api.brokers import Broker, eventually
from tests.api.descriptions import Description

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

    from tests.api.conftest import Fleet

PROBLEM = {"Accept": "application/problem+json"}

MEMBERS = {"type", "title", "status", "instance", "detail"}
"""Members of RFC 9457."""


@pytest.fixture(scope="module")
def described(fleet: Fleet) -> Description:
    return Description(fleet.plain.http.get("/openapi.json").json())


def test_description_refuses_what_it_does_not_say(described: Description) -> None:
    """A field that is sent and not described would be seen."""
    content = {"schema": {"$ref": "#/components/schemas/Ready"}}
    assert not described.faults({"ready": True}, content)
    for wrong in ({"ready": True, "hue": 1}, {}, {"ready": False}):
        assert described.faults(wrong, content)


def test_answers_about_leases_are_as_described(described: Description, plain: Broker) -> None:
    """On a GPU, on the CPU, waiting, explained, renewed, released."""
    token = described.check(plain.lease(min_memory_mb=10, hue=1), "/lease")["token"]
    endless = described.check(plain.lease(min_memory_mb=800, exclusive=True, ttl_s=0), "/lease")
    assert endless["gpu"] == "cpu"
    described.check(plain.http.get(f"/lease/{token}"), "/lease/{token}")
    described.check(plain.http.get(f"/lease/{token}/explain"), "/lease/{token}/explain")
    for each in (token, endless["token"]):
        described.check(plain.http.post("/renew", json={"token": each}), "/renew")
    waits = plain.lease(min_memory_mb=900, exclusive=True, wait_s=0.05)
    waiting = described.check(waits, "/lease", 202)["token"]
    described.check(plain.http.get(f"/lease/{waiting}"), "/lease/{token}")
    described.check(plain.http.get(f"/lease/{waiting}/explain"), "/lease/{token}/explain")
    asks = {"agent": "next", "min_memory_mb": 995}
    described.check(plain.http.post("/explain", json=asks), "/explain")
    for page in ({}, {"limit": 1}):
        for path in ("/allocations", "/queue"):
            described.check(plain.http.get(path, params=page), path)
    described.check(plain.release(token), "/release")
    described.check(plain.release(waiting), "/release")


def test_answers_about_the_pool_are_as_described(described: Description, fleet: Fleet) -> None:
    """GPUs with NVML and without, none, hosts, the policy, health."""
    for broker in (fleet.plain, fleet.none, fleet.nvml):
        for path in ("/gpu/info", "/hosts", "/policy", "/health"):
            described.check(broker.http.get(path), path)
    for path in ("/gpu/info", "/hosts"):
        described.check(fleet.plain.http.get(path, params={"limit": 1}), path)
    described.check(fleet.plain.http.get("/ready"), "/ready")
    described.check(fleet.storeless.http.get("/health"), "/health")
    described.check(fleet.storeless.http.get("/gpu/info"), "/gpu/info")
    described.check(fleet.storeless.http.get("/ready"), "/ready", 503)


def test_answers_to_operators_are_as_described(described: Description, plain: Broker) -> None:
    """Each act, and a field that none of them knows."""
    asks = {"host": "h1", "hue": 1}
    described.check(plain.http.post("/policy", json={"hue": 1}), "/policy")
    for path in ("/drain", "/undrain"):
        described.check(plain.http.post(path, json=asks), path)
    token = plain.granted(min_memory_mb=10)["token"]
    described.check(plain.http.post("/revoke", json={"token": token, "force": True}), "/revoke")
    described.check(plain.http.post("/revoke", json={"agent": "nobody"}), "/revoke")
    described.check(plain.http.post("/forget", json={"host": "nowhere"}), "/forget", 409)
    gone = eventually(lambda: _ok(plain.http.post("/forget", json=asks)), 20)
    described.check(gone, "/forget")
    assert eventually(lambda: plain.http.get("/gpu/info").json()["available"], 20)


def test_answers_about_webhooks_are_as_described(described: Description, plain: Broker) -> None:
    """From its begin to its end."""
    asks = {"url": "https://ops.example/gpu", "name": "ops", "hue": 1}
    added = described.check(plain.http.post("/hooks", json=asks), "/hooks")
    try:
        assert added["secret"]
        described.check(plain.http.get("/hooks"), "/hooks")
        described.check(plain.http.get("/hooks/ops"), "/hooks/{name}")
        described.check(plain.http.post("/hooks/ops/enable"), "/hooks/{name}/enable")
    finally:
        gone = plain.http.delete("/hooks/ops")
    described.check(gone, "/hooks/{name}")
    described.check(plain.http.get("/hooks/ops"), "/hooks/{name}", 404)


def _ok(answer: httpx2.Response) -> httpx2.Response | None:
    return answer if answer.status_code == 200 else None


def test_answers_under_safe_mode_are_as_described(described: Description, fleet: Fleet) -> None:
    """No lease, and a policy that says why nothing changes."""
    described.check(fleet.safe.lease(min_memory_mb=1), "/lease")
    described.check(fleet.safe.http.post("/policy", json={"kill_on_oom": True}), "/policy")


@pytest.mark.parametrize("headers", [{}, PROBLEM], ids=["documented", "RFC 9457"])
def test_errors_are_as_described(
    described: Description, fleet: Fleet, plain: Broker, headers: dict[str, str]
) -> None:
    """The documented fields stand beside the members of RFC 9457; its type is sent if asked for."""
    refused = {"agent": "a", "min_memory_mb": 5000, "on_unavailable": "refuse"}
    asked: tuple[tuple[str, Any, str, int], ...] = (
        ("/lease/0000000000000000", None, "/lease/{token}", 404),
        ("/release", {"json": {"token": "0" * 16}}, "/release", 404),
        ("/lease", {"json": refused}, "/lease", 409),
        ("/lease", {"json": {"agent": 5, "hue": 1}}, "/lease", 422),
        ("/drain", {"json": {}}, "/drain", 422),
        ("/queue?limit=0", None, "/queue", 422),
        ("/lease", {"content": b" " * 20_000}, "/lease", 413),
    )
    answers = [
        (plain.http.request("POST" if body else "GET", at, headers=headers, **(body or {})), *more)
        for at, body, *more in asked
    ]
    answers.append((fleet.storeless.http.get("/policy", headers=headers), "/policy", 503))
    for answer, path, status in answers:
        body = described.check(answer, path, status)
        assert body.keys() >= MEMBERS
        assert body["status"] == status
        assert body["instance"] == f"#{answer.headers['X-Request-ID']}"
        kind = "application/problem+json" if headers else "application/json"
        assert answer.headers["content-type"] == kind
        assert isinstance(body["detail"], list if status == 422 and not headers else str)
        assert ("errors" in body) == (status == 422 and bool(headers))
        assert body["type"].rpartition(":")[2] == body.get("code", "blank")
    nowhere = plain.http.get("/nowhere", headers=headers).json()
    assert nowhere.items() >= {"detail": "Not Found", "type": "about:blank"}.items()


@pytest.mark.parametrize("path", ["/policy", "/gpu/info"])
def test_unchanged_answer_is_304_without_a_body(plain: Broker, path: str) -> None:
    """The tag is the body's: once that changes, the old one gets the new body."""

    def unchanged() -> httpx2.Response | None:  # a report may come between
        tag = plain.http.get(path).headers["ETag"]
        answer = plain.http.get(path, headers={"If-None-Match": f'"other", W/{tag}'})
        assert answer.headers["Cache-Control"] == "no-store"
        return answer if answer.status_code == 304 else None

    answer = eventually(unchanged, 20)
    assert answer.content == b""
    assert plain.http.head(path, headers={"If-None-Match": "*"}).status_code == 304
    old = answer.headers["ETag"]
    plain.http.post("/policy", json={"idle_after_s": 700})
    token = plain.granted(min_memory_mb=10)["token"]
    answer = plain.http.get(path, headers={"If-None-Match": old})
    plain.release(token)
    plain.http.post("/policy", json={"idle_after_s": 600})
    assert answer.status_code == 200
    assert answer.headers["ETag"] != old


async def test_long_list_is_sent_whole_without_a_tag() -> None:
    """It is not kept for its tag, and nothing of it is lost."""
    made = [bytes([number]) * (MOST_BYTES // 3) for number in range(7)]

    async def pieces() -> AsyncIterator[bytes]:
        for piece in made:
            yield piece

    response = await tagged_list(Request({"type": "http", "headers": []}), pieces())
    assert isinstance(response, StreamingResponse)
    assert "ETag" not in response.headers
    assert b"".join([part async for part in response.body_iterator]) == b"".join(made)

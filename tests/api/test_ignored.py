"""Unknown fields of a request are ignored, and the answer says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import GRANTING, Broker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server


@pytest.fixture(scope="module")
def broker(server: Server) -> Iterator[Broker]:
    """One that grants: a simulated device of 1000 MiB on host h1."""
    with Broker(REDIS_URL=server.url, GPU_BROKER_POOL="ignored", **GRANTING) as running:
        yield running.wait()


def answer(broker: Broker, path: str, **body: Any) -> dict[str, Any]:
    """Return the answer to a POST."""
    return dict(broker.http.post(path, json=body).json())


def test_lease_names_the_fields_that_it_does_not_know(broker: Broker) -> None:
    """Beside everything else; an answer without such fields has no such list."""
    granted = answer(broker, "/lease", agent="a", min_memory=500, memory_mb=100, wait=3)
    assert granted["ignored"] == ["min_memory", "wait"]
    assert (granted["granted"], granted["memory_mb"]) == (True, 100)
    for path in ("/renew", "/release"):
        done = answer(broker, path, token=granted["token"], reason="x")
        assert (done["token"], done["ignored"]) == (granted["token"], ["reason"])
    plain = answer(broker, "/lease", agent="a", min_memory_mb=100)
    assert "ignored" not in plain
    assert "ignored" not in answer(broker, "/release", token=plain["token"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/policy", {"default_memory_mb": 2048}),
        ("/drain", {"host": "h1"}),
        ("/undrain", {"host": "h1"}),
        ("/revoke", {"agent": "nobody"}),
        ("/explain", {"agent": "a"}),
    ],
)
def test_other_bodies_do_the_same(broker: Broker, path: str, body: dict[str, Any]) -> None:
    """The policy, operators' acts, explanations."""
    assert answer(broker, path, **body, nonsense=1)["ignored"] == ["nonsense"]
    assert "ignored" not in answer(broker, path, **body)
    answer(broker, "/undrain", host="h1")


def test_policy_as_it_was_read_may_be_sent_back(broker: Broker) -> None:
    """A field that is no setting of the policy is ignored, and named."""
    policy = broker.http.get("/policy").json()
    assert answer(broker, "/policy", **policy)["ignored"] == ["safe_mode_read_only", "version"]


def test_refused_body_names_them_too(broker: Broker) -> None:
    """A misspelled field that is required is seen at once."""
    refused = broker.http.post("/lease", json={"agnet": "a"})
    assert refused.status_code == 422
    assert refused.json()["ignored"] == ["agnet"]
    assert refused.json()["detail"] == [
        {"type": "missing", "loc": ["body", "agent"], "msg": "Field required"}
    ]


def test_hostile_names_are_cut_and_printable(broker: Broker) -> None:
    """No answer breaks, and none is long, whatever a field is called."""
    names = ['"\\ud800"', '"\\u0000\\u202e"', f'"{"x" * 500}"', *(f'"n{i}"' for i in range(50))]
    body = f'{{"agent": "a", {", ".join(f"{name}: 1" for name in names)}}}'
    said = broker.http.post("/lease", content=body, headers={"Content-Type": "application/json"})
    assert said.status_code == 422, said.text  # a lone surrogate is no text
    ignored = said.json()["ignored"]
    assert ignored[:3] == ["\\ud800", "\\x00\\u202e", "x" * 64]
    assert len(ignored) == 20


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({}, "it was none"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "it was application/x-www-form"),
    ],
)
def test_body_without_its_content_type_is_said(
    broker: Broker, sent: dict[str, str], says: str
) -> None:
    """`curl -d` without a header sends such a body."""
    refused = broker.http.post("/lease", content='{"agent": "a"}', headers=sent)
    (detail,) = refused.json()["detail"]
    assert (refused.status_code, detail["loc"]) == (422, ["body"])
    assert "Content-Type must be application/json" in detail["msg"]
    assert says in detail["msg"]


def test_body_that_is_no_object_is_said(broker: Broker) -> None:
    """Not in pydantic's words about a class."""
    (detail,) = broker.http.post("/lease", json=["a"]).json()["detail"]
    assert detail["msg"] == "the body must be a JSON object"
    teams = {"teams": {"a": None, "b": 1}}
    for each in broker.http.put("/policy/teams", json=teams).json()["detail"]:
        assert (each["loc"][:2], each["msg"]) == (["body", "teams"], "must be a JSON object")


def test_few_mib_are_asked_about(broker: Broker) -> None:
    """The lease is as asked, and the answer wonders."""
    few = answer(broker, "/lease", agent="a", min_memory_mb=8)
    assert few["memory_mb"] == 8
    assert few["hint"] == "8 MiB is very little: if GiB were meant, say 8192"
    assert "hint" not in answer(broker, "/lease", agent="a", min_memory_mb=64)

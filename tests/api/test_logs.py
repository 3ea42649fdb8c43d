"""The broker's log: one line per verb, with what it was about, and no secret in it or anywhere."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.brokers import GRANTING, Broker, eventually
from tests.api.keys import PASSWORD
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx2

    from tests.servers import Server


@pytest.fixture(scope="module")
def broker(locked: Server, key_file: Path, key: str) -> Iterator[Broker]:
    with broker_on(locked, key_file, key) as broker:
        yield broker


@contextmanager
def broker_on(locked: Server, key_file: Path, key: str) -> Iterator[Broker]:
    """A broker on a server with the password, which knows one key."""
    url = f"redis://:{PASSWORD}@127.0.0.1:{locked.port}"
    settings = {"REDIS_URL": url, "GPU_BROKER_KEYS_FILE": str(key_file), "LOG_FORMAT": "json"}
    with Broker(**GRANTING, **settings) as broker:
        broker.http.headers["Authorization"] = f"Bearer {key}"
        yield broker.wait()


def lines(broker: Broker) -> list[dict[str, Any]]:
    """Return the log's lines about requests, an object a line."""
    found = [json.loads(line) for line in broker.said().splitlines() if line.startswith("{")]
    return [line for line in found if "status" in line]


def line_of(broker: Broker, answer: httpx2.Response) -> dict[str, Any]:
    """The line of the request that was answered so, once it is written."""
    request_id = answer.headers["X-Request-ID"]
    (line,) = eventually(lambda: [x for x in lines(broker) if x["request_id"] == request_id], 5)
    assert line.pop("timestamp")
    assert line.pop("ms") >= 0
    assert line.pop("level") == "info"
    assert f'replica="{line.pop("replica")}"' in broker.http.get("/metrics").text
    return dict(line)


def test_verb_is_one_line_with_what_it_was_about(broker: Broker) -> None:
    """It has agent, lease, place, end and request; of the token eight letters."""
    answer = broker.lease(min_memory_mb=100)
    assert "token" in answer.json(), answer.text
    lease, line = answer.json(), line_of(broker, answer)
    assert len(line.pop("request_id")) == 16
    assert line == {
        "event": "lease", "by": "ann", "status": 200, "agent": "analyst", "gpus": "SIM-h1-0",
        "token": lease["token"][:8], "fence": lease["fence"],
    }  # fmt: skip
    mine = {"X-Request-ID": "trace-7.a_b"}
    answer = broker.http.post("/renew", json={"token": lease["token"]}, headers=mine)
    assert line_of(broker, answer) == {
        "event": "renew", "by": "ann", "status": 200, "token": lease["token"][:8],
        "request_id": "trace-7.a_b",
    }  # fmt: skip
    broker.release(lease["token"])
    line = line_of(broker, broker.release(lease["token"]))
    assert (line["event"], line["status"], line["code"]) == ("release", 404, "unknown_token")
    line = line_of(broker, broker.lease(min_memory_mb=5000, on_unavailable="refuse"))
    assert (line["status"], line["code"]) == (409, "never_fits")


def test_request_id_of_another_form_is_replaced(broker: Broker) -> None:
    """A client writes nothing of its own into the log."""
    for given in ("", "a b", "x" * 65, '"}'):
        headers = {"X-Request-ID": given.encode()}
        answer = broker.http.post("/release", json={"token": "x"}, headers=headers)
        assert answer.headers["X-Request-ID"] != given
        assert line_of(broker, answer)["event"] == "release"


def test_operators_acts_are_marked_for_the_audit(broker: Broker) -> None:
    """The log has operator, act and reason, also of acts that were refused."""

    def act(path: str, **body: Any) -> dict[str, Any]:
        line = line_of(broker, broker.http.post(path, json=body))
        assert (line["audit"], line["by"]) == (True, "ann")
        return line

    line = act("/drain", host="h1", reason="new driver")
    assert (line["host"], line["why"]) == ("h1", "new driver")
    act("/undrain", host="h1")
    assert act("/policy", max_memory_per_agent_mb=4096)["max_memory_per_agent_mb"] == 4096
    line = act("/revoke", agent="nobody", reason="tidy")
    assert (line["agent"], line["why"], line["revoked"]) == ("nobody", "tidy", 0)
    line = act("/drain", host="nowhere", reason="typo")
    assert (line["code"], line["status"]) == ("host_unknown", 409)


def test_reading_is_not_logged(broker: Broker) -> None:
    """Probes and dashboards ask all day."""
    line_of(broker, broker.release("x"))
    before = len(lines(broker))
    for path in ("/health", "/ready", "/policy", "/allocations", "/metrics", "/nowhere"):
        broker.http.get(path)
    assert len(lines(broker)) == before


def test_no_secret_is_anywhere(key_file: Path, key: str) -> None:
    """Neither in the log, nor in answers, metrics, the document, or a process's arguments."""
    with running() as server, server.connect() as client:
        client.config_set("requirepass", PASSWORD)
        with broker_on(server, key_file, key) as broker:
            keeps_secrets(server, broker, key)


def keeps_secrets(locked: Server, broker: Broker, key: str) -> None:
    """Check all that is told before and after the end of its server."""
    lease = broker.granted(min_memory_mb=10)
    answers = [
        broker.http.post("/lease", content=f'{{"token": "{key}", "password": "{PASSWORD}"'),
        broker.http.post("/release", json={"token": key}),
        broker.http.get("/openapi.json"),
        broker.http.get("/metrics"),
        broker.http.get(f"/lease/{key}"),
        broker.http.get("/policy", headers={"Authorization": f"Basic {key}"}),
        broker.http.get("/policy", headers={"Authorization": "Bearer gbk_stolen-key-of-somebody"}),
    ]
    locked.process.kill()
    locked.process.wait()
    answers += [broker.lease(), broker.http.get("/ready"), broker.http.get("/metrics")]
    told = "\n".join(answer.text for answer in answers)
    arguments = subprocess.check_output(["ps", "-ww", "-o", "args", "-p", str(broker.process.pid)])
    everywhere = broker.said() + told + arguments.decode()
    for secret in (key, PASSWORD, "gbk_stolen-key-of-somebody"):
        assert secret not in everywhere
    assert lease["token"] not in broker.said()
    assert "Redis" in broker.said()

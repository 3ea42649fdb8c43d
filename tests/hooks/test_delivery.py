"""Webhooks of a real broker: what arrives at a real receiver, and what becomes of failures."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from standardwebhooks import Webhook, WebhookVerificationError

from agent_sdk.keys import Keys
from tests.api.brokers import GRANTING, Broker, at_once, eventually
from tests.hooks.receiver import Receiver
from tests.program import called
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

KEYS = Keys("default")

ALLOWED = {"GPU_BROKER_HOOKS_ALLOW": "127.0.0.0/8"}


@pytest.fixture(scope="module")
def broker(own: Server) -> Iterator[Broker]:
    with Broker(**GRANTING | ALLOWED, REDIS_URL=own.url) as broker:
        yield broker.wait()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path / "receiver") as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def clean(broker: Broker) -> Iterator[None]:
    yield
    for hook in broker.http.get("/hooks").json()["hooks"]:
        assert broker.http.delete(f"/hooks/{hook['name']}").status_code == 200


def add(broker: Broker, url: str, *on: str, name: str = "ops") -> str:
    """Add a hook; its secret."""
    answer = broker.http.post("/hooks", json={"url": url, "on": on, "name": name})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["secret"])


def shown(broker: Broker, name: str = "ops") -> dict[str, Any]:
    return dict(broker.http.get(f"/hooks/{name}").json())


def events(own: Server, *names: str) -> list[tuple[str, dict[str, str]]]:
    """The events of the stream with these names."""
    with own.connect() as redis:
        found: Any = redis.xrange(KEYS.events)
    return [(name, row) for name, row in found if row["event"] in names]


def lease(broker: Broker) -> str:
    """Take a lease and give it back: two events. Its token."""
    token = str(broker.granted(min_memory_mb=100)["token"])
    broker.release(token)
    return token


def test_events_arrive_in_order_signed_and_once(
    own: Server, broker: Broker, receiver: Receiver
) -> None:
    """CloudEvents of the kinds that were asked for; a receiver sees the fence, and no token."""
    before = len(events(own, "granted", "released"))
    secret = add(broker, receiver.url, "granted", "released")
    tokens = [lease(broker) for _ in range(5)]
    wanted = events(own, "granted", "released")[before:]
    eventually(lambda: len(receiver.got) >= len(wanted), 20)
    assert receiver.ids() == [name for name, _ in wanted]
    for request, (name, row) in zip(receiver.got, wanted, strict=True):
        Webhook(secret).verify(request["body"], request["headers"])
        message = HTTPMessage(request["headers"], request["body"].encode())
        event = from_structured_event(message)
        assert event.get_id() == name
        assert event.get_type() == f"gpu-broker.{row['event']}"
        assert event.get_source() == "urn:gpu-broker:default"
        data: Any = event.get_data()
        assert data["fence"] == int(row["fence"])
        assert data["devices"][0]["host"] == "h1"
        assert not any(token in request["body"] for token in tokens)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(receiver.got[0]["body"] + " ", receiver.got[0]["headers"])
    eventually(lambda: shown(broker)["backlog"] == 0, 10)
    assert shown(broker)["delivered"] == len(wanted)


def test_receiver_that_fails_gets_everything_once_it_is_back(
    own: Server, broker: Broker, receiver: Receiver
) -> None:
    """An error, no answer, nothing that listens: the same message again, and nothing overtakes."""
    before = len(events(own, "granted", "released"))
    add(broker, receiver.url, "granted", "released")
    receiver.does("500", "close", "200")
    lease(broker)
    wanted = [name for name, _ in events(own, "granted", "released")[before:]]
    eventually(lambda: len(receiver.got) == 4, 30)
    assert receiver.ids() == [wanted[0], wanted[0], *wanted]
    bodies = {each["body"] for each in receiver.got if each["headers"]["webhook-id"] == wanted[0]}
    assert len(bodies) == 1
    receiver.stop()
    lease(broker)
    eventually(lambda: shown(broker)["state"] == "failing", 20)
    failing = shown(broker)
    assert failing["error"]
    assert failing["backlog"] >= 2
    assert broker.metrics()['gpu_broker_hooks{state="failing"}'] == 1
    receiver.start()
    assert called("hooks", "enable", "ops", REDIS_URL=own.url).returncode == 0  # end of the pause
    wanted = [name for name, _ in events(own, "granted", "released")[before:]]
    # `enable` may meet a try that is taken: that message comes twice
    eventually(lambda: list(dict.fromkeys(receiver.ids())) == wanted, 30)
    assert eventually(lambda: shown(broker)["state"] == "active", 10)


def test_hook_that_hangs_holds_no_other_up(
    own: Server, broker: Broker, receiver: Receiver, tmp_path: Path
) -> None:
    """Nor the broker itself."""
    with Receiver(tmp_path / "hangs") as other:
        other.does("hang")
        add(broker, other.url, "granted", name="hangs")
        add(broker, receiver.url, "granted")
        lease(broker)
        eventually(lambda: len(other.got) == 1, 20)
        lease(broker)
        eventually(lambda: len(receiver.got) == 2, 20)
        assert len(other.got) == 1


def test_hook_that_its_receiver_ends_is_disabled_with_an_event(
    own: Server, broker: Broker, receiver: Receiver
) -> None:
    """410: a word in the stream, the metrics, doctor; and `enable` goes on where it was."""
    add(broker, receiver.url, "granted")
    receiver.does("410", "200")
    lease(broker)
    eventually(lambda: shown(broker)["state"] == "disabled", 20)
    ((_, told),) = events(own, "hook_disabled")
    assert told["hook"] == "ops"
    assert "410" in told["reason"]
    assert broker.metrics()['gpu_broker_hooks{state="disabled"}'] == 1
    here = {"REDIS_URL": own.url, "GPU_ORCHESTRATOR_PORT": str(broker.port)}
    doctor = called("doctor", **here)
    assert doctor.returncode == 1
    assert "hook ops is disabled" in doctor.stdout
    lease(broker)
    assert called("hooks", "enable", "ops", **here).returncode == 0
    wanted = [name for name, _ in events(own, "granted")[-2:]]
    eventually(lambda: receiver.ids() == [wanted[0], *wanted], 20)
    assert shown(broker)["disabled"] is None


def test_test_event_shows_the_answer(own: Server, broker: Broker, receiver: Receiver) -> None:
    """By the broker that delivers; the event is none of the pool's."""
    secret = add(broker, receiver.url, "expired")
    receiver.does("200", "503", f"to:{receiver.url}/elsewhere")
    done = called("hooks", "test", "ops", REDIS_URL=own.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("taken: status 200, in ")
    assert done.stdout.endswith("thanks\n")
    (got,) = receiver.got
    Webhook(secret).verify(got["body"], got["headers"])
    assert json.loads(got["body"])["type"] == "gpu-broker.test"
    answer = broker.http.post("/hooks/ops/test").json()
    assert (answer["delivered"], answer["status"]) == (False, 503)
    moved = called("hooks", "test", "ops", REDIS_URL=own.url)
    assert moved.returncode == 1
    assert "redirects are not followed" in moved.stdout
    assert len(receiver.got) == 3
    assert shown(broker)["delivered"] == 0


def test_addresses_that_are_not_allowed_get_nothing(broker: Broker, tmp_path: Path) -> None:
    """127.0.0.0/8 is allowed here, and nothing else of this machine or its network."""
    with Receiver(tmp_path / "six", "::1") as six:
        urls = (six.url, "http://169.254.169.254/latest", "http://10.255.255.1/", "http://0.0.0.0/")
        for number, url in enumerate(urls):
            add(broker, url, name=f"n{number}")
        asks = [("POST", f"/hooks/n{number}/test", None) for number in range(len(urls))]
        for answer in at_once(broker, asks):
            said = answer.http.json()
            assert said["delivered"] is False
            assert "is no public address" in said["said"], said
            assert "GPU_BROKER_HOOKS_ALLOW" in said["said"]
        assert six.got == []


def test_broker_without_the_extra_says_what_it_lacks(tmp_path: Path) -> None:
    """In its log and to doctor; everything else goes on."""
    bare = "import sys; sys.modules['httpcore2'] = None; from broker.cli import main; main()"
    with (
        running() as server,
        Broker(program=(sys.executable, "-c", bare), **GRANTING, REDIS_URL=server.url) as broker,
    ):
        add(broker.wait(), "https://ops.example")
        eventually(lambda: "gpu-lease-broker[hooks]" in broker.said(), 20)
        told = called("doctor", REDIS_URL=server.url, GPU_BROKER_STATE_DIR=str(tmp_path))
        assert told.returncode == 1
        assert "no broker delivers to hooks" in told.stdout
        lease(broker)


def test_secret_is_told_once(own: Server, broker: Broker, receiver: Receiver) -> None:
    """At the addition; no list, no row and no log has it, nor the URL's query."""
    url = f"{receiver.url}?key=hidden-in-the-query"
    done = called("hooks", "add", url, "--name", "ops", REDIS_URL=own.url)
    secret = done.stdout.strip()
    assert secret.startswith("whsec_")
    assert broker.http.post("/hooks/ops/test").json()["delivered"] is True
    said = [
        called("hooks", *words, REDIS_URL=own.url).stdout
        for words in (
            ("list",),
            ("list", "-o", "json"),
            ("show", "ops"),
            ("show", "ops", "-o", "json"),
        )
    ]
    said += [broker.http.get("/hooks").text, broker.http.get("/hooks/ops").text, broker.said()]
    for text in said:
        assert secret not in text
        assert "hidden-in-the-query" not in text
    again = called("hooks", "add", url, "--name", "ops", REDIS_URL=own.url)
    assert again.returncode == 1
    assert "is called ops already" in again.stderr

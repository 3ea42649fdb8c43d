"""Requests to webhooks, and the forms that are taken."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from agent_sdk.errors import BadRequest
from agent_sdk.state.events import NAMES, Event
from broker.hooks import web
from broker.hooks.addresses import Addresses, AddressRefused
from broker.hooks.message import message_of, message_of_test
from broker.hooks.operators import new_hook
from broker.hooks.web import WebClient, outcome_of
from broker.settings import SettingsError, load_settings
from tests.api.brokers import eventually
from tests.hooks.receiver import Receiver
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from broker.hooks.hook import Hook
    from broker.hooks.web import SendOutcome

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "webhooks.md"

MESSAGE = message_of_test("default", "ops", "1", 1795607407688)

LOCAL = Addresses("127.0.0.1")


async def sent(hook: Hook, addresses: Addresses = LOCAL) -> SendOutcome:
    """Send one message by a client of its own."""
    client = WebClient(addresses)
    try:
        return await client.send(hook, MESSAGE)
    finally:
        await client.close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "169.254.169.254", "fe80::1%eth0", "10.0.0.1",
     "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200", "fd00:ec2::254", "224.0.0.1",
     "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "240.0.0.1", "168.63.129.16", "64:ff9b:1::a00:1",
     "fec0::1", "::10.0.0.1", "192.0.0.8"],
)  # fmt: skip
def test_address_that_is_not_public_is_refused(address: str) -> None:
    """In whatever form it is written; a setting allows it, by its network or by a name."""
    with pytest.raises(AddressRefused, match="GPU_BROKER_HOOKS_ALLOW"):
        Addresses("10.1.0.0/16,other.example").check("ops.example", address)
    Addresses("0.0.0.0/0,::/0").check("ops.example", address)
    Addresses("ops.example").check("OPS.example.", address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808"])
def test_public_address_needs_no_setting(address: str) -> None:
    """Over IPv4, IPv6 and between them."""
    Addresses().check("ops.example", address)


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "http://x", "a b", "1.2.3", "x,,*"])
def test_setting_that_is_none_stops_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its name."""
    monkeypatch.setenv("GPU_BROKER_HOOKS_ALLOW", wrong)
    with pytest.raises(SettingsError, match="GPU_BROKER_HOOKS_ALLOW"):
        load_settings()


async def test_name_is_judged_by_the_address_that_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: a name that was public when the hook was added points to this machine."""

    def rebound(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "ops.example"
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    with Receiver(tmp_path / "receiver") as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", rebound)
        hook = new_hook(f"http://ops.example:{receiver.port}/")
        refused = await sent(hook, Addresses())
        assert not refused.taken
        assert "127.0.0.1 is no public address" in refused.said
        assert receiver.got == []
        assert (await sent(hook, Addresses("ops.example"))).taken
        assert receiver.got[0]["headers"]["host"] == f"ops.example:{receiver.port}"


async def test_try_ends_in_time_whatever_the_receiver_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer at all, none that is HTTP, nothing that listens, a name that there is not."""
    monkeypatch.setattr(web, "ANSWER_S", 0.5)
    with Receiver(tmp_path / "receiver") as receiver:
        receiver.does("hang", "close", "404", "200")
        hook = new_hook(receiver.url)
        assert (await sent(hook)).said == "no answer within 0.5 s"
        assert "without sending" in (await sent(hook)).said
        assert (await sent(hook)).said == "status 404"
        assert (await sent(hook)).taken
    gone = await sent(hook)
    assert not gone.taken
    assert gone.said


async def test_names_that_are_not_looked_up_hold_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the threads that asyncio shares: other hooks and other work go on."""
    over, look_up = threading.Event(), socket.getaddrinfo

    def hanging(host: Any, *about: Any, **more: Any) -> Any:
        if ".example" in str(host):
            over.wait(30)
            raise OSError("no such name")
        return look_up(host, *about, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    client = WebClient(Addresses("localhost"))

    def send(url: str) -> asyncio.Task[SendOutcome]:
        return asyncio.create_task(client.send(new_hook(url), MESSAGE))

    with Receiver(tmp_path / "receiver") as receiver:
        silent = [send(f"http://n{n}.example/") for n in range(40)]
        try:
            await asyncio.sleep(0.2)
            async with asyncio.timeout(5):
                assert (await send(f"http://localhost:{receiver.port}/")).taken
                await asyncio.to_thread(time.monotonic)
            assert not any(task.done() for task in silent)
        finally:
            over.set()
            await asyncio.wait(silent)
            await client.close()


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A receiver that sends these bytes to each request, and no end; its URL."""

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await over.wait()
        writer.close()

    over = asyncio.Event()
    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        over.set()


LATE = "Retry-After: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n"

ODD = {
    "a body without an end": "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    "a body that never begins": "Content-Length: 9\r\n\r\n",
    "a body in no order": "Transfer-Encoding: chunked\r\n\r\nZZ\r\nok\r\n",
    "a date without a meaning": f"{LATE}Content-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("status", [200, 204, 410, 503])
@pytest.mark.parametrize("rest", ODD.values(), ids=ODD)
async def test_status_counts_whatever_follows_it(
    status: int, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send nothing again that was taken, and nothing more after an end."""
    monkeypatch.setattr(web, "ANSWER_S", 5)
    monkeypatch.setattr(web, "BODY_S", 0.2)
    async with answering(f"HTTP/1.1 {status} Well\r\n{rest}".encode()) as url:
        outcome = await sent(new_hook(url))
    assert (outcome.status, outcome.said) == (status, f"status {status}")
    assert (outcome.taken, outcome.gone) == (status < 300, status == 410)


async def test_body_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for the status is over while the body comes: the status was there before."""
    monkeypatch.setattr(web, "ANSWER_S", 0.5)
    rest = ODD["a body without an end"]
    async with answering(f"HTTP/1.1 200 Well\r\n{rest}".encode()) as url:
        outcome = await sent(new_hook(url))
    assert outcome.taken
    assert outcome.answer == "ok"


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": ""}, {"secret": "whsec_%"}, {"url": "http://a b/"}, {"url": "http://x:y"},
        {"url": "http://[::1"},
    ],
)  # fmt: skip
async def test_hook_that_another_hand_wrote_fails_in_words(wrong: dict[str, str]) -> None:
    """Like any other failure: it is tried again, and disabled in the end."""
    outcome = await sent(replace(new_hook("http://127.0.0.1:9/"), **wrong))
    assert not outcome.taken
    assert outcome.said


def test_time_that_no_calendar_has_is_the_last_that_one_has() -> None:
    """A hand wrote it to the stream: the event is delivered, and those after it."""
    event = Event("999999999999999999-1", "waiting", {"agent": "a"})
    said = json.loads(message_of("p", event, {}).body())
    assert (said["id"], said["time"]) == (event.id, "9999-12-31T23:59:59Z")


def test_status_says_what_comes_next() -> None:
    """2xx is taken, 410 is the end, a redirect is none; Retry-After in seconds or as a date."""
    assert [n for n in (200, 204, 302, 429, 500) if outcome_of(n, {}, "").taken] == [200, 204]
    assert [outcome_of(n, {}, "").gone for n in (404, 410, 503)] == [False, True, False]
    assert "not followed" in outcome_of(301, {}, "").said
    asked = [
        outcome_of(429, {b"retry-after": text}, "").retry_after_s
        for text in ("7", formatdate(time.time() + 100, usegmt=True), "soon", "-1", "")
    ]
    assert asked[0] == 7
    assert 90 < asked[1] < 110
    assert asked[2:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("url", "says"),
    [("https://", "a URL as"), ("http://x:99999/", "a URL as"), ("https://a b/", "a URL as"),
     ("https://grün.example/", "IDNA"), ("https://ann:pw@x.example/", "a user"),
     ("https://x.example/#part", "a fragment"), ("ftp://x.example", "begins with one of"),
     ("https://x.example/" + "x" * 2100, "at most 2048"), ("x.example", "begins with one of")],
)  # fmt: skip
def test_url_that_is_none_is_refused_in_words(url: str, says: str) -> None:
    """At the addition."""
    with pytest.raises(BadRequest, match=says):
        new_hook(url)


def test_events_names_and_secrets_are_checked() -> None:
    """Only events that exist; a secret that every library reads as the same key."""
    with pytest.raises(BadRequest, match="did you mean expired") as refused:
        new_hook("https://x.example", on=["expird"])
    assert all(name in str(refused.value) for name in NAMES)
    for none in ([""], [" ", ""]):  # of a variable that is empty
        with pytest.raises(BadRequest, match="leave it out for all"):
            new_hook("https://x.example", on=none)
    with pytest.raises(BadRequest, match="name:"):
        new_hook("https://x.example", name="Ops!")
    whole = "whsec_" + base64.b64encode(b"\xff" * 24).decode()
    assert new_hook("https://x.example", secret=whole).secret == whole
    assert new_hook("https://x.example", on=["expired", " ", "expired"]).on == "expired"
    url_safe, plain = whole.replace("/", "_"), "my secret!"
    for wrong in (url_safe, plain, "whsec_", "whsec_" + "QUJD", whole.removeprefix("whsec_")):
        with pytest.raises(BadRequest, match="the secret must be whsec_"):
            new_hook("https://x.example", secret=wrong)
    made = {new_hook("https://x.example").secret for _ in range(3)}
    assert len(made) == 3


@pytest.fixture
def of_the_page() -> Iterator[tuple[Hook, subprocess.Popen[str]]]:
    """The receiver of the how-to page, as it stands there, and a hook to it."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    port = free_port()
    hook = new_hook(f"http://127.0.0.1:{port}/")
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={"PORT": str(port), "HOOK_SECRET": hook.secret},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def listens() -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(hook.url).status_code == 501
        return False

    eventually(listens, 20)
    yield hook, process
    process.kill()
    process.wait(10)


async def test_receiver_of_the_page_takes_what_is_signed_once(
    of_the_page: tuple[Hook, subprocess.Popen[str]],
) -> None:
    """A repetition is taken and done once; another's signature is refused."""
    hook, process = of_the_page
    assert [(await sent(hook)).status for _ in range(2)] == [204, 204]
    assert (await sent(new_hook(hook.url))).status == 401
    process.terminate()
    assert process.communicate()[0] == "gpu-broker.test \n"

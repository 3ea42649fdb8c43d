"""Hooks to chats and mail by apprise: real requests to a real receiver."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.errors import BadRequest
from agent_sdk.state.events import Event
from broker.hooks import chat
from broker.hooks.addresses import Addresses
from broker.hooks.message import message_of
from broker.hooks.operators import new_hook
from tests.hooks.receiver import Receiver

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),  # apprise's
]

EVENT = Event("7-0", "quarantined", {"device": "u0", "host": "h1", "reason": "XID 79"})

MESSAGE = message_of("default", EVENT, {"u0": ("h1", 3)})


async def test_chat_is_told_in_words_where_its_address_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By its name or its network; elsewhere nothing is sent, and the reason names the setting."""
    with Receiver(tmp_path / "receiver") as receiver:
        url = f"ntfy://localhost:{receiver.port}/gpus?rto=5&cto=5"
        for allowed in ("", "10.0.0.0/8", "other.example"):
            refused = await chat.send(url, MESSAGE, Addresses(allowed))
            assert "is no public address" in refused
            assert "GPU_BROKER_HOOKS_ALLOW" in refused
        assert receiver.got == []
        for allowed in ("localhost", "127.0.0.0/8,::1"):
            assert await chat.send(url, MESSAGE, Addresses(allowed)) == ""
        told = json.loads(receiver.got[0]["body"])
        assert told["title"] == "GPU pool default: quarantined"
        assert told["message"] == "h1:3 · reason XID 79"
        receiver.does("500")
        failed = await chat.send(url, MESSAGE, Addresses("localhost"))
        assert failed == "apprise could not deliver it"
        assert not [each for each in caplog.records if each.name.startswith("apprise")]
        with socket.create_connection(("127.0.0.1", receiver.port)):  # the rest of us may connect
            pass


@pytest.mark.parametrize(
    ("event", "fields", "text"),
    [
        ("hook_disabled", {"hook": "ops", "reason": "x"}, "hook_disabled · hook ops · reason x"),
        ("device", {"device": "u0", "host": "h1", "state": "ok", "reason": ""}, "h1:3 · state ok"),
        (
            "finding_raised", {"finding": "squatter", "device": "u0", "host": "h1", "pid": "77"},
            "h1:3 · finding squatter · pid 77",
        ),
        (
            "process_ended", {"device": "u0", "host": "h1", "pid": "77", "signal": "TERM"},
            "h1:3 · pid 77 · signal TERM",
        ),
    ],
)  # fmt: skip
def test_line_names_what_the_event_is_about(event: str, fields: dict[str, str], text: str) -> None:
    """One of many hooks, the state of a GPU, one of its processes."""
    assert message_of("default", Event("7-0", event, fields), {"u0": ("h1", 3)}).text == text


async def payload(url: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what the service of a URL is sent; nothing leaves this process."""
    import requests  # noqa: PLC0415 - apprise's

    told: list[Any] = []

    def request(*_: Any, data: Any = None, **__: Any) -> Any:
        told.append(data)
        answer = requests.Response()
        answer.status_code = 200
        answer._content = b'{"ok": true, "channel": "C", "ts": "1"}'
        return answer

    monkeypatch.setattr(requests.Session, "request", request)
    event = Event("7-0", "drained", {"host": "h1", "by": "@everyone", "reason": reason})
    assert await chat.send(url, message_of("default", event, {}), Addresses()) == ""
    return json.loads(told[-1]) if isinstance(told[-1], str | bytes) else told[-1]


TELEGRAM = "tgram://123456789:abcdefghijklmnopqrstuvwxyz012345678/1234"

DISCORD = "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js"

CHATS = (
    TELEGRAM, DISCORD, f"{DISCORD}?format=markdown", "slack://xoxb-1234-1234-4ddbaf/#gpus",
    "mmosts://example.com/3ccdd113474722377935511fc85d3dd4", "ntfys://example.com/gpus",
    "zulip://bot@example/abcdefghijklmnopqrstuvwxyz012345/gpus",
)  # fmt: skip


async def test_text_of_a_message_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telegram refuses what it takes for a tag that it does not know, at every try."""
    told = await payload(TELEGRAM, "free < 2 GiB & <b>rising", monkeypatch)
    assert told["parse_mode"] == "HTML"
    assert told["text"].replace("\u200b", "").endswith("free &lt; 2 GiB &amp; &lt;b&gt;rising")


@pytest.mark.parametrize("url", CHATS)
async def test_text_of_a_message_calls_nobody(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent may be called @everyone, and an operator may write anything for a reason."""
    calls = "@everyone @here @channel @all <!channel> <@123456789012345678> <@&1> @**all** ann@here"
    told = str(await payload(url, calls, monkeypatch))
    plain = told.replace("&lt;", "<")
    found = re.findall(r"<[!@]|@&|@(?:everyone|here|channel|all)|@\*", plain)
    assert found == []
    assert "reason" in told


async def test_name_of_a_user_at_a_host_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave names that mention no chat member as they are, to be copied."""
    assert "ann@gpu-host-3" in str(await payload(DISCORD, "by ann@gpu-host-3", monkeypatch))


def test_secrets_of_a_chats_url_are_not_shown() -> None:
    """A token, a password, whatever follows the question mark."""
    for url, secret in (
        ("slack://xoxb-1234-5678-abcdefghijkl/#gpus", "abcdefghijkl"),
        ("matrixs://ann:hunter2@matrix.example/#gpus?token=hunter2", "hunter2"),
        ("mailtos://ann:hunter2@mail.example?to=ops@example.com", "hunter2"),
    ):
        hook = new_hook(url)
        assert secret not in hook.shown
        assert secret not in repr(hook)
        assert hook.secret == ""


@pytest.mark.parametrize(
    ("url", "says"),
    [("json://x.example/", "begins with one of"), ("syslog://", "begins with one of"),
     ("dbus://", "begins with one of"), ("file:///etc/passwd", "begins with one of"),
     ("slack://nothing", "no URL of slack://"), ("mailto://", "no URL of mailto://"),
     ("slack://xoxb-1-2-3/#x?template=/etc/passwd", "template would read"),
     ("mailto://a:b@x.example?PGPprv=/etc/key", "PGPprv would read"),
     ("matrix://a:b@x.example/#x?+e2ee=yes", "would read or keep")],
)  # fmt: skip
def test_url_that_is_no_chats_is_refused(url: str, says: str) -> None:
    """Nor one that would have the broker read a file, or speak to its own machine."""
    with pytest.raises(BadRequest, match=says):
        new_hook(url)


async def test_url_that_another_hand_wrote_is_refused_at_the_sending(tmp_path: Path) -> None:
    """A client of the store cannot have the broker read its files, or use another service."""
    with Receiver(tmp_path / "receiver") as receiver:
        for url in (
            f"json://127.0.0.1:{receiver.port}/",
            f"ntfy://127.0.0.1:{receiver.port}/x?template=/etc/passwd",
        ):
            assert await chat.send(url, MESSAGE, Addresses("127.0.0.1"))
        assert receiver.got == []


def test_every_scheme_is_one_of_apprises() -> None:
    """A scheme that apprise does not know would be refused without a word why."""
    import apprise  # noqa: PLC0415 - it warns of a deprecation of its own

    known = {
        scheme
        for service in apprise.Apprise().details()["schemas"]
        for scheme in (*(service["protocols"] or ()), *(service["secure_protocols"] or ()))
    }
    assert set(chat.SCHEMES) <= known


def test_chat_has_no_secret_to_sign_with() -> None:
    """Said at the addition."""
    with pytest.raises(BadRequest, match="only requests over HTTP are signed"):
        new_hook("slack://xoxb-1234-5678-abcdefghijkl/#gpus", secret="whsec_x")

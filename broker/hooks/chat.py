"""Messages to chats and mail, by apprise; an extra has it."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

from agent_sdk.errors import BadRequest, error_for
from broker.hooks.addresses import AddressRefused
from broker.tasks import on_own_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.hooks.addresses import Addresses
    from broker.hooks.message import Message

SCHEMES: Final = (
    "discord", "gchat", "mailto", "mailtos", "matrix", "matrixs", "mmost", "mmosts", "ntfy",
    "ntfys", "rocket", "rockets", "slack", "tgram", "workflows", "zulip",
)  # fmt: skip
"""Schemes of apprise that are taken: those of chats and mail, which only send over the network."""

FILES: Final = {"pgp", "pgpprv", "pgppub", "template", "wkd", "e2ee", "smime"}
"""Parameters that would make apprise read or keep files of the broker's machine."""

PARAMETER: Final = re.compile(r"[?&;][\s+:-]*([^=&?;#\s]*)")
"""Name of a parameter."""

ANSWER_S: Final = 30.0
"""Most seconds for one message; apprise itself waits 4 to 15 s for each answer."""

INSTALL: Final = "pip install 'gpu-lease-broker[notify]'"

CALL: Final = re.compile(
    r"<(?=[!@#&\w])|@(?=everyone|here|channel|all|room|topic|stream)|(?<!\w)@(?=[\w!&*])",
    re.IGNORECASE,
)
"""Place after which a chat would call people: `@everyone`, `<!channel>`, `<@123>`, `@**all**`."""

APART: Final = "\u200b"
"""Space without width, which takes the meaning from what it stands in."""

CONNECTS: Final = {"socket.connect", "socket.sendto", "socket.sendmsg"}


class ConnectGuard(threading.local):
    """ConnectGuard of the calling thread's connections; without addresses it lets all pass."""

    addresses: Addresses | None = None
    name = ""
    refused = ""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Look at what Python is about to do in this thread."""
        if self.addresses is None:
            return
        if event == "socket.getaddrinfo":
            self.name = str(args[0])
        elif event in CONNECTS:
            try:
                self.addresses.check(self.name, str(args[1][0]))
            except AddressRefused as error:
                self.refused = str(error)
                raise

    @contextmanager
    def watching(self, addresses: Addresses) -> Iterator[None]:
        """Refuse other connections of this thread in a block."""
        self.addresses, self.name, self.refused = addresses, "", ""
        try:
            yield
        finally:
            self.addresses = None


_guard: Final = ConnectGuard()

_once = threading.Lock()

_watched = False


def checked_url(url: str) -> str:
    """Return a chat's URL as it is shown: without its secrets.

    Raises:
        BadRequest: it is no URL that apprise takes, or apprise is missing.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        known = ", ".join(("http", "https", *SCHEMES))
        raise error_for("bad_request", f"a hook's URL begins with one of {known}, then ://")
    if importlib.util.find_spec("apprise") is None:
        raise error_for("bad_request", f"{scheme}:// needs apprise: {INSTALL}")
    # Wherever a parameter may begin: apprise's URLs have a # before their ?
    for name in PARAMETER.findall(unquote(unquote(url))):
        if name.lower() in FILES:
            raise error_for("bad_request", f"the URL's parameter {name} would read or keep files")
    target = _target(url)
    if target is None:
        raise error_for(
            "bad_request", f"no URL of {scheme}:// as https://appriseit.com/services describes them"
        )
    return str(target.url(privacy=True)).partition("?")[0]


async def send(url: str, message: Message, addresses: Addresses) -> str:
    """Send a message; return what was in the way, or an empty text."""
    try:
        async with asyncio.timeout(ANSWER_S):  # apprise may hang
            return await on_own_thread(lambda: _send(url, message, addresses), "hook to a chat")
    except RuntimeError as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {ANSWER_S:g} s"


def _send(url: str, message: Message, addresses: Addresses) -> str:
    global _watched  # noqa: PLW0603 - a hook of the interpreter's cannot be taken back
    try:
        checked_url(url)  # anew: any client may have written it
    except BadRequest as error:
        return str(error)
    with _once:
        if not _watched:
            sys.addaudithook(_guard)
            _watched = True
    with _guard.watching(addresses):
        target = _target(url)
        if target is None:
            return "apprise does not take the URL any more"
        try:
            if _notify(target, message):
                return ""
        except Exception as error:  # noqa: BLE001 - whatever a service's plugin raises
            return _guard.refused or f"apprise: {type(error).__name__}"
        return _guard.refused or "apprise could not deliver it"


def _notify(target: Any, message: Message) -> bool:
    """Send a message as plain text: names and reasons in it are no markup, and no call.

    Apprise itself converts it so, but then sends in a thread of its own: the guard is in this one.
    """
    from apprise import NotifyFormat  # noqa: PLC0415 - as in _target
    from apprise.conversion import convert_between  # noqa: PLC0415 - as above

    plain, convert = NotifyFormat.TEXT, cast("Any", convert_between)  # apprise's own has no types
    title, text = (CALL.sub(rf"\g<0>{APART}", said) for said in (message.title, message.text))
    form = target.resolve_format(plain)
    if target.title_maxlen <= 0:  # it becomes a part of the body
        title = convert(plain, form, title)
    return bool(target.notify(title=title, body=convert(plain, form, text), body_format=form))


def _target(url: str) -> Any:
    """Return apprise's object for a URL; None: it takes it for none."""
    import apprise  # noqa: PLC0415 - an extra has it, and it takes a second

    # Its words may have parts of the URL, which is a secret
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    return apprise.Apprise.instantiate(url)

"""Hook: a subscription to the pool's events, as its hash in Redis has it."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, get_type_hints
from urllib.parse import urlsplit

from agent_sdk.errors import error_for
from agent_sdk.keys import EVENT_ID
from agent_sdk.state.events import LONGEST, NAMES, START
from broker.text.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST: Final = 64
"""Most hooks of a pool: each has a connection and series of requests of its own."""

NAME: Final = re.compile(r"[a-z0-9-]{1,32}")

LONGEST_URL: Final = 2048

WEB: Final = ("http", "https")
"""Schemes of webhooks; all others are chats', by apprise."""

SECRET: Final = "whsec_"  # noqa: S105 - the prefix of every secret

SECRET_BYTES: Final = (24, 64)
"""Least and most bytes of a secret, as Standard Webhooks has them."""

PLAIN: Final = re.compile(r"[!-~]+")

ACTIVE, FAILING, DISABLED = "active", "failing", "disabled"


@dataclass(frozen=True, slots=True)
class Hook:
    """Hook with its progress.

    Attributes:
        shown: the URL without its secrets.
        on: names of events by commas; empty: all.
        life: a new value makes its delivery begin anew, at once.
        cursor: the id of the last event that is done with.
        ordinal: how many events the stream had had by then.
        attempts: failures in a row; 0: the last delivery was taken.
        failing_since_ms: the first of them, on Redis's clock.
        missed: events that fell out of the stream before they were delivered.
        disabled: the reason for which nothing is sent; empty: it is sent.
        test, tested: the test that is asked for, and the answer to one, as JSON.
    """

    name: str
    url: str = field(repr=False)
    shown: str
    on: str = ""
    secret: str = field(default="", repr=False)
    by: str = ""
    created_ms: int = 0
    life: str = ""
    cursor: str = START
    ordinal: int = 0
    delivered: int = 0
    failed: int = 0
    attempts: int = 0
    failing_since_ms: int = 0
    delivered_ms: int = 0
    error: str = ""
    error_ms: int = 0
    missed: int = 0
    disabled: str = ""
    test: str = ""
    tested: str = ""

    @property
    def events(self) -> frozenset[str]:
        """Names of its events; empty: all."""
        return frozenset(filter(None, self.on.split(",")))

    @property
    def is_web(self) -> bool:
        """True of a webhook, False of a chat."""
        return has_web_scheme(self.url)

    @property
    def state(self) -> str:
        """Word for its state."""
        if self.disabled:
            return DISABLED
        return FAILING if self.attempts else ACTIVE

    def wants(self, event: str) -> bool:
        """Tell whether an event is to be delivered."""
        return not self.on or event in self.events

    @property
    def stored(self) -> dict[str, str | int]:
        """Fields of its hash."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


KINDS: Final = {
    each.name: get_type_hints(Hook)[each.name] for each in fields(Hook) if each.name != "name"
}
"""Fields of a hash with their types."""


def hook_of(name: str, row: Mapping[str, str]) -> Hook | None:
    """Return the hook of a hash; None: there is none. Any client may have written the hash."""
    if not row.get("url"):
        return None
    known: dict[str, Any] = {}
    for each, kind in KINDS.items():
        value = row.get(each, "")
        known[each] = value if kind is str else _number(value)
    if not EVENT_ID.fullmatch(known["cursor"]):
        known["cursor"] = START
    return Hook(name, **known)


def _number(value: str) -> int:
    return int(value) if value.isdecimal() and len(value) <= LONGEST else 0


def has_web_scheme(url: str) -> bool:
    """Tell whether a URL is a webhook's, be it well-formed or not."""
    return url.partition("://")[0].lower() in WEB


def checked_name(name: str) -> str:
    """Return the name, or a made one for an empty name.

    Raises:
        BadRequest: it is no name.
    """
    if not name:
        return f"hook-{secrets.token_hex(3)}"
    if not NAME.fullmatch(name):
        raise error_for("bad_request", "name: 1 to 32 of a-z, 0-9 and -")
    return name


def checked_events(words: Iterable[str]) -> str:
    """Return names of events as a hook has them; none: all.

    Raises:
        BadRequest: there is no such event.
    """
    said = list(words)
    found = [word.strip() for word in said if word.strip()]
    if said and not found:
        raise error_for("bad_request", "on names no event: leave it out for all")
    for word in found:
        if word not in NAMES:
            meant = did_you_mean(word, NAMES)
            wrong = f"no event is called {word}{meant and f'; {meant}'}"
            raise error_for("bad_request", f"{wrong}. Events are: {', '.join(sorted(NAMES))}")
    return ",".join(dict.fromkeys(found))


def checked_web_url(url: str) -> str:
    """Return a webhook's URL as it is shown: without its query, which may be a secret.

    Raises:
        BadRequest: it is no URL for requests.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not PLAIN.fullmatch(url) or len(url) > LONGEST_URL:
        said = (
            f"a URL as https://host/path, of at most {LONGEST_URL} plain letters (a name in IDNA)"
        )
        raise error_for("bad_request", said)
    if parts.username is not None or parts.fragment:
        said = "the URL has a user, a password or a fragment: the signature says who sends"
        raise error_for("bad_request", said)
    return parts._replace(query="…" if parts.query else "").geturl()


def new_secret() -> str:
    """Return a new secret of 256 bits."""
    return SECRET + base64.b64encode(secrets.token_bytes(32)).decode()


def checked_secret(secret: str) -> str:
    """Return the secret, or a new one for an empty text.

    Libraries take nearly any text for a secret and sign with what they make of it, so that a
    receiver in another language makes another key of it.

    Raises:
        BadRequest: it is no secret in the form of Standard Webhooks.
    """
    if not secret:
        return new_secret()
    least, most = SECRET_BYTES
    try:
        size = len(base64.b64decode(secret.removeprefix(SECRET), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not secret.startswith(SECRET) or not least <= size <= most:
        said = f"the secret must be {SECRET} and {least} to {most} bytes in base64 (+ and /)"
        raise error_for("bad_request", f"{said}; without one a secret is made")
    return secret

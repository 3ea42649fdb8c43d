"""Logs: one line per verb with its subject, as text or JSON; no secret in either.

A token is cut to its first eight letters, which tells it from others and opens nothing. Each
request has an id, its own `X-Request-ID` or a new one, which its answer and its lines repeat.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

from broker.address_rate import Rate
from broker.text.printable import printable

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from starlette.types import Scope

REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")

SHOWN: Final = 8
"""Letters of a token that are shown."""

STRANGERS_BURST, STRANGERS_PER_S = 20, 0.1
"""Most lines about requests without a key: so many at once, then so many a second.

The next line counts the omitted ones as `unsaid`.
"""


def configure(form: Literal["text", "json"], **always: str) -> None:
    """Send all logs of this process to stderr in one form; `always` is on every line."""

    def sign(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.update(always)
        return event

    before: list[Any] = [
        _merge,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        sign,
    ]
    last: list[Any]
    if form == "json":
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    elif sys.stderr.isatty():
        last = [_as_print, structlog.dev.ConsoleRenderer(pad_event_to=0)]
    else:
        last = [structlog.processors.format_exc_info, _as_print, _as_text]
    structlog.configure(
        processors=[*before, *last],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.INFO)


def _as_print(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape foreign text; a traceback keeps its lines."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            lines = value.split("\n") if name == "exception" else [value]
            event[name] = "\n".join(map(printable, lines))
    return event


def _as_text(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    """Return time, level, message, and the rest as name=value; values with spaces are quoted."""
    first = f"{event.pop('timestamp')} {event.pop('level'):7} {event.pop('event')}"
    trace = event.pop("exception", None)
    words = (f"{name}={_word(value)}" for name, value in event.items())
    return " ".join((first, *words)) + (f"\n{trace}" if trace else "")


def _word(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or '"' in text or not text.isprintable() else text


def note(**facts: Any) -> None:
    """Add facts about a request to its lines; None and empty ones are left out."""
    if token := facts.get("token"):
        facts["token"] = str(token)[:SHOWN]
    about = _about.get()
    if about is not None:
        about.update((name, value) for name, value in facts.items() if value not in {None, ""})


def request_id() -> str:
    """Return the id of the request that this task answers; empty: there is none."""
    return str((_about.get() or {}).get("request_id", ""))


_about: Final[ContextVar[dict[str, Any] | None]] = ContextVar("request", default=None)
"""Facts of the request that this task answers."""


def _merge(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the facts of the request to a line of it; its own stand."""
    for name, value in (_about.get() or {}).items():
        event.setdefault(name, value)
    return event


class VerbLog:
    """Log of the requests: an id for each, and a line for each that may change something."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("broker.verbs")
        self._strangers = Rate(STRANGERS_BURST, STRANGERS_PER_S)
        self._unsaid = 0

    def begin(self, scope: Scope) -> bytes:
        """Begin the facts of a request, and return its id."""
        given = next((v for name, v in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if REQUEST_ID.fullmatch(given) else os.urandom(8).hex().encode()
        _about.set({"request_id": request_id.decode()})
        return request_id

    def end(self, scope: Scope, status: int, took_s: float) -> None:
        """Write the line of a request that has been answered."""
        if scope["method"] == "GET":
            return
        if scope.get("principal") is None:  # a client without a key must not fill the disk
            if not self._strangers.allows(""):
                self._unsaid += 1
                return
            note(unsaid=self._unsaid or None)
            self._unsaid = 0
        route = getattr(scope.get("route"), "path", None)
        principal = getattr(scope.get("principal"), "name", "")
        self._log.info(
            route.strip("/") if route else "no_route",
            **({"by": principal} if principal else {}),
            status=status,
            ms=round(took_s * 1000, 1),
        )

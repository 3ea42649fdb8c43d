"""JSON over HTTP for scripts, with nothing but the standard library."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from agent_sdk.settings import read_orchestrator_settings

TIMEOUT_S = 5.0


class Silent(Exception):
    """Nobody answered; the message says where."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer; `body` is an empty object when it is not a JSON object."""

    status: int
    body: dict[str, Any]
    text: str


def ask(url: str, body: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S) -> Answer:
    """GET, or POST of a JSON body; any status is an answer.

    Raises:
        Silent: nobody answered.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if key := read_orchestrator_settings().api_key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - the address is the caller's own
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310 - the address is the caller's own
            return _answer(reply.status, reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, error.read())
    except (OSError, ValueError) as error:
        raise Silent(f"{url}: {getattr(error, 'reason', error)}") from error


def _answer(status: int, data: bytes) -> Answer:
    text = data.decode(errors="replace")
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    return Answer(status, body if isinstance(body, dict) else {}, text)


def wait_for(url: str, within_s: float = 30.0) -> None:
    """Return when it answers 200.

    Raises:
        Silent: not in time; the message has the last that was said.
    """
    until = time.monotonic() + within_s
    said = "no answer"
    while time.monotonic() < until:
        try:
            answer = ask(url, timeout_s=2)
        except Silent as error:
            said = str(error)
        else:
            if answer.status == 200:  # noqa: PLR2004 - HTTP's OK
                return
            said = f"{answer.status} {answer.text[:200]}"
        time.sleep(0.1)
    raise Silent(f"{url} is not there after {within_s:g} s: {said}")


def metrics(url: str) -> dict[str, float]:
    """`/metrics` by name; series with labels are left out."""
    lines = ask(f"{url}/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#" and "{" not in line)
    return {name: float(value) for name, value in pairs}

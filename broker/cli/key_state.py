"""Findings of `gpu-broker doctor` about API keys: in the file, and at the running broker."""

from __future__ import annotations

from typing import Final

from agent_sdk.clock import local_now
from agent_sdk.errors import CODES
from agent_sdk.http_request import Unanswered, Web
from broker.api_keys import GONE, key_file, read
from broker.cli.finding import Diagnosis
from broker.cli.http_state import broker_url
from broker.key_file import KeysError, read_text

ASK_S: Final = 2.0

UNAUTHORIZED: Final = 401

READABLE: Final = (
    "let the broker's user read its key file, which holds SHA-256 alone, and enter its folders"
)


ANEW: Final = "make one: gpu-broker keys new NAME"


def key_state() -> tuple[str, list[Diagnosis]]:
    """Return a summary of the keys here, with findings about a broker that cannot use its file."""
    path = key_file()
    findings: list[Diagnosis] = []
    try:
        found = read(path)
        there = read_text(path) is not None
    except KeysError as error:
        remedy = "correct it, or make it anew: gpu-broker keys"
        return f"in {path}", [Diagnosis(str(error), remedy)]
    url, said = _asked()
    if said not in {"", CODES["unauthorized"].says}:
        way_out = READABLE if there else GONE.format(path=path)
        findings.append(Diagnosis(f"the broker at {url} refuses every key: {said}", way_out))
    if there:
        if said and not found and not findings:
            findings.append(
                Diagnosis(f"{path} has no key, and the broker at {url} asks for one", ANEW)
            )
        return f"{len(found)} in {path}", findings
    if said:
        return f"none in {path}; the broker at {url} asks for keys", findings
    return (
        "none: every client that reaches the HTTP port is an operator (gpu-broker keys new)",
        findings,
    )


def _asked() -> tuple[str, str]:
    """Ask this environment's broker without a key; return its URL and its refusal, or empty."""
    url = broker_url()
    try:
        reply = Web(url).ask("GET", "/policy", until=local_now() + ASK_S)
    except (Unanswered, ValueError):
        return url, ""
    return url, str(reply.body.get("detail", "")) if reply.status == UNAUTHORIZED else ""

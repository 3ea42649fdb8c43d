#!/bin/sh
# sse-starlette takes any object as `data` and sends its Python `str`: an event {"data": {"lost": True}} goes out as `data:
# {'lost': True}`, which no JSON.parse of a browser reads; `JSONServerSentEvent` would send JSON. And it takes a number as
# `retry`, but an event's `id` as a number is a TypeError that names no field, raised in the running stream, after the 200
# went out.
# Seen with sse-starlette 3.7.0: "data: {'lost': True, 'gpu': None}" and "expected string or bytes-like object, got 'int'".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check sse-starlette==3.7.0 starlette==1.10.0
"$work/venv/bin/python" - <<'PYTHON'
import asyncio, json, sys
from sse_starlette import EventSourceResponse

async def stream(*events: dict) -> tuple[int, str, str]:
    """Send the events as an ASGI server would; return status, body and what the stream raised."""
    sent, error = [], ""

    async def source():
        for event in events:
            yield event

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    try:
        await EventSourceResponse(source())({"type": "http", "method": "GET", "headers": []}, receive, send)
    except BaseExceptionGroup as group:
        error = str(group.exceptions[0])
    except TypeError as raised:
        error = str(raised)
    return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:]).decode(), error

async def main() -> bool:
    _, body, _ = await stream({"data": {"lost": True, "gpu": None}})
    status, _, error = await stream({"data": "lost", "id": 7})
    text = body.strip()
    print(text, "|", status, error)
    try:
        json.loads(text.removeprefix("data: "))
        return False
    except ValueError:
        return text == "data: {'lost': True, 'gpu': None}" and status == 200 and "got 'int'" in error

sys.exit(not asyncio.run(main()))
PYTHON

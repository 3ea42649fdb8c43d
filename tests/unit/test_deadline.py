"""A client that reads slowly is served; one that stopped is not."""

from __future__ import annotations

import asyncio
import socket
import time
from types import SimpleNamespace
from typing import Any

import uvicorn

from broker.http import slow_clients
from broker.http.connection_limits import LEAST, ConnectionLimits

UNREAD_S = 0.5

READ_BYTES, EVERY_S = 4096, 0.01
"""Some 400 KB/s, of tens of MB."""


async def test_slow_reader_is_served_until_it_stops(monkeypatch: Any) -> None:
    """Whoever has taken nothing for that long is cut off, and nobody else."""
    monkeypatch.setattr(slow_clients, "UNREAD_S", UNREAD_S)
    ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive_end(receive))
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            await asyncio.sleep(0)  # to a client that is gone, nothing waits
        ended.set_result(time.monotonic())

    async def receive_end(receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    app.state = SimpleNamespace(crowd=ConnectionLimits(LEAST))  # type: ignore[attr-defined] # as an application's
    config = uvicorn.Config(
        app, http=slow_clients.DeadlineProtocol, lifespan="off", log_config=None
    )
    server, loop = uvicorn.Server(config), asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        serving = asyncio.create_task(server.serve([listener]))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.setblocking(False)
        await loop.sock_connect(client, listener.getsockname())
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until = time.monotonic() + 4 * UNREAD_S
        while (stopped := time.monotonic()) < until:
            assert await loop.sock_recv(client, READ_BYTES)
            await asyncio.sleep(EVERY_S)
        assert not ended.done()
        assert await asyncio.wait_for(ended, 5) - stopped < 4 * UNREAD_S
        server.should_exit = True
        await serving

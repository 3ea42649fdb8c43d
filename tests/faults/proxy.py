"""A TCP proxy between a client and Redis, which meddles with the replies."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class Proxy:
    """Forwards what clients send; of each chunk that the server answers, `passes` decides.

    Args:
        port: the server's; connections that come after it was changed go to another.
        passes: called with a chunk in the connection's own thread, where it may wait; False drops
            the chunk and closes the connection, as a network does that fails after the request.
        answers: called with a chunk that a client sends; what it gives is answered in the server's
            place, which hears nothing of it. None: the server is asked.
    """

    def __init__(
        self,
        port: int,
        passes: Callable[[bytes], bool] = lambda _: True,
        answers: Callable[[bytes], bytes | None] = lambda _: None,
    ) -> None:
        self.port = port
        self._passes = passes
        self._answers = answers
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was shut down
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._sockets.append(end)
                self._start(self._pump, client, server, self._ask)
                self._start(self._pump, server, client, self._reply)

    def _ask(self, client: socket.socket, server: socket.socket, chunk: bytes) -> bool:
        answer = self._answers(chunk)
        if answer is None:
            server.sendall(chunk)
        else:
            client.sendall(answer)
        return True

    def _reply(self, _: socket.socket, client: socket.socket, chunk: bytes) -> bool:
        passes = self._passes(chunk)
        if passes:
            client.sendall(chunk)
        return passes

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, passes: Callable[..., bool]) -> None:
        with suppress(OSError):
            while (chunk := source.recv(65536)) and passes(source, sink, chunk):
                pass
        for end in (source, sink):  # wakes the other direction, too
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in self._sockets:
            end.close()

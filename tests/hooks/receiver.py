"""A receiver of webhooks: a process of its own, which does what a test tells it to.

Run as a program it listens on the port and notes each request as a line of JSON in a file before
it answers. Another file says how: a word for each request, the last one for all that follow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from tests.api.brokers import eventually
from tests.servers import free_port

if TYPE_CHECKING:
    from typing import Self

HANG_S = 60.0


class Receiver:
    """The process, and what it has got. It is killed at the end of a block.

    Args:
        folder: where its files are.
        host: the address to listen on.

    Attributes:
        url: where it listens.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._host = host
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/gpu"
        self._got, self._does = folder / "got", folder / "does"
        self._got.touch()
        self.does("200")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Listen, with what it got before."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._host, str(self.port), self._got, self._does],
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
        )

        def listens() -> bool:
            with suppress(httpx2.TransportError):
                return httpx2.get(self.url).status_code == 204
            return False

        eventually(listens, 20)

    def stop(self) -> None:
        """SIGKILL: its address refuses connections."""
        assert self._process
        self._process.kill()
        self._process.wait(10)

    def does(self, *words: str) -> None:
        """Say what it does with the next requests: a status, `status:seconds` with Retry-After,
        `slow:seconds` and 200, `hang`, `close` without an answer, or `to:URL`, a redirect.
        """
        part = self._does.with_suffix(".part")
        part.write_text(json.dumps({"after": len(self.got), "words": words}))
        part.replace(self._does)

    @property
    def got(self) -> list[dict[str, Any]]:
        """Every request: headers, body."""
        return [json.loads(line) for line in self._got.read_text().splitlines()]

    def ids(self) -> list[str]:
        """The id of each message, in the order of arrival."""
        return [each["headers"]["webhook-id"] for each in self.got]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Handler(BaseHTTPRequestHandler):
    """Does what it is told."""

    protocol_version = "HTTP/1.1"
    got: Path
    told: Path

    def do_GET(self) -> None:
        """Show that it listens."""
        self.send_response(204)
        self.end_headers()

    def do_POST(self) -> None:
        """Note a request, and answer it."""
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        says = json.loads(self.told.read_text())
        number = len(self.got.read_text().splitlines()) - says["after"]
        with self.got.open("a") as out:
            out.write(json.dumps({"headers": headers, "body": body}) + "\n")
        self._answer(*says["words"][min(number, len(says["words"]) - 1)].split(":", 1))

    def _answer(self, word: str, more: str = "") -> None:
        if word == "hang":
            time.sleep(HANG_S)
        elif word == "close":
            self.close_connection = True
        else:
            if word == "slow":
                time.sleep(float(more))
            self.send_response({"slow": 200, "to": 302}.get(word) or int(word))
            if word == "to":
                self.send_header("location", more)
            elif word != "slow" and more:
                self.send_header("retry-after", more)
            self.send_header("content-length", "6")
            self.end_headers()
            self.wfile.write(b"thanks")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Listen until killed."""
    host, port, got, told = sys.argv[1:]
    Handler.got, Handler.told = Path(got), Path(told)
    ThreadingHTTPServer.address_family = __import__("socket").getaddrinfo(host, 0)[0][0]
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()

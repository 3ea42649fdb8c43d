"""Real brokers for the suite: `gpu-broker serve` on a free port, ended by its pid."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from tests.forks import Forked, can_fork
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

BIN = Path(sys.executable).parent

PROGRAM = str(BIN / "gpu-broker")

SIM = {
    "GPU_BROKER_DEVICES": "sim:1x1000",
    "GPU_BROKER_HOSTNAME": "h1",
    "GPU_BROKER_REPORT_S": "0.5",
}
"""One simulated device of 1000 MiB on host h1."""

GRANTING = SIM | {"SAFE_MODE": "false"}
"""The same; a pool that this broker creates on a named server gives leases."""


def environment(**settings: str) -> dict[str, str]:
    """The settings and nothing of this shell's, whose REDIS_URL may be somebody's real pool."""
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": "/nonexistent"} | settings


def eventually(what: Callable[[], Any], within_s: float, every_s: float = 0.02) -> Any:
    """The first true answer of `what`; a failure when there is none in time."""
    until = time.monotonic() + within_s
    while not (answer := what()):
        assert time.monotonic() < until, f"not within {within_s} s: {answer!r}"
        time.sleep(every_s)
    return answer


def at_once(broker: Broker, asks: Iterable[tuple[str, str, Any]]) -> list[Answered]:
    """The answers to several requests (method, path, JSON body), sent together, in their order."""

    def ask(what: tuple[str, str, Any]) -> Answered:
        began = time.monotonic()
        answer = broker.http.request(what[0], what[1], json=what[2])
        return Answered(answer, time.monotonic() - began)

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(ask, asks))


@dataclass(frozen=True)
class Answered:
    """An answer and how long it took."""

    http: httpx2.Response
    seconds: float


class Broker:
    """One `gpu-broker serve`, started by the constructor and killed at the end of a block.

    Args:
        args: options of `serve`.
        program: another program than `gpu-broker`, or (PROGRAM,): a start of it, where else a
            process forks that has imported it.
        settings: its environment.

    Attributes:
        http: a client of it.
    """

    def __init__(self, *args: str, program: tuple[str, ...] | None = None, **settings: str) -> None:
        self.port = free_port()
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        command = [*(program or (PROGRAM,)), "serve", *args]
        env = environment(GPU_ORCHESTRATOR_PORT=str(self.port), **settings)
        self.process: Forked | subprocess.Popen[bytes]
        if program is None and can_fork(env):
            self.process = Forked(command, env, self._output)
        else:
            self.process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                process_group=0,  # where a test stops it, the suite is not hung up
            )
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10)

    def said(self) -> str:
        """Return everything that it has written to stdout and stderr."""
        return os.pread(self._output.fileno(), 1_000_000, 0).decode()

    def wait(self, path: str = "/ready", within_s: float = 30) -> Self:
        """Wait until a path answers 200."""

        def answers() -> bool:
            assert self.process.poll() is None, self.said()
            with suppress(httpx2.TransportError):
                return self.http.get(path).status_code == 200
            return False

        eventually(answers, within_s)
        return self

    def lease(self, **body: Any) -> httpx2.Response:
        """POST /lease."""
        return self.http.post("/lease", json={"agent": "analyst"} | body)

    def granted(self, **body: Any) -> dict[str, Any]:
        """POST /lease that must be granted."""
        answer = self.lease(**body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["granted"] is True, answer.text
        return dict(answer.json())

    def release(self, token: str) -> httpx2.Response:
        """POST /release."""
        return self.http.post("/release", json={"token": token})

    def allocations(self) -> dict[str, Any]:
        """GET /allocations."""
        return dict(self.http.get("/allocations").json()["allocations"])

    def metrics(self) -> dict[str, float]:
        """GET /metrics, name -> value, as a script reads it that knows no labels."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM, a clean stop; the exit code."""
        self.process.terminate()
        return self.process.wait(15)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.http.close()
        self._output.close()

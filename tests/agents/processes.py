"""The agents and the pipeline as real processes, each on a port that it found free."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx2

from tests.api.brokers import GRANTING, Broker, environment
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from tests.servers import Server

FOLDER = Path(__file__).parents[2] / "scripts" / "agents"

ARTICLES = json.loads((FOLDER / "articles.json").read_text())

BATCH_S = 5.0
"""Seconds that a batch may take, whatever becomes of the orchestrator: twice what is promised."""

NOBODY = "http://127.0.0.1:1"
"""A URL where nothing listens."""


class Agent:
    """One agent, started by the constructor and killed at the end of a block."""

    def __init__(self, name: str, *options: str, **settings: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / f"{name}.py"), "--port", "0", *options],
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self._stdout = self.process.stdout

    @cached_property
    def url(self) -> str:
        """The URL where it listens, which it says when it does."""
        return self._stdout.readline().rpartition(" on ")[2].strip()

    @cached_property
    def http(self) -> httpx2.Client:
        """A client of it."""
        return httpx2.Client(base_url=self.url, timeout=60)

    def get(self, path: str) -> dict[str, Any]:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(self, path: str, body: Any = None) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait(10)
        self._stdout.close()


class Analyst(Agent):
    """The analyst of an orchestrator."""

    def __init__(self, orchestrator: str, *options: str, **settings: str) -> None:
        super().__init__("analyst", *options, GPU_ORCHESTRATOR_URL=orchestrator, **settings)

    def analyze(self, count: int = 2) -> dict[str, Any]:
        """A batch, in the time that it may take."""
        began = time.monotonic()
        answer = self.post("/analyze", {"articles": articles(count)})
        assert time.monotonic() - began < BATCH_S
        return answer

    def devices(self, count: int = 2) -> set[str]:
        """Return the devices on which a batch was computed."""
        return {result["device"] for result in self.analyze(count)["results"]}


def articles(count: int = len(ARTICLES)) -> list[dict[str, str]]:
    """Make that many articles, each with an id of its own."""
    shipped = itertools.islice(itertools.cycle(ARTICLES), count)
    return [article | {"id": str(number)} for number, article in enumerate(shipped)]


@dataclass(frozen=True)
class Agents:
    """The three of the pipeline."""

    scout: Agent
    analyst: Analyst
    critic: Agent


@contextmanager
def agents(orchestrator: str, *options: str) -> Iterator[Agents]:
    """All three; the options are the analyst's."""
    told = {"GPU_ORCHESTRATOR_URL": orchestrator}
    with (
        Agent("scout", **told) as scout,
        Analyst(orchestrator, *options) as analyst,
        Agent("critic", **told) as critic,
    ):
        yield Agents(scout, analyst, critic)


class Pipeline:
    """A run of pipeline.py, ended by the end of a block."""

    def __init__(self, of: Agents, output: Path, *options: str, critic: str | None = None) -> None:
        self._output = output
        urls = {"scout": of.scout.url, "analyst": of.analyst.url, "critic": critic or of.critic.url}
        named = [word for name, url in urls.items() for word in (f"--{name}", url)]
        self.process = subprocess.Popen(
            [sys.executable, FOLDER / "pipeline.py", *named, "--output", output, *options],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        self.said = self.process.stderr

    def until(self, batch: int) -> None:
        """Wait for the end of a batch."""
        for line in self.said:
            if line.startswith(f"batch {batch}/"):
                return
        raise AssertionError("it ended before")

    def end(self) -> tuple[int, dict[str, Any]]:
        """Its exit code, and what it wrote."""
        self.said.read()
        code = self.process.wait(60)
        return code, json.loads(self._output.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        self.said.close()


def broker_at(server: Server, port: int | None = None, **settings: str) -> Broker:
    """A broker of a pool, on a port that may be one where another was."""
    port = port or free_port()
    told = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": uuid4().hex} | settings
    broker = Broker("--port", str(port), **told)
    broker.port = port
    broker.http.base_url = url_of(broker)
    return broker


def url_of(broker: Broker) -> str:
    return f"http://127.0.0.1:{broker.port}"


class InBackground:
    """A batch that is under way."""

    def __init__(self, of: Analyst, count: int) -> None:
        self._work = {"articles": articles(count)}
        self._of = of
        self._answer: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._answer = self._of.post("/analyze", self._work)

    def end(self) -> dict[str, Any]:
        self._thread.join()
        return self._answer

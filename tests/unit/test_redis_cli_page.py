"""docs/reference/redis-cli.md: the real redis-cli runs every command and says what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, StillWaiting, Store
from agent_sdk.scripts import library as functions
from tests.pools import device
from tests.reports import register
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "redis-cli.md").read_text()

BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.skipif(not shutil.which("redis-cli"), reason="redis-cli is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A pool as the page has it: two GPUs on h1, one holder, one who waits."""
    with running() as server:
        with server.connect() as redis:
            functions.load(redis)
        with LeaseClient(Store(server.url), hostname="h1") as client:
            gpus = (device("SIM-h1-0"), device("SIM-h1-1", index=1))
            register(client, *gpus, deadline_ms=60_000)
            client.acquire("other", memory_mb=800, ttl_s=600)
            client.acquire("trainer", memory_mb=900, ttl_s=100, token="trainer-7-0123456789")
            with pytest.raises(StillWaiting):
                client.acquire("ann", memory_mb=900, wait_s=0.01, keep_place=True,
                               token="waiter-1-0123456789")  # fmt: skip
            yield server


def test_page_answers_twenty_questions_and_more() -> None:
    """Numbered, each with its commands."""
    questions = re.findall(r"^### (\d+)\. ", PAGE, re.MULTILINE)
    assert questions == [str(n) for n in range(1, len(questions) + 1)]
    assert len(questions) == len(BLOCKS) >= 20


def has_line(said: str, wanted: str) -> bool:
    """Find a whole line that is as `wanted`, or begins so where that ends in an ellipsis.

    A part of a line proves nothing: a time of day has every figure in it.
    """
    if wanted.endswith("…"):
        return any(line.startswith(wanted[:-1]) for line in said.splitlines())
    return wanted in said.splitlines()


def test_every_command_says_what_the_page_says(server: Server) -> None:
    """In the order of the page, since the acts change what there is to see."""
    for block in BLOCKS:
        command, said = "", ""
        for line in block.splitlines():
            if line.startswith("# ->"):
                assert has_line(said, line.removeprefix("# ->").strip()), (command, said)
                continue
            command = line.replace("redis-cli", f"redis-cli -p {server.port}")
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, timeout=10, check=False
            )
            said = done.stdout
            assert done.returncode == 0, (command, done.stderr)
            assert said.strip(), command
            assert not re.search(r"^(\(error\)|ERR|WRONGTYPE|NOSCRIPT)", said), (command, said)

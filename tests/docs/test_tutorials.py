"""Getting started and the how-to pages, run as they stand: a real store, a real broker."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import Broker, environment
from tests.servers import Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)

PAGES = (
    "getting-started.md",
    "concepts/leases.md",
    "concepts/queue.md",
    "how-to/agents.md",
    "how-to/operate.md",
    "how-to/shell.md",
    "how-to/teams.md",
    "how-to/testing.md",
    "how-to/usage.md",
    "reference/http.md",
)
"""Pages whose blocks of `python` and `sh` are run; blocks of `console` are shown alone."""


class Block(NamedTuple):
    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall((DOCS / page).read_text())]


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def broker(server: Server) -> Iterator[Broker]:
    """A broker as a reader has it who has followed the first page: two simulated GPUs."""
    with Broker(
        REDIS_URL=server.url, SAFE_MODE="false", GPU_BROKER_DEVICES="sim:2x24576",
        GPU_BROKER_HOSTNAME="readers-host",
    ) as broker:  # fmt: skip
        yield broker.wait()


def reader(broker: Broker, server: Server) -> dict[str, str]:
    """Return the environment of a reader's shell."""
    return environment(
        REDIS_URL=server.url,
        GPU_BROKER_HOSTNAME="readers-host",
        GPU_ORCHESTRATOR_URL=f"http://127.0.0.1:{broker.port}",
    )


def follow(block: Block, broker: Broker, server: Server) -> subprocess.CompletedProcess[str]:
    text = block.text.replace("localhost:8014", f"127.0.0.1:{broker.port}")
    command = [sys.executable, "-c", text] if block.kind == "python" else ["bash", "-euc", text]
    return subprocess.run(
        command, env=reader(broker, server), capture_output=True, text=True, timeout=60, check=False
    )


def program(page: str) -> Block:
    """All Python of a page as one program, in its order; its tests are run at the end."""
    code = "".join(block.text for block in blocks(page) if block.kind == "python")
    tests = re.findall(r"^def (test_\w+)\(", code, re.MULTILINE)
    return Block("python", code + "".join(f"\n{test}(None)" for test in tests))


@pytest.mark.parametrize("page", PAGES)
def test_page_can_be_followed(page: str, broker: Broker, server: Server) -> None:
    """Every block does what it says, and leaves no lease of the SDK behind."""
    steps = [block for block in blocks(page) if block.kind == "sh"]
    if any(block.kind == "python" for block in blocks(page)):
        steps.append(program(page))
    assert steps
    for step in steps:
        done = follow(step, broker, server)
        assert done.returncode == 0, (step.text, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    with LeaseClient(Store(server.url)) as client:
        assert [lease for lease in client.leases() if lease.agent != "me"] == []


def test_block_that_fails_is_found(broker: Broker, server: Server) -> None:
    """The page's test finds a page that is wrong."""
    assert follow(Block("python", "import agent_sdk.nowhere\n"), broker, server).returncode != 0
    assert follow(Block("sh", "gpu-broker nowhere\n"), broker, server).returncode != 0


def test_three_lines_of_the_readme_hold_a_lease(broker: Broker, server: Server) -> None:
    """With a `run_model` of the reader's own."""
    readme = (DOCS.parent / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    model = "def run_model(env): print(env['CUDA_VISIBLE_DEVICES'])\n"
    done = follow(Block("python", model + textwrap.dedent(code)), broker, server)
    assert done.stdout.startswith("SIM-readers-host-"), done.stderr

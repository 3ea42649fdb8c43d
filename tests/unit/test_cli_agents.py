"""`gpu-broker guard` and `gpu-broker skill`: coding agents that are taught, and stopped."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, Store
from agent_sdk.engines.table import ENGINES
from broker.run.touches import touched_by
from tests.api.brokers import PROGRAM
from tests.unit.brokers import broker_of_the_file
from tests.unit.cli_runs import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=1, memory_mb=1000)

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "pre-tool-use"


@pytest.fixture
def client(pool: TestBroker) -> Iterator[LeaseClient]:
    with LeaseClient(Store(pool.url), hostname=pool.host) as client:
        yield client


def call(
    pool: TestBroker, *args: str, cwd: Path | None = None, stdin: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *args], env=settings(pool) | env, cwd=cwd, input=stdin,
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip


TOUCHES = [
    "vllm serve my-model",
    "CUDA_VISIBLE_DEVICES=0 torchrun --nproc-per-node 2 train.py",
    "cd src && nohup python3 -c 'import torch; torch.zeros(1).cuda()' > log 2>&1 &",
    "sudo -E env A=b timeout 5m python -m vllm.entrypoints.openai.api_server",
    "bash -lc 'echo hi; python -c \"from jax import numpy\"'",
    "docker run --rm --gpus all image",
    "docker run --device nvidia.com/gpu=all image",
    "apptainer exec --nv image.sif true",
    "nvidia-smi --gpu-reset -i 0",
    "python train.py",
    "uv run python ./train.py --epochs 3",
    "sh go.sh",
    "python -W ignore train.py",
    "python -uX dev train.py",
    "python -uc 'import torch'",
    "python -um torch.distributed.run x.py",
    "pytest -k slow train.py::test_one",
    "python -m pytest -m gpu train.py",
    "sudo -u ann -g lab python train.py",
    "env -u A nice -n 5 vllm serve m",
    "uv run --with numpy python train.py",
    "echo 'not closed; vllm serve",
    "ls  # what is there\nvllm serve m",
    "curl http://host/#top && vllm serve m",
    "# it's the first step\npython train.py",
    "docker run --rm \\\n  --gpus all image",
    "if true; then python train.py; fi",
    "for seed in 1 2; do\n  python train.py --seed $seed\ndone",
    "{ vllm serve m; } > log",
    "while ! python train.py; do sleep 1; done",
    "python -c '\nimport torch\n'",
    "bash job.sh",
    "cd inner && python deep.py",
    "cd missing; cd inner\npython deep.py",
    'python train.py; eval "$(gpu-broker acquire --export)"',
    'eval "$(gpu-broker release --export)"; python train.py',
]
FREE = [
    "ls -l",
    "nvidia-smi -q | grep Used",
    "git commit -m 'use torch'",
    "grep -r torch .",
    "python -c 'print(1)'",
    "python plain.py",
    "python -m pip install torch",
    "docker run --rm image",
    "gpu-broker run --memory 8GiB -- python train.py",
    "python missing.py",
    "python -W error plain.py",
    "pytest -k torch plain.py",
    "python -m pytest -p torch",
    "sudo -u ann ls -l",
    "sudo -u ann",
    "env -u A " * 5000 + "ls",
    "",
    "ls  # vllm serve m",
    "# vllm serve m; python train.py\nls",
    "echo '# it is' \"# not; vllm serve m\" \\# said",
    "echo a\\\n  vllm serve m",
    "bash free.sh",
    "cd inner && python train.py",
    "cd ~no\0one; cd \ud800; cd ~missing-user; ls",
    "python deep.py; cd inner",
    'cd inner && eval "$(gpu-broker acquire --memory 8GiB --export)" && python deep.py',
    "eval $(/opt/bin/gpu-broker acquire --export)\nvllm serve m",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with a script that imports torch."""
    (tmp_path / "train.py").write_text("import sys\nimport torch\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "deep.py").write_text("from torch import nn\n")
    (tmp_path / "plain.py").write_text("text = 'import torch'\n")
    (tmp_path / "go.sh").write_text("set -e\npython train.py\n")
    (tmp_path / "job.sh").write_text("#!/bin/bash\n# the whole job\nset -e  # strict\nsh go.sh\n")
    (tmp_path / "free.sh").write_text("#!/bin/bash\n# not yet: python train.py\nls\n")
    return tmp_path


@pytest.mark.parametrize("line", TOUCHES)
def test_line_that_touches_a_gpu_is_known(folder: Path, line: str) -> None:
    """Through shells, prefixes and scripts."""
    assert touched_by(line, folder)


@pytest.mark.parametrize("line", FREE)
def test_line_that_touches_none_passes(folder: Path, line: str) -> None:
    """Words about a GPU are no use of it."""
    assert touched_by(line, folder) is None


def test_scripts_that_call_themselves_are_judged(folder: Path) -> None:
    """Each once: the hook ended with a trace, and a code that blocks nothing."""
    (folder / "again.sh").write_text("bash again.sh --retry\n")
    (folder / "one.sh").write_text("sh ./two.sh\n")
    (folder / "two.sh").write_text("sh one.sh; python train.py\n")
    assert touched_by("bash again.sh", folder) is None
    assert touched_by("bash one.sh", folder)


def test_guard_asks_the_pool_about_the_lease(pool: TestBroker, client: LeaseClient) -> None:
    """Without a lease, under one, after it, and in the queue."""
    refused = call(pool, "guard", "--", "vllm", "serve", "m")
    assert refused.returncode == 77
    assert "gpu-broker run" in refused.stderr
    assert call(pool, "guard", "--", "true").returncode == 0
    assert call(pool, "guard", "--always").returncode == 77
    lease = client.acquire("me", memory_mb=300)
    held = {"GPU_LEASE_TOKEN": lease.token}
    assert call(pool, "guard", "--", "vllm", "serve", "m", **held).returncode == 0
    client.release(lease)
    over = call(pool, "guard", "-o", "json", "--", "vllm serve m", **held)
    assert over.returncode == 77
    assert json.loads(over.stdout)["code"] == "over"
    assert call(pool, "guard", "--offline", "--", "vllm", **held).returncode == 0
    assert call(pool, "guard", "--offline", "--", "vllm").returncode == 77
    assert call(pool, "guard").returncode == 2


def test_command_names_its_lease_itself(pool: TestBroker, client: LeaseClient) -> None:
    """Before it, with the rest of the lease's variables, as an agent does that leases over MCP."""
    lease = client.acquire("me", memory_mb=300)
    line = f"CUDA_VISIBLE_DEVICES=0 GPU_LEASE_TOKEN='{lease.token}' vllm serve m"
    words = ("env", f"GPU_LEASE_TOKEN={lease.token}", "vllm", "serve", "m")
    assert call(pool, "guard", "--hook", stdin=asks(line)).returncode == 0
    assert call(pool, "guard", "--", *words).returncode == 0
    client.release(lease)
    assert "is over" in call(pool, "guard", "--hook", stdin=asks(line)).stderr
    strange = asks(f"GPU_LEASE_TOKEN={'?' * 32} vllm serve m")
    assert "no lease" in call(pool, "guard", "--hook", stdin=strange).stderr


def test_guard_without_a_store_says_so(pool: TestBroker, tmp_path: Path) -> None:
    """It does not pass what it cannot check."""
    away = {"REDIS_URL": f"unix://{tmp_path}/none.sock", "GPU_LEASE_TOKEN": "0123456789abcdef"}
    done = call(pool, "guard", "--", "vllm", **away)
    assert done.returncode == 69
    assert "--offline" in done.stderr
    assert call(pool, "guard", "--hook", stdin=asks("vllm"), **away).returncode == 2


def asks(command: str, cwd: str = ".") -> str:
    tool = {"tool_name": "Bash", "tool_input": {"command": command}}
    return json.dumps({"hook_event_name": "PreToolUse", "cwd": cwd, **tool})


def test_guard_speaks_the_hooks_protocol(pool: TestBroker, folder: Path) -> None:
    """2 and the reason on stderr, or the decision as JSON; other tools pass."""
    blocked = call(pool, "guard", "--hook", stdin=asks("python train.py", str(folder)))
    assert blocked.returncode == 2
    assert "train.py imports torch" in blocked.stderr
    assert "gpu-broker acquire" in blocked.stderr
    said = call(pool, "guard", "--hook", "-o", "json", stdin=asks("vllm serve m"))
    assert said.returncode == 0
    decision = json.loads(said.stdout)["hookSpecificOutput"]
    assert decision["hookEventName"] == "PreToolUse"
    assert decision["permissionDecision"] == "deny"
    for passes in (asks("ls"), json.dumps({"tool_name": "Read", "tool_input": {"file": "x"}})):
        done = call(pool, "guard", "--hook", stdin=passes)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for garbage in ("", "[]", "{", "[" * 100_000):
        assert call(pool, "guard", "--hook", stdin=garbage).returncode == 2


def test_example_of_the_hook_is_what_guard_speaks(pool: TestBroker) -> None:
    """Its settings name a command that blocks."""
    hooks = json.loads((EXAMPLE / "settings.json").read_text())["hooks"]["PreToolUse"]
    assert hooks[0]["matcher"] == "Bash"
    words = hooks[0]["hooks"][0]["command"].split()
    assert words[0] == "gpu-broker"
    assert call(pool, *words[1:], stdin=asks("vllm serve m")).returncode == 2


def test_skill_is_installed_where_agents_look(pool: TestBroker, tmp_path: Path) -> None:
    """A changed page is not overwritten, except by --force."""
    (tmp_path / ".claude").mkdir()
    page = call(pool, "skill", "show").stdout
    for folder in (".agents", ".claude"):
        path = tmp_path / folder / "skills" / "gpu-lease" / "SKILL.md"
        assert call(pool, "skill", "install", cwd=tmp_path).returncode == 0
        assert path.read_text() == page
        path.write_text("my own")
        kept = call(pool, "skill", "install", cwd=tmp_path)
        assert kept.returncode == 1
        assert "--force" in kept.stderr
        assert path.read_text() == "my own"
        assert "overwrote" in call(pool, "skill", "install", "--force", cwd=tmp_path).stdout
        assert path.read_text() == page
    (tmp_path / "file").touch()
    assert call(pool, "skill", "install", "file", cwd=tmp_path).returncode == 1


def test_skill_has_the_form_of_skills_and_names_what_there_is(pool: TestBroker) -> None:
    """agentskills.io: name and description; each command and option of it exists."""
    page = call(pool, "skill", "show").stdout
    head = dict(re.findall(r"^(\w+): (.*)$", page.split("---\n")[1], re.MULTILINE))
    assert head["name"] == "gpu-lease"
    assert 1 <= len(head["description"]) <= 1024
    for name, options in re.findall(r"`(?:eval \"\$\()?gpu-broker (\w+)([^`]*)`", page):
        text = call(pool, name, "--help").stdout
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", options.split(" -- ")[0]):
            assert option in text, (name, option)
    engines = set(re.findall(r"`--for ([a-z]+)`", page))
    assert "vllm" in engines
    assert engines <= ENGINES.keys()

"""deploy/ports.env is the one place where a port is set: every other mention agrees with it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from agent_sdk.settings import ORCHESTRATOR_URL
from broker.settings import Settings

ROOT = Path(__file__).parents[2]

PORTS = {
    name: int(port)
    for name, port in re.findall(
        r"^(\w+)=(\d+)$", (ROOT / "deploy" / "ports.env").read_text(), re.MULTILINE
    )
}

DOCUMENTED = [
    "mcp_bus", "chief_editor", "scout", "fact_checker", "analyst", "synthesizer", "critic",
    "memory", "reasoning", "newsreader", "balancer", "analytics", "archive", "dashboard",
    "gpu_orchestrator",
]  # fmt: skip
"""From port 8000 on, as the documented service has them."""

TEXT = {".py", ".sh", ".md", ".service", ".conf", ".example", ".env", ".toml", ".yml", ".json", ""}

MENTION = re.compile(r"(?<![\d.])(80(?:0\d|1[0-4]))(?![\d.])")


def mentions() -> list[tuple[str, str]]:
    """(where, line) of every line of the tree that has a number which is one of our ports."""
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    found = []
    for name in listed.splitlines():
        path = ROOT / name
        if (
            path.suffix not in TEXT
            or not path.is_file()
            or name.startswith(("tests/", "scripts/bench/", "requirements"))
        ):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if MENTION.search(line):
                found.append((f"{name}:{number}", line))
    return found


def test_ports_are_the_documented_ones() -> None:
    """Each agent in its place, none twice."""
    assert {name: 8000 + n for n, name in enumerate(DOCUMENTED)} == PORTS


def test_defaults_are_the_orchestrators_port() -> None:
    """The broker listens on the port that its clients ask."""
    assert Settings.model_fields["port"].default == PORTS["gpu_orchestrator"]
    assert ORCHESTRATOR_URL.endswith(f":{PORTS['gpu_orchestrator']}")


def test_mention_is_of_an_agent_that_has_this_port() -> None:
    """A line that names an agent beside a port names its own; any other speaks of the broker's."""
    wrong = []
    for where, line in mentions():
        named = {name for name in PORTS if re.search(rf"(?<![a-z]){name}(?![a-z])", line.lower())}
        allowed = {PORTS[name] for name in named} | {PORTS["gpu_orchestrator"]}
        if not {int(port) for port in MENTION.findall(line)} <= allowed:
            wrong.append((where, line))
    assert wrong == []

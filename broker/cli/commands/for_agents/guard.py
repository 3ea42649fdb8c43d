"""`gpu-broker guard`: no command that touches a GPU without a lease; also as an agent's hook."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

import click

from agent_sdk.errors import LeaseError
from agent_sdk.keys import TOKEN
from agent_sdk.settings import lease_token
from agent_sdk.state.queue import WaiterStatus
from broker.cli import DENIED, UNAVAILABLE, USAGE
from broker.cli.store import as_json, connect, output_option, show
from broker.run.touches import touched_by
from broker.text.screen import one_line, say

DEADLINE_S: Final = 1.0

BLOCKS: Final = 2
"""Exit code by which a PreToolUse hook stops a tool call; its stderr goes to the agent."""

HOW: Final = (
    "run it under a lease: gpu-broker run --memory 8GiB -- COMMAND (waits for one; --or-cpu runs "
    "without a GPU), or take one in the same line: "
    'eval "$(gpu-broker acquire --memory 8GiB --export)" && COMMAND'
)
"""Way out for a command without a lease."""


NAMED: Final = re.compile(rf"\bGPU_LEASE_TOKEN=[\"']?({TOKEN.pattern})(?![^\s\"';&|)])")
"""Lease that a command names itself, as one that an agent has over MCP."""


class Judgement(NamedTuple):
    """Judgement of a command.

    Attributes:
        allowed: it may run.
        code: `free` (it touches no GPU), `leased`, `no_lease`, `over`, `waiting`, `unchecked`.
        says: the reason, with the way out where it may not run.
    """

    allowed: bool
    code: str
    says: str


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--always", is_flag=True, help="Ask for a lease whatever the command is.")
@click.option("--offline", is_flag=True, help="Believe GPU_LEASE_TOKEN without asking the pool.")
@click.option("--hook", is_flag=True, help="Read a PreToolUse hook's JSON on stdin; 2 blocks.")
@output_option()
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def guard(always: bool, offline: bool, hook: bool, output: str, command: tuple[str, ...]) -> None:
    """Tell by the exit code whether COMMAND may run: it touches no GPU, or there is a lease.

    It is judged by its words: Python that imports torch and the like, programs such as vllm and
    torchrun, docker --gpus. nvidia-smi may read. GPU_LEASE_TOKEN names the lease, which the pool is
    asked about. This keeps habits, and is no sandbox: what it does not know passes.

    Exit codes: 0 it may run; 77 no lease; 69 the pool cannot be asked. With --hook, 2 in place of
    both, and the reason on stderr; with -o json the decision on stdout.

    \b
    Examples:
      gpu-broker guard -- python train.py && python train.py
      gpu-broker guard --always --offline
      echo '{"tool_input": {"command": "vllm serve m"}}' | gpu-broker guard --hook
    """
    if hook:
        _answer_hook(output, always=always, offline=offline)
    if not command and not always:
        raise click.UsageError("name a COMMAND after --, or ask with --always for any")
    # One word is a line for a shell, as `guard -- "a && b"`.
    found = _judge(command[0] if len(command) == 1 else command, always=always, offline=offline)
    if output == "json":
        show(output, "", found._asdict())
    elif not found.allowed:
        say(f"gpu-broker: {one_line(found.says)}", err=True)
    sys.exit(0 if found.allowed else UNAVAILABLE if found.code == "unchecked" else DENIED)


def _judge(
    command: str | tuple[str, ...], *, always: bool, offline: bool, folder: Path | None = None
) -> Judgement:
    why = "a lease is asked for" if always else touched_by(command, folder)
    if why is None:
        return Judgement(allowed=True, code="free", says="nothing known says that it touches a GPU")
    named = NAMED.search(command if isinstance(command, str) else " ".join(command))
    token = named[1] if named else lease_token()
    if token is None:
        return Judgement(allowed=False, code="no_lease", says=f"no lease, and {why}; {HOW}")
    if offline:
        return Judgement(allowed=True, code="leased", says=f"GPU_LEASE_TOKEN names {token[:8]}")
    return _of_the_pool(token, why)


def _of_the_pool(token: str, why: str) -> Judgement:
    """Ask the pool about the lease."""
    name = token[:8]
    try:
        with connect("gpu-broker-guard", DEADLINE_S) as client:
            found = client.lookup(token)
    except (LeaseError, ValueError) as error:
        says = f"{why}, and the lease {name} cannot be checked: {error}; --offline believes it"
        return Judgement(allowed=False, code="unchecked", says=says)
    if isinstance(found, WaiterStatus):
        says = f"{why}, and {name} still waits in the queue: gpu-broker wait {name}"
        return Judgement(allowed=False, code="waiting", says=says)
    if found is None or isinstance(found, str):
        says = f"{why}, and the lease {name} is over ({found or 'unknown'}); {HOW}"
        return Judgement(allowed=False, code="over", says=says)
    return Judgement(allowed=True, code="leased", says=f"under the lease {name} of {found.agent}")


def _answer_hook(output: str, *, always: bool, offline: bool) -> None:
    """Judge the command of a hook's JSON, and exit in the hook's way."""
    try:
        asked = json.loads(sys.stdin.buffer.read())
        command = asked.get("tool_input", {}).get("command")
        folder = Path(str(asked.get("cwd") or "."))
    except (ValueError, AttributeError, RecursionError):
        say("gpu-broker guard: stdin has no JSON of a PreToolUse hook", err=True)
        sys.exit(USAGE)
    if not isinstance(command, str):  # a tool that runs no command
        sys.exit(0)
    found = _judge(command, always=always, offline=offline, folder=folder)
    if found.allowed:
        sys.exit(0)
    if output == "json":
        decision = {
            "hookEventName": "PreToolUse",
            "permissionDecision": "deny",
            "permissionDecisionReason": found.says,
        }
        say(as_json({"hookSpecificOutput": decision}))
        sys.exit(0)
    say(one_line(found.says), err=True)
    sys.exit(BLOCKS)

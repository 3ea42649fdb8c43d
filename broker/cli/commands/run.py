"""`gpu-broker run`: a command under a lease."""

from __future__ import annotations

import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from agent_sdk.engines.table import ENGINES
from agent_sdk.engines.visible import OF_OTHERS, on_amd
from agent_sdk.errors import (
    BadRequest,
    BrokerUnavailable,
    Denied,
    HostUnknown,
    LeaseError,
    OutcomeUnknown,
    SafeMode,
)
from agent_sdk.protocol.messages import LONGEST_TTL_MS
from agent_sdk.settings import whole_environment
from broker.cli import DENIED, FAILED, NOT_IN_TIME, UNAVAILABLE
from broker.cli.complete import hosts
from broker.cli.own_words import in_options
from broker.cli.store import connect, way_out
from broker.identity import user_at_host
from broker.run.engines import reads_numbers_in_vain, set_up
from broker.run.guard import Guard
from broker.run.inherited import die_of, take_over
from broker.run.mps import mps_environment, without_own
from broker.run.partition import NotLimitedError, limited
from broker.run.progress import Progress
from broker.run.supervise import CommandEnd, NotStarted, supervise
from broker.run.wait import get_lease
from broker.text.units import Duration, Size, doubt
from broker.text.unknown_host import look_for

if TYPE_CHECKING:
    from types import FrameType

    from agent_sdk import Lease, LeaseClient
    from agent_sdk.engines.visible import Visible
    from agent_sdk.request import LeaseOptions
    from agent_sdk.state.limits import DeviceLimits
    from broker.run.inherited import Inherited

DEADLINE_S = 5.0

FOREVER_S = LONGEST_TTL_MS / 1000
"""Longest wait, in seconds: a week."""

SHORT_S = 10.0
"""Seconds of a lease whose renewals begin before the command does: its start may take a while."""

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes that a shell uses, too."""


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--memory", type=Size(), default=0, help="On each GPU: 8GiB, 8g, 512MiB, 8192 (MiB).")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, help="Several whole GPUs.")
@click.option("--exclusive", is_flag=True, help="Alone on the GPU.")
@click.option("--model", help="The exact name of a model, as status shows it; default any.")
@click.option("--host", help="Default this machine: the command runs here.", shell_complete=hosts)
@click.option(
    "--placement", type=click.Choice(["spread", "pack"]), default="spread",
    help="The emptiest GPU first (default), or the fullest that fits.",
)  # fmt: skip
@click.option(
    "--wait", "wait_s", type=Duration(FOREVER_S),
    help="Wait at most so long: 30s, 10m, 2h; 0 = not at all. Default: until it fits; with "
    "--or-cpu not at all.",
)  # fmt: skip
@click.option("--priority", type=click.IntRange(0, 9), default=0, help="In the queue, 9 first.")
@click.option("--or-cpu", is_flag=True, help="Run without a GPU if none is to be had.")
@click.option("--time", "max_hold_s", type=Duration(), default=0.0, help="Hold it no longer: 2h.")
@click.option(
    "--ttl", "ttl_s", type=Duration(FOREVER_S), default=30.0,
    help="The lease ends so long after its last renewal: after a crash of this machine, or when "
    "the store is away for longer (default 30s).",
)  # fmt: skip
@click.option(
    "--grace", "grace_s", type=Duration(), default=10.0,
    help="Between SIGTERM and SIGKILL when the lease is lost (default 10s).",
)  # fmt: skip
@click.option(
    "--for", "engine", type=click.Choice(list(ENGINES)),
    help="Keep this engine inside the lease: by an option of its command, or by variables.",
)  # fmt: skip
@click.option(
    "--visible", type=click.Choice(["uuid", "index"]),
    help="CUDA_VISIBLE_DEVICES as UUIDs or as numbers in PCI order. Default UUIDs; numbers for an "
    "engine that reads numbers.",
)  # fmt: skip
@click.option(
    "--store-timeout", "store_timeout_s", type=Duration(), default=300.0,
    help="End with 69 when the store is away for so long during the wait (default 5m).",
)  # fmt: skip
@click.option(
    "--enforce", is_flag=True,
    help="Start the command only if the driver limits its memory to the lease (driver 615).",
)  # fmt: skip
@click.option("--agent", help="The agent that asks; default user@host.")
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text",
    help="Form of the messages on stderr: text for people, or JSON lines.",
)  # fmt: skip
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    memory: int,
    gpus: int,
    exclusive: bool,
    model: str | None,
    host: str | None,
    placement: Literal["spread", "pack"],
    wait_s: float | None,
    priority: int,
    or_cpu: bool,
    max_hold_s: float,
    ttl_s: float,
    grace_s: float,
    engine: str | None,
    visible: Visible | None,
    store_timeout_s: float,
    enforce: bool,
    agent: str | None,
    quiet: bool,
    output: Literal["text", "json"],
    command: tuple[str, ...],
) -> None:
    """Run COMMAND under a lease: wait for it, renew it, give it back.

    COMMAND finds its GPU in CUDA_VISIBLE_DEVICES, and GPU_LEASE_TOKEN, GPU_LEASE_FENCE,
    GPU_LEASE_MEMORY_MB and GPU_LEASE_MEMORY_FRACTION (of the GPU) beside it. It runs as under env:
    with the terminal, signals and open files that gpu-broker run was given, in a process group of
    its own. If the lease is lost it gets SIGTERM, and after --grace SIGKILL; neither it nor its
    children outlive gpu-broker run. Messages go to stderr.

    The exit code is COMMAND's (128 + n if signal n ended it; Ctrl-C ends both by SIGINT), or: 75
    not granted in time, 69 the store is away or full, or with --wait 0 the pool is closed, 77
    denied (SAFE_MODE, credentials), 1 refused for good, 126 and 127 as a shell's.

    \b
    Examples:
      gpu-broker run --memory 8GiB -- python train.py
      gpu-broker run --gpus 2 --wait 10m --time 2h -- torchrun --nproc-per-node 2 train.py
      gpu-broker run --memory 20GiB --for vllm -- vllm serve my-model
      gpu-broker run --memory 4GiB --or-cpu -- python embed.py
    """
    teller = Progress("json" if output == "json" else "trouble" if quiet else "text")
    if shutil.which(command[0]) is None:
        if Path(command[0]).exists() and "/" in command[0]:
            teller.failed("not_executable", f"{command[0]}: Permission denied")
            sys.exit(NOT_EXECUTABLE)
        teller.failed("not_found", f"{command[0]}: no such command")
        sys.exit(NOT_FOUND)
    if ttl_s <= 0:
        raise click.BadParameter("a lease of a process that may die must end", param_hint="--ttl")
    teller.doubted(doubt(memory, "--memory"))
    ask: LeaseOptions = {
        "memory": f"{memory}MiB",
        "devices": gpus,
        "exclusive": exclusive,
        "model": model,
        "host": host,
        "placement": placement,
        "priority": priority,
        "max_hold_s": max_hold_s,
        "ttl_s": ttl_s,
        "on_unavailable": "cpu" if or_cpu else "raise",
        "wait_s": 0.0 if or_cpu else FOREVER_S,
    }
    if wait_s is not None:
        ask["wait_s"] = wait_s
    inherited = take_over()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored: nohup asked for that
            signal.signal(number, _leave)
    try:
        with Guard() as guard, _client(store_timeout_s) as client:
            lease = get_lease(client, agent or user_at_host(), ask, teller)
            how = _Start(command, grace_s, engine, visible, enforce)
            ended = _run(client, lease, how, teller, guard, inherited)
    except (LeaseError, ValueError) as error:
        ended = CommandEnd(_explained(error, teller))
    except KeyboardInterrupt:
        ended = CommandEnd(128 + signal.SIGINT, signal.SIGINT)
    if ended.by is not None:
        die_of(ended.by, group=ended.alone)
    sys.exit(ended.code)


class _Start(NamedTuple):
    """Command to run, and how."""

    command: tuple[str, ...]
    grace_s: float
    engine: str | None
    visible: Visible | None
    enforce: bool


def _client(store_timeout_s: float) -> LeaseClient:
    client = connect("gpu-broker-run", DEADLINE_S)
    client.away_s = store_timeout_s
    return client


def _run(
    client: LeaseClient,
    lease: Lease,
    how: _Start,
    teller: Progress,
    guard: Guard,
    inherited: Inherited,
) -> CommandEnd:
    """Run the command and return its end; the lease is given back in any case."""
    given_back = False

    def release() -> None:
        nonlocal given_back
        given_back = True
        try:
            client.release(lease)
        except LeaseError as error:
            teller.not_returned(lease, error)

    try:
        if lease.trusted_s < SHORT_S:
            client.keep(lease)
        words, env = _prepared(lease, how, teller)
        mode = "off"
        if lease.devices:
            limits = client.limits_on(device.uuid for device in lease.devices)
            env |= _under_mps(lease, limits, teller)
            mode = "required" if how.enforce else limits.memory_limit
        with limited(client, lease, teller, mode):
            return supervise(
                words, env, lease, how.grace_s, teller, partial(client.keep, lease), release,
                guard=guard, inherited=inherited,
            )  # fmt: skip
    except NotLimitedError as error:
        teller.failed("not_limited", f"the driver does not limit the command: {error}")
        return CommandEnd(FAILED)
    except NotStarted as error:
        teller.failed("not_executable", f"{how.command[0]}: {error}")
        return CommandEnd(NOT_EXECUTABLE)
    finally:
        if not given_back:
            release()


def _prepared(lease: Lease, how: _Start, teller: Progress) -> tuple[list[str], dict[str, str]]:
    """Return the command and its environment, with the settings of its engine."""
    outer, words, form = dict(whole_environment()), list(how.command), how.visible
    for name in OF_OTHERS if on_amd(lease.devices) else ():
        outer.pop(name, None)
    if how.engine is None or lease.on_cpu:
        return words, outer | lease.env(visible=form)
    if form is None:
        in_vain = reads_numbers_in_vain(how.engine, lease)
        form = "index" if ENGINES[how.engine].numbers and not in_vain else "uuid"
        if in_vain:
            teller.unbounded(how.engine, in_vain)
    env = outer | lease.env(visible=form)
    setup = set_up(words, how.engine, lease, outer)
    teller.engine_set_up(how.engine, setup)
    return setup.words, env | setup.env


def _under_mps(lease: Lease, limits: DeviceLimits, teller: Progress) -> dict[str, str]:
    """Return MPS's limits of the lease, except those that the user has set."""
    added, kept = without_own(mps_environment(lease, limits), whole_environment())
    teller.mps(added, kept)
    return added


def _explained(error: LeaseError | ValueError, teller: Progress) -> int:
    """Tell the reason for which there is no lease; return the exit code for it."""
    if not isinstance(error, LeaseError):
        teller.failed("bad_request", str(error))
        return FAILED
    text = str(error)
    if isinstance(error, HostUnknown):
        with _client(DEADLINE_S) as client:
            teller.failed(error.code, look_for(client, error.asked))
        return FAILED
    if isinstance(error, (BrokerUnavailable, OutcomeUnknown)):
        code, advice = UNAVAILABLE, way_out(error)
    elif isinstance(error, (Denied, SafeMode)):
        code, advice = DENIED, "--or-cpu runs the command without a GPU"
    elif error.retryable:
        code, advice = (
            NOT_IN_TIME,
            "--wait waits longer, gpu-broker explain names the obstacles",
        )
    elif isinstance(error, BadRequest):
        text, code, advice = in_options(text), FAILED, "gpu-broker run --help says more"
    else:
        code, advice = FAILED, "gpu-broker status shows what there is"
    teller.failed(error.code, f"{text}; {advice[0].lower()}{advice[1:]}")
    return code


def _leave(number: int, _: FrameType | None) -> None:
    """Leave the queue, as at Ctrl-C; once the command runs, signals are its own."""
    sys.exit(128 + number)

"""`gpu-broker run`: a command under a lease."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from agent_sdk.engines.containers import DETACHED, RUNTIMES
from agent_sdk.engines.table import ENGINES
from agent_sdk.engines.visible import OF_OTHERS, on_amd
from agent_sdk.errors import LeaseError
from agent_sdk.settings import whole_environment
from broker.cli import FAILED, NOT_IN_TIME
from broker.cli.leasing.options import asked_in, request_options
from broker.cli.leasing.refusal import explained, waiting_client
from broker.identity import user_at_host
from broker.run.containers import NO_SEPARATOR, Containers, contained, without_limit
from broker.run.engines import reads_numbers_in_vain, set_up
from broker.run.guard import Guard
from broker.run.inherited import die_of, take_over
from broker.run.missing import NOT_EXECUTABLE, missing
from broker.run.mps import mps_environment, without_own
from broker.run.partition import NotLimitedError, limited
from broker.run.preemption import OnPreempt, SignalOrCommand
from broker.run.progress import Progress
from broker.run.signals import leave_at_signals
from broker.run.supervise import CommandEnd, NotStarted, supervise
from broker.run.wait import get_lease
from broker.text.units import Duration, doubt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk import Lease, LeaseClient
    from agent_sdk.engines.containers import Runtime
    from agent_sdk.engines.visible import Visible
    from agent_sdk.request import LeaseOptions
    from agent_sdk.state.limits import DeviceLimits
    from broker.run.inherited import Inherited

NAME = "gpu-broker-run"
"""Name of this client, beside its leases."""

SAFE_ADVICE = "--or-cpu runs the command without a GPU"

SHORT_S = 10.0
"""Seconds of a lease whose renewals begin before the command does: its start may take a while."""

NOT_ENFORCED = (
    "the driver limits this command's cgroup, and {0} starts containers in others: leave --enforce "
    "or --in {0} away"
)


@click.command(context_settings={"allow_interspersed_args": False})
@request_options(
    here="the command runs here.",
    wait="Default: until it fits; with --or-cpu not at all.",
)
@click.option("--or-cpu", is_flag=True, help="Run without a GPU if none is to be had.")
@click.option(
    "--grace", "grace_s", type=Duration(), default=10.0,
    help="Between SIGTERM and SIGKILL when the lease is lost (default 10s).",
)  # fmt: skip
@click.option(
    "--on-preempt", type=SignalOrCommand(), metavar="SIGNAL|COMMAND",
    help="When the lease is to be taken back, to save what COMMAND has done: send it this signal, "
    "such as SIGUSR1 (it alone, not its children), or run this shell command beside it.",
)  # fmt: skip
@click.option(
    "--checkpoint-window", "window_s", type=Duration(), default=0.0,
    help="The longest time for that, and never beyond the lease's own: 60s. Default all of it.",
)  # fmt: skip
@click.option(
    "--requeue", is_flag=True,
    help="Wait again after a preemption, and start COMMAND anew: GPU_BROKER_ATTEMPT=2 and so on.",
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
    "--enforce", is_flag=True,
    help="Start the command only if the driver limits its memory to the lease (driver 615).",
)  # fmt: skip
@click.option(
    "--in", "runtime", type=click.Choice(RUNTIMES),
    help="Run it in a container or a sandbox: COMMAND is then [OPTIONS] IMAGE [COMMAND], as after "
    "docker run; with bwrap OPTIONS -- COMMAND.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text",
    help="Form of the messages on stderr: text for people, or JSON lines.",
)  # fmt: skip
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    or_cpu: bool,
    grace_s: float,
    engine: str | None,
    visible: Visible | None,
    enforce: bool,
    runtime: Runtime | None,
    on_preempt: OnPreempt | None,
    window_s: float,
    requeue: bool,
    quiet: bool,
    output: Literal["text", "json"],
    command: tuple[str, ...],
    **asked: Any,
) -> None:
    """Run COMMAND under a lease: wait for it, renew it, give it back.

    COMMAND finds its GPU in CUDA_VISIBLE_DEVICES, and GPU_LEASE_TOKEN, GPU_LEASE_FENCE,
    GPU_LEASE_MEMORY_MB and GPU_LEASE_MEMORY_FRACTION (of the GPU) beside it. It runs as under env:
    with the terminal, signals and open files that gpu-broker run was given, in a process group of
    its own. If the lease is lost it gets SIGTERM, and after --grace SIGKILL; neither it nor its
    children outlive gpu-broker run. Messages go to stderr.

    A lease of a team that borrows, or one taken with --preemptible, may be taken back with notice.
    COMMAND can save its state meanwhile: --on-preempt. It then ends by itself, or gets SIGTERM when
    the shell command has ended or the time is over. With --requeue it waits for the next lease and
    is started anew, which goes on from what it saved; with --on-preempt any end after the notice
    counts as a preemption, so that no half-done work looks finished.

    The exit code is COMMAND's (128 + n if signal n ended it; Ctrl-C ends both by SIGINT), or: 75
    not granted in time, or preempted without --requeue, 69 the store is away or full, or with
    --wait 0 the pool is closed, 77 denied (SAFE_MODE, credentials), 1 refused for good, 126 and 127
    as a shell's.

    \b
    Examples:
      gpu-broker run --memory 8GiB -- python train.py
      gpu-broker run --gpus 2 --wait 10m --time 2h -- torchrun --nproc-per-node 2 train.py
      gpu-broker run --memory 20GiB --for vllm -- vllm serve my-model
      gpu-broker run --memory 4GiB --or-cpu -- python embed.py
      gpu-broker run --gpus 4 --on-preempt SIGUSR1 --requeue -- python train.py
      gpu-broker run --memory 8GiB --in docker -- -v "$PWD:/w" my-image python /w/train.py
    """
    teller = Progress("json" if output == "json" else "trouble" if quiet else "text")
    if code := missing(runtime or command[0], teller):
        sys.exit(code)
    _check_runtime(runtime, command, enforce=enforce)
    ask = asked_in(asked)
    teller.doubted(doubt(asked["memory"], "--memory"))
    if or_cpu:
        ask |= {"on_unavailable": "cpu", "wait_s": asked["wait_s"] or 0.0}
    inherited = take_over()
    leave_at_signals()  # once the command runs, signals are its own
    try:
        wish = replace(on_preempt or OnPreempt(), window_s=window_s)
        how = _Start(command, grace_s, engine, visible, enforce, runtime, wish)
        with (
            Guard(how.own_engine) as guard,
            waiting_client(NAME, asked["store_timeout_s"]) as client,
        ):
            agent = asked["agent"] or user_at_host()
            ended = _attempts(client, agent, ask, how, teller, guard, inherited, requeue=requeue)
    except (LeaseError, ValueError) as error:
        ended = CommandEnd(explained(error, teller, "run", SAFE_ADVICE))
    except KeyboardInterrupt:
        ended = CommandEnd(128 + signal.SIGINT, signal.SIGINT)
    if ended.by is not None:
        die_of(ended.by, group=ended.alone)
    sys.exit(ended.code)


def _attempts(
    client: LeaseClient,
    agent: str,
    ask: LeaseOptions,
    how: _Start,
    teller: Progress,
    guard: Guard,
    inherited: Inherited,
    *,
    requeue: bool,
) -> CommandEnd:
    """Run the command, again after each preemption if that is asked for; return its last end."""
    for attempt in count(1):
        lease = get_lease(client, agent, ask, teller)
        env = {"GPU_BROKER_ATTEMPT": str(attempt)} if requeue else {}
        ended = _run(client, lease, how, teller, guard, inherited, env)
        if not ended.preempted:
            return ended
        if not requeue:
            break
        if ended.stopped is not None:
            signal.raise_signal(ended.stopped)  # no new attempt, as in the queue
        guard.forget()
        teller.requeued(lease.token, attempt + 1)
        ask = {**ask, "after": lease.token}
    return CommandEnd(NOT_IN_TIME)


def _check_runtime(runtime: str | None, command: tuple[str, ...], *, enforce: bool) -> None:
    if runtime in DETACHED and enforce:
        raise click.BadParameter(NOT_ENFORCED.format(runtime), param_hint="--enforce")
    if runtime == "bwrap" and "--" not in command:
        raise click.BadParameter(NO_SEPARATOR, param_hint="--in")


class _Start(NamedTuple):
    """Command to run, and how."""

    command: tuple[str, ...]
    grace_s: float
    engine: str | None
    visible: Visible | None
    enforce: bool
    runtime: Runtime | None
    on_preempt: OnPreempt

    @property
    def own_engine(self) -> str:
        """Engine to which the command's container belongs; empty: all of it is our child."""
        return self.runtime if self.runtime in DETACHED else ""


def _run(
    client: LeaseClient,
    lease: Lease,
    how: _Start,
    teller: Progress,
    guard: Guard,
    inherited: Inherited,
    more: dict[str, str],
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
        outer = _outer(lease)
        own = {} if how.own_engine else outer  # its containers get none of ours
        words, added = _prepared(lease, how, teller, own)
        added |= more
        mode = "off"
        if lease.devices:
            limits = client.limits_on(device.uuid for device in lease.devices)
            added |= _under_mps(lease, limits, teller, own)
            mode = "required" if how.enforce else limits.memory_limit
        env, containers = outer | added, None
        if how.runtime:
            words, env = contained(how.runtime, lease, words, env, added, numbered=_numbered(how))
        if how.own_engine:
            without_limit(how.own_engine, mode, teller)
            containers, mode = Containers(how.own_engine, lease.token), "off"
        with limited(client, lease, teller, mode):
            return supervise(
                words, env, lease, how.grace_s, teller, partial(client.keep, lease), release,
                guard=guard, inherited=inherited, containers=containers,
                on_preempt=how.on_preempt,
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


def _numbered(how: _Start) -> bool:
    by_default = how.engine is not None and how.visible is None and ENGINES[how.engine].numbers
    return by_default or how.visible == "index"


def _outer(lease: Lease) -> dict[str, str]:
    """Return our environment, without variables that select again among AMD's GPUs."""
    outer = dict(whole_environment())
    for name in OF_OTHERS if on_amd(lease.devices) else ():
        outer.pop(name, None)
    return outer


def _prepared(
    lease: Lease, how: _Start, teller: Progress, own: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command, and the variables to add for it, with the settings of its engine.

    `own`: the variables that it has besides.
    """
    words = list(how.command)
    form: Visible | None = "uuid" if how.own_engine else how.visible
    if how.engine is None or lease.on_cpu:
        return words, lease.env(visible=form)
    if form is None:
        in_vain = reads_numbers_in_vain(how.engine, lease)
        form = "index" if ENGINES[how.engine].numbers and not in_vain else "uuid"
        if in_vain:
            teller.unbounded(how.engine, in_vain)
    env = lease.env(visible=form)
    setup = set_up(words, how.engine, lease, own)
    teller.engine_set_up(how.engine, setup)
    return setup.words, env | setup.env


def _under_mps(
    lease: Lease, limits: DeviceLimits, teller: Progress, own: Mapping[str, str]
) -> dict[str, str]:
    """Return MPS's limits of the lease, except those that the user has set."""
    added, kept = without_own(mps_environment(lease, limits), own)
    teller.mps(added, kept)
    return added

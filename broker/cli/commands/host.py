"""`gpu-broker host`: report this machine's devices, without HTTP."""

from __future__ import annotations

import click

from broker.text.units import Bounded

may_kill_option = click.option(
    "--may-kill",
    is_flag=True,
    help="End processes on this machine's GPUs where the policy asks for it (enforce,"
    " kill_on_oom): SIGTERM, after 5 s SIGKILL. Also GPU_BROKER_MAY_KILL=true.",
)


@click.command()
@click.option(
    "--drain-on-stop",
    "drain_s",
    type=Bounded(0, 86400),
    metavar="SECONDS",
    help="When stopped, offer no GPU, and wait so long for the leases here; a second signal ends"
    " the wait. Default: GPU_BROKER_DRAIN_ON_STOP_S, else 0: leave at once.",
)
@may_kill_option
def host(drain_s: float | None, may_kill: bool) -> None:
    """Report this machine's GPUs to the pool, and nothing else: for GPU hosts without a broker.

    Leases do not need it: while it is away those that run go on, and after three missed reports
    the host gets no new ones.

    \b
    Examples:
      REDIS_URL=redis://gpu-store:6379 ENABLE_NVML=true gpu-broker host
      gpu-broker host --drain-on-stop 600
    """
    from broker.cli.serving.host import report  # noqa: PLC0415 - --help does without an extra

    report(drain_on_stop_s=drain_s, may_kill=may_kill or None)

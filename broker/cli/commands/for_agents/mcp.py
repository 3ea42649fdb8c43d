"""`gpu-broker mcp`: leases as tools of an agent, over stdio."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import click

from broker.cli import UNAVAILABLE
from broker.mcp_terms import ALONE_GPUS, IDLE_RELEASE_S, INSTALL, TTL_S, Terms
from broker.text.screen import say
from broker.text.units import Bounded


@click.command()
@click.option(
    "--agent", default="", envvar="GPU_BROKER_MCP_AGENT",
    help="Name of the agent whose requests name none (GPU_BROKER_MCP_AGENT); default user@host.",
)  # fmt: skip
@click.option(
    "--alone-gpus", type=click.IntRange(0, 64), default=ALONE_GPUS, show_default=True,
    envvar="GPU_BROKER_MCP_ALONE_GPUS",
    help="More GPUs than this in one request need a person's word (GPU_BROKER_MCP_ALONE_GPUS).",
)  # fmt: skip
@click.option(
    "--alone-mb", type=click.IntRange(0), default=0, show_default=True,
    envvar="GPU_BROKER_MCP_ALONE_MB",
    help="More MiB than this need it too (GPU_BROKER_MCP_ALONE_MB); 0: no limit.",
)  # fmt: skip
@click.option(
    "--idle-release", type=Bounded(1, 604800), default=IDLE_RELEASE_S, show_default=True,
    envvar="GPU_BROKER_MCP_IDLE_RELEASE_S", metavar="SECONDS",
    help="A place in the queue that no call asks about for so long is given up"
    " (GPU_BROKER_MCP_IDLE_RELEASE_S).",
)  # fmt: skip
@click.option(
    "--ttl", "ttl_s", type=Bounded(1, 604800), default=TTL_S, show_default=True,
    metavar="SECONDS", help="A lease ends so long after its last renewal: after a crash.",
)  # fmt: skip
@click.option(
    "--allow-run", is_flag=True, envvar="GPU_BROKER_MCP_RUN",
    help="Offer gpu_run: the agent runs commands here, as this user (GPU_BROKER_MCP_RUN=true).",
)  # fmt: skip
def mcp(
    agent: str, alone_gpus: int, alone_mb: int, idle_release: float, ttl_s: float, allow_run: bool
) -> None:
    """Serve leases as tools to an agent's host, over stdio: the host starts this command.

    All leases and places in the queue end with this process, or with the host's.
    Over HTTP `gpu-broker serve` answers at /mcp.

    \b
    Examples:
      claude mcp add gpu --env REDIS_URL=redis://gpu-store:6379 -- gpu-broker mcp
      gpu-broker mcp --allow-run --agent ann/research
    """
    if find_spec("mcp") is None:
        say(f"gpu-broker mcp needs the package mcp: {INSTALL}", err=True)
        sys.exit(UNAVAILABLE)
    from broker.mcp.stdio import run  # noqa: PLC0415 - it needs the extra

    sys.exit(run(Terms(idle_release, alone_gpus, alone_mb, allow_run, ttl_s), agent))

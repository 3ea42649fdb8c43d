"""`gpu-broker serve`: the broker."""

from __future__ import annotations

import gc

import click

from broker.cli.commands.host import may_kill_option


@click.command()
@click.option(
    "--demo",
    is_flag=True,
    help="The embedded store, whatever REDIS_URL says, and simulated GPUs if there are none.",
)
@click.option("--host", help="Address to listen on (GPU_ORCHESTRATOR_HOST, default 127.0.0.1).")
@click.option("--port", type=int, help="Port to listen on (GPU_ORCHESTRATOR_PORT, default 8014).")
@click.option(
    "--uds",
    metavar="PATH",
    help="Unix socket to listen on, in place of a port (GPU_BROKER_UDS).",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Listen beyond this machine without API keys: all who reach the port may do everything.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Processes that answer on the port (GPU_BROKER_WORKERS, default 1).",
)
@click.option("--worker", "at", hidden=True, help="WorkerPlace of a worker: for `serve` alone.")
@may_kill_option
def serve(
    demo: bool,
    host: str | None,
    port: int | None,
    uds: str | None,
    insecure: bool,
    workers: int | None,
    at: str | None,
    may_kill: bool,
) -> None:
    """Answer over HTTP, report this machine's GPUs, end what is over.

    \b
    Examples:
      gpu-broker serve --demo
      REDIS_URL=redis://gpu-store:6379 gpu-broker serve --workers 4
      GPU_BROKER_DEVICES=sim:4x24576 gpu-broker serve --demo --port 8015
      gpu-broker serve --uds /run/gpu-broker/http.sock
    """
    # A start leaves no garbage worth a tenth of its time: the search begins when it is over.
    gc.disable()
    try:
        from broker.cli.serving import broker  # noqa: PLC0415 - --help does without an extra

        broker.serve(
            demo=demo, insecure=insecure, at=at,
            bind=host, port=port, uds=uds, workers=workers, may_kill=may_kill or None,
        )  # fmt: skip
    finally:
        gc.enable()

"""`gpu-broker explain`: reasons of a wait, or the outlook of a request."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from agent_sdk.errors import CODES
from broker.cli.commands.queue import asks
from broker.cli.complete import hosts, tokens
from broker.cli.names import whole_token
from broker.cli.store import output_option, pool_client, show
from broker.text.screen import one_line, say
from broker.text.table import age, gib, some, table
from broker.text.units import Size, doubt
from broker.text.unknown_host import no_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk.state.explain import DeviceReason, Explanation

HEAD = ("HOST:GPU", "NAME", "FREE", "WHY NOT", "")


@click.command()
@click.argument("token", required=False, shell_complete=tokens)
@click.option("--agent", help="Explain a request of this agent, without making it.")
@click.option("--memory", type=Size(), default=0, help="On each GPU: 8GiB, 8g, 512MiB, 8192 (MiB).")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, help="Several whole GPUs.")
@click.option("--exclusive", is_flag=True, help="Alone on the GPU.")
@click.option(
    "--host", help="Default this machine, as for run; any: every host.", shell_complete=hosts
)
@click.option("--model", help="The exact name of a model, as status shows it.")
@output_option()
def explain(
    token: str | None,
    agent: str | None,
    memory: int,
    gpus: int,
    exclusive: bool,
    host: str | None,
    model: str | None,
    output: str,
) -> None:
    """Say why TOKEN waits: every GPU's reason, the waiters ahead, what would fit now.

    The first eight letters of the token are enough. With --agent in place of a token, say what
    would become of a request, without making it.

    \b
    Examples:
      gpu-broker explain 3f2a90c1
      gpu-broker explain --agent analyst --memory 40GiB --host any
      gpu-broker explain --agent trainer --gpus 4 -o json | jq .fits_now
    """
    if (token is None) == (agent is None):
        raise click.UsageError("name a TOKEN (gpu-broker queue lists them), or --agent")
    if said := doubt(memory, "--memory"):
        say(f"gpu-broker: {said}", err=True)
    with pool_client() as client:
        if agent is None:
            found = client.explain(whole_token(client, token or ""))
        else:
            found = client.explain_request(
                agent,
                memory=f"{memory}MiB",
                devices=gpus,
                exclusive=exclusive,
                host=host,
                model=model,
            )
    show(output, as_text(found), asdict(found))


def as_text(found: Explanation) -> str:
    """Return the explanation for people: first the answer, then its grounds."""
    summary, said = found.summary, found.summary
    if found.code == "host_unknown":
        said = CODES[found.code].says
        summary = no_host(found.host, found.near_host, {device.host for device in found.devices})
    parts = [one_line(summary)]
    if found.fits_now:
        parts.append("\n".join(one_line(f"would fit: {x.says}") for x in found.fits_now))
    if found.estimate_s is not None and found.code not in {"active", "offered", "fits"}:
        parts.append(f"in about {age(round(found.estimate_s * 1000))}: {found.basis}")
    elif found.estimate_s is None:
        basis = found.basis.removesuffix(f": {said}")  # it is said above
        parts.append(f"no estimate: {basis}")
    if found.first_end is not None:
        end = found.first_end
        left = age(end.ends_at_ms - found.now_ms)
        said = f"ends first: {end.agent}, lease {end.token[:8]}, in {left} ({end.basis})"
        parts.append(one_line(said))
    if found.ahead:
        rows = [
            (
                x.agent,
                asks(x.memory_mb, x.devices, exclusive=False),
                str(x.priority),
                age(round(x.waiting_s * 1000)),
            )
            for x in found.ahead
        ]
        more = found.ahead_count - len(rows)
        parts.append(table(("AHEAD", "ASKS", "PRIO", "WAITING"), rows))
        if more > 0:
            parts.append(f"and {more} more")
    if found.devices:
        parts.append(table(HEAD, reason_rows(found.devices)))
    return "\n\n".join(parts)


def reason_rows(devices: Sequence[DeviceReason]) -> list[tuple[str, ...]]:
    """Make a row of each reason, with all the GPUs that it holds for and the most that is free."""
    groups: dict[tuple[str, str, str], list[DeviceReason]] = {}
    for device in devices:
        groups.setdefault((device.reason, device.says, device.name), []).append(device)
    return [
        (
            some([f"{d.host}:{d.index}" for d in group]),
            name,
            gib(max(d.free_mb for d in group)),
            reason,
            says,
        )
        for (reason, says, name), group in groups.items()
    ]


def _places(group: Sequence[DeviceReason]) -> str:
    return some([f"{device.host}:{device.index}" for device in group])

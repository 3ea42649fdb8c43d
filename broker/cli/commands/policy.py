"""`gpu-broker policy`: rules of what may be leased."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from agent_sdk.errors import error_for
from agent_sdk.policy import FIELDS, WORDS, values_of
from agent_sdk.protocol.sizes import EXAMPLES, mebibytes
from broker.cli.store import output_option, pool_client, show
from broker.text.printable import printable
from broker.text.screen import one_line
from broker.text.suggest import did_you_mean

if TYPE_CHECKING:
    from agent_sdk.policy import Policy
    from agent_sdk.state.snapshot import PoolStatus

SWITCHES = {"true": True, "false": False}


@click.group()
def policy() -> None:
    """Show or change the rules for leases.

    A change counts for the whole pool from the next request on, and ends no lease by itself; an
    action enforce ends some later. `policy get` before it shows the values to return to.

    \b
    Examples:
      gpu-broker policy get
      gpu-broker policy set max_memory_per_agent_mb=16GiB allow_fractional_shares=false
      gpu-broker policy set safe_mode=false
      gpu-broker policy set idle_action=notify idle_after_s=1800
      gpu-broker policy set 'xid_actions=31=suspect,79=hold'
    """


@policy.command("get")
@output_option()
def get(output: str) -> None:
    """Show the policy."""
    with pool_client() as client:
        pool = client.pool()
        if not pool.ready:
            raise error_for("not_ready")
    _show(pool, output)


@policy.command("set")
@click.argument("settings", nargs=-1, required=True, metavar="FIELD=VALUE...")
@output_option()
def set_(settings: tuple[str, ...], output: str) -> None:
    """Change one field or several: all of them or none."""
    changes = dict(_parsed(setting) for setting in settings)
    with pool_client() as client:
        client.set_policy(**cast("Policy", changes))
        pool = client.pool()
    _show(pool, output)


def _parsed(setting: str) -> tuple[str, bool | int | str]:
    name, equals, value = setting.partition("=")
    if name not in FIELDS:
        meant = did_you_mean(name, FIELDS) or f"the fields are {', '.join(FIELDS)}"
        raise click.UsageError(f"no field of the policy is called {printable(name)}; {meant}")
    if not equals:
        raise click.UsageError(f"{setting}: write {setting}=VALUE; gpu-broker policy get shows it")
    kind = FIELDS[name].kind
    if kind in WORDS or kind == "xid_actions":
        return name, value
    if kind == "flag":
        if value not in SWITCHES:
            raise click.UsageError(f"{setting!r}: the value is true or false")
        return name, SWITCHES[value]
    if name.endswith("_mb"):
        return name, _size(setting, value)
    if not value.isdecimal():
        raise click.UsageError(f"{setting!r}: the value is a whole number")
    return name, int(value)


def _size(setting: str, value: str) -> int:
    memory_mb = mebibytes(value)
    if memory_mb is None:
        raise click.UsageError(f"{setting!r}: the value is a size: {EXAMPLES}")
    return memory_mb


def _show(pool: PoolStatus, output: str) -> None:
    values: dict[str, Any] = values_of(pool)
    width = max(map(len, FIELDS))
    lines = [
        one_line(f"{name.ljust(width)}  {_word(value)}".rstrip()) for name, value in values.items()
    ]
    show(output, "\n".join(lines), {"version": pool.policy_version, "policy": values})


def _word(value: bool | int | str) -> str:
    return str(value).lower()

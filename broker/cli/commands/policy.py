"""`gpu-broker policy`: rules of what may be leased."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, cast

import click

from agent_sdk.errors import error_for
from agent_sdk.policy import FIELDS, LISTS, WORDS, values_of
from agent_sdk.protocol.sizes import EXAMPLES, mebibytes
from agent_sdk.teams.policy import policy_in
from broker.cli import FAILED
from broker.cli.policies.changes import changes_of, text_of
from broker.cli.policies.file import PolicyFileError, as_yaml, policy_file
from broker.cli.store import output_option, pool_client, show
from broker.text.printable import printable
from broker.text.screen import one_line, say
from broker.text.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk.client import LeaseClient
    from agent_sdk.policy import Policy
    from agent_sdk.state.snapshot import PoolStatus
    from agent_sdk.teams.policy import TeamPolicy

MOST_LETTERS: Final = 1_000_000

LONGEST: Final = 18
"""Most digits of a number: Python refuses to read one of thousands."""

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
      gpu-broker policy get -o yaml > policy.yaml
      gpu-broker policy apply -f policy.yaml --dry-run
    """


@policy.command("get")
@output_option("yaml")
def get(output: str) -> None:
    """Show the policy; as yaml with the policies of teams, as policy apply takes it."""
    with pool_client() as client:
        pool, teams = _read(client)
        name = client.keys.pool_name
    if output == "yaml":
        say(as_yaml(values_of(pool), teams, version=pool.policy_version, name=name))
    else:
        _show(pool, output, teams)


@policy.command("apply")
@click.option(
    "-f",
    "--file",
    "file",
    required=True,
    type=click.File(encoding="utf-8"),
    help="A YAML file, as policy get -o yaml prints it; - for stdin.",
)
@click.option("--dry-run", is_flag=True, help="Check the file and show the changes; write none.")
@output_option()
def apply(file: IO[str], dry_run: bool, output: str) -> None:
    """Make a file the policy, as one version: its fields, and the policies of all teams.

    The whole file is checked before anything is written, and the changes are shown. A field that it
    does not name stays. With `teams` it names all of them: a team that is not there has no policy
    any more. A policy that another changed meanwhile is left as it is: apply the file again.

    \b
    Example of a file:
      reclaim_after_s: 60
      teams:
        nlp: {nominal: 96GiB, weight: 2, max_hold: 2d}
        vision: {nominal: {gpus: 4, model: NVIDIA L4}, borrow_limit: 48GiB, max_priority: 5}
        speech: {nominal: 24GiB, models: {NVIDIA H100: {nominal: {gpus: 2}, borrow_limit: 0}}}
    """
    try:
        content = file.read(MOST_LETTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        _wrong(file.name, f"it cannot be read: {error}")
    if len(content) > MOST_LETTERS:
        _wrong(file.name, f"it is longer than {MOST_LETTERS} letters")
    with pool_client() as client:
        pool, teams = _read(client)
        try:
            wanted = policy_file(content, client.devices())
        except PolicyFileError as error:
            _wrong(file.name, str(error))
        changes = changes_of(values_of(pool), teams, wanted)
        version = pool.policy_version
        if changes and not dry_run:
            other = {x.field for x in changes if x.team is None}
            values = {name: value for name, value in wanted.pool.items() if name in other}
            of_teams = wanted.teams if any(x.team for x in changes) else None
            version = client.apply_policy(cast("Policy", values), of_teams, version=version)
    for line in wanted.computed:
        say(line, err=True)
    written = bool(changes) and not dry_run
    if written:
        end = f"version {version}"
    else:
        end = "nothing is written" if changes else f"the policy stays at version {version}"
    data = {"version": version, "dry_run": dry_run, "written": written}
    rows = [change.row for change in changes]
    show(output, f"{text_of(changes)}\n{end}", data | {"changes": rows})


def _read(client: LeaseClient) -> tuple[PoolStatus, dict[str, TeamPolicy]]:
    """Read the policy of the pool, and those of teams."""
    pool = client.pool()
    if not pool.ready:
        raise error_for("not_ready")
    teams = {x.name: policy_in(x) for x in client.teams() if x.listed}
    return pool, teams


def _wrong(name: str, problems: str) -> NoReturn:
    for problem in problems.split("\n"):
        say(f"gpu-broker policy apply: {name}: {problem}", err=True)
    sys.exit(FAILED)


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
    if kind in WORDS or kind in LISTS:
        return name, value
    if kind == "flag":
        if value not in SWITCHES:
            raise click.UsageError(f"{setting!r}: the value is true or false")
        return name, SWITCHES[value]
    if name.endswith("_mb"):
        return name, _size(setting, value)
    if not value.isdecimal():
        raise click.UsageError(f"{setting!r}: the value is a whole number, not below 0")
    if len(value) > LONGEST:
        raise click.UsageError(f"{name}: the value is {FIELDS[name].accepts}")
    return name, int(value)


def _size(setting: str, value: str) -> int:
    memory_mb = mebibytes(value)
    if memory_mb is None:
        raise click.UsageError(f"{setting!r}: the value is a size: {EXAMPLES}")
    return memory_mb


def _show(pool: PoolStatus, output: str, teams: Mapping[str, TeamPolicy] | None = None) -> None:
    values: dict[str, Any] = values_of(pool)
    width = max(map(len, FIELDS))
    lines = [
        one_line(f"{name.ljust(width)}  {_word(value)}".rstrip()) for name, value in values.items()
    ]
    data: dict[str, Any] = {"version": pool.policy_version, "policy": values}
    if teams is not None:
        data["teams"] = {name: asdict(of) for name, of in teams.items()}
    show(output, "\n".join(lines), data)


def _word(value: bool | int | str) -> str:
    return str(value).lower()

"""`gpu-broker keys`: creation, listing and end of the API keys of the HTTP service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from broker.api_keys import ROLES, add, key_file, read, remove
from broker.cli import FAILED
from broker.cli.store import output_option, show
from broker.key_file import KeysError
from broker.text.screen import say
from broker.text.suggest import did_you_mean
from broker.text.table import table

if TYPE_CHECKING:
    from broker.api_keys import Role

LAST_KEY = (
    "that was the last key in {path}: no request passes until gpu-broker keys new makes one; "
    "a broker that is started anew without the file asks for none"
)

FIRST_KEY = (
    "that is the first key in {path}: a broker with this file now answers no request without a "
    "key, so give one to each client that speaks HTTP; the way back: remove the file, and start "
    "the broker anew"
)

file_option = click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The key file; default GPU_BROKER_KEYS_FILE, else `keys` in the state folder.",
)


@click.group()
def keys() -> None:
    """Make, list and end the API keys of the HTTP service.

    The first key makes the key file, and from then on every request needs a key: clients without
    one are refused at once. Running brokers read the file again when it changes; each broker has a
    file of its own. A viewer sees; an agent also leases, and renews and releases its own leases; an
    operator may do everything. The file holds only the SHA-256 of each key.

    \b
    Examples:
      gpu-broker keys new grafana --role viewer
      gpu-broker keys new analysts --role agent --agents 'analyst,scout-*'
      gpu-broker keys new nlp --role agent --team nlp
      gpu-broker keys new ann --role operator
      gpu-broker keys revoke analysts
    """


@keys.command("new")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it may do.")
@click.option("--agents", help="Agents it may ask for: names or patterns, by commas; default any.")
@click.option("--team", help="Team for which its leases count; default any.")
@file_option
@output_option()
def new(
    name: str, role: Role, agents: str | None, team: str | None, path: Path | None, output: str
) -> None:
    """Make a key for NAME and print it: it cannot be read again."""
    path = path or key_file()
    is_first = not path.exists()
    patterns = tuple(part.strip() for part in (agents or "").split(",") if part.strip())
    if agents is not None and not patterns:
        raise click.UsageError("--agents names none: leave it out for a key that may name any")
    if team == "":
        raise click.UsageError("--team names none: leave it out for a key that may name any")
    try:
        key = add(path, name, role, patterns, team=team or "")
    except (KeysError, OSError) as error:
        _fail(error)
    say(f"kept its SHA-256 in {path}; it is used as", err=True)
    say("  curl -H 'Authorization: Bearer gbk_...', or GPU_BROKER_API_KEY", err=True)
    if is_first:
        say(FIRST_KEY.format(path=path), err=True)
    made = {"name": name, "role": role, "agents": list(patterns), "team": team or None}
    show(output, key, made | {"key": key})


@keys.command("list")
@file_option
@output_option()
def list_(path: Path | None, output: str) -> None:
    """List the keys with their roles, agents and teams."""
    path = path or key_file()
    try:
        found = read(path)
    except (KeysError, OSError) as error:
        _fail(error)
    heads = ["NAME", "ROLE", "AGENTS", "TEAM", "SHA-256"]
    rows = [
        [x.name, x.role, ",".join(x.agents) or "any", x.team or "any", x.digest[:12]] for x in found
    ]
    if not any(x.team for x in found):
        for cells in (heads, *rows):
            del cells[3]
    text = table(heads, rows) if rows else f"no keys in {path}"
    data = [
        {
            "name": x.name,
            "role": x.role,
            "agents": list(x.agents),
            "team": x.team or None,
            "sha256": x.digest,
        }
        for x in found
    ]
    show(output, text, {"file": str(path), "keys": data})


@keys.command("revoke")
@click.argument("name")
@file_option
def revoke(name: str, path: Path | None) -> None:
    """End the key of NAME: brokers with this file refuse it from the next request on.

    Leases that were taken with it run on: end them by gpu-broker revoke. A broker on another
    machine has a key file of its own, and refuses the key once its file is changed too.
    """
    path = path or key_file()
    try:
        if not remove(path, name):
            meant = did_you_mean(name, (key.name for key in read(path)))
            _fail(KeysError(f"no key in {path} is called {name}{meant and f'; {meant}'}"))
        left = read(path)
    except (KeysError, OSError) as error:
        _fail(error)
    say(f"{name} has no key any more; what it holds runs on: gpu-broker leases")
    if not left:
        say(LAST_KEY.format(path=path), err=True)


def _fail(error: Exception) -> NoReturn:
    say(f"gpu-broker keys: {error}", err=True)
    sys.exit(FAILED)

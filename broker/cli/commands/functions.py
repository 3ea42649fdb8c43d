"""`gpu-broker functions`: the verbs as functions on the server, for redis-cli alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from agent_sdk.scripts import library
from broker.cli import FAILED
from broker.cli.store import lease_error, output_option, pool_client, show
from broker.text.screen import dump, say

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from redis import Redis

    T = TypeVar("T")


@click.group()
def functions() -> None:
    """Load the verbs onto the server as functions, so that redis-cli alone can lease.

    redis-cli does not read REDIS_URL: without options such as -h or -s it takes the server on
    localhost.

    \b
    Examples:
      gpu-broker functions load
      redis-cli FCALL gpu_release 1 'gpu:{default}' 1 TOKEN 0
      gpu-broker functions source | redis-cli -x FUNCTION LOAD REPLACE
    """


@functions.command()
@output_option()
def load(output: str) -> None:
    """Load the functions, in place of another version's.

    This includes the functions that the SDK of this version calls; a broker loads those by itself.
    No lease ends. Where functions of these names were in use before, the next call of one closes
    the pool for 10 s: nothing is granted, renewals go on.
    """
    version = _on_the_server(library.load)
    names, _ = _on_the_server(library.loaded)
    with pool_client() as client:
        base, url = client.keys.base, client.store.url
    if url.startswith("unix:"):
        there = f" -s {urlsplit(url).path}"
    else:
        there = " -c" if "+cluster:" in url else ""
    text = (
        f"loaded {library.LIBRARY}, version {version[:12]}: {', '.join(names)}\n"
        f"try: redis-cli{there} FCALL gpu_reap 1 '{base}' 1"
    )
    show(output, text, {"library": library.LIBRARY, "version": version, "functions": names})


@functions.command("list")
@output_option()
def list_(output: str) -> None:
    """List the server's functions, and say whether they are this version's."""
    names, version = _on_the_server(library.loaded)
    current = version == library.library().version
    own = library.own_library().name
    libraries = sorted(_on_the_server(library.libraries))
    if not names:
        text = "the server has none with short names: gpu-broker functions load"
    else:
        how = "this version's" if current else "another version's: gpu-broker functions load"
        text = f"{', '.join(names)} ({how})"
    text += f"\n{own}, for the SDK of this version: {'there' if own in libraries else 'not there'}"
    others = [name for name in libraries if name not in {own, library.LIBRARY}]
    text += "".join(f"\n{name}: another version's" for name in others)
    found = {"functions": names, "version": version, "current": current, "libraries": libraries}
    show(output, text, found)


@functions.command()
def source() -> None:
    """Print the library, for redis-cli -x FUNCTION LOAD REPLACE."""
    dump(library.library().source)


@functions.command()
def delete() -> None:
    """Delete the functions of all versions from the server; the SDK works without them.

    A broker loads those of its own version again, within seconds. No lease ends; the pool is then
    closed for 10 s: nothing is granted, renewals go on.
    """
    gone = _on_the_server(library.delete)
    say(f"gone: {', '.join(gone)}" if gone else "the server had none")


def _on_the_server(work: Callable[[Redis], T]) -> T:
    """Return the result of `work`; a refusal of the server ends the command with a sentence."""
    with pool_client() as client:
        try:
            return work(client.redis)
        except NoPermissionError as error:
            raise lease_error(error) from error
        except ResponseError as error:
            say(f"gpu-broker functions: {error}", err=True)
            sys.exit(FAILED)
        except RedisError as error:
            raise lease_error(error) from error

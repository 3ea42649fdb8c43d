"""Clean stop of the embedded store, and the trust in its data at the next start.

A pool names the server that it was on, and on another one it is closed at first: writes may be
lost. A clean stop loses none, so it removes the name. But data that were copied then, and are put
back later, lack the name too. So the stop lists in the file `stopped` the files that it leaves on
this disk. A start without that note, or with other files, closes the pools. The scripts also close
a pool without a name that no script has touched for some seconds.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from agent_sdk.keys import POOLS

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

ANOTHER = "another"
"""Name of no server, in the place of a server's name."""


def forget_server(client: Redis) -> None:
    """Remove this server's name, and its functions, from each of its pools.

    And when it was looked at last: the next server may be there within a tenth of a second, when
    the scripts do not look again yet.
    """
    with suppress(ResponseError):  # it takes no writes: it then ends like that
        for pool in client.scan_iter(POOLS, count=1000):
            lives = [name for name, _ in client.hscan_iter(pool, match="served*")]
            client.hdel(pool, "run_id", "looked_ms", *lives)
            client.hincrby(pool, "sequence", 1)


def distrust(client: Redis) -> None:
    """Make the first call close all pools that a clean stop has left, elsewhere or long ago."""
    with suppress(ResponseError):  # it takes no writes: it grants nothing either
        for pool in client.scan_iter(POOLS, count=1000):
            client.hsetnx(pool, "run_id", ANOTHER)
            client.hdel(pool, "looked_ms")
            client.hincrby(pool, "sequence", 1)


def write_note(folder: Path) -> None:
    """Note the data files that a clean stop leaves."""
    (folder / "stopped").write_text(_files(folder))


def take_note(folder: Path) -> bool:
    """Tell whether a clean stop left these data files here; the note counts once."""
    note = folder / "stopped"
    try:
        noted = note.read_text()
        note.unlink()
    except FileNotFoundError:
        return False
    return noted == _files(folder)


def _files(folder: Path) -> str:
    """Return the data files as this disk has them: a copy is another file, of another time."""
    found = sorted((folder / "appendonlydir").glob("*"))
    facts = ((path.name, path.stat()) for path in found)
    return "".join(f"{n} {at.st_ino} {at.st_ctime_ns} {at.st_size}\n" for n, at in facts)

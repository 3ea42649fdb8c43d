"""A bug in the scripts, for the length of a block."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha1
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.run import World


@dataclass(frozen=True, slots=True)
class Bug:
    """What is wrong, the texts that make it so, and a seed whose walk finds it soon.

    `pages`: how many polls of a head may pass before it has looked at every device; `often`: a kind
    of step of the walk that comes often, where the bug needs that.
    """

    name: str
    changes: tuple[tuple[str, str], ...]
    seed: int = 1
    pages: int = 0
    often: str = ""


@contextmanager
def planted(world: World, bug: Bug) -> Iterator[None]:
    """The world's pools run scripts with this bug for the length of a block."""
    sound, functions = world.pools[0].scripts, world.pools[0].functions
    broken, found = dict(sound), set()
    for verb, script in sound.items():
        source = script.source
        for old, new in bug.changes:
            if old in source:
                found.add(old)
                source = source.replace(old, new)
        sha = sha1(source.encode(), usedforsecurity=False).hexdigest()
        broken[verb] = replace(script, source=source, sha=sha)
        world.pools[0].redis.script_load(source)
    assert found == {old for old, _ in bug.changes}, f"{bug.name}: the scripts have no such text"
    for pool in world.pools:
        pool.scripts, pool.functions = broken, False
    world.pages, world.often = bug.pages, bug.often
    try:
        yield
    finally:
        for pool in world.pools:
            pool.scripts, pool.functions = sound, functions
        world.pages, world.often = 0, ""

"""A bug in the verbs, for the length of a block."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha1
from typing import TYPE_CHECKING

from tests.pools import OWN, SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.run import World


@dataclass(frozen=True, slots=True)
class Bug:
    """A seeded bug: its name, the texts that make it, and a seed whose walk finds it soon.

    `pages`: how many polls of a head may pass before it has looked at every device; `often`: a kind
    of step of the walk that comes often, where the bug needs that; `functions`: it is one of verbs
    that are functions, scripts have no such thing.
    """

    name: str
    changes: tuple[tuple[str, str], ...]
    seed: int = 1
    pages: int = 0
    often: str = ""
    functions: bool = False


@contextmanager
def planted(world: World, bug: Bug) -> Iterator[None]:
    """The world's pools run verbs with this bug for the length of a block."""
    sound = [(p.scripts, p.functions, p.way, p.library, p.other) for p in world.pools]
    scripts, library, other = dict(sound[0][0]), sound[0][3], sound[0][4]
    found = set[str]()

    def spoilt(source: str) -> str:
        for old, new in bug.changes:
            anyhow = r"\s+".join(map(re.escape, old.split()))  # wherever its lines are broken
            source, times = re.subn(anyhow, lambda _, new=new: new, source)
            found.update([old] * (times > 0))
        return source

    if bug.functions:
        library = replace(library, source=spoilt(library.source))
        other = replace(other, source=spoilt(other.source))
    for verb, script in scripts.items():
        source = spoilt(script.source)
        sha = sha1(source.encode(), usedforsecurity=False).hexdigest()
        scripts[verb] = replace(script, source=source, sha=sha)
        world.pools[0].redis.script_load(source)
    assert found == {old for old, _ in bug.changes}, f"{bug.name}: the verbs have no such text"
    for pool in world.pools:
        pool.scripts, pool.functions, pool.library, pool.other = (
            scripts, bug.functions, library, other)  # fmt: skip
        pool.way = OWN if bug.functions else SCRIPTS
    world.pages, world.often = bug.pages, bug.often
    try:
        yield
    finally:
        for pool, was in zip(world.pools, sound, strict=True):
            pool.scripts, pool.functions, pool.way, pool.library, pool.other = was
        world.pages, world.often = 0, ""

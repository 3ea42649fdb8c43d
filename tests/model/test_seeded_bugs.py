"""The checker is checked: bugs that are put into the scripts are found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.model.bugs import BUGS
from tests.model.planted import Bug, planted
from tests.model.run import Failure

if TYPE_CHECKING:
    from tests.model.run import World

STEPS, WALKS = 1000, 12


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_seeded_bug_is_found(world: World, bug: Bug) -> None:
    """From a seed that found it; a change of the walk may take some more until seeds are anew."""

    def walks() -> None:
        for number in range(WALKS):
            world.walk(str(bug.seed + number), STEPS)

    with planted(world, bug), pytest.raises(Failure):
        walks()

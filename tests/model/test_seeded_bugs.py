"""The checker is checked: bugs that are put into the scripts are found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.model.bugs import BUGS, Bug, planted
from tests.model.run import Failure

if TYPE_CHECKING:
    from tests.model.run import World

STEPS = 500


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_seeded_bug_is_found(world: World, bug: Bug) -> None:
    """From a seed that is known to find it; `make model` looks from random ones."""
    with planted(world, bug), pytest.raises(Failure):
        world.walk(str(bug.seed), STEPS)

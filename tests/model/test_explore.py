"""Every life of a small world, up to a depth, in the model; and some of them on the scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.model.explore import explore
from tests.model.scenes import SCENES, Scene

if TYPE_CHECKING:
    from tests.model.run import World

STATES, PATHS = 15_000, 400


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_small_world_keeps_every_invariant(world: World, scene: Scene) -> None:
    """S1, S3 to S7, S11, Q3, Q4, L2, L5 in each state; the scripts go the same ways."""
    found = explore(STATES, scene)
    assert found.depth >= 5
    for path in found.sample(PATHS):
        if failure := world.fails(path):
            raise failure

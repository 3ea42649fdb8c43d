"""One server of its own for the model's worlds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.model.run import World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Pools on a plain Redis, whose verbs are scripts: other tests show that the servers agree."""
    with World.on_a_server() as world:
        yield world


@pytest.fixture(scope="module")
def world_of_functions() -> Iterator[World]:
    """The same with functions, as the SDK calls them."""
    with World.on_a_server(functions=True) as world:
        yield world

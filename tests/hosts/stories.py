"""All stories of `make e2e-hosts`, by name, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.hosts.scenarios import SCENARIOS
from tests.hosts.teams import teams

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hosts.scenarios import Seen
    from tests.hosts.world import World

STORIES: dict[str, Callable[[World], Seen]] = SCENARIOS | {teams.__name__: teams}

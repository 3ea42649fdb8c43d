"""A random walk: which step comes next, all from one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.walks.scenery import SHAPES
from tests.model.walks.teams import Teams

if TYPE_CHECKING:
    from tests.model.world import Step

CALM, MOSTLY = {"mix", "quota"}, 0.95
"""Part of the steps of a pool that is to stay calm."""


class Walk(Teams):
    """Agents, hosts, operators and accidents in as many pools as there are shapes.

    `often`: a kind of step that comes as often as all the others together.
    """

    def next(self) -> Step:
        """The next step."""
        if self.queue:
            return self.queue.pop(0)
        kinds = (
            (self.new, 24), (self.again, 22), (self.renew, 10), (self.release, 12), (self.time, 18),
            (self.beat, 5), (self.change, 5), (self.revoke, 2), (self.drain, 3), (self.policy, 3),
            (self.deliver, 6), (self.reap, 2), (self.lose, 3), (self.patience, 1), (self.crowd, 1),
            (self.haunt, 1), (self.standoff, 0.3),
        )  # fmt: skip
        pool = self.rng.randrange(len(SHAPES))
        if self.often and self.rng.random() < (MOSTLY if self.often in CALM else 0.5):
            return [pool, *getattr(self, self.often)(pool)]
        kind = self.rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
        return [pool, *kind(pool)]

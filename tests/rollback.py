"""A pool's data of an earlier moment, put back as a backup, an import or a snapshot does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from tests.pools import Pool


@dataclass(frozen=True, slots=True)
class Earlier:
    """Every key of a pool as it was, beside it on its server."""

    pool: Pool
    names: tuple[str, ...]
    aside: str = "aside:"

    @classmethod
    def take(cls, pool: Pool) -> Self:
        """Copy what there is now."""
        earlier = cls(pool, tuple(pool.stored()))
        for name in earlier.names:
            pool.redis.copy(name, earlier.aside + name, replace=True)
        return earlier

    def put_back(self) -> None:
        """Make the pool what it was: on this server, under which nothing else changes."""
        now = self.pool.stored()
        if now:
            self.pool.redis.delete(*now)
        for name in self.names:
            self.pool.redis.copy(self.aside + name, name)

"""Sums of agents, API keys and teams: what counts against their caps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_sdk.keys import MODEL_SUM, RESERVED_SUM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk.teams.policy import TeamPolicy


@dataclass(frozen=True, slots=True)
class PartySums:
    """Sums of one party, an agent, an API key or a team: what counts against its caps.

    Attributes:
        mb, leases: what it holds, offers included.
        waiters: its places in the queue.
        reserved_mb: MiB of the devices that are reserved for its waiters.
        use, use_ms: of a team: MiB-seconds that it had used by then, on the pool's clock; its
            use begins now where that is 0.
        models: of a team: MiB that it holds, and that are reserved for it, of each model that its
            policy names.
    """

    mb: int = 0
    leases: int = 0
    waiters: int = 0
    reserved_mb: int = 0
    use: float = 0.0
    use_ms: int = 0
    models: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)

    def use_at(self, now_ms: int, half_life_s: int) -> float:
        """Return the MiB-seconds that a team has used, as of now."""
        for_ms = now_ms - self.use_ms if self.use_ms else 0
        return decayed(self.use, self.mb, for_ms, half_life_s)


NOTHING: Final = PartySums()


def sums_of(row: Mapping[str, str]) -> dict[str, PartySums]:
    """Return the sums of each party, by the hash `agents`.

    Raises:
        ValueError: it is of another form.
    """
    models: dict[str, dict[str, tuple[int, int]]] = {}
    for word, at in ((MODEL_SUM, 0), (RESERVED_SUM, 1)):
        for name, value in row.items():
            party, by_model, model = name.partition(word)
            if by_model:
                held_mb, reserved_mb = models.setdefault(party, {}).get(model, (0, 0))
                mb = int(value)
                models[party][model] = (held_mb, mb) if at else (mb, reserved_mb)
    names = {field.partition("#")[0] for field in row}
    return {name: _sums(name, row, models.get(name, {})) for name in names}


def _sums(name: str, row: Mapping[str, str], models: Mapping[str, tuple[int, int]]) -> PartySums:
    use, _, use_ms = row.get(f"{name}#use", "0@0").partition("@")
    return PartySums(
        mb=int(row.get(name, 0)),
        leases=int(row.get(f"{name}#leases", 0)),
        waiters=int(row.get(f"{name}#waiters", 0)),
        reserved_mb=int(row.get(f"{name}#reserved", 0)),
        use=float(use),
        use_ms=int(use_ms),
        models=models,
    )


def decayed(use: float, mb: int, for_ms: int, half_life_s: int) -> float:
    """Return MiB-seconds after so long in which `mb` were held; half-life 0: no use decays."""
    if for_ms <= 0:
        return use
    if half_life_s == 0:
        return use + mb * for_ms / 1000
    left: float = 2.0 ** (-for_ms / 1000 / half_life_s)
    return use * left + mb * (half_life_s / math.log(2)) * (1 - left)


def of_quota(policy: TeamPolicy, has: PartySums, model: str) -> tuple[int, int]:
    """Return the MiB of the quota that counts on a model: those held, and those reserved."""
    if model in policy.models:
        return has.models.get(model, (0, 0))
    named = [has.models.get(each, (0, 0)) for each in policy.models]
    return has.mb - sum(x[0] for x in named), has.reserved_mb - sum(x[1] for x in named)

"""Usage: the sums of a pool are the times of its model's leases, each once."""

from __future__ import annotations

from collections import defaultdict
from math import isclose
from typing import TYPE_CHECKING

from tests.model.entries import demand
from tests.model.ledger import Use
from tests.usage import numbers, words

if TYPE_CHECKING:
    from tests.model.model import Model
    from tests.pools import Pool

Sums = dict[str, list[int]]

NAMES = ("leases", "held_ms", "mb_ms", "gpu_ms")


def check_usage(pool: Pool, model: Model) -> None:
    """Compare what has ended: in all sums of days, by who and by where, and in the total."""
    who, where, total, pending = _sums(), _sums(), _sums(), _sums()
    base = pool.keys.base
    for key in pool.redis.scan_iter(f"{base}:usage:*", count=1000):
        for name, line in pool.hash(key.removeprefix(f"{base}:")).items():
            if key.endswith(":hosts"):
                _add(where["all"], line)
            else:
                _add(who[" ".join(name.split(" ")[:2])], line)
    for team, line in pool.hash("usage_total").items():
        _add(total[team], line)
    for line in pool.redis.lrange(pool.keys.ended, 0, -1):
        said = words(line)
        held_ms = max(0, int(said["ended_at_ms"]) - int(said["granted_at_ms"]))
        mb = sum(
            int(part.rpartition("=")[2]) for part in said.get("devices", "").split(",") if part
        )
        sums = pending[f"{said['team']} {said['agent']}"]
        gpu_ms = round(float(said["gpus"]) * held_ms)
        sums[:] = [sums[0] + 1, sums[1] + held_ms, sums[2] + mb * held_ms, sums[3] + gpu_ms]
    found = {name: _both(who[name], pending[name]) for name in {*who, *pending}}
    expected = {" ".join(name): use for name, use in model.usage.items()}
    demand(found.keys() == expected.keys(), f"usage: {found} is not {expected}")
    for name, use in expected.items():
        same = found[name][:3] == use[:3] and isclose(
            found[name].gpu_ms, use.gpu_ms, abs_tol=use.leases + 1
        )
        demand(same, f"usage: {name} has {found[name]}, not {use}")
    everything = [sum(column) for column in zip(*who.values(), strict=True)] or [0, 0, 0, 0]
    demand(where["all"][:3] == everything[:3], f"usage: hosts have {where}, not {everything}")
    sums_of_teams = [sum(column) for column in zip(*total.values(), strict=True)] or [0, 0, 0, 0]
    demand(sums_of_teams[:3] == everything[:3], f"usage: teams have {total}, not {everything}")


def _sums() -> defaultdict[str, list[int]]:
    return defaultdict(lambda: [0, 0, 0, 0])


def _add(sums: list[int], line: str) -> None:
    said = numbers(line)
    sums[:] = [n + said.get(name, 0) for n, name in zip(sums, NAMES, strict=True)]


def _both(one: list[int], other: list[int]) -> Use:
    return Use(*(a + b for a, b in zip(one, other, strict=True)))

"""Outlook of many requests on the same devices: these are sorted once, and asked by size.

The reason against a device depends on the size of a request only by limits: up to one size it
fits, up to another it would if memory were not withheld, and so on. So for each reason the devices
are kept as spans of sizes, and those that a size meets are counted by halving. `placement.reason`,
`never` and `least_mb` have the rules for one request, and a test compares both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from agent_sdk.protocol.messages import ANY
from agent_sdk.state import placement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.placement import PlacementRequest
    from agent_sdk.state.snapshot import PoolStatus

Group = list["DeviceStatus"]


class Outlook(NamedTuple):
    """Outlook of a request on the devices, for any agent.

    Attributes:
        never_fits: the code if no device could ever hold it, or None.
        least_mb: MiB that a grant now would count against its caps, a whole device where one is
            asked for; None: it does not fit now.
        ever_mb: least MiB that it could ever count against them; 0 where it never fits.
    """

    never_fits: str | None
    least_mb: int | None
    ever_mb: int


class Outlooks:
    """Outlooks on the devices of one moment, for any number of requests.

    Args:
        devices: in the order in which reasons of equal count are told.
        pool: its policy.
    """

    def __init__(self, devices: Sequence[DeviceStatus], pool: PoolStatus) -> None:
        self._pool = pool
        self._at: dict[tuple[str, str], Group] = defaultdict(list)
        for device in devices:
            for host in (ANY, device.host):
                for model in (ANY, device.model):
                    self._at[host, model].append(device)
        self._reasons = cache(self._read_reasons)
        self._sizes = cache(self._read_sizes)

    def of(self, wish: PlacementRequest) -> Outlook:
        """Return the outlook of a request."""
        kind, size_mb = replace(wish.of_anyone, memory_mb=0), wish.memory_mb
        least = size_mb if self._reasons(kind, None).count("fits", size_mb) else None
        if placement.whole(wish, self._pool):
            least = self._sizes(kind).least_left_mb(size_mb)
        code, ever_mb = self._never(wish, kind)
        return Outlook(code, least, ever_mb)

    def counts(self, wish: PlacementRequest, token: str | None) -> dict[str, int]:
        """Count the reasons of the devices that would do, the most frequent first.

        token: that of a waiter with reserved devices.
        """
        kind = replace(wish.of_anyone, memory_mb=0)
        return self._reasons(kind, token).counts(wish.memory_mb)

    def _never(self, wish: PlacementRequest, kind: PlacementRequest) -> tuple[str | None, int]:
        if wish.model != ANY and (ANY, wish.model) not in self._at:
            return "model_unknown", 0
        if wish.host != ANY and (wish.host, ANY) not in self._at:
            return "host_unknown", 0
        least = self._sizes(kind).least_whole_mb(wish.memory_mb)
        if least is None:
            return "never_fits", 0
        return None, least if placement.whole(wish, self._pool) else wish.memory_mb

    def _there(self, kind: PlacementRequest) -> Group:
        return self._at.get((kind.host, kind.model), [])

    def _read_reasons(self, kind: PlacementRequest, token: str | None) -> _Reasons:
        found = _Reasons()
        for number, device in enumerate(self._there(kind)):
            if away := placement.elsewhere(kind, device):
                found.add(away, number, -inf, inf)
            else:
                word = placement.obstacle(kind, device, self._pool, token)
                found.add_device(number, device, word)
        return found

    def _read_sizes(self, kind: PlacementRequest) -> _Sizes:
        asked = [d for d in self._there(kind) if not placement.elsewhere(kind, d)]
        free = [d for d in asked if d.left_mb > 0 and not placement.obstacle(kind, d, self._pool)]
        return _Sizes(kind.devices, asked, free)


class _Span(NamedTuple):
    """Sizes for which a reason holds against one device, which has a number."""

    number: int
    above: float
    upto: float


class _Reasons:
    """Sizes for which each reason holds, by device."""

    def __init__(self) -> None:
        self._spans: dict[str, list[_Span]] = {}
        self._sorted = cache(self._sort)

    def add_device(self, number: int, device: DeviceStatus, obstacle: str) -> None:
        """Add a device that is asked for. `obstacle`: the reason against it at any size."""
        most, left = device.total_mb - device.system_mb, device.left_mb
        ends = (
            (obstacle, most if obstacle else -inf),
            ("fits", left if left > 0 else -inf),
            ("withheld", left + device.withheld_mb if device.withheld_mb > 0 else -inf),
            ("used_by_others", left + device.unleased_mb if device.unleased_mb > 0 else -inf),
            ("full", most),
        )
        begin = -inf
        for word, end in ends:
            if begin < (last := min(end, most)):
                self.add(word, number, begin, last)
                begin = last
        self.add("too_small", number, most, inf)

    def add(self, word: str, number: int, above: float, upto: float) -> None:
        """Add a reason against a device."""
        self._spans.setdefault(word, []).append(_Span(number, above, upto))

    def count(self, word: str, size_mb: int) -> int:
        """Return the number of devices with this reason against a size."""
        if word not in self._spans:
            return 0
        above, upto = self._sorted(word)
        return bisect_left(above, size_mb) - bisect_left(upto, size_mb)

    def counts(self, size_mb: int) -> dict[str, int]:
        """Return all of them but `fits`; of equal ones that of the first device comes first."""
        counted = [(-self.count(word, size_mb), word) for word in self._spans if word != "fits"]
        found = [(count, word) for count, word in counted if count]
        if len({count for count, _ in found}) < len(found):
            first = {word: self._first(word, size_mb) for _, word in found}
            found.sort(key=lambda x: (x[0], first[x[1]]))
        return {word: -count for count, word in sorted(found, key=lambda x: x[0])}

    def _first(self, word: str, size_mb: int) -> int:
        """Return the number of the first device with this reason."""
        return next(x.number for x in self._spans[word] if x.above < size_mb <= x.upto)

    def _sort(self, word: str) -> tuple[list[float], list[float]]:
        spans = self._spans[word]
        return sorted(x.above for x in spans), sorted(x.upto for x in spans)


class _Sizes:
    """Sums of the smallest devices that a size leaves, by host and model.

    Args:
        devices: the number of them that a request asks for.
        asked: the devices that may be asked for.
        free: those of them that nothing but their size keeps from it.
    """

    def __init__(self, devices: int, asked: Group, free: Group) -> None:
        self._devices = devices
        self._lefts = [sorted(d.left_mb for d in group) for group in self._groups(free)]
        self._wholes = [
            sorted((placement.whole_mb(d), d.total_mb - d.system_mb) for d in group)
            for group in self._groups(asked)
        ]
        self._capacities = sorted({d.total_mb - d.system_mb for d in asked})
        self._least_whole = cache(self._read_least_whole)

    def _groups(self, devices: Group) -> Iterator[Group]:
        """Yield the groups that a request's devices may be of: one device may be of any."""
        groups: dict[tuple[str, str], Group] = defaultdict(list)
        for d in devices:
            groups[(d.host, d.model) if self._devices > 1 else ("", "")].append(d)
        return (group for group in groups.values() if len(group) >= self._devices)

    def least_left_mb(self, size_mb: int) -> int | None:
        """Return the least MiB that are free on devices with so much each; None: too few have."""
        sums = []
        for lefts in self._lefts:
            first = bisect_left(lefts, size_mb)
            if first + self._devices <= len(lefts):
                sums.append(sum(lefts[first : first + self._devices]))
        return min(sums, default=None)

    def least_whole_mb(self, size_mb: int) -> int | None:
        """Return the least MiB of whole devices that could hold so much each; None: too few."""
        return self._least_whole(bisect_left(self._capacities, size_mb))

    def _read_least_whole(self, number: int) -> int | None:
        if number == len(self._capacities):
            return None
        least, sums = self._capacities[number], []
        for group in self._wholes:
            fit = (mb for mb, capacity in group if capacity >= least)
            found = list(islice(fit, self._devices))
            if len(found) == self._devices:
                sums.append(sum(found))
        return min(sums, default=None)

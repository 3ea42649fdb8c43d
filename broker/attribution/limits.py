"""Limits of leases' memory that the driver enforces, on the cgroups of their holders."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.attribution.report import line, names
from broker.devices import Limiting
from broker.run.cgroups import place_of

if TYPE_CHECKING:
    from agent_sdk.state.holders import Holders
    from agent_sdk.state.snapshot import LeaseStatus
    from broker.attribution.processes import Programs
    from broker.devices import Source
    from broker.run.cgroups import Place

log = logging.getLogger(__name__)

NO_NVML: Final = "this host does not read its GPUs through NVML: only NVML can limit memory"
OURS: Final = "the reporter runs in the command's cgroup: it would be limited too"
NOT_SHOWN: Final = "the process that asks for a limit does not show that it holds the lease"


@dataclass(slots=True)
class Limited:
    """Leases whose memory the driver limits on a device.

    Attributes:
        tokens: their tokens.
        error: the reason for which another one that asks for a limit has none; or empty.
    """

    tokens: set[str] = field(default_factory=set)
    error: str = ""

    @property
    def said(self) -> dict[str, str]:
        """Fields of a report."""
        return {"limited": names(sorted(self.tokens)), "limit_error": line(self.error)}


class Limiter:
    """Keeper of the limits: each lease whose holder lives in a cgroup with the agreed name.

    All leases that are held from one cgroup are limited together. The driver keeps a limit beyond
    this process; a later reporter finds it, and sets none anew.
    """

    def __init__(self, source: Source, system: Programs) -> None:
        self._source = source
        self._system = system
        self._set: set[tuple[str, str]] = set()

    async def limit(self, holders: Holders) -> dict[str, dict[str, str]]:
        """Set the limits that leases ask for; return the fields of each device that has news."""
        limited = await asyncio.to_thread(self._limit, holders)
        for uuid, device in holders.devices.items():
            if device.limited or device.limit_error:  # the pool's word is to be taken back
                limited.setdefault(uuid, Limited())
        return {uuid: each.said for uuid, each in limited.items()}

    def _limit(self, holders: Holders) -> dict[str, Limited]:
        found: dict[str, Limited] = {}
        wanted: dict[tuple[str, str], int | None] = {}
        of: dict[tuple[str, str], set[str]] = {}
        for token, lease in holders.leases.items():
            place, error = self._asked(token, lease)
            for uuid, memory_mb in lease.devices:
                if place is None or uuid not in holders.devices:
                    continue
                if error:
                    found.setdefault(uuid, Limited()).error = error
                    continue
                at = (uuid, str(place.folder))
                wanted[at] = (wanted.get(at) or 0) + memory_mb
                of.setdefault(at, set()).add(token)
        over = {at for at in self._set - wanted.keys() if _abandoned(at[1])}
        for at, error in self._said(dict.fromkeys(over) | wanted).items():
            self._note(at, error, over=at in over)
            each = found.setdefault(at[0], Limited()) if at in wanted else Limited()
            if error:
                each.error = error
            else:
                each.tokens |= of.get(at, set())
        return found

    def _said(self, wanted: dict[tuple[str, str], int | None]) -> dict[tuple[str, str], str]:
        if not wanted:
            return {}
        if not isinstance(self._source, Limiting):
            return dict.fromkeys(wanted, NO_NVML)
        return self._source.limits(wanted)

    def _note(self, at: tuple[str, str], error: str, *, over: bool) -> None:
        uuid, cgroup = at
        if over or error:
            self._set.discard(at)
        elif at not in self._set:
            self._set.add(at)
            log.info("the driver limits memory on %s: %s", uuid, cgroup)
        if over:
            with suppress(OSError):  # its owner may have removed it
                Path(cgroup).rmdir()

    def _asked(self, token: str, lease: LeaseStatus) -> tuple[Place | None, str]:
        """Return the cgroup that a lease's holder wants limited, and why it cannot be; or None."""
        pid, _, start = lease.pid.partition(":")
        if lease.state != "active" or not (pid.isdecimal() and start.isdecimal()):
            return None, ""
        place = place_of(int(pid))  # first, because it is quick and hardly ever asks
        if place is None or not place.asks or not self._system.lives(lease.pid):
            return None, ""
        own = place_of()
        if own is not None and place.holds(own):
            return place, OURS
        if self._system.evidence(int(pid), int(start), token) is not True:
            return place, NOT_SHOWN
        return place, ""


def _abandoned(cgroup: str) -> bool:
    """Return whether no process is left in a cgroup; one that is not there is no more."""
    try:
        return "populated 0" in (Path(cgroup) / "cgroup.events").read_text()
    except OSError:
        return True

"""What hosts say of devices: how they are, and who else uses their memory; in MiB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.model.entries import Device
from tests.model.line import Line


@dataclass(slots=True)
class Devices(Line):
    """A pool whose hosts report."""

    def accept(self, host: str, uuid: str, said: dict[str, Any], sampled_ms: int) -> None:
        """A device as its host says it."""
        d = self.devices.get(uuid)
        moved = d is None or d.host != host
        d = d or self.devices.setdefault(uuid, Device(host, said["model"]))
        if moved or d.model != said["model"] or said["state"] != "ok":
            self.unkeep(uuid)
        d.drained = d.drained or (moved and host in self.drained_hosts)
        d.host, d.model, d.state = host, said["model"], said["state"]
        d.total_mb, d.reserve_mb = said["total_mb"], said["reserve_mb"]
        d.simulated = bool(said["simulated"])
        self.foreign(uuid, said, sampled_ms)

    def foreign(self, uuid: str, said: dict[str, Any], sampled_ms: int) -> None:
        """Memory that is used by others than our leases: S1, a stale sample can only refuse."""
        d, reserved_mb = self.devices[uuid], self.loads()[uuid].reserved_mb
        number = {name: value for name, value in said.items() if value != ""}
        used, outside = number.get("used_mb"), number.get("outside_mb")
        of_each = cooling_said(said.get("cooling", ""))
        over = [x for token, x in of_each.items() if not self.withheld(token, d)]
        gone_mb, lost_mb = sum(x[1] for x in over), sum(x[2] for x in over)
        lingers = max(number.get("lingering_mb", 0), sum(x[1] for x in of_each.values()))
        stays_mb = min(lingers - gone_mb, d.withheld_mb)
        most = used if outside is None else outside + lingers - stays_mb
        if most is None:
            return

        def least() -> int:
            if outside is not None:
                return most - max(0, number.get("unclaimed_mb", 0) - lost_mb)
            return used - reserved_mb - d.withheld_mb

        before_mb, foreign_mb = d.foreign_mb, max(d.foreign_mb, least())
        if sampled_ms >= d.sampled_ms:
            if outside is None:
                gone = used <= reserved_mb + d.foreign_mb
            else:
                sure = number.get("uncertain_mb", 0) <= lost_mb or outside <= d.foreign_mb
                gone = stays_mb == 0 and sure
                listed_mb = sum(x[1] for x in of_each.values())
                d.lingering = {token: x[1] for token, x in of_each.items()}
                d.unlisted_mb = min(lingers - listed_mb, stays_mb)
            if d.withheld_mb and gone and sampled_ms > d.withheld_at_ms:
                d.withheld_mb, d.cooled_at_ms = 0, d.withheld_at_ms
            foreign_mb = min(most, max(d.foreign_mb, least()))
            d.sampled_ms, d.raised_mb = sampled_ms, 0
        elif foreign_mb > before_mb:
            d.raised_mb += foreign_mb - before_mb
        d.foreign_mb = max(0, foreign_mb)

    def withheld(self, token: str, d: Device) -> bool:
        """Whether a lease that ended cools, and no proof has ended its grace on this device."""
        e = self.entries.get(token)
        return e is not None and e.state == "cooling" and e.expires_at_ms > d.cooled_at_ms


def cooling_said(text: str) -> dict[str, tuple[int, int, int]]:
    """`token=ended_ms:lingering_mb:uncertain_mb` of each lease that cools."""
    found = {}
    for each in filter(None, text.split(",")):
        token, _, numbers = each.partition("=")
        ended_ms, lingering_mb, uncertain_mb = map(int, numbers.split(":"))
        found[token] = (ended_ms, lingering_mb, uncertain_mb)
    return found

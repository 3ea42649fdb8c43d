"""Reports of hosts on devices: their state, and the memory used without a lease; in MiB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.model.entries import SWEEP_MS, Device, Host
from tests.model.queue import Queue


@dataclass(slots=True)
class Devices(Queue):
    """A pool whose hosts report."""

    def lives(self, host: str, deadline_ms: int, listed: set[str]) -> None:
        """A host has reported."""
        h = self.reports.setdefault(host, Host())
        if self.hosts.get(host) is None:
            h.up_ms = self.now
            if f"host:{host}" in self.drains:
                self.drains.discard(f"host:{host}")
                self.drained_hosts.add(host)
        h.reported_ms, h.deadline_ms = self.now, deadline_ms
        h.listed_ms = self.now if listed else h.listed_ms
        self.hosts[host] = self.now + deadline_ms

    # What is gone is forgotten.

    def of_host(self, host: str) -> list[str]:
        """A host's devices, the smallest first."""
        mine = [(d.total_mb - d.system_mb, u) for u, d in self.devices.items() if d.host == host]
        return [uuid for _, uuid in sorted(mine)]

    def unused(self, uuid: str) -> bool:
        """Tell whether nothing of a lease is on it any more."""
        on = {u for e in self.entries.values() if e.state != "waiting" for u, _ in e.held}
        return uuid not in on and not self.devices[uuid].withheld_mb

    def forget_device(self, uuid: str) -> None:
        self.unkeep(uuid)
        del self.devices[uuid]
        self.forgotten_ms = self.now

    def forget_host(self, host: str) -> None:
        self.drained_hosts.discard(host)
        del self.hosts[host], self.reports[host]

    def let_go(self, uuid: str, *, with_host: bool = False) -> None:
        """It is there no more; its drain is remembered, or its host's or its GPU's is."""
        if self.unused(uuid):
            d = self.devices[uuid]
            if d.drained and not (with_host or self.of_drained(d.parent)):
                self.drains.add(f"device:{uuid}")
            self.forget_device(uuid)

    def of_drained(self, parent: str) -> bool:
        """Tell whether the GPU is drained that a device is a part of."""
        return parent in self.devices and self.devices[parent].drained

    def forget_slices(self, host: str, listed: set[str], unlisted: set[str]) -> None:
        """Slices of a GPU that is listed without them are there no more.

        Nor are rows of a GPU that had no name, once their host unlists them.
        """
        for uuid in self.of_host(host):
            if uuid not in listed and self.devices[uuid].parent in listed:
                self.let_go(uuid)
            elif uuid in unlisted and uuid.startswith("UNKNOWN-"):
                self.let_go(uuid, with_host=True)

    def missing_since(self, uuid: str, h: Host) -> int | None:
        """Since when a device that its host does not list is missing; None: it is there."""
        d = self.devices[uuid]
        if d.listed_ms + h.deadline_ms >= h.listed_ms:
            return None
        parent = self.devices.get(d.parent)
        divided = parent is not None and parent.listed_ms > d.listed_ms + h.deadline_ms
        return 0 if divided else d.listed_ms

    def sweep(self) -> None:
        """Every five minutes, or when something is due: forget what is gone."""
        if self.now < self.sweep_ms or self.now < self.closed_until_ms:
            return
        next_ms = self.now + SWEEP_MS
        devices_ms = self.policy["forget_devices_after_s"] * 1000
        hosts_ms = self.policy["forget_hosts_after_s"] * 1000
        for host, due_ms in sorted(self.hosts.items()):
            h, up = self.reports[host], due_ms is not None
            settled_ms = h.up_ms + h.deadline_ms if up else h.reported_ms + hosts_ms
            if self.now < settled_ms:
                next_ms = min(next_ms, settled_ms)
                continue
            for uuid in self.of_host(host):
                since_ms = self.missing_since(uuid, h) if up else 0
                gone_ms = since_ms + devices_ms if since_ms else since_ms
                if gone_ms is not None and gone_ms > self.now:
                    next_ms = min(next_ms, gone_ms)
                elif gone_ms is not None:
                    self.let_go(uuid, with_host=not up and host in self.drained_hosts)
            if not up and not self.of_host(host):
                if host in self.drained_hosts:
                    self.drains.add(f"host:{host}")
                self.forget_host(host)
        self.sweep_ms = max(next_ms, self.now + 1)

    # What a host says of a device.

    def accept(self, host: str, uuid: str, said: dict[str, Any], sampled_ms: int) -> None:
        """A device as its host says it."""
        d = self.devices.get(uuid)
        moved, new = d is None or d.host != host, d is None
        if new and not said.get("listed", 1):
            return
        d = d or self.devices.setdefault(uuid, Device(host, said["model"]))
        if moved or d.model != said["model"] or said["state"] != "ok":
            self.unkeep(uuid)
        if not new and (moved or d.model != said["model"]):
            self.forgotten_ms = self.now
        d.drained = d.drained or (moved and host in self.drained_hosts)
        kept = {f"device:{uuid}", f"host:{host}"} & self.drains
        if new and (kept or self.of_drained(said.get("parent", ""))):
            d.drained = True
            self.drains.discard(f"device:{uuid}")
        if said.get("listed", 1):
            d.listed_ms = self.now
        d.parent = said.get("parent", d.parent)
        d.host, d.model, d.state = host, said["model"], said["state"]
        d.total_mb, d.system_mb = said["total_mb"], said["system_mb"]
        d.simulated = bool(said["simulated"])
        d.one_lease = said.get("one_lease", d.one_lease)
        d.idle_unleased_mb = said.get("idle_unleased_mb", d.idle_unleased_mb)
        self.unleased(uuid, said, sampled_ms)

    def unleased(self, uuid: str, said: dict[str, Any], sampled_ms: int) -> None:
        """Memory that is used by others than our leases: S1, a stale sample can only refuse."""
        d, leased_mb = self.devices[uuid], self.loads()[uuid].leased_mb
        number = {name: value for name, value in said.items() if value != ""}
        used, unleased = number.get("used_mb"), number.get("reported_unleased_mb")
        of_each = cooling_said(said.get("cooling", ""))
        over = [x for token, x in of_each.items() if not self.withheld(token, d)]
        gone_mb, lost_mb = sum(x[1] for x in over), sum(x[2] for x in over)
        cooling_used = max(number.get("cooling_used_mb", 0), sum(x[1] for x in of_each.values()))
        stays_mb = min(cooling_used - gone_mb, d.withheld_mb)
        most = used if unleased is None else unleased + cooling_used - stays_mb
        if most is None:
            return

        def least() -> int:
            if unleased is not None:
                return most - max(0, number.get("unattributed_mb", 0) - lost_mb)
            return used - leased_mb - d.withheld_mb

        before_mb, unleased_mb = d.unleased_mb, max(d.unleased_mb, least())
        if sampled_ms >= d.sampled_ms:
            if unleased is None:
                gone = used <= leased_mb + d.unleased_mb
            else:
                unsure_mb = number.get("cooling_unattributed_mb", 0)
                sure = unsure_mb <= lost_mb or most <= d.unleased_mb
                gone = stays_mb == 0 and sure
                listed_mb = sum(x[1] for x in of_each.values())
                d.cooling_used = {token: x[1] for token, x in of_each.items()}
                d.unlisted_mb = min(cooling_used - listed_mb, stays_mb)
            if d.withheld_mb and gone and sampled_ms > d.withheld_at_ms:
                d.withheld_mb, d.cooled_at_ms = 0, d.withheld_at_ms
            unleased_mb = min(most, max(d.unleased_mb, least()))
            d.sampled_ms, d.raised_mb = sampled_ms, 0
        elif unleased_mb > before_mb:
            d.raised_mb += unleased_mb - before_mb
        d.unleased_mb = max(0, unleased_mb)

    def withheld(self, token: str, d: Device) -> bool:
        """Tell whether an ended lease cools, and no proof has ended its grace on this device."""
        e = self.entries.get(token)
        return e is not None and e.state == "cooling" and e.expires_at_ms > d.cooled_at_ms


def cooling_said(text: str) -> dict[str, tuple[int, int, int]]:
    """`token=ended_ms:cooling_used_mb:cooling_unattributed_mb` of each lease that cools."""
    found = {}
    for each in filter(None, text.split(",")):
        token, _, numbers = each.partition("=")
        ended_ms, cooling_used_mb, cooling_unattributed_mb = map(int, numbers.split(":"))
        found[token] = (ended_ms, cooling_used_mb, cooling_unattributed_mb)
    return found

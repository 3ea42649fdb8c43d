"""Leases that end for a head with a right to their memory: which may, and which heads may ask.

The choice among equals is the scripts': the model checks that what they chose is allowed, and that
they chose something where a plain choice was there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from tests.model.entries import DOUBLINGS_OF_RUNTIME, HOLDERS_READ, LATEST_MS, TAKEN, Entry, demand
from tests.model.reservations import Reservations

FREE, QUOTA = "free", "quota"
GANG_POLLS = 4
"""Polls in which a head that wants several devices has looked at every group of them."""


@dataclass(slots=True)
class Preemption(Reservations):
    """A pool in which leases end for others."""

    def preempt(self, e: Entry) -> bool:
        """Q3, Q4: let leases end for a head that fits nowhere. Was it done?"""
        own = self.may_reclaim(e)
        after_ms = self.policy["reclaim_after_s"] * 1000
        late = bool(after_ms) and self.now - e.enqueued_ms >= after_ms and not e.preempts
        may = late and (own or e.ask.priority > 0)
        picked = self.choose.preempt(e.token)
        if picked is None:
            missed = may and own and not self.choose.backlog and self.must_notice(e)
            e.unnoticed = e.unnoticed + 1 if missed else 0
            most = GANG_POLLS if e.ask.devices > 1 else 0
            demand(e.unnoticed <= most, f"Q4: {e.token} has a right to what others hold, and waits")
            return False
        tokens, devices = picked
        demand(may, f"Q3: leases end for {e.token}, which has no right to it")
        self.cancel(e)
        self.check_victims(e, tokens, devices)
        at_ms = self.now + self.policy["preempt_grace_s"] * 1000
        for token in tokens:
            v = self.entries[token]
            v.preempt_at_ms, v.preempt_for, v.ended_ms = at_ms, e.token, v.expires_at_ms
            v.expires_at_ms = v.due_ms = min(v.expires_at_ms, at_ms + LATEST_MS)
        e.preempts, e.unnoticed, e.known_end_ms = tokens, 0, 0
        e.reserved, e.at_fence, e.until_ms = devices, self.fence, at_ms + 2 * LATEST_MS
        e.until_ms += self.policy["expiry_grace_s"] * 1000
        e.reservation_mb = sum(self.charge(e, uuid) or 0 for uuid in devices)
        return True

    def right(self, e: Entry, v: Entry, *, own: bool) -> str:
        """By what right a lease may end for e: FREE, or QUOTA while its team has too much."""
        lower = v.ask.team == e.ask.team and v.ask.priority < e.ask.priority
        if v.state != "active" or v.preempt_at_ms or v.revoked:
            return ""
        if v.preemptible:
            return FREE if own or lower else ""
        times = 2 ** min(DOUBLINGS_OF_RUNTIME, v.evictions)
        ripe = self.now >= v.granted_ms + self.policy["min_runtime_s"] * 1000 * times
        if not ripe or not self.teams:
            return ""
        if lower:
            return FREE
        return QUOTA if own and v.ask.team != e.ask.team else ""

    def clears(self, e: Entry, uuid: str, gone: set[str]) -> bool:
        """Is the device what e asks once these leases have ended?"""
        d, x = self.devices[uuid], self.loads()[uuid]
        on = [o for o in self.entries.values() if o.state in TAKEN and uuid in dict(o.held)]
        left = [o for o in on if o.token not in gone]
        if left and (self.whole(e.ask) or x.exclusive or d.one_lease):
            return False
        freed_mb = sum(dict(o.held)[uuid] for o in on if o.token in gone)
        return x.free_mb + d.withheld_mb + freed_mb >= e.memory_mb

    def may_become(self, e: Entry, uuid: str) -> bool:
        """Could the device be reserved for e?"""
        reserved_for = self.loads()[uuid].reserved_for
        return reserved_for in {"", e.token} and self.charge(e, uuid) is not None

    def over_mb(self, team: str, model: str) -> int:
        """MiB that a team holds beyond a nominal quota, but for what is to end already."""
        leaving = [v for v in self.entries.values() if v.preempt_at_ms and v.state == "active"]
        gone_mb = sum(self.in_quota(v, model) for v in leaving if v.ask.team == team)
        quota = self.quota(team, model)
        return quota.mb - gone_mb - quota.nominal_mb

    def keeps_caps(self, e: Entry, charge_mb: int, victims: list[Entry], model: str) -> bool:
        """Do all caps leave e so much, on devices of this model, once these leases have ended?"""
        for party in e.parties if self.teams else e.parties[:-1]:
            sums, gone = self.party(party), [v for v in victims if party in v.parties]
            if party.startswith("team "):
                quota = self.quota(e.ask.team, model)
                most_mb = self.limit_mb(e.ask.team, quota)
                held_mb = quota.mb + quota.reserved_mb - self.reserved_in(e, model)
                held_mb -= sum(self.in_quota(v, model) for v in gone)
            else:
                most_mb = self.policy["max_memory_per_agent_mb"]
                held_mb = sums.mb + sums.reserved_mb - e.reservation_mb
                held_mb -= sum(mb for v in gone for _, mb in v.held)
            full = sums.leases - len(gone) >= self.most_leases(party)
            if full or held_mb + charge_mb > most_mb:
                return False
        return True

    def check_victims(self, e: Entry, tokens: tuple[str, ...], devices: tuple[str, ...]) -> None:
        """Q3: each may end, together they make room, none is needless, no team goes too low."""
        victims, gone = [self.entries[token] for token in tokens], set(tokens)
        groups = {(self.devices[uuid].host, self.devices[uuid].model) for uuid in devices}
        demand(len(set(devices)) == e.ask.devices, f"Q3: {e.token} gets {devices}")
        demand(len(groups) == 1, f"Q3: {e.token} gets devices of {groups}")
        for uuid in devices:
            demand(self.may_become(e, uuid), f"Q3: {e.token} cannot get {uuid}")
            demand(self.clears(e, uuid, gone), f"Q3: {uuid} does not become free for {e.token}")
        ((_, model),) = groups
        own = bool(self.teams) and self.within_nominal(e, e.memory_mb * e.ask.devices, model)
        quota = defaultdict[str, list[int]](list)
        charge_mb = sum(self.charge(e, uuid) or 0 for uuid in devices)
        for v in victims:
            right = self.right(e, v, own=own)
            demand(right, f"Q3: {v.token} is to end for {e.token}, and may not")
            needed = not all(self.clears(e, uuid, gone - {v.token}) for uuid in devices)
            demand(needed, f"Q3: {v.token} need not end for {e.token}")
            lower = v.ask.team == e.ask.team and v.ask.priority < e.ask.priority
            borrows = not lower and not (self.teams and self.within_nominal(e, charge_mb, model))
            demand(not borrows, f"Q3: {v.token} is to end for {e.token}, which would borrow")
            if right == QUOTA:
                quota[v.ask.team].append(self.in_quota(v, model))
        for team, sizes in quota.items():
            over_mb, sums_mb = self.over_mb(team, model), sum(sizes) - max(sizes)
            demand(sums_mb < over_mb, f"Q3: team {team} loses {sizes}, and has {over_mb} too much")
        demand(self.keeps_caps(e, charge_mb, victims, model), f"Q3: {e.token} comes over a cap")

    def give_way(self, e: Entry, uuid: str, fence: int) -> bool:
        """End the victims in the way of a grant of e that was forgotten, if their time is over.

        Returns whether another in its way still has time.
        """
        victims = [self.entries[token] for token in e.preempts if token in self.entries]
        mine = [v for v in victims if v.state == "active" and v.preempt_for == e.token
                and uuid in dict(v.held) and v.fence < fence]  # fmt: skip
        for v in mine:
            if v.preempt_at_ms <= self.now:
                self.end(v, "preempted", v.preempt_at_ms)
        return any(v.preempt_at_ms > self.now for v in mine)

    def must_notice(self, e: Entry) -> bool:
        """Is there a plain choice: leases none of whose teams comes below its quota, or one lease?

        Of several devices: each group all of whose leases may go.
        """
        groups = defaultdict[tuple[str, str], list[str]](list)
        for uuid, d in self.devices.items():
            if self.may_become(e, uuid):
                groups[(d.host, d.model) if e.ask.devices > 1 else (uuid, "")].append(uuid)
        for group in groups.values():  # what cools is waited for
            if sum(self.clears(e, uuid, set()) for uuid in group) >= e.ask.devices:
                return False
        return any(self.plain(e, group) for group in groups.values())

    def plain(self, e: Entry, group: list[str]) -> bool:
        """Return whether leases of this group may end for e, whichever come first."""
        charges = sorted((self.charge(e, uuid) or 0 for uuid in group), reverse=True)
        charge_mb = sum(charges[: e.ask.devices])
        model = self.devices[group[0]].model
        if len(group) < e.ask.devices or not self.within_nominal(e, charge_mb, model):
            return False
        on = [o for o in self.entries.values() if {u for u, _ in o.held} & set(group)]
        crowded = any(sum(u in dict(o.held) for o in on) > HOLDERS_READ for u in group)
        rights = {v.token: self.right(e, v, own=True) for v in on}
        free = {token for token, right in rights.items() if right == FREE}
        quota = [v for v in on if rights[v.token] == QUOTA]
        sizes = defaultdict[str, int](int)
        for v in on:
            sizes[v.ask.team] += self.in_quota(v, model) if rights[v.token] else 0
        if crowded or not self.keeps_caps(e, charge_mb, [], model):
            return False
        sets = [free] if free else []
        if quota and all(sizes[v.ask.team] <= self.over_mb(v.ask.team, model) for v in quota):
            sets.append(free | {v.token for v in quota})
        if e.ask.devices == 1 and not free:
            sets += [{v.token} for v in quota if self.over_mb(v.ask.team, model) > 0]
        return any(all(self.clears(e, uuid, gone) for uuid in group) for gone in sets)

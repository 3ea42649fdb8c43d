"""The pool as docs/design and docs/reference tell it, without Redis: what each verb may do.

Where they leave something open (which of equal devices, which of two queues first) the model asks a
`Chooser` and checks that what it chose is allowed: beside the scripts the choice is what they did,
in the explorer each one in turn. What is not allowed is `Broken`, by the name of the invariant.
Read entries.py, ledger.py, line.py and devices.py before this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tests.model.entries import (
    FOREVER_MS,
    FORGOT_MS,
    POLL_MS,
    PRIORITY_US,
    REAP_DEVICES,
    REVOKED_MS,
    SWEEP_MS,
    Ask,
    Entry,
    Reply,
    demand,
)  # fmt: skip
from tests.model.favours import Favours
from tests.model.parties import TeamPolicy

if TYPE_CHECKING:
    from tests.model.recovery import Claim


@dataclass(slots=True)
class Model(Favours):
    """A pool, by its verbs; each answers as the script does, without the frame."""

    def acquire(  # noqa: C901, PLR0911, PLR0912 - in their order
        self, token: str, ask: Ask, wait_ms: int = 0, owner: str = "", preemptible: int = 0,
        yields: int = 0, after: str = "",
    ) -> Reply:  # fmt: skip
        """Ask for a lease; ask again, poll, claim."""
        if refusal := self.open():
            return refusal
        self.catch_up(token)
        e = self.entries.get(token)
        if not e and self.ended(token):
            return ["LOST", self.ended(token)]
        if e and e.state == "cooling":
            return ["LOST", e.outcome]
        if e and (e.ask != ask or owner not in {"", e.owner}):
            return ["CONFLICT"]
        if e and e.state == "active":
            return self.granted(e)
        gone = self.now <= self.forgotten_ms + POLL_MS and self.unknown(ask)
        if e and self.only_waits(e, wait_ms) and not gone:
            e.due_ms = self.now + POLL_MS
            return ["WAITING", self.place(e)]
        if e and e.state == "offered":
            lent = all(
                self.devices[uuid].state == "ok" and not self.devices[uuid].drained
                for uuid, _ in e.held
            )
            if lent and not self.shut and e.version == self.policy["policy_version"]:
                self.goes_on(e, preemptible, yields, after)
                return self.grant(e, tuple(uuid for uuid, _ in e.held), "")
            self.accrue(ask.team)
            e.state, e.held, e.whole = "waiting", (), False
            self.recheck_capped(e)
        new = e is None
        if not e:
            memory_mb = ask.memory_mb or self.policy["default_memory_mb"]
            rank = self.now * 1000 + self.raw_us % 1000 - ask.priority * PRIORITY_US
            e = Entry(token, ask, owner, memory_mb, rank=rank, enqueued_ms=self.now,
                      preemptible=bool(preemptible), yields=bool(yields))  # fmt: skip
            if not self.safe and (barred := self.barred(e)):
                return ["REFUSED", *barred]
        devices, why = self.decide(e, new=new)
        if devices is None:
            reply = self.denied(e, why, wait_ms, new=new)
        else:
            reply = self.grant(e, devices, "")
        if reply[0] == "GRANTED":
            self.goes_on(e, preemptible, yields, after)
        return reply

    def goes_on(self, e: Entry, preemptible: int, yields: int, after: str) -> None:
        """A call that grants says whether others may have or ask for it, and whose job it is."""
        e.preemptible, e.yields = e.preemptible or bool(preemptible), e.yields or bool(yields)
        e.evictions = self.evicted.get(after, 0)

    def only_waits(self, e: Entry, wait_ms: int) -> bool:
        """Is a poll no more than a heartbeat?"""
        behind = e.state == "waiting" and wait_ms and not self.safe and self.place(e) > 0
        return bool(behind) and not e.reserved and not (self.hold_ms(e.ask) and self.lends())

    def waits(self, e: Entry, why: str, *, new: bool) -> Reply:
        """It waits, in its queue or capped."""
        if new:
            self.join_team(e.ask.team)
            party = self.least(e)[1]
            # With work left, scripts put a newcomer into its queue without a look at its cap.
            over = why == "agent_cap" and self.has_more(e) and not self.choose.backlog
            e.capped = party if over else ""
        self.entries[e.token] = e
        e.due_ms = self.now + POLL_MS
        return ["WAITING", self.place(e)]

    def barred(self, e: Entry) -> tuple[str, str] | None:
        """Name what its team may never have."""
        ask, of = e.ask, self.team(e.ask.team)
        most_ms, longest_ms = of.max_hold_s * 1000, of.max_ttl_s * 1000
        if self.teams and ask.team not in {"default", *self.teams}:
            return "team_unknown", ask.team
        if ask.priority > of.max_priority:
            return "team_limit", f"max_priority={of.max_priority}"
        if longest_ms and not 0 < ask.ttl_ms <= longest_ms:
            return "team_limit", f"max_ttl_s={of.max_ttl_s}"
        if most_ms and ask.max_hold_ms > most_ms:
            return "team_limit", f"max_hold_s={of.max_hold_s}"
        most_mb, word = self.team_most(ask)
        if e.memory_mb * ask.devices > most_mb:
            return "team_limit", f"{word}={most_mb}"
        return None

    def decide(self, e: Entry, *, new: bool) -> tuple[tuple[str, ...] | None, str]:
        """Decide what it gets now, or why not."""
        devices, why = self.asked(e, new=new)
        if devices is None and why in {"no_capacity", "agent_cap"}:
            options = self.lent(e, self.room_of(e))
            devices = self.choose.grant(e.token, options) if options else None
            self.lending = devices is not None
        return devices, "" if self.lending else why

    def asked(  # noqa: PLR0911 - its answers, in their order
        self, e: Entry, *, new: bool
    ) -> tuple[tuple[str, ...] | None, str]:
        """Decide what it gets now of what no later waiter has reserved, or why not."""
        room_mb = self.room_of(e)
        if self.safe:
            return None, "safe_mode"
        if not new:
            devices, why = self.poll(e)
            return devices, "closed" if self.shut else why
        if self.shut:
            return None, "closed"
        if self.full_of_leases(e):
            return None, "limit"
        if self.queue(e.queue_id):
            return None, "no_capacity"
        options = self.fitting(e, room_mb)
        loose = self.choose.backlog or self.offers_made
        right = options if loose else self.best(e, options)
        devices = self.choose.grant(e.token, right) if right else None
        if devices is not None:
            return devices, ""
        loose = self.choose.backlog or self.choose.later(e.token)
        demand(not right or loose, f"S11: {e.token} fits and gets nothing")
        return None, "agent_cap" if not right and self.held_back(e, room_mb) else "no_capacity"

    def denied(self, e: Entry, why: str, wait_ms: int, *, new: bool) -> Reply:
        """No device: it waits, falls back to the CPU, or is refused."""
        ask, full, never = e.ask, self.full_of_leases(e) if why == "limit" else "", ""
        if why in {"no_capacity", "agent_cap"}:
            never = self.never(e, ahead=not new and self.place(e) > 0)
            why = never or why
            if why == "no_capacity" and ask.host in self.drained_hosts:
                why = "draining"
        # Of those offered since, one more waited
        again = self.choose.again and self.offers_made
        if wait_ms and not never and not self.safe and why != "limit" and not again:
            full = self.full_of_waiters(e) if new else ""
            if not full:
                return self.waits(e, why, new=new)
            why = "limit"
        if self.choose.again:
            demand(not self.safe and why != "closed", "AGAIN, though nothing can be had")
            return ["AGAIN"]
        if ask.on_unavailable == "cpu" and why not in {"safe_mode", "closed", "limit"}:
            return self.grant(e, (), why)
        detail = full or (self.party_asked(e, new=new) if why == "agent_cap" else "")
        if self.entries.pop(e.token, None):
            self.withdraw(e)
            if e.reservation_mb:  # it has just reserved it, too
                self.recheck_capped(e)
        if why == "team_limit":
            most_mb, word = self.never_most(e) if never else self.team_most(ask)
            detail = f"{word}={most_mb}"
        return ["REFUSED", why, "" if detail == ask.agent else detail]

    def never(self, e: Entry, *, ahead: bool) -> str:
        """Return why it can never have it; '' when it could. `ahead`: others are, in its queue."""
        if not ahead and self.by_model(e.ask) and self.registered():
            order = ("", "host_unknown", "never_fits", "team_limit", "agent_cap")
            found = [self.never(one, ahead=False) for one in self.by_each_model(e)]
            return "" if "" in found else max(found, key=order.index)
        cap_mb = self.cap_mb(e.ask)
        never = self.unknown(e.ask) if ahead else self.never_fits(e)
        if not never and e.memory_mb * e.ask.devices > cap_mb:
            never = "agent_cap"
        if never == "agent_cap" and cap_mb < self.policy["max_memory_per_agent_mb"]:
            return "team_limit"
        return never

    def by_each_model(self, e: Entry) -> list[Entry]:
        """The request of e, of each model that is registered."""
        return [replace(e, ask=e.ask._replace(model=model)) for model in self.registered()]

    def never_most(self, e: Entry) -> tuple[float, str]:
        """The most of the limits of its team that are in its way for ever, and its word."""
        if not self.by_model(e.ask):
            return self.team_most(e.ask)
        limits = [self.team_most(one.ask)[0] for one in self.by_each_model(e)
                  if self.never(one, ahead=False) == "team_limit"]  # fmt: skip
        return max(limits), "most_mb@*"

    def party_asked(self, e: Entry, *, new: bool) -> str:
        """The party whose cap leaves least, where that was looked at."""
        waiting = any(x.state == "waiting" for x in self.entries.values())
        selected, backfills = new and not self.queue(e.queue_id), self.hold_ms(e.ask) and waiting
        return self.least(e)[1] if selected or backfills else ""

    def grant(self, e: Entry, devices: tuple[str, ...], why: str) -> Reply:
        """The devices, or the CPU, are e's."""
        if e.state == "waiting":
            self.take(e, devices, "active", lent=self.lending)
        e.state, e.reason = "active", why
        self.fence = e.fence = max(self.fence + 1, self.raw_us)
        e.granted_ms, e.expires_at_ms = self.now, self.now + (e.ask.ttl_ms or FOREVER_MS)
        if hold_ms := self.hold_ms(e.ask):
            e.hold_until_ms = self.now + hold_ms
            e.expires_at_ms = min(e.expires_at_ms, e.hold_until_ms)
        e.due_ms = e.expires_at_ms
        self.entries[e.token] = e
        return self.granted(e)

    def granted(self, e: Entry) -> Reply:
        left = max(0, e.expires_at_ms - self.now)
        return ["GRANTED", e.fence, e.expires_at_ms, left, e.reason, sorted(e.held)]

    def renew(
        self,
        token: str,
        fence: int = 0,
        ttl_ms: int | None = None,
        owner: str = "",
        claim: Claim | None = None,
    ) -> Reply:
        """Keep a lease; with a `claim`, after UNKNOWN, have it recovered."""
        if refusal := self.open():
            return refusal
        self.witness(token, fence, owner)
        if claim and claim.epoch < self.epoch:
            self.close(self.epoch // 1000 + FORGOT_MS, self.epoch)
        self.catch_up(token)
        return self.renewed(token, fence, ttl_ms, owner, claim)

    def renew_many(self, leases: tuple[tuple[str, int, int | None], ...], owner: str = "") -> Reply:
        """Keep many leases, each by its own answer; what is beyond one script's work has none."""
        if refusal := self.open():
            return refusal
        for token, fence, _ in leases:
            self.witness(token, fence, owner)
        self.catch_up()
        answers: list[Reply] = []
        ended = 0
        for token, fence, ttl_ms in leases:
            if ended >= REAP_DEVICES:
                break
            e = self.entries.get(token)
            if e and self.over(e.due_ms):
                ended += self.settle(token)
            active = e is not None and e.state == "active"
            answers.append(self.renewed(token, fence, ttl_ms, owner))
            if e and active and answers[-1] in (["LOST", "revoked"], ["LOST", "preempted"]):
                ended += max(1, len(e.held))
        return ["OUTCOMES", *answers]

    def renewed(  # noqa: C901, PLR0911 - its answers, in their order
        self,
        token: str,
        fence: int = 0,
        ttl_ms: int | None = None,
        owner: str = "",
        claim: Claim | None = None,
    ) -> Reply:
        """One lease's answer, when what is over was taken back."""
        e = self.entries.get(token)
        if not e and self.ended(token):
            return ["LOST", self.ended(token)]
        if e and owner not in {"", e.owner}:
            return ["UNKNOWN"]
        if claim and (not e or e.state in {"waiting", "offered"}):
            if answer := self.recover(token, fence, claim, e.owner if e else owner):
                return answer
            e = self.entries[token]
        if not e:
            return ["UNKNOWN"]
        if e.state == "cooling":
            return ["LOST", e.outcome]
        if e.state != "active":
            return ["UNKNOWN"]
        if fence not in {0, e.fence}:
            return ["LOST", "superseded"]
        if over := self.ends_as(e):
            self.end(e, over)
            return ["LOST", over]
        told = [f"preempt:{e.preempt_at_ms}"] if e.preempt_at_ms else []
        told += [f"wanted:{e.wanted}"] if e.wanted else []
        until_ms = self.now + (self.renewal_ttl(e, ttl_ms) or FOREVER_MS)
        if e.hold_until_ms:
            until_ms = min(until_ms, e.hold_until_ms)
        if e.preempt_at_ms:
            until_ms = min(until_ms, e.preempt_at_ms)
        e.expires_at_ms = e.due_ms = max(until_ms, e.expires_at_ms)
        return ["RENEWED", e.expires_at_ms, max(0, e.expires_at_ms - self.now), ",".join(told)]

    def renewal_ttl(self, e: Entry, asked_ms: int | None) -> int:
        """Return what is asked, no longer than as granted and than its team may ask for."""
        granted_ms, most_ms = e.ask.ttl_ms, self.team(e.ask.team).max_ttl_s * 1000
        if asked_ms is None or not granted_ms or not most_ms:
            return granted_ms if asked_ms is None else asked_ms
        return min(asked_ms or FOREVER_MS, max(granted_ms, most_ms))

    def release(self, token: str, plant: int = 1, owner: str = "") -> Reply:
        """Give it back, or leave the queue; S6: an unknown token is refused from now on."""
        if refusal := self.open():
            return refusal
        self.catch_up(token)
        e = self.entries.get(token)
        if not e and self.ended(token):
            return ["ALREADY", self.ended(token)]
        if not e:
            if plant:
                self.leave(token, "released")
            return ["UNKNOWN"]
        if owner not in {"", e.owner}:
            return ["UNKNOWN"]
        if e.state == "cooling":
            return ["ALREADY", e.outcome]
        if e.preempt_at_ms:  # it obeys its notice early
            self.evicted[token] = e.evictions + 1
        if e.state == "active":
            self.count(e, self.now)
        self.bury(e, "released" if e.state == "active" else "cancelled")
        return ["RELEASED"]

    def revoke(self, token: str, force: int = 0) -> Reply:
        """An operator ends it: within a minute, or now."""
        if refusal := self.open():
            return refusal
        self.catch_up(token)
        e = self.entries.get(token)
        if not e:
            return ["ALREADY", self.ended(token)] if self.ended(token) else ["UNKNOWN"]
        if e.state == "cooling":
            return ["ALREADY", e.outcome]
        if e.state != "active":
            self.bury(e, "revoked")
            return ["REVOKED", self.now]
        if force:
            self.end(e, "revoked")
            return ["REVOKED", self.now]
        e.revoked = True
        e.expires_at_ms = e.due_ms = min(e.expires_at_ms, self.now + REVOKED_MS)
        self.end_moved(e)
        return ["REVOKED", e.expires_at_ms]

    def reap(self, seen_ms: int = 0) -> Reply:
        """Take back what is over."""
        if refusal := self.open():
            return refusal
        self.recalls(seen_ms)
        self.catch_up()
        self.sweep()
        return ["REAPED"]

    def drain(self, what: str, name: str, drained: int) -> Reply:
        """A device or a host takes no new leases, or takes them again."""
        if refusal := self.open():
            return refusal
        if name not in (self.hosts if what == "host" else self.devices):
            if drained or f"{what}:{name}" not in self.drains:
                return ["REFUSED", f"{what}_unknown", ""]  # which name is nearly so is not asked
            self.catch_up()
            self.drains.discard(f"{what}:{name}")
            return ["UNDRAINED", 0]
        self.catch_up()
        if what == "host":
            ids = [u for u, d in self.devices.items() if d.host == name]
            (self.drained_hosts.add if drained else self.drained_hosts.discard)(name)
        else:
            host = self.devices[name].host
            ids = [name, *(u for u in self.of_host(host) if self.devices[u].parent == name)]
        for uuid in ids:
            self.unkeep(uuid)
            self.devices[uuid].drained = bool(drained)
        return ["DRAINED" if drained else "UNDRAINED", len(ids)]

    def set_policy(self, **fields: int) -> Reply:
        """Change what may be leased; under SAFE_MODE only that itself."""
        if refusal := self.open():
            return refusal
        if self.safe and not (fields.get("safe_mode") == 0 or fields == {"safe_mode": 1}):
            return ["REFUSED", "safe_mode", ""]
        self.catch_up()
        for name in self.use if "half_life_s" in fields else ():
            self.accrue(name)
        self.policy |= fields
        self.policy["policy_version"] += 1
        if fields.get("reclaim_after_s") == 0:
            self.withdraw_all()
        for e in self.entries.values():
            e.blind = True
        return ["POLICY", self.policy["policy_version"]]

    def set_teams(self, teams: dict[str, dict[str, int]], version: int = 0) -> Reply:
        """Give teams policies; those that are not named have none any more."""
        if refusal := self.open():
            return refusal
        if self.safe:
            return ["REFUSED", "safe_mode", ""]
        if version and version != self.policy["policy_version"]:
            return ["REFUSED", "conflict", str(self.policy["policy_version"])]
        self.catch_up()
        if not self.teams or not teams:
            self.use = {}
        for name in {"default", *teams} if teams else ():
            self.use.setdefault(name, (0.0, self.now))
        self.teams = {name: TeamPolicy.of(line) for name, line in teams.items()}
        self.policy["policy_version"] += 1
        self.withdraw_all()
        for e in self.entries.values():
            e.blind = True
        return ["POLICY", self.policy["policy_version"]]

    def report(self, host: str, devices: dict[str, dict[str, Any]], deadline_ms: int = 15_000,
               sampled_ms: int = 0, epoch: int = 0, seen_ms: int = 0) -> Reply:  # fmt: skip
        """A host says what it has; only this makes a pool."""
        if not self.exists:
            self.exists, self.epoch, self.now = True, self.raw_us, self.raw_us // 1000
            self.sweep_ms = self.now + SWEEP_MS
        self.open()
        self.silence_ms = deadline_ms
        self.recalls(seen_ms)
        if epoch and epoch < self.epoch:
            self.close(self.epoch // 1000 + FORGOT_MS, self.epoch)
        self.catch_up()
        was = {uuid for uuid, d in self.devices.items() if d.state == "mig"}
        for uuid, said in devices.items():
            self.accept(host, uuid, said, sampled_ms)
        listed = {uuid for uuid, said in devices.items() if said.get("listed", 1)}
        divided = any(said["state"] == "mig" for said in devices.values())
        self.lives(host, deadline_ms, listed)
        if divided or was & devices.keys() or listed != devices.keys():
            self.forget_slices(host, listed, devices.keys() - listed)
        self.sweep()
        return ["REPORTED"]

    def release_driver(self, host: str, for_ms: int) -> Reply:
        """An operator wants a host's driver let go of: nothing but its next report differs."""
        if refusal := self.open():
            return refusal
        if host not in self.hosts:
            return ["REFUSED", "host_unknown", ""]
        self.catch_up()
        return ["DRIVER", self.now + for_ms if for_ms else 0]

    def forget(self, what: str, name: str) -> Reply:
        """An operator says that it is there no more."""
        if refusal := self.open():
            return refusal
        there = name in (self.hosts if what == "host" else self.devices)
        if not there and f"{what}:{name}" not in self.drains:
            return ["REFUSED", f"{what}_unknown", ""]
        self.catch_up()
        ids = self.of_host(name) if what == "host" else [u for u in self.devices if u == name]
        for uuid in ids:
            if not self.unused(uuid):
                return ["REFUSED", "in_use", uuid]
        for uuid in ids:
            self.forget_device(uuid)
        if what == "host":
            self.forget_host(name)
        self.drains.discard(f"{what}:{name}")
        return ["FORGOTTEN", len(ids), 0]

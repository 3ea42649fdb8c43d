"""Several pools on one server, lived through step by step; each step is plain data.

A step is `[pool, what, arguments]`. The same list of steps makes the same life, whoever made it:
the random walk, hypothesis, the explorer. Arguments that make no sense (any more) are no failure,
so that steps can be left out of a list and the rest still means something.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent_sdk.protocol.report import changes
from tests.model.entries import DONE_MS, Ask, Reply, demand
from tests.model.model import Model
from tests.model.pair import START_US, Pair
from tests.model.recovery import Claim

Step = list[Any]

DEVICE = {
    "index": 0, "name": "GPU", "model": "m0", "total_mb": 1000, "system_mb": 0, "used_mb": 0,
    "state": "ok", "simulated": 1,
}  # fmt: skip


ASIDE = "replica:"
"""Before the names of the keys that a replica has."""


def token(number: int) -> str:
    """A token that is easy to read."""
    return f"t{number}".rjust(16, "-")


@dataclass
class Holder:
    """A client's knowledge of its token, from the replies that reached it."""

    ask: Ask = field(default_factory=Ask)
    fence: int = 0
    epoch: int = 0
    held: tuple[tuple[str, int], ...] = ()
    fences: set[int] = field(default_factory=set)
    ends_ms: int = 0
    granted: bool = False
    over: bool = False
    revoked: bool = False


@dataclass
class Life:
    """One pool: what its clients know, what is on its way, what a replica has of it."""

    pair: Pair
    holders: dict[str, Holder] = field(default_factory=dict)
    bag: list[tuple[str, tuple[Any, ...], str, dict[str, Any]]] = field(default_factory=list)
    moments: list[int] = field(default_factory=lambda: [0])
    epoch: int = 0
    highest: int = 0
    latest_us: int = START_US
    lost_us: int = 0
    replica: Model | None = None
    told_ms: dict[str, int] = field(default_factory=dict)

    def step(self, what: str, args: dict[str, Any]) -> Reply | None:
        """Do one step; what the pool said, if it was asked."""
        return getattr(self, f"do_{what}")(**args)

    # Calls.

    def send(self, verb: str, wire: tuple[Any, ...], named: str = "", *, later: bool = False,
             **args: Any) -> Reply | None:  # fmt: skip
        """Call a verb now, or put the call where `deliver` finds it."""
        if later:
            self.bag.append((verb, wire, named, args))
            return None
        reply = self.pair.call(verb, wire, named, **args)
        if self.pair.model.exists:
            self.moments = [*self.moments[-8:], self.pair.model.now]
        if named:
            self._history(verb, named, reply, args)
        if verb == "renew_many" and reply[0] == "OUTCOMES":
            answers = dict(zip((name for name, *_ in args["leases"]), reply[1:], strict=False))
            for name, answer in answers.items():
                self._history("renew", name, answer, {})
            self.pair.compare_each(answers)
        return reply

    def do_deliver(self, number: int, again: bool = False) -> Reply | None:
        """A call that was on its way arrives, and may arrive once more."""
        if not self.bag:
            return None
        verb, wire, named, args = self.bag[number % len(self.bag)]
        if not again:
            del self.bag[number % len(self.bag)]
        return self.send(verb, wire, named, **args)

    def _history(self, verb: str, named: str, reply: Reply, args: dict[str, Any]) -> None:
        """Check all replies of one token together; it needs no model."""
        known, tag = self.holders.setdefault(named, Holder()), reply[0]
        now = self.pair.model.now
        over_ms = self.pair.model.done.get(named, ("", 0))[1]
        if tag in {"GRANTED", "WAITING"} and over_ms and now >= over_ms + DONE_MS:
            known.granted = known.over = known.revoked = False  # its end is remembered no more
            known.ends_ms = 0
        if tag in {"GRANTED", "RENEWED"}:
            demand(not known.over, f"S4: {named} was over, and is {tag}")
        if tag == "GRANTED":
            fence = reply[1]
            if fence not in known.fences:
                demand(not known.granted, f"S6: {named} was granted twice")
                demand(fence > self.highest, f"S3: the fence of {named} turned back")
                self.highest = max(self.highest, fence)
                known.fences.add(fence)
                known.granted = True
            known.ends_ms = reply[2]
        elif tag == "RENEWED":
            noticed = reply[3].startswith("preempt:")
            kept = reply[1] >= known.ends_ms or known.revoked or noticed
            demand(kept, f"S7: {named} was shortened")
            known.ends_ms = reply[1]
        elif tag == "REVOKED":
            known.revoked, known.ends_ms = True, reply[1]
        elif tag == "LOST" and reply[1] == "expired":
            demand(now > known.ends_ms or known.over or known.revoked, f"S7: {named} ended early")
        final = tag in {"RELEASED", "ALREADY"}
        final = final or (tag == "LOST" and ("claim" in args or reply[1] != "superseded"))
        planted = verb == "release" and tag == "UNKNOWN" and args["plant"] and not args["owner"]
        known.over = known.over or final or bool(planted)

    def do_acquire(
        self,
        number: int,
        ask: dict[str, Any],
        wait_ms: int = 0,
        owner: str = "",
        *,
        preemptible: int = 0,
        yields: int = 0,
        after: int = -1,
        later: bool = False,
        lost: bool = False,
    ) -> Reply | None:
        """Ask; `lost`: the reply does not arrive."""
        name, wanted, goes_on = token(number), Ask(**ask), token(after) if after >= 0 else ""
        wire = (name, wanted.agent, *wanted.request, "c", "1:1", owner, wait_ms)
        if goes_on or preemptible or yields:
            wire = (*wire, "", "", wanted.team, preemptible, yields, goes_on)
        elif wanted.team != "default":
            wire = (*wire, "", "", wanted.team)
        reply = self.send("acquire", wire, name, later=later, token=name, ask=wanted,
                          wait_ms=wait_ms, owner=owner, preemptible=preemptible, yields=yields,
                          after=goes_on)  # fmt: skip
        if reply and reply[0] == "GRANTED" and not lost:
            known = self.holders[name]
            known.ask, known.fence, known.held = wanted, reply[1], tuple(reply[5])
            known.epoch = self.pair.model.epoch
        return reply

    def do_renew(self, number: int, fence: str = "own", ttl_ms: int | None = None, owner: str = "",
                 later: bool = False) -> Reply | None:  # fmt: skip
        """Renew as its holder, without saying the fence, or with a wrong one."""
        name = token(number)
        own = self.holders.get(name, Holder()).fence
        said = {"own": own, "wrong": own + 1, "none": 0}[fence]
        wire = (name, said or "", "" if ttl_ms is None else ttl_ms, owner)
        return self.send("renew", wire, name, later=later, token=name, fence=said, ttl_ms=ttl_ms,
                         owner=owner)  # fmt: skip

    def do_renew_many(
        self, leases: list[tuple[int, str, int | None]], owner: str = "", later: bool = False
    ) -> Reply | None:
        """Renew several by one call: of each its number, and fence and ttl as in `do_renew`."""
        said = []
        for number, fence, ttl_ms in leases:
            own = self.holders.get(token(number), Holder()).fence
            said.append((token(number), {"own": own, "wrong": own + 1, "none": 0}[fence], ttl_ms))
        flat = [part for name, fence, ttl_ms in said
                for part in (name, fence or "", "" if ttl_ms is None else ttl_ms)]  # fmt: skip
        return self.send("renew_many", (owner, *flat), later=later, leases=tuple(said),
                         owner=owner)  # fmt: skip

    def do_recover(self, number: int, owner: str = "", later: bool = False) -> Reply | None:
        """Renew with all that its holder knows, as after UNKNOWN."""
        name = token(number)
        known = self.holders.get(name)
        if not known or not known.fence or known.over:
            return None
        claim, held = Claim(known.epoch, known.ask, known.held), known.held
        wire = (name, known.fence, "", owner, known.epoch, known.ask.agent,
                ",".join(f"{uuid}={mb}" for uuid, mb in held),
                "|".join(str(part) for part in known.ask.request), "c", "1:1",
                known.ask.team)  # fmt: skip
        return self.send("renew", wire, name, later=later, token=name, fence=known.fence,
                         owner=owner, claim=claim)  # fmt: skip

    def do_release(
        self, number: int, plant: int = 1, owner: str = "", later: bool = False
    ) -> Reply | None:
        """Give back, or leave, or be there before the acquire."""
        name = token(number)
        return self.send("release", (name, plant, owner), name, later=later, token=name,
                         plant=plant, owner=owner)  # fmt: skip

    def do_revoke(self, number: int, force: int = 0, later: bool = False) -> Reply | None:
        """An operator ends a lease."""
        name = token(number)
        return self.send("revoke", (name, force, "op", "why"), name, later=later, token=name,
                         force=force)  # fmt: skip

    def do_ask(self, number: int, by: int, owner: str = "", later: bool = False) -> Reply | None:
        """Ask a holder for its lease, as one that waits."""
        name, asker = token(number), token(by)
        return self.send("ask", (name, asker, owner), name, later=later, token=name, by=asker,
                         owner=owner)  # fmt: skip

    def do_extend(self, number: int, hold_ms: int, by: str = "", owner: str = "",
                  later: bool = False) -> Reply | None:  # fmt: skip
        """Let a holder, or an operator, move the time by which a lease ends."""
        name = token(number)
        return self.send("extend", (name, hold_ms, by, owner), name, later=later, token=name,
                         hold_ms=hold_ms, by=by, owner=owner)  # fmt: skip

    def do_reap(self, *, remembers: bool = False) -> Reply | None:
        """Let a client reap what is over; a broker remembers the time of its last reply."""
        seen_ms = self.told_ms.get("", 0) if remembers else 0
        reply = self.send("reap", (seen_ms,), seen_ms=seen_ms)
        self.told_ms[""] = self.pair.model.now
        return reply

    def do_drain(self, what: str, name: str, drained: int) -> Reply | None:
        """An operator drains a device or a host, or takes it back."""
        return self.send("drain", (what, name, drained, "op", "why"), what=what, name=name,
                         drained=drained)  # fmt: skip

    def do_gone(self, what: str, name: str) -> Reply | None:
        """An operator says that a device or a host is there no more."""
        return self.send("forget", (what, name, "op", "why"), what=what, name=name)

    def do_release_driver(self, host: str, for_ms: int) -> Reply | None:
        """An operator wants the driver let go of, or taken again."""
        return self.send("release_driver", (host, for_ms, "op", "why"), host=host, for_ms=for_ms)

    def do_teams(self, teams: dict[str, dict[str, int]], version: int = 0) -> Reply | None:
        """An operator gives teams their quotas."""
        flat = [part for name, line in teams.items()
                for part in (name, " ".join(f"{k}={v}" for k, v in line.items()))]  # fmt: skip
        return self.send("set_teams", ("op", version or "", *flat), teams=teams, version=version)

    def do_policy(self, fields: dict[str, int]) -> Reply | None:
        """An operator turns knobs."""
        flat = [part for pair in fields.items() for part in pair]
        return self.send("set_policy", ("op", *flat), **fields)

    def do_report(
        self,
        host: str,
        devices: dict[str, dict[str, Any]],
        sampled: int = -1,
        deadline_ms: int = 15_000,
        *,
        remembers: bool = True,
        later: bool = False,
        brief: bool = False,
    ) -> Reply | None:
        """A host reports; `sampled`: when it looked, as an index of the last moments, or 0.

        `brief`: it says what the pool does not have, as a reporter does that has just read it.
        """
        at_ms = self.moments[sampled % len(self.moments)] if sampled else 0
        devices = {uuid: DEVICE | self._cooling(uuid, said) for uuid, said in devices.items()}
        flat: list[Any] = []
        for uuid, said in devices.items():
            pairs = tuple(said.items())
            row = self.pair.pool.hash(f"device:{uuid}") if brief and not later else {}
            if row.get("host") == host:
                pairs = changes(pairs, row)
            flat += [uuid, len(pairs), *(part for pair in pairs for part in pair)]
        epoch, seen_ms = (self.epoch, self.told_ms.get(host, 0)) if remembers else (0, 0)
        known = f"{epoch or ''}:{seen_ms}" if seen_ms else epoch or ""
        reply = self.send(
            "report", (host, deadline_ms, at_ms, known, 0, "v", *flat), later=later, host=host,
            devices=devices, deadline_ms=deadline_ms, sampled_ms=at_ms, epoch=epoch,
            seen_ms=seen_ms,
        )  # fmt: skip
        if reply:
            self.told_ms[host] = self.pair.model.now
        if self.pair.model.exists:
            self.epoch = self.pair.model.epoch
        return reply

    def _cooling(self, uuid: str, said: dict[str, Any]) -> dict[str, Any]:
        """Give the report of a device, with `cools` spelled out for each lease that cools on it.

        A digit for one after the other: 0 uses nothing, 1 half of what it held, 2 is not known.
        """
        plain, each = {name: value for name, value in said.items() if name != "cools"}, []
        cools = [(e, mb) for _, e in sorted(self.pair.model.entries.items())
                 for held, mb in e.held if held == uuid and e.state == "cooling"]  # fmt: skip
        digits = said.get("cools", "")
        if not digits:
            return plain
        for (e, mb), digit in zip(cools, digits * len(cools), strict=False):
            uses_mb, unsure_mb = {"0": (0, 0), "1": (mb // 2, 0), "2": (0, mb)}[digit]
            each.append(f"{e.token}={e.expires_at_ms}:{uses_mb}:{unsure_mb}")
            plain["cooling_used_mb"] += uses_mb
            plain["cooling_unattributed_mb"] += unsure_mb
            plain["unattributed_mb"] += unsure_mb
            plain["used_mb"] += uses_mb
        return plain | {"cooling": ",".join(each)}

    def do_way(self, name: str) -> None:
        """Call the verbs another way from now on, where they are functions at all."""
        if self.pair.pool.functions:
            self.pair.pool.way = self.pair.model.way = name

    # Time, and what befalls the server.

    def do_time(self, us: int) -> None:
        """The server's clock goes on, or back: not behind a time of which memory was lost (S3)."""
        self.pair.clock(max(self.lost_us, self.pair.model.raw_us + us))
        self.latest_us = max(self.latest_us, self.pair.model.raw_us)

    def do_replicate(self) -> None:
        """Copy the server's data to its replica."""
        self._copy("", ASIDE)
        self.replica = self.pair.model.copy()

    def do_failover(self, us: int = 1_000_000) -> None:
        """The replica takes over: all that came after `replicate` is lost."""
        if self._go_back(us) and self.pair.model.exists:
            self.pair.model.another = True
            self.pair.pool.redis.hset(self.pair.pool.keys.pool, "run_id", "1")
            self.pair.pool.by_hand()

    def do_put_back(self, us: int = 1_000_000, *, clean: bool = False) -> None:
        """The data of `replicate` are put back under the running server, which does not say so.

        `clean`: as a clean stop left them, on whichever server they are now.
        """
        if self._go_back(us) and clean and self.pair.model.exists:
            self.pair.model.nameless = True
            self.pair.pool.redis.hdel(self.pair.pool.keys.pool, "run_id")
            self.pair.pool.by_hand()

    def _go_back(self, us: int) -> bool:
        """Put the data of `replicate` back; the library remembers what it has seen."""
        if not self.replica:
            return False
        self._later(us)
        self._copy(ASIDE, "")
        self.pair.last_event = self._newest_event()
        old, self.pair.model = self.pair.model, self.replica.copy()
        self.pair.model.raw_us = old.raw_us
        self.pair.model.way, self.pair.model.seen_ms = old.way, old.seen_ms
        return True

    def _newest_event(self) -> str:
        found = self.pair.pool.redis.xrevrange(self.pair.pool.keys.events, count=1)
        return str(found[0][0]) if found else "0"

    def _copy(self, source: str, target: str) -> None:
        """All keys of the pool, with what is left of their lives."""
        base, client = self.pair.pool.keys.base, self.pair.pool.redis
        old = self._names(target + base)
        pipe = client.pipeline(transaction=False)
        for name in old:
            pipe.delete(name)
        for name in self._names(source + base):
            pipe.copy(name, target + name.removeprefix(source))
        pipe.execute()

    def _names(self, base: str) -> list[str]:
        found = self.pair.pool.redis.scan_iter(f"{base}:*", count=5000)
        return sorted(name for name in found if ":test_" not in name)

    def do_forget(self, us: int = 1_000_000) -> None:
        """All is lost."""
        if names := self._names(self.pair.pool.keys.base):
            self.pair.pool.redis.delete(*names)
        self._later(us)
        self.pair.last_event = "0"
        old = self.pair.model
        self.pair.model = Model(self.pair.seen, old.raw_us, way=old.way, seen_ms=old.seen_ms)

    def _later(self, us: int) -> None:
        """Losing memory takes longer than clocks differ: what S3 is promised for."""
        self.pair.clock(max(self.latest_us, self.highest) + us)
        self.latest_us = self.lost_us = self.pair.model.raw_us
        for known in self.holders.values():
            known.granted = known.over = known.revoked = False
            known.ends_ms = 0

"""Thousands of random calls on a small pool: the invariants hold after each, and every decision is
the one that `oracle` makes with its eyes on all devices."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.state import snapshot
from tests.audit import audit
from tests.lua.oracle import Device, Request, before, choices, never_fits
from tests.pools import Pool, device, granted, said, token

if TYPE_CHECKING:
    from tests.servers import Server


OPERATIONS, AUDIT_EVERY = 10_000, 200
HOSTS, MODELS, AGENTS = ("h1", "h2"), ("m1", "m2"), ("ann", "bob", "cy")
UUIDS = tuple(f"gpu-{n}" for n in range(8))
ORDINARY = {
    "safe_mode": 0, "allow_fractional_shares": 1, "max_memory_per_agent_mb": 10_000,
    "max_leases_per_agent": 256,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A plain Redis: the other tests show that the servers agree."""
    return own


@dataclass
class Lease:
    """The replies to the world about one token."""

    token: str
    ask: dict[str, Any]
    fence: int = 0
    expires_at_ms: int = 0
    revoked: bool = False
    over: str = ""


@dataclass
class World:
    """Agents, hosts and time, all from one seed; it believes what it was told and nothing else."""

    pool: Pool
    rng: random.Random
    leases: list[Lease] = field(default_factory=list)
    hardware: dict[str, dict[str, Any]] = field(default_factory=dict)
    now_ms: int = 0
    fence: int = 0
    adopted: int = 0
    moments: list[int] = field(default_factory=lambda: [0])

    def heard(self, reply: list[Any]) -> list[Any]:
        """Every reply: the pool's time never goes back."""
        assert reply[1] >= self.now_ms, f"now went back from {self.now_ms}: {reply}"
        self.now_ms = reply[1]
        self.moments = [*self.moments[-20:], self.now_ms]
        return reply

    def some_lease(self) -> Lease:
        """One that is held, one of the last hundred tokens, or one that nobody ever had."""
        chance = self.rng.random()
        if not self.leases or chance < 0.03:
            self.leases.append(Lease(token(f"t{len(self.leases)}"), self.some_ask()))
            return self.leases[-1]
        held = [lease for lease in self.leases[-300:] if lease.fence and not lease.over]
        return self.rng.choice(held if held and chance < 0.7 else self.leases[-100:])

    def some_ask(self) -> dict[str, Any]:
        """A request, mostly for a share."""
        pick, chance = self.rng.choice, self.rng.random()
        return {
            "agent": pick(AGENTS),
            "memory_mb": pick((0, 1, 100, 300, 500, 900, 1000, 1500, 2500)),
            "devices": pick((2, 2, 3, 4)) if chance < 0.1 else 1,
            "exclusive": int(0.1 < chance < 0.2),
            "ttl_ms": 0 if chance > 0.98 else pick((1000, 3000, 10_000, 10_000, 30_000)),
            "max_hold_ms": pick((0, 0, 0, 5000, 20_000)),
            "host": pick(("*", "*", "*", *HOSTS)) if chance < 0.96 else "h3",
            "model": pick(("*", "*", "*", *MODELS)) if chance < 0.94 else "m3",
            "placement": pick(("spread", "pack")),
            "on_unavailable": pick(("refuse", "refuse", "refuse", "cpu")),
        }

    def acquire(self) -> None:
        """A new token."""
        self.leases.append(Lease(token(f"t{len(self.leases)}"), self.some_ask()))
        self.ask(self.leases[-1])

    def again(self) -> None:
        """A known token, whatever became of it; now and then with another request."""
        lease = self.some_lease()
        if self.rng.random() < 0.1:
            other = lease.ask | {"memory_mb": 77}
            tag = self.heard(self.pool.acquire(lease.token, **other))[0]
            assert tag in {"CONFLICT", "LOST"} or not lease.fence, tag
            if tag == "GRANTED":
                lease.ask = other
                self.release_of(lease, fresh=True)
            return
        self.ask(lease)

    def ask(self, lease: Lease) -> None:
        """Ask, and compare the answer with what was told before and with the oracle."""
        reply = self.heard(self.pool.acquire(lease.token, **lease.ask))
        tag = reply[0]
        if tag == "LOST":
            self.lost(lease, reply[5])
        elif tag == "AGAIN":
            self.pool.reap_all()
        elif tag == "REFUSED":
            assert not lease.fence, f"{lease} was refused"
            self.decided(lease, reply[5], ())
        else:
            got = granted(reply)
            assert not lease.over, f"S4: {lease} was granted again"
            assert got.remaining_ms == max(0, got.expires_at_ms - self.now_ms)
            if lease.fence:
                assert (got.fence, got.expires_at_ms) == (lease.fence, lease.expires_at_ms)
                return
            assert got.fence > self.fence, "S3"
            self.fence, lease.fence, lease.expires_at_ms = got.fence, got.fence, got.expires_at_ms
            self.decided(lease, got.reason, got.devices)

    def adopt(self) -> None:
        """A process uses some of a device: it gets that device, and no room that is not there."""
        uuid, used_mb = self.rng.choice(UUIDS), self.rng.choice((0, 100, 600, 1500))
        alone = {"devices": 1, "exclusive": 0, "on_unavailable": "refuse"}
        lease = Lease(token(f"t{len(self.leases)}"), self.some_ask() | alone)
        self.leases.append(lease)
        reply = self.heard(self.pool.acquire(lease.token, **lease.ask, uses=f"{uuid}={used_mb}"))
        if reply[0] != "GRANTED":
            assert reply[0] in {"AGAIN", "REFUSED"}, reply
            return
        got = granted(reply)
        assert [at for at, _ in got.devices] == [uuid]
        row = self.pool.redis.hgetall(self.pool.keys.device(uuid))
        parts = ("system_mb", "leased_mb", "withheld_mb", "unleased_mb")
        assert int(row["total_mb"]) >= sum(int(row[name]) for name in parts), f"S1: {row}"
        assert min(int(row[name]) for name in parts) >= 0, row
        self.fence, lease.fence, lease.expires_at_ms = got.fence, got.fence, got.expires_at_ms
        self.adopted += 1

    def decided(self, lease: Lease, reason: str, taken: tuple[tuple[str, int], ...]) -> None:
        """The decision on a new request is the oracle's."""
        pool, ask = self.pool, lease.ask
        pipe = pool.redis.pipeline(transaction=False)
        pipe.hgetall(pool.keys.pool)
        pipe.hmget(pool.keys.agents, ask["agent"], f"{ask['agent']}#leases")
        pipe.hget(pool.keys.host(ask["host"]), "drained")
        for uuid in UUIDS:
            pipe.hgetall(pool.keys.device(uuid))
        policy, sums, drained, *found = pipe.execute()
        rows = {uuid: row for uuid, row in zip(UUIDS, found, strict=True) if row}
        rows = before(rows, lease.token, taken)
        held_mb = int(sums[0] or 0) - sum(mb for _, mb in taken)
        leases = int(sums[1] or 0) - bool(lease.fence)
        if (
            reason == "closed" and policy["safe_mode"] == "0"
        ):  # all were silent for longer than a host promised
            assert int(policy["closed_until_ms"]) > self.now_ms
            return
        if policy["safe_mode"] == "1" or leases >= int(policy["max_leases_per_agent"]):
            assert reason == ("safe_mode" if policy["safe_mode"] == "1" else "limit")
            assert not lease.fence
            return
        names = ("devices", "exclusive", "host", "model", "placement")
        memory_mb = ask["memory_mb"] or int(policy["default_memory_mb"])
        request = Request(memory_mb, **{name: ask[name] for name in names})
        devices = [Device.read(uuid, row) for uuid, row in rows.items()]
        cap_mb, fractions = (
            int(policy["max_memory_per_agent_mb"]),
            policy["allow_fractional_shares"] == "1",
        )
        right, why = choices(request, devices, cap_mb - held_mb, fractions)
        if taken:
            assert {uuid for uuid, _ in taken} in right, f"{request} took {taken}, not of {right}"
        else:
            assert not right, f"{request} got nothing ({reason}), though {right} would do"
            why = never_fits(request, devices, cap_mb, fractions) or why
            why = "draining" if drained == "1" and why == "no_capacity" else why
            assert reason == why, f"{request}: {reason}"
            assert bool(lease.fence) == (ask["on_unavailable"] == "cpu")

    def lost(self, lease: Lease, why: str) -> None:
        """Nobody loses a lease before the end he was told (S7), and what is lost stays lost."""
        if lease.over:
            assert why == lease.over
        else:
            assert why == ("revoked" if lease.revoked else "expired"), f"{lease}: {why}"
            late = self.now_ms > lease.expires_at_ms
            assert late or lease.revoked, f"S7: {lease} was lost at {self.now_ms}"
        lease.over = why

    def renew(self) -> None:
        """A renewal, now and then with a wrong fence."""
        lease, ttl_ms = self.some_lease(), self.rng.choice(("", "", 1000, 20_000, 0))
        wrong = bool(lease.fence) and self.rng.random() < 0.1
        reply = self.heard(self.pool.renew(lease.token, str(lease.fence + wrong or ""), ttl_ms))
        if reply[0] == "RENEWED":
            assert lease.fence, f"{lease} was never granted"
            assert not lease.over, f"S4: {lease} was renewed"
            assert not lease.revoked
            assert not wrong
            assert reply[5] >= lease.expires_at_ms, f"S7: {lease} was shortened"
            lease.expires_at_ms = reply[5]
        elif reply[0] == "UNKNOWN":
            assert not lease.fence
            assert not lease.over
        elif not (wrong and reply[5] == "superseded"):
            self.lost(lease, reply[5])

    def release(self) -> None:
        """A release of any token, known, over, or not yet heard of."""
        self.release_of(self.some_lease())

    def release_of(self, lease: Lease, *, fresh: bool = False) -> None:
        """Give one back."""
        reply = self.heard(self.pool.release(lease.token))
        if reply[0] == "ALREADY":
            self.lost(lease, reply[5])
        else:
            assert not lease.over
            expected = "RELEASED" if lease.fence or fresh else "UNKNOWN"
            assert reply[0] == expected, f"{lease}: {reply}"
            lease.over = "released"

    def revoke(self) -> None:
        """An operator ends a lease, softly or by force."""
        lease, force = self.some_lease(), self.rng.randint(0, 1)
        reply = self.heard(self.pool.revoke(lease.token, force))
        if reply[0] == "REVOKED":
            assert lease.fence, f"{lease} was never granted"
            assert not lease.over, f"S4: {lease} was revoked"
            assert self.now_ms <= reply[5] <= max(self.now_ms, lease.expires_at_ms) or not force
            lease.expires_at_ms, lease.revoked = reply[5], True
            lease.over = "revoked" if force else ""
        elif reply[0] == "ALREADY":
            self.lost(lease, reply[5])
        else:
            assert reply[0] == "UNKNOWN"
            assert not lease.fence

    def drain(self) -> None:
        """A device or a host is drained, mostly undrained."""
        what = self.rng.choice(("device", "device", "host"))
        name = self.rng.choice(UUIDS if what == "device" else HOSTS)
        self.heard(self.pool.drain(name, what, int(self.rng.random() < 0.3)))

    def reap(self) -> None:
        """Take back a bounded part of what is over."""
        self.heard(self.pool.reap())

    def time_passes(self) -> None:
        """Mostly as it does; now and then a leap, or a step back."""
        chance = self.rng.random()
        if chance < 0.02:
            self.pool.skew(self.rng.randint(10_001, 60_000))
        elif chance < 0.04:
            self.pool.skew(-self.rng.randint(1, 100_000))
        else:
            self.pool.skew(self.rng.choice((1, 10, 500, 1000, 3000)))

    def report(self) -> None:
        """A host tells of some devices, with something changed, sampled now or some time ago."""
        host, change = self.rng.choice(HOSTS), self.rng.random()
        for uuid in self.rng.sample(UUIDS, 2) if change < 0.5 else ():
            self.hardware[uuid] |= self.rng.choice((
                {"total_mb": self.rng.choice((500, 1000, 2000, 3000))},
                {"used_mb": self.rng.choice(("", 0, 0, 100, 600, 1500))},
                {"used_mb": 0}, {"system_mb": self.rng.choice((0, 0, 64))},
                {"state": self.rng.choice(("ok", "ok", "ok", "lost"))},
                {"model": self.rng.choice(MODELS)}, {"index": self.rng.randint(0, 9)},
            ))  # fmt: skip
        mine = [u for u in UUIDS if self.hardware[u]["host"] == host]
        if change > 0.98:
            moved = self.rng.choice(UUIDS)
            self.hardware[moved]["host"] = host
            mine.append(moved)
        devices = tuple(
            (u, {k: v for k, v in self.hardware[u].items() if k != "host"}) for u in mine
        )
        sampled_ms = self.rng.choice((self.rng.choice(self.moments), self.now_ms, self.now_ms))
        self.heard(self.pool.report(devices, host=host, sampled_ms=sampled_ms))

    def set_policy(self) -> None:
        """An operator turns a knob."""
        self.pool.set_policy(**self.rng.choice((
            {"safe_mode": 1}, {"safe_mode": 0}, {"safe_mode": 0}, {"allow_fractional_shares": 0},
            {"allow_fractional_shares": 1}, {"max_memory_per_agent_mb": 2500},
            {"expiry_grace_s": self.rng.choice((0, 5))}, {"default_memory_mb": 400},
            {"max_leases_per_agent": 3}, *[ORDINARY] * 6,
        )))  # fmt: skip

    def begin(self) -> None:
        """Eight devices, four to a host, half of them real, of two models."""
        for n, uuid in enumerate(UUIDS):
            _, fields = device(uuid, 1000 * (1 + n % 3), model=MODELS[n // 2 % 2], index=n)
            self.hardware[uuid] = fields | {"host": HOSTS[n // 4], "simulated": n % 2}
        for _ in range(20):
            self.report()

    def step(self) -> None:
        """One operation."""
        operations = (
            (self.acquire, 30), (self.again, 12), (self.renew, 18), (self.release, 10),
            (self.reap, 4), (self.time_passes, 14), (self.report, 11), (self.set_policy, 1),
            (self.revoke, 1), (self.drain, 1), (self.adopt, 9),
        )  # fmt: skip
        kinds, weights = zip(*operations, strict=True)
        self.rng.choices(kinds, weights)[0]()

    def check(self) -> None:
        """Check all that one look at the whole key space shows."""
        audit(self.pool.redis, self.pool.keys)
        status = self.pool.look(snapshot.pool(self.pool.keys))
        leases = self.pool.look(snapshot.leases(self.pool.keys))
        gpu = sum(bool(lease.devices) for lease in leases)
        assert (status.active_leases, status.active_cpu_leases) == (gpu, len(leases) - gpu)
        held = {lease.token for lease in self.leases if lease.fence and not lease.over}
        assert {lease.token for lease in leases} <= held, "a lease lives that nobody holds"


@pytest.mark.slow
def test_verbs_in_any_order_keep_every_invariant(pool: Pool) -> None:
    """S1 to S7 and S10 under ten thousand random calls; GPU_BROKER_TEST_SEED repeats a run."""
    seed = int(os.environ.get("GPU_BROKER_TEST_SEED") or random.SystemRandom().randrange(10**9))
    world = World(pool, random.Random(seed))
    done = 0
    try:
        world.begin()
        for done in range(1, OPERATIONS + 1):
            world.step()
            if done % AUDIT_EVERY == 0:
                world.check()
        tags = pool.stats()
    except Exception as error:
        raise AssertionError(f"GPU_BROKER_TEST_SEED={seed}, operation {done}: {error}") from error
    assert min(tags[name] for name in ("granted", "expired", "released", "cpu_granted")) > 100, tags
    assert world.adopted > 10


def test_verbs_when_all_is_over_leave_only_the_registry(pool: Pool) -> None:
    """L5: after a wild life and a long quiet, no key but the sums tells of leases any more."""
    world = World(pool, random.Random(1))
    world.begin()
    for _ in range(500):
        world.step()
    for lease in world.leases:
        pool.release(lease.token)
    pool.policy(expiry_grace_s=0)
    pool.live_on(60_000)
    assert pool.reap_all() == 1
    done = [pool.keys.done(lease.token) for lease in world.leases]
    pool.redis.delete(*done)
    pool.by_hand()
    kinds = {key.removeprefix(pool.keys.base).split(":")[1] for key in pool.stored()}
    assert kinds <= {
        "pool", "stats", "events", "deadlines", "hosts", "host", "devices", "device", "models",
        "fits", "free", "idle", "idlehosts", "history", "usage", "usage_total",
    }  # fmt: skip
    assert said(pool.reap()) == ["REAPED"]

"""A random walk: which step comes next, all from one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.pools import OTHER, OWN, SCRIPTS

if TYPE_CHECKING:
    from random import Random

    from tests.model.world import Step

AGENTS = ("ann", "bob", "cy")
ORDINARY = {
    "safe_mode": 0, "allow_fractional_shares": 1, "max_memory_per_agent_mb": 1_048_576,
    "max_leases_per_agent": 256, "max_waiters_per_agent": 256, "expiry_grace_s": 5,
    "reservation_idle_s": 20,
}  # fmt: skip
TEAMS, TEAMED = ("default", "red", "red", "blue", "blue"), {"team", "tug", "quota", "relapse"}
"""Teams of requests, and the kinds of steps that make a walk one of teams."""

QUOTAS: tuple[dict[str, int], ...] = (
    {"nominal_mb": 1000}, {"nominal_mb": 2000, "weight": 3}, {"nominal_mb": 3000},
    {"nominal_mb": 0}, {"nominal_mb": 2000, "borrow_mb": 700}, {"nominal_mb": 3000, "lend_mb": 500},
    {"nominal_mb": 1500, "max_leases": 2, "max_waiters": 2},
    {"nominal_mb": 1500, "max_priority": 5},
    {"weight": 0}, {"nominal_mb": 1000, "max_ttl_s": 10, "max_hold_s": 15}, {"nominal_mb": 4000},
)  # fmt: skip
RECENT = 14
"""Number of the latest tokens that are still in play."""

CALM, MOSTLY = {"mix", "quota"}, 0.95
"""Part of the steps of a pool that is to stay calm."""

SHAPES = (
    (("h0", 2),), (("h0", 2), ("h1", 2), ("h2", 2)), (("h0", 4), ("h1", 1)),
    (("h0", 3), ("h1", 2), ("h2", 1), ("h3", 2)),
)  # fmt: skip
"""Hosts and how many devices each has, one line a pool."""


class Walk:
    """Agents, hosts, operators and accidents in as many pools as there are shapes.

    `often`: a kind of step that comes as often as all the others together.
    """

    def __init__(self, rng: Random, often: str = "") -> None:
        self.rng, self.often, self.teamed = rng, often, often in TEAMED
        self.asks: list[list[dict[str, Any]]] = [[] for _ in SHAPES]
        self.hardware: list[dict[str, dict[str, Any]]] = []
        for number, shape in enumerate(SHAPES):
            flat = [host for host, count in shape for _ in range(count)]
            self.hardware.append({
                f"g{number}{n}": {
                    "host": host, "index": n, "model": f"m{n // 2 % 2}", "simulated": n % 2,
                    "total_mb": rng.choice((1000, 2000, 3000)), "parent": "",
                }
                for n, host in enumerate(flat)
            })  # fmt: skip
        self.queue = [[n, "report", self.report(n, host)]
                      for n, shape in enumerate(SHAPES) for host, _ in shape]  # fmt: skip

    def next(self) -> Step:
        """The next step."""
        if self.queue:
            return self.queue.pop(0)
        kinds = (
            (self.new, 24), (self.again, 22), (self.renew, 10), (self.release, 12), (self.time, 18),
            (self.beat, 5), (self.change, 5), (self.revoke, 2), (self.drain, 3), (self.policy, 3),
            (self.deliver, 6), (self.reap, 2), (self.lose, 3), (self.patience, 1), (self.crowd, 1),
            (self.haunt, 1), (self.standoff, 0.3),
        )  # fmt: skip
        pool = self.rng.randrange(len(SHAPES))
        if self.often and self.rng.random() < (MOSTLY if self.often in CALM else 0.5):
            return [pool, *getattr(self, self.often)(pool)]
        kind = self.rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
        return [pool, *kind(pool)]

    def mix(self, pool: int) -> Step:
        """A calm pool with small leases: two versions side by side, and a client with scripts."""
        rng, number, what = self.rng, self.some(pool), self.rng.random()
        if what < 0.3:
            return ["way", {"name": rng.choice((OWN, OWN, OTHER, SCRIPTS))}]
        if what < 0.5 and number < len(self.asks[pool]):
            return ["renew", {"number": number, "fence": rng.choice(("own", "none"))}]
        if what < 0.75 and number < len(self.asks[pool]):
            return ["release", {"number": number, "plant": 0}]
        ask = {"agent": rng.choice(AGENTS), "memory_mb": rng.choice((20, 50, 100)), "devices": 1,
               "exclusive": 0, "ttl_ms": 30_000, "max_hold_ms": rng.choice((0, 0, 20_000)),
               "priority": 0, "host": "*", "model": rng.choice(("*", "m0")),
               "placement": rng.choice(("spread", "pack")), "on_unavailable": "refuse"}  # fmt: skip
        self.asks[pool].append(ask)
        return ["acquire", {"number": len(self.asks[pool]) - 1, "ask": ask, "wait_ms": 0}]

    def some(self, pool: int) -> int:
        """The number of a token of late, or of one that is still to come."""
        made = len(self.asks[pool])
        return self.rng.randrange(max(0, made - RECENT), made + 1)

    def later(self) -> dict[str, bool]:
        return {"later": True} if self.rng.random() < 0.12 else {}

    def ask(self, pool: int) -> dict[str, Any]:
        """A request; what is as by default is not said."""
        pick, chance = self.rng.choice, self.rng.random()
        hosts = [host for host, _ in SHAPES[pool]]
        team = {"team": pick(TEAMS)} if self.teamed else {}
        return team | {
            "agent": pick(AGENTS),
            "memory_mb": pick((0, 100, 300, 500, 700, 900, 1000, 1500, 2500)),
            "devices": pick((2, 2, 2, 3)) if chance < 0.16 else 1, "exclusive": int(chance > 0.86),
            "ttl_ms": pick((1000, 5000, 10_000, 10_000, 30_000)) if chance < 0.98 else 0,
            "max_hold_ms": pick((0, 0, 0, 0, 20_000)), "priority": pick((0, 0, 0, 0, 5, 9)),
            "host": pick(("*", "*", *hosts)) if chance < 0.97 else "nowhere",
            "model": pick(("*", "*", "*", "m0", "m1")), "placement": pick(("spread", "pack")),
            "on_unavailable": pick(("refuse", "refuse", "refuse", "cpu")),
        }  # fmt: skip

    def new(self, pool: int) -> Step:
        self.asks[pool].append(self.ask(pool))
        return self.say(pool, len(self.asks[pool]) - 1)

    def again(self, pool: int) -> Step:
        number = self.some(pool)
        return self.new(pool) if number == len(self.asks[pool]) else self.say(pool, number)

    def say(self, pool: int, number: int) -> Step:
        """Ask for a token as it was asked for; now and then not quite."""
        pick, chance = self.rng.choice, self.rng.random()
        ask = self.asks[pool][number] | ({"memory_mb": 77} if chance < 0.02 else {})
        args = {"number": number, "ask": ask, "wait_ms": pick((0, 60_000, 60_000, 60_000))}
        if chance > 0.95:
            args["owner"] = pick(("o1", "o2"))
        elif self.teamed and number % 2:
            args["owner"] = "o1"
        if self.rng.random() < 0.1:
            args["lost"] = True
        if self.teamed:
            args |= pick(
                ({}, {}, {}, {"preemptible": 1}, {"after": max(0, number - pick((1, 3, 5)))})
            )
        return ["acquire", args | self.later()]

    def renew(self, pool: int) -> Step:
        pick, chance = self.rng.choice, self.rng.random()
        number = self.some(pool)
        if chance < 0.3:
            owner = "o1" if chance < 0.02 else ""
            return ["recover", {"number": number, "owner": owner} | self.later()]
        if chance > 0.9:
            return self.renew_many(pool)
        args = {"number": number, "fence": pick(("own", "own", "own", "own", "none", "wrong"))}
        if chance > 0.75:
            args["ttl_ms"] = pick((1000, 20_000, 0))
        elif chance < 0.32:
            args["owner"] = "o2"
        return ["renew", args | self.later()]

    def renew_many(self, pool: int) -> Step:
        """All that a process holds, as its renewing thread says it; now and then not quite."""
        pick, made = self.rng.choice, len(self.asks[pool])
        recent = range(max(0, made - RECENT), made + 1)
        numbers = self.rng.sample(recent, self.rng.randint(1, len(recent)))
        fences, ttls = ("own",) * 7 + ("none", "wrong"), (None,) * 5 + (1000, 20_000, 0)
        args = {"leases": [(number, pick(fences), pick(ttls)) for number in numbers]}
        if self.rng.random() < 0.05:
            args["owner"] = "o1"
        return ["renew_many", args | self.later()]

    def release(self, pool: int) -> Step:
        args = {"number": self.some(pool), "plant": int(self.rng.random() < 0.7)}
        if self.rng.random() < 0.1:
            args["owner"] = "o2"
        return ["release", args | self.later()]

    def revoke(self, pool: int) -> Step:
        return [
            "revoke",
            {"number": self.some(pool), "force": self.rng.randint(0, 1)} | self.later(),
        ]

    def reap(self, pool: int) -> Step:
        return ["reap", {"remembers": True} if self.rng.random() < 0.8 else {}]

    def deliver(self, pool: int) -> Step:
        return ["deliver", {"number": self.rng.randrange(9), "again": self.rng.random() < 0.3}]

    def time(self, pool: int) -> Step:
        """Microseconds to seconds; a leap of the clock, a step back."""
        chance = self.rng.random()
        if chance < 0.03:
            return ["time", {"us": self.rng.choice((10_001, 25_000, 70_000)) * 1000}]
        if chance < 0.06:
            return ["time", {"us": -self.rng.choice((1, 900, 5000, 20_000)) * 1000}]
        return [
            "time",
            {"us": self.rng.choice((0, 7, 1000, 99_000, 500_000, 3_000_000, 6_000_001, 9_000_000))},
        ]

    def report(self, pool: int, host: str, **more: Any) -> dict[str, Any]:
        mine = {uuid: {k: v for k, v in said.items() if k != "host"}
                for uuid, said in self.hardware[pool].items() if said["host"] == host}  # fmt: skip
        return {"host": host, "devices": mine, "brief": self.rng.random() < 0.6} | more

    def beat(self, pool: int) -> Step:
        """A host reports, with or without its devices, of now or of some time ago."""
        host = self.rng.choice(SHAPES[pool])[0]
        args = self.report(pool, host, sampled=self.rng.choice((-1, -1, -1, -2, -4, 0)))
        if self.rng.random() < 0.2:
            args["devices"] = {}
        if self.rng.random() < 0.1:
            args |= {"remembers": False, "deadline_ms": 3000}
        return ["report", args | self.later()]

    def change(self, pool: int) -> Step:
        """Something is other with a device."""
        pick = self.rng.choice
        uuid = pick(list(self.hardware[pool]))
        said = self.hardware[pool][uuid]
        hosts = [host for host, _ in SHAPES[pool]]
        plain = {
            "reported_unleased_mb": "", "unattributed_mb": "", "cooling_used_mb": "",
            "cooling_unattributed_mb": "", "cools": "",
        }  # fmt: skip
        said |= pick((
            {"used_mb": pick((0, 0, 200, 600, 1500, ""))} | plain, {"used_mb": 0} | plain,
            {"state": pick(("ok", "ok", "lost"))}, {"state": "ok"},
            {"total_mb": pick((1000, 2000, 3000))}, {"system_mb": pick((0, 0, 64))},
            {"model": pick(("m0", "m1"))}, {"simulated": pick((0, 1))},
            {"host": pick(hosts)},
            {"reported_unleased_mb": pick((0, 0, 300)), "unattributed_mb": pick((0, 200)),
             "used_mb": 300, "cooling_used_mb": pick((0, 0, 400)),
             "cooling_unattributed_mb": pick((0, 0, 500)), "cools": ""},
            {"reported_unleased_mb": pick((0, 0, 300)), "unattributed_mb": pick((0, 200)),
             "used_mb": 300, "cooling_used_mb": 0, "cooling_unattributed_mb": 0,
             "cools": pick(("0", "1", "10", "12", "20"))},
        ))  # fmt: skip
        return ["report", self.report(pool, said["host"])]

    def drain(self, pool: int) -> Step:
        """Mostly back."""
        what = self.rng.choice(("device", "host"))
        names = (
            [*self.hardware[pool], "g-none"] if what == "device" else [h for h, _ in SHAPES[pool]]
        )
        drained = int(self.rng.random() < 0.35)
        return ["drain", {"what": what, "name": self.rng.choice(names), "drained": drained}]

    def policy(self, pool: int) -> Step:
        """Mostly back."""
        fields = self.rng.choice((
            {"safe_mode": 1}, {"safe_mode": 0}, {"allow_fractional_shares": 0},
            {"max_memory_per_agent_mb": 2500}, {"max_leases_per_agent": 3}, {"expiry_grace_s": 0},
            {"max_waiters_per_agent": 2}, {"default_memory_mb": 400}, {"reservation_idle_s": 0},
            {"max_memory_per_agent_mb": 1200, "reservation_idle_s": 5}, *[ORDINARY] * 6,
        ))  # fmt: skip
        return ["policy", {"fields": fields}]

    def lose(self, pool: int) -> Step:
        """A replica, and now and then its hour: then those who hold something say so."""
        chance = self.rng.random()
        if chance < 0.6:
            return ["replicate", {}]
        if chance > 0.95:
            return ["forget", {}]
        if chance > 0.85:
            return self.rng.choice((self.lose_a_hold, self.lose_twice))(pool)
        numbers = [self.some(pool) for _ in range(6)]
        self.queue += [[pool, "recover", {"number": number}] for number in numbers]
        self.queue += [self.pass_on(pool, 10_001)]
        self.queue += [[pool, *self.again(pool)] for _ in range(2)]
        self.queue += [[pool, "recover", {"number": self.rng.choice(numbers)}]]
        us = self.rng.choice((200_000, 4_000_000, 6_000_000))
        kind = self.rng.choice(("failover", "failover", "put_back", "put_back"))
        if self.rng.random() < 0.3:
            self.queue.insert(0, [pool, *self.renew_many(pool)])
        clean = {"clean": True} if kind == "put_back" and self.rng.random() < 0.5 else {}
        return [kind, {"us": us} | clean]

    def lose_a_hold(self, pool: int) -> Step:
        """A lease that may be held for so long, granted after the clock stepped back, is lost."""
        small = {"memory_mb": 100, "devices": 1, "exclusive": 0, "host": "*", "model": "*"}
        held = self.asked(pool, small | {"max_hold_ms": 20_000, "agent": "dan"})
        self.queue += [[pool, "reap", {}], [pool, "replicate", {}], held]
        self.queue += [[pool, "failover", {"us": 200_000}]]
        self.queue.append([pool, "recover", {"number": held[2]["number"]}])
        return self.pass_on(pool, -5000)[1:]

    def lose_twice(self, pool: int) -> Step:
        """The second loss is noticed, the first was not: two may hold one device."""
        whole = {"memory_mb": 100, "devices": 1, "exclusive": 1, "host": "*", "model": "*"}
        first, second = (self.asked(pool, whole | {"agent": name}) for name in ("dan", "eve"))
        self.queue += [first, [pool, "put_back", {"us": 200_000}], second]
        self.queue += [[pool, "replicate", {}], [pool, "failover", {"us": 200_000}]]
        self.queue += [[pool, "recover", {"number": step[2]["number"]}] for step in (first, second)]
        return ["replicate", {}]

    def pass_on(self, pool: int, ms: int) -> Step:
        return [pool, "time", {"us": ms * 1000}]

    def patience(self, pool: int) -> Step:
        """All is taken, and somebody waits for more than half a minute; hosts are alive."""
        small = {"memory_mb": 100, "devices": 1, "ttl_ms": 60_000, "host": "*", "model": "*"}
        held = [self.asked(pool, small | {"exclusive": 1}) for _ in self.hardware[pool]]
        big = {"memory_mb": self.rng.choice((900, 1500)), "host": "*", "model": "*", "priority": 9}
        patient = self.asked(pool, big | {"devices": self.rng.choice((1, 1, 2)), "ttl_ms": 10_000})
        self.queue += held
        for round_ in range(9):
            self.queue += [self.pass_on(pool, 4000), patient]
            if round_ % 3 == 0:
                self.queue += [
                    [pool, "report", self.report(pool, host)] for host, _ in SHAPES[pool]
                ]
        self.queue += [[pool, "release", {"number": step[2]["number"]}] for step in held]
        return patient[1:]

    def asked(self, pool: int, ask: dict[str, Any]) -> Step:
        """A new token that asks for this, and waits."""
        self.asks[pool].append(self.ask(pool) | ask)
        number = len(self.asks[pool]) - 1
        return [pool, "acquire", {"number": number, "ask": self.asks[pool][-1], "wait_ms": 60_000}]

    def haunt(self, pool: int) -> Step:
        """Leases end one after the other without a word, and some of their processes go on."""
        host = self.rng.choice(SHAPES[pool])[0]
        mine = {"host": host, "model": "*", "devices": 1, "ttl_ms": 1000, "memory_mb": 300}
        for said in self.hardware[pool].values():
            said |= {"simulated": 0, "used_mb": 0, "reported_unleased_mb": 0, "unattributed_mb": 0,
                     "cooling_used_mb": 0, "cooling_unattributed_mb": 0}  # fmt: skip
        for digits in self.rng.choice((("0", "12", "1"), ("0", "1", "01"), ("2", "12", "20"))):
            self.queue += [self.asked(pool, mine), self.pass_on(pool, 1001), [pool, "reap", {}]]
            now, late = self.report(pool, host), self.report(pool, host, sampled=-6)
            for report, reported_unleased_mb in ((now, 0), (late, self.rng.choice((0, 100)))):
                more = {"cools": digits, "reported_unleased_mb": reported_unleased_mb}
                report["devices"] = {u: d | more for u, d in report["devices"].items()}
                self.queue += [self.pass_on(pool, 5), [pool, "report", report]]
        self.queue += [self.pass_on(pool, 4000), [pool, "reap", {}], self.pass_on(pool, 5000)]
        return ["reap", {}]

    def gone(self, pool: int) -> Step:
        """An operator forgets a device or a host."""
        said = self.drain(pool)[1]
        return ["gone", {"what": said["what"], "name": said["name"]}]

    def vanish(self, pool: int) -> Step:
        """A host lists a device no more, or says nothing; one may be a slice of another.

        With steps of every other kind between, where it comes often.
        """
        if self.rng.random() < 0.7:
            return self.gone(pool) if self.rng.random() < 0.05 else self.again(pool)
        host, fields = self.rng.choice(SHAPES[pool])[0], {"forget_devices_after_s": 10}
        full = self.report(pool, host)
        uuids = [*full["devices"]]
        if not uuids:
            return self.gone(pool)
        if len(uuids) > 1 and self.rng.random() < 0.4:
            full["devices"][uuids[0]] |= {"state": "mig"}
            full["devices"][uuids[-1]] |= {"parent": uuids[0], "model": "part"}
        some = {u: s for u, s in full["devices"].items() if u != uuids[-1]}
        if self.rng.random() < 0.3:
            some[uuids[-1]] = full["devices"][uuids[-1]] | {"listed": 0, "state": "lost"}
        if self.rng.random() < 0.2:
            unnamed = f"UNKNOWN-{host}-0"
            full["devices"][unnamed] = full["devices"][uuids[-1]] | {"state": "error"}
            some[unnamed] = full["devices"][unnamed] | {"listed": 0, "state": "lost"}
        told = self.rng.choice((full, full | {"devices": some}, full | {"devices": some}))
        self.queue += [[pool, "report", full], [pool, *self.drain(pool)]]
        for ms in self.rng.choice(((9000, 9000, 9000), (9000, 300_001, 31_000, 16_000))):
            self.queue += [self.pass_on(pool, ms), [pool, *self.again(pool)]]
            self.queue += [[pool, "report", told]] if self.rng.random() < 0.7 else []
            self.queue += [[pool, "reap", {}]]
        self.queue += [[pool, "report", self.report(pool, host)] for host, _ in SHAPES[pool]]
        return ["policy", {"fields": fields | {"forget_hosts_after_s": 60}}]

    def terms(self, pool: int) -> Step:
        """Hosts change on what terms their devices are lent: to one lease, beside how much use.

        With steps of every other kind between, where it comes often.
        """
        if self.rng.random() < 0.7:
            return self.again(pool)
        pick = self.rng.choice
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= (
                pick(({}, {"one_lease": ""}, {"one_lease": "mode"}, {"one_lease": "mode"}))
                | pick(({}, {"idle_unleased_mb": pick((0, 512, 650, 2000))}))
                | pick(({}, {}, {"used_mb": pick((0, 200, 600, 1500)), "simulated": 0}))
            )
        self.queue += [[pool, "report", self.report(pool, host)] for host, _ in SHAPES[pool]]
        return self.new(pool)

    def crowd(self, pool: int) -> Step:
        """Many small requests wait when a host comes back, and the policy may be another."""
        host = self.rng.choice(SHAPES[pool])[0]
        small = {"devices": 1, "exclusive": 0, "memory_mb": self.rng.choice((100, 300))}
        self.queue += [self.asked(pool, small) for _ in range(10)]
        self.queue.append([pool, "drain", {"what": "host", "name": host, "drained": 0}])
        self.queue.append([pool, *self.rng.choice((self.policy, self.again, self.release))(pool)])
        return ["drain", {"what": "host", "name": host, "drained": 1}]

    def standoff(self, pool: int) -> Step:
        """Leases that end late or never hold some of each device; larger requests wait beside them.

        Some devices are dead, strangers use others, small requests come by, and time goes on.
        """
        pick, hosts = self.rng.choice, [host for host, _ in SHAPES[pool]]
        ends = {"ttl_ms": pick((0, 30_000)), "max_hold_ms": pick((0, 0, 60_000, 90_000))}
        bit = {"agent": "dee", "memory_mb": 100, "devices": 1, "host": "*", "model": "*"} | ends
        held = [self.asked(pool, bit | {"exclusive": 0}) for _ in self.hardware[pool]]
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= pick(
                ({}, {}, {}, {"state": "lost"}, {"used_mb": 300}, {"used_mb": 700})
            )
        big = {"ttl_ms": 10_000, "host": "*", "model": "*", "on_unavailable": "refuse"}
        asks = ({"devices": 2, "memory_mb": 500}, {"devices": 1, "memory_mb": 1000},
                {"devices": 1, "exclusive": 1, "memory_mb": 300},
                {"devices": 2, "memory_mb": 200})  # fmt: skip
        patient = [self.asked(pool, big | ask) for ask in asks]
        self.queue += [*held, *([pool, "report", self.report(pool, host)] for host in hosts)]
        for round_ in range(self.rng.randrange(10, 34)):
            if round_ == 5:  # one comes later, when the others reserve
                later = {"devices": 1, "memory_mb": 600, "exclusive": 1}
                patient.append(self.asked(pool, big | later))
            self.queue += [self.pass_on(pool, 4000), *patient]
            if round_ % 3 == 0:
                self.queue += [[pool, "report", self.report(pool, host)] for host in hosts]
            if round_ % 2 == 1:
                small = {
                    "memory_mb": pick((200, 600)),
                    "devices": 1,
                    "max_hold_ms": pick((0, 20_000, 75_000)),
                }
                self.queue.append(self.asked(pool, small))
                renewed = pick(held)[2]["number"]
                self.queue.append([pool, "renew", {"number": renewed}])
            if round_ % 10 == 9:
                self.queue.append([pool, *self.drain(pool)])
                urgent = self.asked(pool, big | {"devices": 1, "memory_mb": 50, "priority": 9})
                free = [[pool, "release", {"number": x[2]["number"]}] for x in (pick(held), urgent)]
                self.queue += [urgent, free[0], urgent, self.pass_on(pool, 3000), free[1]]
        self.queue += [[pool, "release", {"number": step[2]["number"]}] for step in held[::2]]
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= {"state": "ok"}
        cap_mb = pick((*[ORDINARY["max_memory_per_agent_mb"]] * 3, 2500))
        return ["policy", {"fields": ORDINARY | {"max_memory_per_agent_mb": cap_mb}}]

    def team(self, pool: int) -> Step:
        """An operator gives teams other quotas; with steps of every other kind between."""
        chance = self.rng.random()
        if chance < 0.85:
            return self.again(pool)
        if chance < 0.9:
            return ["way", {"name": self.rng.choice((OWN, OWN, OTHER, SCRIPTS))}]
        pick, names = self.rng.choice, ("red", "blue", "default")
        count = pick((0, 2, 2, 2, 3))
        teams = {name: pick(QUOTAS) for name in names[:count]}
        version = {"version": pick((1, 2, 3))} if self.rng.random() < 0.1 else {}
        fields = pick(({}, {"min_runtime_s": 0}, {"min_runtime_s": 20}, {"reclaim_after_s": 5}))
        fields |= pick(({}, {"preempt_grace_s": 5}, {"half_life_s": 60}, {"half_life_s": 0}))
        self.queue += [[pool, "policy", {"fields": fields}]] if fields else []
        return ["teams", {"teams": teams} | version]

    def rivals(self, pool: int) -> Step:
        """All is taken; heads of each team wait for the same devices, which come free."""
        pick = self.rng.choice
        whole = {"devices": 1, "exclusive": 1, "memory_mb": 100, "host": "*", "model": "*",
                 "ttl_ms": 30_000, "max_hold_ms": 0, "priority": 0}  # fmt: skip
        held = [self.asked(pool, whole | {"team": pick(TEAMS)}) for _ in self.hardware[pool]]
        wants = whole | {"exclusive": 0, "memory_mb": 400, "on_unavailable": "refuse"}
        waiters = []
        for team in self.rng.sample(("red", "blue", "default") * 2, 6):
            waiters.append(self.asked(pool, wants | {"team": team, "priority": pick((0, 0, 0, 2))}))
            waiters.append(self.pass_on(pool, 500))
        gone = [[pool, "release", {"number": step[2]["number"]}] for step in held]
        self.queue += [*held, *waiters, *gone[:2], *waiters[::2], *gone[2:]]
        quotas = ({"nominal_mb": 0}, {"nominal_mb": 0, "weight": 3}, {"nominal_mb": 6000})
        return ["teams", {"teams": {"red": pick(quotas), "blue": pick(quotas)}}]

    def quota(self, pool: int) -> Step:
        """A calm pool of two teams with small quotas, which change; versions side by side."""
        if self.rng.random() < 0.1:
            lines = ({"nominal_mb": 100, "borrow_mb": 0}, {"nominal_mb": 3000}, {"max_leases": 1})
            names = ("red", "blue", "default")
            return ["teams", {"teams": {name: self.rng.choice(lines) for name in names}}]
        step = self.mix(pool)
        if step[0] == "acquire":
            step[1]["ask"]["team"] = self.rng.choice(TEAMS)
        return step

    def tug(self, pool: int) -> Step:
        """One team has borrowed all, and the other wants its own back; or one has priority.

        With steps of every other kind between, where it comes often.
        """
        chance = self.rng.random()
        if chance < 0.88:
            return self.team(pool)
        if chance < 0.93:
            return self.rivals(pool)
        if chance < 0.95:
            return self.relapse(pool)
        pick = self.rng.choice
        few = {"devices": 1, "host": "*", "model": "*", "max_hold_ms": 0, "priority": pick((0, 5)),
               "on_unavailable": "refuse", "ttl_ms": pick((0, 30_000, 30_000))}  # fmt: skip
        more = {"preemptible": 1} if self.rng.random() < 0.2 else {}
        held = []
        for _ in range(pick((1, 2)) * len(self.hardware[pool])):
            held.append(self.asked(pool, few | {
                "team": "red", "memory_mb": pick((200, 400, 700, 1000)), "agent": pick(AGENTS),
                "exclusive": pick((0, 0, 0, 1)),
            }))  # fmt: skip
            held[-1][2].update(more)
            held.append(self.pass_on(pool, 20))
        if self.rng.random() < 0.5:
            gang = few | {"team": "red", "devices": 2, "memory_mb": 300}
            held.insert(0, self.asked(pool, gang))
        own = few | {"team": pick(("blue", "blue", "red")), "memory_mb": pick((300, 900, 900)),
                     "devices": pick((1, 1, 2)), "priority": pick((0, 5, 5))}  # fmt: skip
        again = self.rng.random() < 0.4
        self.pull(pool, held, own, self.rng.randrange(6, 16), all_go=again)
        if again:  # jobs that were preempted go on, and it happens once more
            self.pull(pool, self.gone_on(pool, held), own, 9)
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= {"state": "ok", "used_mb": 0}
        quick = {"min_runtime_s": pick((0, 20)), "reclaim_after_s": pick((5, 15)),
                 "preempt_grace_s": pick((5, 12))}  # fmt: skip
        quick |= pick(({}, {}, {"max_memory_per_agent_mb": 1200}))
        self.queue.insert(0, [pool, "policy", {"fields": ORDINARY | quick}])
        quotas = {"red": pick((*QUOTAS[:4], QUOTAS[-1])), "blue": pick((*QUOTAS[1:3], QUOTAS[-1]))}
        return ["teams", {"teams": quotas}]

    def gone_on(self, pool: int, held: list[Step]) -> list[Step]:
        """Requests of jobs whose leases ended, to go on with them."""
        leases = [step[2] for step in held if step[1] == "acquire"]
        found = [self.asked(pool, args["ask"]) for args in leases]
        for step, before in zip(found, leases, strict=True):
            step[2]["after"] = before["number"]
        return [each for step in found for each in (step, self.pass_on(pool, 20))]

    def forgotten_end(self, pool: int) -> Step:
        """The pool forgets that a lease ended by its notice, and what its head was granted then."""
        pick, quick = self.rng.choice, {"min_runtime_s": 0, "reclaim_after_s": 5}
        few = {"devices": 1, "exclusive": pick((0, 1)), "memory_mb": 900, "host": "*", "model": "*",
               "ttl_ms": 60_000, "max_hold_ms": 0, "priority": 0,
               "on_unavailable": "refuse"}  # fmt: skip
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= {"state": "ok", "used_mb": 0}
        held = [self.asked(pool, few | {"team": "red"}) for _ in self.hardware[pool]]
        head, early = self.asked(pool, few | {"team": "blue"}), self.rng.random() < 0.4
        numbers = [step[2]["number"] for step in held]
        renewals = [[pool, "renew", {"number": number}] for number in numbers]
        self.queue += [[pool, "policy", {"fields": ORDINARY | quick | {"preempt_grace_s": 5}}]]
        self.queue += [[pool, "report", self.report(pool, host)] for host, _ in SHAPES[pool]]
        self.queue += [*held, head, self.pass_on(pool, 3000), head, self.pass_on(pool, 2500), head]
        self.queue += [[pool, "replicate", {}], *renewals]
        if early:
            self.queue += [[pool, "release", {"number": number}] for number in numbers]
        else:
            self.queue += [self.pass_on(pool, 5001), *renewals]
        self.queue += [head, [pool, "failover", {"us": 200_000}]]
        recovery = [pool, "recover", {"number": head[2]["number"]}]
        for ms in (10, 3000, 4000, 4000, 4000):
            self.queue += [recovery, self.pass_on(pool, ms)]
            self.queue += [pick(renewals)] if self.rng.random() < 0.2 else []
        return ["teams", {"teams": {"red": {"nominal_mb": 0}, "blue": {"nominal_mb": 4000}}}]

    def relapse(self, pool: int) -> Step:
        """A job that was preempted goes on, protected for longer; or its end is forgotten."""
        if self.rng.random() < 0.3:
            return self.forgotten_end(pool)
        few = {"devices": 1, "exclusive": 1, "memory_mb": 100, "host": "*", "model": "*",
               "ttl_ms": 60_000, "max_hold_ms": 0, "priority": 0, "on_unavailable": "refuse",
               "team": "red", "placement": "pack"}  # fmt: skip
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= {"state": "ok", "used_mb": 0}
        held = [self.asked(pool, few) for _ in self.hardware[pool]]
        quick = {"min_runtime_s": 20, "reclaim_after_s": 5, "preempt_grace_s": 5}
        self.queue += [[pool, "policy", {"fields": ORDINARY | quick}]]
        self.queue += [[pool, "report", self.report(pool, host)] for host, _ in SHAPES[pool]]
        self.pull(pool, held, few | {"team": "blue"}, 10, all_go=True)
        self.pull(pool, self.gone_on(pool, held), few | {"team": "blue"}, 9)
        return ["teams", {"teams": {"red": {"nominal_mb": 0}, "blue": {"nominal_mb": 4000}}}]

    def pull(
        self, pool: int, held: list[Step], own: dict[str, Any], rounds: int, *, all_go: bool = False
    ) -> None:
        """Holders renew what they have, and one waits for it, for so many rounds; another, too.

        `all_go`: then all of them give back what they have.
        """
        patient, hosts = self.asked(pool, own), [host for host, _ in SHAPES[pool]]
        other = own | {"devices": 1, "memory_mb": 300, "exclusive": 0}
        other |= self.rng.choice(({"team": "default"}, {"priority": 9}))
        other = self.asked(pool, other)
        self.queue += [*held, patient]
        numbers = [step[2]["number"] for step in held if step[1] == "acquire"]
        for round_ in range(rounds):
            self.queue += [self.pass_on(pool, 4000), patient]
            leases = [(number, "own", None) for number in numbers]
            self.queue += [other] if round_ % 2 else []
            if self.rng.random() < 0.5:
                self.queue.append([pool, "renew_many", {"leases": leases}])
            else:
                self.queue += [[pool, "renew", {"number": number}] for number in numbers]
            if round_ % 3 == 0:
                self.queue += [[pool, "report", self.report(pool, host)] for host in hosts]
            if round_ % 4 == 3:
                self.queue.append([pool, *self.rng.choice((self.again, self.release))(pool)])
        if all_go or self.rng.random() < 0.4:
            self.queue.append([pool, "release", {"number": patient[2]["number"]}])
        self.queue += [self.pass_on(pool, 4000)]
        self.queue += [
            [pool, "release", {"number": number}] for number in numbers[:: 1 if all_go else 2]
        ]

"""Steps of teams: quotas, and leases that end for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.model.walks.scenery import AGENTS, ORDINARY, QUOTAS, QUOTAS_BY_MODEL, SHAPES, TEAMS
from tests.model.walks.waiting import Waiting
from tests.pools import OTHER, OWN, SCRIPTS

if TYPE_CHECKING:
    from tests.model.world import Step


class Teams(Waiting):
    """Teams that borrow, and want their own back."""

    def team(self, pool: int) -> Step:
        """An operator gives teams other quotas; with steps of every other kind between."""
        chance = self.rng.random()
        if chance < 0.8:
            return self.again(pool)
        if chance < 0.85:
            return self.favour(pool)
        if chance < 0.9:
            return ["way", {"name": self.rng.choice((OWN, OWN, OTHER, SCRIPTS))}]
        return self.decree(pool)

    def decree(self, pool: int) -> Step:
        """An operator gives teams other quotas, whatever they have."""
        pick, names = self.rng.choice, ("red", "blue", "default")
        count = pick((0, 2, 2, 2, 3))
        teams = {name: pick(QUOTAS) for name in names[:count]}
        version = {"version": pick((1, 2, 3))} if self.rng.random() < 0.1 else {}
        fields = pick(({}, {"min_runtime_s": 0}, {"min_runtime_s": 20}, {"reclaim_after_s": 5}))
        fields |= pick(({}, {"preempt_grace_s": 5}, {"half_life_s": 60}, {"half_life_s": 0}))
        self.queue += [[pool, "policy", {"fields": fields}]] if fields else []
        return ["teams", {"teams": teams} | version]

    def favour(self, pool: int) -> Step:
        """Waiters ask for leases, and time limits move; quotas change meanwhile."""
        rng, chance, number = self.rng, self.rng.random(), self.some(pool)
        if chance < 0.5:
            return self.again(pool)
        if chance < 0.53:
            return self.decree(pool)
        if chance < 0.54:
            return self.standoff(pool)
        if chance < 0.6:
            return self.tenure(pool)
        owner = rng.choice(("", "", "", "o1", "o2"))
        if chance < 0.75:
            wishes = [{"number": self.some(pool), "by": self.some(pool)} for _ in range(6)]
            self.queue += [[pool, "ask", wish | self.later()] for wish in wishes]
            return ["ask", {"number": number, "by": self.some(pool), "owner": owner}]
        hold_ms = rng.choice((0, 1, 5000, 14_000, 30_000, 90_000))
        args = {"number": number, "hold_ms": hold_ms, "by": rng.choice(("", "op")), "owner": owner}
        return ["extend", args | self.later()]

    def tenure(self, pool: int) -> Step:
        """A team's leases have an end, and its holder would have it later."""
        few = {"devices": 1, "memory_mb": 100, "exclusive": 0, "host": "*", "model": "*",
               "ttl_ms": 10_000, "max_hold_ms": 0, "priority": 0, "team": "red"}  # fmt: skip
        held, pick = self.asked(pool, few), self.rng.choice
        args = {"number": held[2]["number"], "hold_ms": pick((9000, 14_999, 15_001, 90_000))}
        self.queue += [held, [pool, "extend", args], self.pass_on(pool, 7000)]
        self.queue += [[pool, "extend", args], [pool, "renew", {"number": args["number"]}]]
        return self._end_by_default()

    def _end_by_default(self) -> Step:
        """Give one team's leases an end."""
        return ["teams", {"teams": {"red": {"nominal_mb": 900, "max_hold_s": 15}, "blue": {}}}]

    def forgotten_tenure(self, pool: int) -> Step:
        """The pool forgets a lease that has an end by its team, early or after that."""
        if self.rng.random() < 0.8:
            return self.again(pool)
        few = {"devices": 1, "memory_mb": 100, "exclusive": 0, "host": "*", "model": "*",
               "ttl_ms": 60_000, "max_hold_ms": 0, "priority": 0, "team": "red"}  # fmt: skip
        held, pick = self.asked(pool, few), self.rng.choice
        number = held[2]["number"]
        later = {"number": number, "hold_ms": pick((0, 60_000)), "by": "op"}
        self.queue += [[pool, "replicate", {}], held, [pool, "extend", later]]
        self.queue += [self.pass_on(pool, 3000) for _ in range(pick((1, 2, 6)))]
        self.queue += [[pool, "failover", {"us": 200_000}], [pool, "recover", {"number": number}]]
        self.queue += [self.pass_on(pool, 5000), [pool, "renew", {"number": number}]]
        return self._end_by_default()

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

    def models(self, pool: int) -> Step:
        """Teams have quotas by model, which change while leases are held, as models do."""
        chance, pick = self.rng.random(), self.rng.choice
        if chance < 0.84:
            return self.again(pool)
        if chance < 0.87:
            return self.favour(pool)
        if chance < 0.9:
            return ["way", {"name": pick((OWN, OWN, OTHER, SCRIPTS))}]
        quotas = {
            name: pick(QUOTAS_BY_MODEL) for name in ("red", "blue", "default")[: pick((2, 2, 3))]
        }
        if chance < 0.96:
            return ["teams", {"teams": quotas}]
        few = {"devices": 1, "host": "*", "max_hold_ms": 0, "on_unavailable": "refuse",
               "priority": 0, "ttl_ms": pick((0, 30_000))}  # fmt: skip
        held = []
        for _ in range(pick((1, 2)) * len(self.hardware[pool])):
            held.append(self.asked(pool, few | {
                "team": "red", "memory_mb": pick((200, 400, 700, 1000)), "agent": pick(AGENTS),
                "exclusive": pick((0, 0, 0, 1)), "model": pick(("*", "*", "m0", "m1")),
            }))  # fmt: skip
            held.append(self.pass_on(pool, 20))
        own = few | {"team": "blue", "memory_mb": pick((300, 900)), "devices": pick((1, 1, 2)),
                     "model": pick(("*", "m0", "m1"))}  # fmt: skip
        self.pull(pool, held, own, self.rng.randrange(6, 12))
        quick = {"min_runtime_s": 0, "reclaim_after_s": 5, "preempt_grace_s": pick((5, 12))}
        self.queue.insert(0, [pool, "policy", {"fields": ORDINARY | quick}])
        return [
            "teams",
            {"teams": quotas | {"blue": {"nominal_mb@m0": 4000, "nominal_mb@m1": 4000}}},
        ]

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

    def upheaval(self, pool: int) -> Step:
        """Rules change while one waits for what they hold back; or what ends for one is revoked."""
        pick, chance = self.rng.choice, self.rng.random()
        if chance < 0.5:
            return self.again(pool)
        if chance < 0.6:
            return self.moved_end(pool)
        whole = chance < 0.8
        few = {"devices": 1, "exclusive": int(whole), "memory_mb": 700, "host": "*", "model": "m0",
               "ttl_ms": pick((0, 60_000)), "max_hold_ms": 0, "priority": 0, "team": "red",
               "on_unavailable": "refuse"}  # fmt: skip
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= {"state": "ok", "used_mb": 0}
        held = [self.asked(pool, few) for _ in self.hardware[pool]]
        waiter = self.asked(pool, few | {"team": "blue" if whole else "red"})
        number = held[0][2]["number"]
        quick = {"min_runtime_s": 0, "reclaim_after_s": 5, "preempt_grace_s": 30}
        self.queue += [[pool, "policy", {"fields": ORDINARY | quick}]]
        self.queue += [[pool, "report", self.report(pool, host)] for host, _ in SHAPES[pool]]
        polls = [self.pass_on(pool, 3000), waiter, self.pass_on(pool, 2500), waiter]
        if whole:
            ends = [[pool, "revoke", {"number": step[2]["number"]}] for step in held[:2]]
            self.queue += [*held, waiter, *polls, pick((ends[0], ends[-1]))]
            self.queue += [pick(([pool, "release", {"number": waiter[2]["number"]}], waiter))]
            self.queue += [self.pass_on(pool, 5000), [pool, "renew", {"number": number}]]
            return ["teams", {"teams": {"red": {"nominal_mb": 0}, "blue": {"nominal_mb": 4000}}}]
        tight = ({"nominal_mb": 1000, "borrow_mb": 0}, {"nominal_mb@m0": 1000, "borrow_mb@m0": 0})
        before, then = self.rng.sample(({}, *tight), 2)
        caps = [{"max_memory_per_agent_mb": mb} for mb in (1_048_576, 1200)]
        self.queue += [[pool, "policy", {"fields": pick(caps)}], *held[:1], waiter]
        self.queue += [[pool, "policy", {"fields": caps[0]}], [pool, "teams", {"teams": {
            "red": then}}], *polls, self.asked(pool, few)]  # fmt: skip
        self.queue += [[pool, "release", {"number": number}], *polls]
        return ["teams", {"teams": {"red": before}}]

    def moved_end(self, pool: int) -> Step:
        """All that one waits for has a known end, which moves; another would be over before."""
        pick, hosts = self.rng.choice, [host for host, _ in SHAPES[pool]]
        few = {"devices": 1, "exclusive": 0, "memory_mb": 100, "host": "*", "model": "*",
               "ttl_ms": 40_000, "max_hold_ms": 120_000, "priority": 0, "team": "red",
               "placement": "spread", "on_unavailable": "refuse"}  # fmt: skip
        for uuid in self.hardware[pool]:
            self.hardware[pool][uuid] |= {"state": "ok", "used_mb": 0}
        held = [self.asked(pool, few) for _ in self.hardware[pool]]
        waiter = self.asked(pool, few | {"exclusive": 1, "max_hold_ms": 0})
        reports = [[pool, "report", self.report(pool, host)] for host in hosts]
        self.queue += [[pool, "policy", {"fields": ORDINARY | {"reservation_idle_s": 60}}]]
        self.queue += [*reports, *held, waiter]
        for _ in range(5):
            self.queue += [self.pass_on(pool, 6500), *reports, waiter]
        numbers = [step[2]["number"] for step in held]
        moved = {"hold_ms": pick((20_000, 50_000, 90_000, 0)), "by": "op"}
        ends = pick((("extend", moved), ("extend", moved), ("revoke", {})))
        self.queue += [[pool, ends[0], ends[1] | {"number": number}] for number in numbers]
        self.queue += [
            self.asked(pool, few | {"max_hold_ms": ms}) for ms in (10_000, 30_000, 70_000, 88_000)
        ]
        return ["teams", {"teams": {}}]

    def meddle(self, pool: int, number: int, patient: Step) -> Step:
        """Something changes while leases end: a time limit, a wish, the quotas, the rules."""
        pick = self.rng.choice
        by = patient[2]["number"]
        rules = {"reclaim_after_s": pick((0, 5)), "preempt_grace_s": pick((1, 5, 30)),
                 "min_runtime_s": pick((0, 60))}  # fmt: skip
        return pick((
            ["extend", {"number": number, "hold_ms": pick((0, 1, 9000)), "by": pick(("", "op"))}],
            ["ask", {"number": number, "by": by}], self.decree(pool), ["policy", {"fields": rules}],
        ))  # fmt: skip

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
            if self.rng.random() < 0.12:
                self.queue.append([pool, *self.meddle(pool, self.rng.choice(numbers), patient)])
            if round_ % 4 == 3:
                self.queue.append([pool, *self.rng.choice((self.again, self.release))(pool)])
        if all_go or self.rng.random() < 0.4:
            self.queue.append([pool, "release", {"number": patient[2]["number"]}])
        self.queue += [self.pass_on(pool, 4000)]
        self.queue += [
            [pool, "release", {"number": number}] for number in numbers[:: 1 if all_go else 2]
        ]

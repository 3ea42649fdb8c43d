"""Steps of hosts, and of operators of devices and policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.walks.clients import Clients
from tests.model.walks.scenery import ORDINARY, SHAPES

if TYPE_CHECKING:
    from tests.model.world import Step


class Hosts(Clients):
    """Hosts that report, change and vanish."""

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

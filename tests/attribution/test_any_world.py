"""Random processes, leases and samples, some late or never: the ledger stays safe and fair.

The real reckoner on a world that the test makes up, the real scripts on a real server.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.state import snapshot
from agent_sdk.state.holders import read_holders
from broker.attribution.processes import Program
from broker.attribution.report import ReportBuilder
from broker.attribution.sampler import HostSample
from broker.devices import DeviceSample, Sample
from broker.devices.sample import GpuProcess
from tests.attribution.worlds import Nobody
from tests.audit import audit
from tests.pools import Pool, token

if TYPE_CHECKING:
    from tests.servers import Server

TOTAL_MB, GPU = 10_000, "GPU-a"

WORLDS = 10
"""In each of four tests."""


@dataclass
class World:
    """One GPU, and who works on it.

    Attributes:
        used: pid -> MiB that it has allocated.
        children: pid -> the process that started it.
        samples: taken, and not yet told of.
        worst_mb: the most that any sample could justify to withhold beside the leases.
    """

    pool: Pool
    rng: random.Random
    system: Nobody = field(default_factory=Nobody)
    used: dict[int, int] = field(default_factory=dict)
    children: dict[int, int] = field(default_factory=dict)
    holders: dict[str, int] = field(default_factory=dict)
    samples: list[HostSample] = field(default_factory=list)
    worst_mb: int = 0
    next_pid: int = 100

    def __post_init__(self) -> None:
        self.reckoner = ReportBuilder(self.system)

    @property
    def now_ms(self) -> int:
        """The pool's time."""
        return int(self.pool.reap()[1])

    def pid(self) -> int:
        """A new process."""
        self.next_pid += 1
        self.system.alive.add(f"{self.next_pid}:{self.next_pid}")
        return self.next_pid

    def acquire(self) -> None:
        """Somebody asks for a lease; or through HTTP, where nobody registers a process."""
        name, pid = token(self.rng.randrange(10**9)), self.pid()
        known = self.rng.random() < 0.8
        got = self.pool.acquire(
            name, memory_mb=self.rng.randrange(1, 5000), ttl_ms=self.rng.choice((2000, 60_000)),
            pid=f"{pid}:{pid}" if known else "",
        )  # fmt: skip
        if got[0] == "GRANTED":
            self.holders[name] = pid

    def start(self) -> None:
        """A process begins to use the GPU: a holder, its child, or somebody without a lease."""
        parents = [*self.holders.values()]
        pid = self.pid()
        if parents and self.rng.random() < 0.8:
            self.children[pid] = self.rng.choice(parents)
        self.allocate(pid, self.rng.randrange(3000))

    def allocate(self, pid: int, memory_mb: int) -> None:
        """A process has so much from now on, or as much as there is."""
        others_mb = sum(mb for p, mb in self.used.items() if p != pid)
        self.used[pid] = min(memory_mb, TOTAL_MB - others_mb)

    def change(self) -> None:
        """A process allocates, frees, or ends."""
        if self.used:
            pid = self.rng.choice([*self.used])
            if self.rng.random() < 0.4:
                del self.used[pid]
            else:
                self.allocate(pid, self.rng.randrange(4000))

    def end(self) -> None:
        """A lease is given back, or time passes and some expire."""
        if self.holders and self.rng.random() < 0.5:
            self.pool.release(self.rng.choice([*self.holders]))
        else:
            self.pool.live_on(self.rng.choice((300, 2100, 6000)))

    def sample(self) -> None:
        """The driver is asked; sometimes it does not tell of processes, or of one's memory."""
        vague = self.rng.random()
        processes = [GpuProcess(pid, None if vague < 0.05 else mb) for pid, mb in self.used.items()]
        device = DeviceSample(
            uuid=GPU, index=0, name="GPU", model="GPU", total_mb=TOTAL_MB, system_mb=0,
            used_mb=sum(self.used.values()),
            processes=None if 0.05 <= vague < 0.1 else tuple(processes),
        )  # fmt: skip
        self.samples.append(
            HostSample(Sample((device,), "scripted"), self.now_ms, self.programs(), unseen="")
        )

    def programs(self) -> dict[int, Program]:
        """The processes behind the pids."""
        found = {}
        for pid in self.used:
            line = [pid, self.children[pid]] if pid in self.children else [pid]
            found[pid] = Program(
                pid, pid, "p", "u", "", tuple(f"{p}:{p}" for p in line), tuple(line)
            )
        return found

    def tell(self, look: HostSample) -> None:
        """A sample arrives: reckoned with who holds the GPU by then, as a reporter does."""
        now = self.now_ms
        held = self.pool.look(read_holders(self.pool.keys, "h1", now, self.reckoner.perhaps_over))
        policy = self.pool.look(snapshot.pool(self.pool.keys))
        said: dict[str, Any] = self.reckoner.reckon(look, held, policy).reports[GPU]
        (device,) = look.sample.devices
        self.worst_mb = max(self.worst_mb, device.used_mb or 0)
        self.pool.report(((GPU, said),), sampled_ms=look.sampled_ms)

    def deliver(self) -> None:
        """Reports arrive in their order, late, or never."""
        while self.samples:
            look = self.samples.pop(0)
            if self.rng.random() < 0.7:
                self.tell(look)
            if self.rng.random() < 0.5:
                break

    def check(self) -> None:
        """S1, S2 and that nothing is withheld that no sample justifies."""
        audit(self.pool.redis, self.pool.keys)
        row = self.pool.hash(f"device:{GPU}")
        assert int(row["leased_mb"]) <= TOTAL_MB, "S1: more is promised than there is"
        assert 0 <= int(row["unleased_mb"]) <= self.worst_mb, "more than the worst sample shows"

    def look_now(self) -> None:
        """A sample in which nothing is unknown, told at once: no more is free than is there."""
        self.sample_all()
        look = self.samples.pop()
        self.pool.skew(1)
        self.tell(look)
        rows = [self.pool.hash(f"record:{name}") for name in self.holders]
        if all(row.get("pid") for row in rows if row.get("state") == "active"):
            assert self.free() <= self.free_by_the_formula(), "promised twice"

    def free(self) -> int:
        """Return the memory that may be leased now, as the ledger has it."""
        row = self.pool.hash(f"device:{GPU}")
        return TOTAL_MB - sum(
            int(row[name]) for name in ("leased_mb", "withheld_mb", "unleased_mb")
        )

    def settle(self) -> None:
        """All leases whose processes are not known are over, and a fresh sample tells all."""
        for name in self.holders:
            if self.pool.hash(f"record:{name}").get("pid") == "":
                self.pool.release(name)
        self.pool.live_on(12_000)
        self.samples.clear()
        for _ in range(2):
            self.pool.skew(1)
            self.sample_all()
            self.pool.skew(1)
            self.tell(self.samples.pop())

    def sample_all(self) -> None:
        """A sample in which nothing is unknown."""
        device = DeviceSample(
            uuid=GPU, index=0, name="GPU", model="GPU", total_mb=TOTAL_MB, system_mb=0,
            used_mb=sum(self.used.values()),
            processes=tuple(GpuProcess(pid, mb) for pid, mb in self.used.items()),
        )  # fmt: skip
        self.samples.append(
            HostSample(Sample((device,), "scripted"), self.now_ms, self.programs(), unseen="")
        )

    def free_by_the_formula(self) -> int:
        """capacity - Σ max(leased, used) - unleased, from the world itself."""
        left = dict(self.used)
        free = TOTAL_MB
        for name, holder in self.holders.items():
            record = self.pool.hash(f"record:{name}")
            if record.get("state") == "active":
                mine = [pid for pid in left if pid == holder or self.children.get(pid) == holder]
                used = sum(left.pop(pid) for pid in mine)
                free -= max(int(record["devices"].rpartition("=")[2]), used)
        return free - sum(left.values())


@pytest.mark.parametrize("part", range(4))
def test_any_world_is_reckoned_safely_and_exactly(server: Server, part: int) -> None:
    """At each step safe and fair; and once all is known, free is exactly what the formula says."""
    with server.connect() as client:
        for _ in range(WORLDS):
            seed = random.randrange(2**32)
            try:
                live(Pool(client), random.Random(seed))
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("seed", [3009027004, 1508325856])
def test_world_that_was_not_is_reckoned_safely_and_exactly(server: Server, seed: int) -> None:
    """Two leases cool, and the grace of one is over.

    In the first world a child of that one starts late; in the second what that one still uses is
    unleased, and proves nothing of the other, whose processes are not known.
    """
    with server.connect() as client:
        live(Pool(client), random.Random(seed))


def live(pool: Pool, rng: random.Random) -> None:
    """The life of one world."""
    pool.freeze()
    world = World(pool, rng)
    world.sample_all()
    world.tell(world.samples.pop())
    acts = (
        world.acquire, world.acquire, world.start, world.start, world.change, world.end,
        world.sample, world.sample, world.deliver, world.deliver, world.look_now,
    )  # fmt: skip
    for _ in range(60):
        rng.choice(acts)()
        pool.skew(rng.randrange(50))
        world.check()
    world.settle()
    assert world.free() == world.free_by_the_formula()

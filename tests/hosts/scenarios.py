"""Faults of three hosts, and the invariants that hold all the while: one function per story.

Each is run in a world of its own and returns what it saw; the checker has the last word.
"""

from __future__ import annotations

import itertools
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import redis
from redis.crc import key_slot

from agent_sdk.clock import local_now
from agent_sdk.keys import Keys
from tests.api.brokers import eventually
from tests.hosts.checker import CLOSED_S, RETURN_S, forgotten
from tests.hosts.world import (
    DEADLINE_S,
    EXAMPLES,
    PORT,
    SENTINEL_PORT,
    SERVICE,
    START_S,
    TTL_S,
    Pool,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from agent_sdk import Lease, LeaseClient
    from tests.hosts.nets import Host
    from tests.hosts.world import Outcome, World

DEVICES = {"gpu1": "sim:4x24576", "gpu2": "sim:2x81920"}

OPEN_S = CLOSED_S + 3
"""After a failover: until new leases have been granted for a while."""

LONG = ("--ttl", "10", "--hold", "3")
"""Leases that outlive a failover."""

MOST_MB = {"gpu1": "24576", "gpu2": "81920"}


@dataclass
class Seen:
    """A scenario's result: its figures by name, and what was wrong."""

    figures: dict[str, float]
    violations: list[str]
    skipped: list[str] = field(default_factory=list)
    """Parts that were not run, and why: nothing is known of them."""


@dataclass
class Fleet:
    """Redis and a broker on one host, two GPU hosts with agents: everybody at work."""

    pool: Pool
    gpu1: Host
    gpu2: Host
    reporters: dict[str, subprocess.Popen[bytes]]
    options: tuple[str, ...]

    @classmethod
    def start(cls, world: World, url: str | None = None, *options: str) -> Fleet:
        """All of it, with a Redis of its own unless a URL says where one is; options of agents."""
        store = world.host("store")
        if url is None:
            world.redis(store)
            url = f"redis://{store.address}:{PORT}"
        pool = Pool(world, url)
        hosts = {name: world.host(name) for name in DEVICES}
        reporters = {name: pool.reporter(host, DEVICES[name]) for name, host in hosts.items()}
        fleet = cls(pool, hosts["gpu1"], hosts["gpu2"], reporters, options)
        for name, host in hosts.items():
            fleet.work(host, f"{name}-a")
            fleet.work(host, f"{name}-b")
        return fleet

    def work(self, host: Host, name: str) -> None:
        """An agent more."""
        self.pool.agent(host, name, "--most", MOST_MB[host.name], *self.options)


def figures(outcome: Outcome) -> dict[str, float]:
    """Return the figures that every scenario has."""
    known = outcome.history
    return {
        "leases": len(known.windows),
        "renewals": sum(window.renewals for window in known.windows),
        "lost": sum(window.lost is not None for window in known.windows),
        "expired": sum(event.event == "expired" for event in outcome.said.events),
        "calls": len(known.calls),
        "failed": len(known.failed()),
        "starved_s": sum(each.until - each.since for each in known.starved),
    }


def local(world: World) -> Seen:
    """Nothing happens: leases stay on their host unless they ask for any, no call fails."""
    fleet = Fleet.start(world)
    time.sleep(4)
    outcome = fleet.pool.finish()
    wrong = [f"failed: {call}" for call in outcome.history.failed()]
    if not any(window.asked == "any" for window in outcome.history.windows):
        wrong.append("nobody asked for any host")
    return Seen(figures(outcome), outcome.violations + wrong)


def partition(world: World) -> Seen:
    """A host is cut off for a moment, then for longer than its leases and its deadline last."""
    fleet = Fleet.start(world)
    pool, gpu2 = fleet.pool, fleet.gpu2
    time.sleep(1)
    with world.cut_off(gpu2):  # shorter than what is left of any lease: nobody loses one
        time.sleep(TTL_S / 5)
    time.sleep(2)
    began = local_now()
    with world.cut_off(gpu2):
        time.sleep(TTL_S + DEADLINE_S)
    healed = local_now()
    time.sleep(3)
    outcome = pool.finish()
    seen = figures(outcome) | {
        "away_after_s": outcome.first("host_away", began, host="gpu2"),
        "back_after_s": outcome.first("host_up", healed, host="gpu2"),
        "leases_after_s": _first_lease(outcome, "gpu2", healed),
    }
    return Seen(seen, outcome.violations)


def stopped(world: World) -> Seen:
    """An agent does not run for longer than its leases last: it finds them lost when it does."""
    fleet = Fleet.start(world)
    time.sleep(1)
    agent = fleet.pool.agents["gpu1-a"]
    with world.fault("SIGSTOP gpu1-a", cut=frozenset({"gpu1-a"})):
        agent.send_signal(signal.SIGSTOP)
        time.sleep(2 * TTL_S)
        agent.send_signal(signal.SIGCONT)
    time.sleep(2)
    outcome = fleet.pool.finish()
    return Seen(figures(outcome), outcome.violations)


def killed(world: World) -> Seen:
    """A host dies with all that runs on it, and comes back."""
    fleet = Fleet.start(world)
    pool, gpu1 = fleet.pool, fleet.gpu1
    time.sleep(1.5)
    began = local_now()
    names = frozenset({"gpu1", "gpu1-a", "gpu1-b"})
    with world.fault("SIGKILL gpu1", cut=names, silent=frozenset({"gpu1"})):
        fleet.reporters["gpu1"].kill()
        pool.kill("gpu1-a")
        pool.kill("gpu1-b")
        time.sleep(DEADLINE_S + TTL_S)
    back = local_now()
    pool.reporter(gpu1, DEVICES["gpu1"])
    fleet.work(gpu1, "gpu1-c")
    pool.holds("gpu1-c", gpu1)
    time.sleep(1)
    outcome = pool.finish()
    seen = figures(outcome) | {
        "away_after_s": outcome.first("host_away", began, host="gpu1"),
        "leases_after_s": _first_lease(outcome, "gpu1", back),
    }
    return Seen(seen, outcome.violations)


def rolling(world: World) -> Seen:
    """Three brokers are restarted one by one under load: no SDK call fails, nor one over HTTP."""
    fleet = Fleet.start(world)
    pool, store = fleet.pool, world.host("store")
    replicas = [pool.broker(store, 8014 + n) for n in range(3)]
    urls = ",".join(replica.url for replica in replicas)
    many = ("--most", "8192", "--hold", "0.2", "--workers", "6")
    pool.agent(fleet.gpu1, "http", *many, "--replicas", urls)
    pool.agent(store, "probe", "--probe")
    began = local_now()
    for replica in replicas:
        replica.restart()
        time.sleep(0.5)
    restarts_s = local_now() - began
    outcome = pool.finish()
    over_http = [call for call in outcome.history.calls if call.who == "http"]
    wrong = [f"failed: {call}" for call in outcome.history.failed()]
    if not over_http:
        wrong.append("no call over HTTP")
    seen = figures(outcome) | {
        "http_calls": len(over_http),
        "slowest_http_s": max((call.seconds for call in over_http), default=0.0),
        "restarts_s": restarts_s,
    }
    return Seen(seen, outcome.violations + wrong)


@dataclass
class Queue:
    """Three who wait, one after the other, for the one device of a host without agents."""

    client: LeaseClient
    held: Lease
    waiters: list[Future[int]]
    threads: ThreadPoolExecutor

    @classmethod
    def form(cls, pool: Pool, host: Host) -> Queue:
        """The device is held, and they wait in the queue."""
        pool.reporter(host, "sim:1x1000")
        client, threads = pool.client(), ThreadPoolExecutor(3)
        held = client.acquire("holder", host=host.name, memory_mb=100, exclusive=True, ttl_s=TTL_S)
        client.keep(held)
        queue = cls(client, held, [], threads)
        for agent in ("waiter-0", "waiter-1", "waiter-2"):
            queue.waiters.append(threads.submit(queue.wait, agent, host.name))
            eventually(partial(queue.has, agent), START_S)
        return queue

    def wait(self, agent: str, host: str) -> int:
        """The fence of a lease that was waited for."""
        lease = self.client.acquire(agent, host=host, memory_mb=100, exclusive=True, wait_s=60)
        self.client.release(lease)
        return lease.fence

    def has(self, agent: str) -> bool:
        """Return whether it waits in the queue."""
        return any(waiter.agent == agent for waiter in self.client.queue())

    def dissolve(self) -> list[str]:
        """The holder goes, each gets its turn; what is wrong with the order of that."""
        self.client.release(self.held)
        fences = [waiter.result() for waiter in self.waiters]
        self.threads.shutdown()
        self.client.close()
        return [] if fences == sorted(fences) else [f"the queue was served in the order {fences}"]


@dataclass
class Watched:
    """Redis and a Sentinel on each of three hosts."""

    world: World
    hosts: list[Host]
    primary: subprocess.Popen[bytes]

    @classmethod
    def start(cls, world: World, *candidates: str) -> Watched:
        """The primary on the store's host; of the others, candidates alone may follow it."""
        hosts = [world.host(name) for name in ("store", *DEVICES)]
        follow = ("--replicaof", f"{hosts[0].address} {PORT}")
        primary = world.redis(hosts[0], *NODE)
        for host in hosts[1:]:
            world.redis(host, *NODE, *follow, *(() if host.name in candidates else NEVER))
        for host in hosts:
            world.sentinel(host, hosts[0])
        watched = cls(world, hosts, primary)
        eventually(watched.complete, START_S)
        return watched

    @property
    def url(self) -> str:
        """For clients."""
        return f"redis+sentinel://{','.join(host.address for host in self.hosts)}/{SERVICE}"

    def ask(self, host: Host) -> dict[str, str]:
        """Return the answer of a host's Sentinel about the primary."""
        with redis.Redis(host.address, SENTINEL_PORT, decode_responses=True) as sentinel:
            said: dict[str, str] = sentinel.sentinel_master(SERVICE)  # type: ignore[no-untyped-call] # redis-py does not type it
            return said

    def complete(self) -> bool:
        """Return whether each of them knows both replicas and both other Sentinels."""
        said = [self.ask(host) for host in self.hosts]
        return all(int(s["num-slaves"]) == int(s["num-other-sentinels"]) == 2 for s in said)

    def fail_over(self) -> float:
        """SIGKILL of the primary; when a Sentinel named another."""
        everybody = frozenset({"store", *DEVICES})
        with self.world.fault("failover", cut=everybody, failover=True):
            self.primary.kill()
            gone = self.hosts[0].address
            eventually(lambda: self.ask(self.hosts[1])["ip"] != gone, START_S, every_s=0.01)
        return local_now()


NODE = ("--include", str(EXAMPLES / "replicated.conf"))

NEVER = ("--replica-priority", "0")


def failover(world: World) -> Seen:
    """The primary dies under load: calls succeed again with the next one, waiters keep their place.

    It comes back as a replica.
    """
    watched = Watched.start(world, *DEVICES)
    fleet = Fleet.start(world, watched.url, *LONG)
    pool = fleet.pool
    pool.agent(world.host("store"), "probe", "--probe")
    queue = Queue.form(pool, world.host("store"))
    time.sleep(1)
    began = local_now()
    answered_at = watched.fail_over()
    world.redis(watched.hosts[0], *NODE)
    time.sleep(OPEN_S)
    wrong = queue.dissolve()
    outcome = pool.finish()
    return _after_failover(outcome, began, answered_at, wrong)


def stale(world: World) -> Seen:
    """A replica that misses what was granted last is promoted: no fence turns back."""
    watched = Watched.start(world, "gpu2")
    fleet = Fleet.start(world, watched.url, *LONG, "--workers", "6")
    pool = fleet.pool
    pool.agent(world.host("store"), "probe", "--probe")
    time.sleep(1)
    began = local_now()
    with world.without_route(fleet.gpu2, watched.hosts[0]):
        time.sleep(2.5)
        watched.primary.kill()
    answered_at = watched.fail_over()
    time.sleep(OPEN_S)
    outcome = pool.finish()
    seen = _after_failover(outcome, began, answered_at, [])
    if not seen.figures["forgotten"]:
        seen.violations.append("nothing was forgotten: this was an ordinary failover")
    return seen


def _after_failover(outcome: Outcome, began: float, answered_at: float, wrong: list[str]) -> Seen:
    probes = [c for c in outcome.history.calls if c.who == "probe" and c.code == "ok"]
    back_s = min(call.at for call in probes if call.began > answered_at) - answered_at
    if back_s > RETURN_S:
        wrong.append(f"late: calls succeeded {back_s:.1f} s after Sentinel named the next primary")
    granted = min(w.since for w in outcome.history.windows if w.asked_at > answered_at)
    seen = figures(outcome) | {
        "named_after_s": answered_at - began,
        "calls_after_s": back_s,
        "leases_after_s": granted - answered_at,
        "recovered": sum(event.event == "recovered" for event in outcome.said.events),
        "forgotten": len(forgotten(outcome.history.windows, outcome.said)),
    }
    return Seen(seen, outcome.violations + wrong)


def cluster(world: World) -> Seen:
    """Three nodes, a pool on each: one dies and comes back, the others' pools do not feel it."""
    hosts = [world.host(name) for name in ("store", *DEVICES)]
    nodes = _nodes(world, hosts)
    url = f"redis+cluster://{','.join(host.address for host in hosts)}"
    pools = [Pool(world, url, name) for name in _names(hosts)]
    for n, (pool, host) in enumerate(zip(pools, [*hosts[1:], hosts[0]], strict=True)):
        pool.reporter(host, "sim:2x24576")
        pool.agent(host, f"agent-{n}")
        pool.agent(host, f"probe-{n}", "--probe")
    time.sleep(2)
    hit = frozenset({"agent-1", "probe-1"})
    with world.fault("SIGKILL of a node", cut=hit, silent=frozenset({"gpu2"}), failover=True):
        nodes[1].kill()
        time.sleep(2)
        world.redis(hosts[1], *CLUSTERED)
        time.sleep(RETURN_S)
    time.sleep(2)
    outcomes = [pool.finish() for pool in pools]
    wrong = [violation for outcome in outcomes for violation in outcome.violations]
    for n in (0, 2):
        wrong += [f"failed beside it: {call}" for call in outcomes[n].history.failed()]
    sums = [figures(outcome) for outcome in outcomes]
    return Seen({key: sum(each[key] for each in sums) for key in sums[0]}, wrong)


CLUSTERED = (
    "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no",
    "--cluster-node-timeout", "1000", "--appendonly", "yes", "--appendfsync", "always",
)  # fmt: skip


def _nodes(world: World, hosts: list[Host]) -> list[subprocess.Popen[bytes]]:
    """A node on each host, each with a third of the slots; they know one another."""
    nodes = [world.redis(host, *CLUSTERED) for host in hosts]
    bounds = [0, 5461, 10923, 16384]
    for n, host in enumerate(hosts):
        with redis.Redis(host.address, PORT) as node:
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)  # type: ignore[no-untyped-call] # redis-py does not type it
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[n], bounds[n + 1] - 1)  # type: ignore[no-untyped-call] # redis-py does not type it
            node.execute_command("CLUSTER", "MEET", hosts[0].address, PORT)  # type: ignore[no-untyped-call] # redis-py does not type it
    for host in hosts:
        eventually(partial(_knows_all, host), START_S)
    return nodes


def _knows_all(host: Host) -> bool:
    with redis.Redis(host.address, PORT, decode_responses=True) as node:
        said: str = node.execute_command("CLUSTER", "INFO")  # type: ignore[no-untyped-call] # redis-py does not type it
        found = dict(queue.split(":") for queue in str(said).split() if ":" in queue)
        return found["cluster_slots_assigned"] == "16384" and found["cluster_state"] == "ok"


def _names(hosts: list[Host]) -> list[str]:
    """For each node the name of a pool that it has."""
    names: dict[int, str] = {}
    for number in itertools.count():
        if len(names) == len(hosts):
            return [names[n] for n in range(len(hosts))]
        name = f"pool-{number}"
        names.setdefault(key_slot(Keys(name).base.encode()) * 3 // 16384, name)
    raise AssertionError


def _first_lease(outcome: Outcome, host: str, after: float) -> float:
    """Seconds from a moment to the first lease on a host that was asked for after it."""
    windows = outcome.history.windows
    times = [w.since - after for w in windows if w.asked == host and w.asked_at > after]
    assert times, f"no lease on {host} any more"
    return min(times)


SCENARIOS: dict[str, Callable[[World], Seen]] = {
    scenario.__name__: scenario
    for scenario in (local, partition, stopped, killed, rolling, failover, stale, cluster)
}
"""By name, in the order in which they run."""

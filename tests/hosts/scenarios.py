"""What happens to three hosts, and what must hold all the while: one function per story.

Each is run in a world of its own and returns what it saw; the checker has the last word.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_sdk.clocks import local_now
from tests.hosts.world import DEADLINE_S, PORT, TTL_S, Pool

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.hosts.nets import Host
    from tests.hosts.world import Outcome, World

DEVICES = {"gpu1": "sim:4x24576", "gpu2": "sim:2x81920"}

MOST_MB = {"gpu1": "24576", "gpu2": "81920"}


@dataclass
class Seen:
    """What a scenario saw: its figures by name, and what was wrong."""

    figures: dict[str, float]
    violations: list[str]


@dataclass
class Fleet:
    """Redis and a broker on one host, two GPU hosts with agents: everybody at work."""

    pool: Pool
    gpu1: Host
    gpu2: Host
    reporters: dict[str, subprocess.Popen[bytes]]

    @classmethod
    def start(cls, world: World, url: str | None = None) -> Fleet:
        """All of it, with a Redis of its own unless a URL says where one is."""
        store = world.host("store")
        if url is None:
            world.redis(store)
            url = f"redis://{store.address}:{PORT}"
        pool = Pool(world, url)
        hosts = {name: world.host(name) for name in DEVICES}
        reporters = {name: pool.reporter(host, DEVICES[name]) for name, host in hosts.items()}
        fleet = cls(pool, hosts["gpu1"], hosts["gpu2"], reporters)
        for name, host in hosts.items():
            fleet.work(host, f"{name}-a")
            fleet.work(host, f"{name}-b")
        return fleet

    def work(self, host: Host, name: str) -> None:
        """An agent more."""
        self.pool.agent(host, name, "--most", MOST_MB[host.name])


def figures(outcome: Outcome) -> dict[str, float]:
    """What every scenario has to tell."""
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
    time.sleep(2)
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


def _first_lease(outcome: Outcome, host: str, after: float) -> float:
    """Seconds from a moment to the first lease on a host that was asked for after it."""
    windows = outcome.history.windows
    times = [w.since - after for w in windows if w.asked == host and w.asked_at > after]
    assert times, f"no lease on {host} any more"
    return min(times)


SCENARIOS: dict[str, Callable[[World], Seen]] = {
    scenario.__name__: scenario for scenario in (local, partition, stopped, killed, rolling)
}
"""By name, in the order in which they run."""

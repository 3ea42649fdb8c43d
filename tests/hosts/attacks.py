"""Attacks on a fleet at work, and the invariants that hold all the while: one per attack.

Like the scenarios each is run in a world of its own; `make faults` runs them beside the others.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import redis

from agent_sdk.clock import local_now
from tests.api.brokers import eventually
from tests.faults.clock import Clock
from tests.hosts.checker import forgotten
from tests.hosts.scenarios import DEVICES, LONG, MOST_MB, OPEN_S, Fleet, Seen, figures
from tests.hosts.world import PORT, START_S, TTL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hosts.world import Outcome, World

EVERYBODY = frozenset({"store", *DEVICES})

AROUND_TTL = (0.5, 0.8, 0.95, 1.0, 1.05, 1.3)
"""Shares of a lease's time for which somebody does not run."""

HOUR_S = 3600.0


def _admin(fleet: Fleet) -> redis.Redis:
    """A connection to the store from the switch itself, which no host's trouble touches."""
    return redis.Redis.from_url(fleet.pool.url, socket_timeout=5, decode_responses=True)


def _unfailing(outcome: Outcome) -> list[str]:
    return [f"failed: {call}" for call in outcome.history.failed()]


def _unbroken(outcome: Outcome) -> list[str]:
    """Return the leases that were lost although the attack leaves time to renew."""
    return [f"lost: {w.token} ({w.lost})" for w in outcome.history.windows if w.lost]


def _crashed(world: World, fsync: str) -> Seen:
    """SIGKILL of Redis under load, and the same data a second later, twice."""
    store = world.host("store")
    keeps = ("--appendonly", "yes", "--appendfsync", fsync)
    server = world.redis(store, *keeps)
    fleet = Fleet.start(world, f"redis://{store.address}:{PORT}", *LONG)
    time.sleep(1)
    for _ in range(2):
        with world.fault("SIGKILL of Redis", cut=EVERYBODY, silent=EVERYBODY, failover=True):
            server.kill()
            server.wait()
            time.sleep(1)
            server = world.redis(store, *keeps)
        back = local_now()
        time.sleep(OPEN_S)
    outcome = fleet.pool.finish()
    seen = figures(outcome) | {
        "forgotten": len(forgotten(outcome.history.windows, outcome.said)),
        "leases_after_s": min(
            (w.since - back for w in outcome.history.windows if w.asked_at > back), default=-1.0
        ),
    }
    wrong = [] if seen["leases_after_s"] >= 0 else ["no lease after the last crash"]
    if fsync == "always" and seen["forgotten"]:
        wrong.append("what was answered was not on the disk")
    return Seen(seen, outcome.violations + wrong)


def crashed_everysec(world: World) -> Seen:
    """Redis writes to its disk every second, and is killed."""
    return _crashed(world, "everysec")


def crashed_always(world: World) -> Seen:
    """Redis writes to its disk before it answers, and is killed: no answer was a lie."""
    return _crashed(world, "always")


def paused(world: World) -> Seen:
    """An agent is stopped for a little less than its leases last, for as long, for longer."""
    fleet = Fleet.start(world)
    time.sleep(1)
    for n, share in enumerate(AROUND_TTL):
        name = f"gpu{1 + n % 2}-a"
        agent = fleet.pool.agents[name]
        with world.fault(f"SIGSTOP {name}", cut=frozenset({name})):
            agent.send_signal(signal.SIGSTOP)
            time.sleep(share * TTL_S)
            agent.send_signal(signal.SIGCONT)
        time.sleep(0.7)
    outcome = fleet.pool.finish()
    return Seen(figures(outcome), outcome.violations)


def hung(world: World) -> Seen:
    """Redis is stopped for as long: what is due while it does not run ends when it does."""
    store = world.host("store")
    server = world.redis(store)
    fleet = Fleet.start(world, f"redis://{store.address}:{PORT}")
    time.sleep(1)
    for share in AROUND_TTL:
        with world.fault("SIGSTOP of Redis", cut=EVERYBODY, silent=EVERYBODY):
            server.send_signal(signal.SIGSTOP)
            time.sleep(share * TTL_S)
            server.send_signal(signal.SIGCONT)
        time.sleep(1.5)
    outcome = fleet.pool.finish()
    return Seen(figures(outcome), outcome.violations)


def weather(world: World) -> Seen:
    """A host's packets are late, then late and lost, then lost by the third, then all is well."""
    line = world.lan.weather(world.host("gpu2"))
    fleet = Fleet.start(world)
    time.sleep(1)
    line.delay_s, line.jitter_s = 0.04, 0.04
    time.sleep(4)
    with world.fault("loss", cut=frozenset({"gpu2"})):
        for line.loss in (0.05, 0.3):
            time.sleep(5)
        line.calm()
    healed = local_now()
    time.sleep(3)
    outcome = fleet.pool.finish()
    windows = outcome.history.windows
    after = [w.since - healed for w in windows if w.asked == "gpu2" and w.asked_at > healed]
    seen = figures(outcome) | {
        "packets": line.carried, "vanished": line.lost, "leases_after_s": min(after, default=-1.0),
    }  # fmt: skip
    wrong = [] if after and line.lost else ["no lease after it, or no packet vanished"]
    return Seen(seen, outcome.violations + wrong)


@dataclass
class Witness:
    """Reads the stream as it grows, and notes on this machine's clock when each event was there."""

    url: str
    pool: str
    seen: dict[str, float] = field(default_factory=dict)

    def watch(self, over: threading.Event) -> None:
        """Follow until it is over, and nothing more comes."""
        last, key = "0-0", f"gpu:{{{self.pool}}}:events"
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            while True:
                done = over.is_set()
                found = client.xread({key: last}, count=1000, block=200)
                now = local_now()
                entries = [entry for _, part in found or () for entry, _ in part]  # type: ignore[union-attr,misc] # rows of a stream
                self.seen.update(dict.fromkeys(entries, now))
                last = entries[-1] if entries else last
                if done and not entries:
                    return


@contextmanager
def _witnessed(fleet: Fleet) -> Iterator[Witness]:
    witness, over = Witness(fleet.pool.url, fleet.pool.name), threading.Event()
    thread = threading.Thread(target=witness.watch, args=(over,))
    thread.start()
    try:
        yield witness
    finally:
        over.set()
        thread.join()


def stepped(world: World) -> Seen:
    """Redis's clock steps: seconds forward and back, an hour back, and forward to what is right.

    A step forward of less than 10 s counts in full, so the leases are longer than one.
    """
    store, clock = world.host("store"), Clock.make(world.folder / "clock")
    world.redis(store, env=clock.env)
    fleet = Fleet.start(world, f"redis://{store.address}:{PORT}", "--ttl", "8")
    with _witnessed(fleet) as witness, _admin(fleet) as admin:
        time.sleep(2)
        for seconds in (-2.0, 0.0, -30.0, -HOUR_S):
            clock.shift(seconds)
            time.sleep(2.5)
        said_s = int(admin.time()[0]) - time.time()  # type: ignore[index] # a blocking client answers at once
        with world.fault("a leap of an hour", cut=frozenset({*DEVICES})):
            clock.shift(0)
            time.sleep(5)
        outcome = fleet.pool.finish(witness.seen)
    wrong = [] if said_s < 10 - HOUR_S else [f"the clock was at {said_s:.0f} s"]
    return Seen(figures(outcome), outcome.violations + wrong + _unbroken(outcome))


def skewed(world: World) -> Seen:
    """The wall clocks of agents and of a reporter are hours off, and step: nobody looks at them."""
    clocks = [Clock.make(world.folder / f"clock-{n}") for n in range(2)]
    clocks[0].shift(HOUR_S)
    fleet = Fleet.start(world)
    for n, (name, host) in enumerate({"gpu1": fleet.gpu1, "gpu2": fleet.gpu2}.items()):
        fleet.pool.agent(host, f"{name}-off", "--most", MOST_MB[name], env=clocks[n].env)
    for seconds in (-HOUR_S, 5.0, 24 * HOUR_S, -5.0, 0.0):
        time.sleep(1.5)
        for clock in clocks:
            clock.shift(seconds)
    outcome = fleet.pool.finish()
    return Seen(figures(outcome), outcome.violations + _unfailing(outcome) + _unbroken(outcome))


FULL_S = float(os.environ.get("GPU_BROKER_FULL_S", 2 * TTL_S))


def full(world: World) -> Seen:
    """Redis is at maxmemory: holders renew and release, nobody new is let in, then all goes on."""
    fleet = Fleet.start(world, None, "--hold", "2")
    time.sleep(2)
    silent = frozenset({*DEVICES})
    with _admin(fleet) as admin, world.fault("maxmemory", silent=silent):
        admin.config_set("maxmemory", 1024 * 1024)
        began = local_now()
        time.sleep(FULL_S)
        full_s = local_now() - began
        admin.config_set("maxmemory", 0)
    raised = local_now()
    time.sleep(3)
    outcome = fleet.pool.finish()
    calls = outcome.history.calls
    codes = {call.code for call in outcome.history.failed()}
    wrong = [f"failed with {code}" for code in codes - {"store_full"}]
    wrong += [f"failed: {call}" for call in outcome.history.failed() if call.verb != "acquire"]
    inside = [c for c in calls if began + 0.2 < c.began and c.at < began + full_s]
    released = sum(c.verb == "release" and c.code == "ok" for c in inside)
    refused = sum(c.code == "store_full" for c in inside)
    if any(c.verb == "acquire" and c.code == "ok" for c in inside):
        wrong.append("granted at maxmemory")
    if not (released and refused):
        wrong.append("nothing was released or refused: it was not full")
    back = min(c.at for c in calls if c.verb == "acquire" and c.code == "ok" and c.began > raised)
    more = {"released": released, "refused": refused, "leases_after_s": back - raised}
    return Seen(figures(outcome) | more, outcome.violations + wrong + _unbroken(outcome))


SLOW = "while true do end"


def _slow_script(fleet: Fleet) -> None:
    """A stranger's script that never ends, until it is killed after 0.4 s."""
    with _admin(fleet) as stranger, _admin(fleet) as admin:
        admin.config_set("busy-reply-threshold", 100)
        script = threading.Thread(target=_ended_by_force, args=(stranger,))
        script.start()
        time.sleep(0.4)
        eventually(lambda: _kill_script(admin), START_S)
        script.join()


def _ended_by_force(stranger: redis.Redis) -> None:
    with suppress(redis.ResponseError):
        stranger.eval(SLOW, 0)


def _kill_script(admin: redis.Redis) -> bool:
    try:
        return bool(admin.script_kill())  # type: ignore[no-untyped-call] # redis-py does not type it
    except redis.ResponseError:
        return False


def meddled(world: World) -> Seen:
    """Scripts and functions flushed, connections killed, clients paused, a script that never ends.

    Each is shorter than what is left of any lease: no call fails and nobody loses anything.
    """
    fleet = Fleet.start(world, None, "--ttl", "5")
    acts: list[Callable[[redis.Redis], object]] = [
        lambda admin: admin.script_flush(),
        lambda admin: admin.execute_command("FUNCTION FLUSH"),
        lambda admin: admin.client_kill_filter(_type="normal", skipme=True),  # type: ignore[no-untyped-call] # redis-py does not type it
        lambda admin: admin.client_pause(400),  # type: ignore[no-untyped-call] # redis-py does not type it
        lambda admin: admin.script_flush(),
        lambda _: _slow_script(fleet),
    ]
    time.sleep(1)
    with _admin(fleet) as admin:
        for act in acts * 3:
            act(admin)
            time.sleep(0.6)
    outcome = fleet.pool.finish()
    return Seen(figures(outcome), outcome.violations + _unfailing(outcome) + _unbroken(outcome))


def flushed(world: World) -> Seen:
    """FLUSHALL under load: holders get their leases back, newcomers wait until all have renewed."""
    fleet = Fleet.start(world, None, "--ttl", "10", "--hold", "8")
    time.sleep(3)
    with world.fault("FLUSHALL", cut=EVERYBODY, failover=True), _admin(fleet) as admin:
        admin.flushall()  # type: ignore[no-untyped-call] # redis-py does not type it
    gone = local_now()
    with fleet.pool.client() as client:
        eventually(lambda: client.pool().ready, START_S)
        granted = partial(_granted_again, fleet)
        eventually(granted, 90, every_s=0.5)
    time.sleep(2)
    outcome = fleet.pool.finish()
    seen = figures(outcome) | {
        "recovered": sum(event.event == "recovered" for event in outcome.said.events),
        "leases_after_s": min(w.since for w in outcome.history.windows if w.asked_at > gone) - gone,
    }
    wrong = [] if seen["recovered"] else ["no lease was recovered"]
    return Seen(seen, outcome.violations + wrong)


def _granted_again(fleet: Fleet) -> bool:
    with fleet.pool.client() as client:
        return any(event.event == "granted" for event in client.events(1000))


def brokers_killed(world: World) -> Seen:
    """SIGKILL of one replica after another under load over HTTP: no call fails, none is doubled.

    Whoever repeats a release whose answer died with its replica is told 404: it is over.
    """
    fleet = Fleet.start(world)
    pool, store = fleet.pool, world.host("store")
    replicas = [pool.broker(store, 8014 + n) for n in range(2)]
    urls = ",".join(replica.url for replica in replicas)
    many = ("--most", "8192", "--hold", "0.2", "--workers", "6")
    pool.agent(fleet.gpu1, "http", *many, "--replicas", urls)
    for replica in replicas * 2:
        time.sleep(1)
        replica.kill()
    outcome = pool.finish()
    over_http = [call for call in outcome.history.calls if call.who == "http"]
    seen = figures(outcome) | {
        "http_calls": len(over_http),
        "slowest_http_s": max((call.seconds for call in over_http), default=0.0),
    }
    wrong = _unfailing(outcome)
    wrong += [] if over_http else ["no call over HTTP"]
    return Seen(seen, outcome.violations + wrong)


ATTACKS: dict[str, Callable[[World], Seen]] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        crashed_everysec, crashed_always, paused, hung, weather, stepped, skewed, full, meddled,
        flushed, brokers_killed,
    )
}  # fmt: skip
"""By name, in the order in which they run."""

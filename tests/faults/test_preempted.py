"""Preemption with real processes: each is killed, or its store fails over, at each step of it.

A team's own quota is lent out and comes back. Whatever dies in between, the memory is granted to
one at a time, the head gets it by the promised time, and no notice outlives its waiter.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from agent_sdk import LeaseClient, Store
from agent_sdk.keys import Keys
from tests.api.brokers import GRANTING, Broker, environment, eventually
from tests.audit import audit
from tests.faults.clock import Clock
from tests.pools import Pool, said
from tests.reports import register
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

RECLAIM_S, GRACE_S, TTL_S = 1, 2, 2

CLAIM_S = 10
"""Seconds after which what is offered to one that died goes on."""

HOLDER = """
import sys, time
from agent_sdk import LeaseClient
client = LeaseClient.from_env()
lease = client.acquire(sys.argv[1], memory_mb=900, ttl_s=2, host="h1",
    wait_s=float(sys.argv[2]))
client.keep(lease)
print("held", lease.token, flush=True)
while not lease.lost:
    time.sleep(0.05)
print("lost", flush=True)
time.sleep(60)
"""


@contextmanager
def agent(
    server: Server, pool: str, name: str, team: str, wait_s: float = 0
) -> Iterator[subprocess.Popen[str]]:
    """A process of a team that takes the one GPU, waiting for it if it must, until it loses it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, name, str(wait_s)],
        env=environment(REDIS_URL=server.url, GPU_BROKER_POOL=pool, GPU_BROKER_TEAM=team),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """The next word that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().partition(" ")[0].strip()


class Lab:
    """A pool of one GPU, which is team a's own, and its operator."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self.client = LeaseClient(Store(server.url), pool=name, hostname="h1")
        register(self.client, deadline_ms=86_400_000)
        self.verbs = Pool(server.connect(), Keys(name))
        assert said(self.verbs.set_teams(a="nominal_mb=900", b="nominal_mb=0"))[0] == "POLICY"
        self.client.set_policy(
            reclaim_after_s=RECLAIM_S, preempt_grace_s=GRACE_S, min_runtime_s=0, expiry_grace_s=0
        )

    def events(self) -> list[str]:
        """Names of all events."""
        return self.verbs.events()

    def noticed(self) -> bool:
        """Tell whether a lease is to be preempted."""
        records = self.verbs.redis.scan_iter(f"{self.verbs.keys.base}:record:*")
        return any(self.verbs.redis.hexists(key, "preempt_at_ms") for key in records)

    def of(self, name: str) -> bool:
        """Tell whether the agent holds the GPU now."""
        return any(lease.agent == name for lease in self.client.leases())


@pytest.fixture
def lab(server: Server, pool_name: str) -> Iterator[Lab]:
    """It is consistent at the end, and nothing is still to end for a waiter that is gone."""
    lab = Lab(server, pool_name)
    with lab.client:
        yield lab
        audit(lab.verbs.redis, lab.verbs.keys)
        waits = {w.token for w in lab.client.queue()}
        for key in lab.verbs.redis.scan_iter(f"{lab.verbs.keys.base}:record:*"):
            of = lab.verbs.redis.hget(key, "preempt_for")
            assert of is None or of in waits, f"{key} ends for {of}, which does not wait"


STEPS = ("waiting", "noticed", "over")


def until_step(lab: Lab, step: str) -> None:
    """Wait until the preemption has come so far."""
    if step == "waiting":
        eventually(lambda: lab.client.pool().waiting == 1, 10)
    else:
        eventually(lab.noticed, 20)
    if step == "over":
        eventually(lambda: "preempted" in lab.events(), 20)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dies", ["victim", "asker", "broker"])
def test_whichever_is_killed_the_memory_goes_to_one_that_lives(
    lab: Lab, dies: str, step: str
) -> None:
    """SIGKILL at each step; with a broker that is another process."""
    with ExitStack() as stack:
        broker = None
        if dies == "broker":
            here = {"REDIS_URL": lab.server.url, "GPU_BROKER_POOL": lab.name,
                    "GPU_BROKER_DEVICES": "none", "GPU_BROKER_HOSTNAME": "h2"}  # fmt: skip
            broker = stack.enter_context(Broker(**GRANTING | here))
            broker.wait()
        victim = stack.enter_context(agent(lab.server, lab.name, "victim", "b"))
        assert line(victim) == "held"
        asker = stack.enter_context(agent(lab.server, lab.name, "asker", "a", wait_s=60))
        until_step(lab, step)
        if broker:
            broker.kill()
        else:
            dead = victim if dies == "victim" else asker
            dead.send_signal(signal.SIGKILL)
            dead.wait()
        if dies != "asker":
            began = time.monotonic()
            assert line(asker) == "held"
            assert time.monotonic() - began <= 3 * (RECLAIM_S + GRACE_S + TTL_S + CLAIM_S)
            assert lab.of("asker")
            assert not lab.of("victim")
            return
        # What it asked for goes on: to the victim, if it still has it, or to whatever asks next.
        next_one = stack.enter_context(agent(lab.server, lab.name, "next", "b", wait_s=60))
        if step != "over":
            eventually(lambda: not lab.noticed(), CLAIM_S + 3 + GRACE_S)
        if lab.of("victim"):
            victim.kill()
        assert line(next_one) == "held"


@pytest.mark.slow
@pytest.mark.parametrize("shift_s", [-3600, 30])
def test_clock_that_steps_between_notice_and_end_grants_to_one_at_a_time(
    tmp_path: Path, pool_name: str, shift_s: int
) -> None:
    """The victim ends by the pool's clock, which stands still or leaps; never beside the asker."""
    clock = Clock.make(tmp_path / "clock")
    with running(env=clock.env) as server:
        lab = Lab(server, pool_name)
        with lab.client, agent(server, pool_name, "victim", "b") as victim:
            assert line(victim) == "held"
            with agent(server, pool_name, "asker", "a", wait_s=120) as asker:
                until_step(lab, "noticed")
                clock.shift(shift_s)
                assert line(asker) == "held"
                assert line(victim) == "lost"
                assert not lab.of("victim")
            audit(lab.verbs.redis, lab.verbs.keys)


def test_store_that_is_killed_between_notice_and_end_goes_on_with_it(pool_name: str) -> None:
    """A notice is a fact of the store: it is there after a restart, and the asker is served."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running("redis", *options) as server:
        lab = Lab(server, pool_name)
        with lab.client, agent(server, pool_name, "victim", "b") as victim:
            assert line(victim) == "held"
            with agent(server, pool_name, "asker", "a", wait_s=120) as asker:
                until_step(lab, "noticed")
                server.kill()
                server.start()
                assert line(asker) == "held"
                assert not lab.of("victim")
                assert "preempted" in lab.events()
            audit(lab.verbs.redis, lab.verbs.keys)

"""A preemption between real processes: a quota that is lent out and comes back."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent_sdk import LeaseClient, Store
from agent_sdk.keys import Keys
from tests.api.brokers import environment, eventually
from tests.audit import audit
from tests.pools import Pool, said
from tests.reports import register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

RECLAIM_S, GRACE_S, TTL_S = 1, 2, 2

CLAIM_S = 10
"""Seconds after which what is offered to one that died goes on."""

STEPS = ("waiting", "noticed", "over")
"""Steps of a preemption, in their order."""

HOLDER = """
import sys, time
from agent_sdk import LeaseClient
client = LeaseClient.from_env()
lease = client.acquire(sys.argv[1], memory_mb=900, ttl_s=float(sys.argv[3]), host="h1",
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
    url: str, pool: str, name: str, team: str, wait_s: float = 0, ttl_s: float = TTL_S
) -> Iterator[subprocess.Popen[str]]:
    """Run a process of a team that takes the one GPU, waiting if it must, until it loses it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, name, str(wait_s), str(ttl_s)],
        env=environment(REDIS_URL=url, GPU_BROKER_POOL=pool, GPU_BROKER_TEAM=team),
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
    """Return the next word that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().partition(" ")[0].strip()


class Lab:
    """A pool of one GPU, which is team a's own, and its operator.

    `url`: of the store, for clients; `server`: the one that has the data now.
    """

    def __init__(self, url: str, server: Server, name: str, grace_s: int = GRACE_S) -> None:
        self.url, self.name = url, name
        self.client = LeaseClient(Store(url), pool=name, hostname="h1")
        register(self.client, deadline_ms=86_400_000)
        self.look_at(server)
        assert said(self.verbs.set_teams(a="nominal_mb=900", b="nominal_mb=0"))[0] == "POLICY"
        self.client.set_policy(
            reclaim_after_s=RECLAIM_S, preempt_grace_s=grace_s, min_runtime_s=0, expiry_grace_s=0
        )

    def look_at(self, server: Server) -> None:
        """Read what this server has, from now on."""
        self.verbs = Pool(server.connect(), Keys(self.name))

    def agent(
        self, name: str, team: str, wait_s: float = 0, ttl_s: float = TTL_S
    ) -> contextmanager[subprocess.Popen[str]]:
        """Run a process of a team that takes the GPU."""
        return agent(self.url, self.name, name, team, wait_s, ttl_s)

    def events(self, event: str = "", agent: str = "") -> list[str]:
        """Return names of events, oldest first; only those of this name, or of this agent."""
        found = (entry for _, entry in self.verbs.redis.xrange(self.verbs.keys.events))
        return [
            each["event"]
            for each in found
            if event in {"", each["event"]} and agent in {"", each.get("agent")}
        ]

    def notices(self) -> list[int]:
        """Return when leases are to end for others, as their records say."""
        records = self.verbs.redis.scan_iter(f"{self.verbs.keys.base}:record:*")
        found = (self.verbs.redis.hget(key, "preempt_at_ms") for key in records)
        return [int(at_ms) for at_ms in found if at_ms]

    def noticed(self) -> bool:
        """Tell whether a lease is to be preempted."""
        return bool(self.notices())

    def of(self, name: str) -> bool:
        """Tell whether the agent holds the GPU now."""
        return any(lease.agent == name for lease in self.client.leases())

    def until_step(self, step: str) -> None:
        """Wait until the preemption has come so far."""
        if step == "waiting":
            eventually(lambda: self.client.pool().waiting == 1, 10)
        else:
            eventually(self.noticed, 20)
        if step == "over":
            eventually(lambda: self.events("preempted"), 20)

    def check(self) -> None:
        """Check that all sums are exact, and that nothing is to end for a waiter that is gone."""
        audit(self.verbs.redis, self.verbs.keys)
        waits = {w.token for w in self.client.queue()}
        for key in self.verbs.redis.scan_iter(f"{self.verbs.keys.base}:record:*"):
            of = self.verbs.redis.hget(key, "preempt_for")
            assert of is None or of in waits, f"{key} ends for {of}, which does not wait"

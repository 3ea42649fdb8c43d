"""Two teams on three hosts: what one borrowed comes back to the other, and the work goes on."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent_sdk.clock import local_now
from tests.api.brokers import PROGRAM, eventually
from tests.hosts.scenarios import Seen
from tests.hosts.world import PORT, START_S, Pool

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from agent_sdk import LeaseClient
    from agent_sdk.state.snapshot import LeaseStatus
    from tests.hosts.nets import Host
    from tests.hosts.world import World

GPU_MB = 1000

AFTER_S, GRACE_S = 2, 20
"""Seconds that a team waits for its own, and that a holder has after its notice."""

JOB = """
state=$0.state
n=$(cat "$state" 2>/dev/null || echo 0)
echo "begins at $n on $GPU_BROKER_HOSTNAME" >> "$0.log"
trap 'echo $n > "$state"; echo "saved $n" >> "$0.log"; exit 0' USR1
trap 'exit 0' TERM
while :; do n=$((n + 1)); sleep 0.05; done
"""
"""Count; save the count at SIGUSR1, and go on from it the next time."""

PREEMPTED = 75


@dataclass
class Job:
    """Work of a team, which any host may go on with: its state is in a folder that all share."""

    pool: Pool
    team: str
    name: str

    @property
    def path(self) -> Path:
        """Return where its state and its log are."""
        return self.pool.world.folder / self.name

    def start(self, host: Host, *options: str) -> subprocess.Popen[bytes]:
        """Start it on a host, under a lease there."""
        return self.pool.world.start(
            host, f"run-{self.name}-{host.name}", PROGRAM, "run", "--team", self.team,
            "--agent", self.name, "--memory", str(GPU_MB), "--ttl", "3", "--on-preempt", "SIGUSR1",
            *options, "--", "sh", "-c", JOB, str(self.path),
            **self.pool.env, GPU_BROKER_HOSTNAME=host.name,
        )  # fmt: skip

    @property
    def log(self) -> list[str]:
        """Return what it has written."""
        log = self.path.with_name(f"{self.name}.log")
        return log.read_text().splitlines() if log.exists() else []

    def works(self, client: LeaseClient) -> LeaseStatus:
        """Wait until it works under a lease; return that."""
        eventually(lambda: self._lease(client) and self.log, START_S)
        found = self._lease(client)
        assert found is not None
        return found

    def _lease(self, client: LeaseClient) -> LeaseStatus | None:
        return next((x for x in client.leases() if x.agent == self.name), None)


def teams(world: World) -> Seen:
    """One borrows, the other takes its own back with notice, the work goes on at another host."""
    store = world.host("store")
    world.redis(store)
    pool = Pool(world, f"redis://{store.address}:{PORT}")
    hosts = [store, world.host("gpu1"), world.host("gpu2")]
    for host in hosts:
        pool.reporter(host, f"sim:1x{GPU_MB}")
    client = pool.client()
    client.set_policy(reclaim_after_s=AFTER_S, min_runtime_s=0, preempt_grace_s=GRACE_S)
    quotas: dict[str, dict[str, Any]] = {
        "vision": {"nominal_mb": 2 * GPU_MB},
        "speech": {"nominal_mb": GPU_MB},
    }
    client.set_teams(quotas)
    jobs = [Job(pool, "vision", f"vision-{host.name}") for host in hosts]
    runs = [job.start(host) for job, host in zip(jobs, hosts, strict=True)]
    held = [job.works(client) for job in jobs]
    wrong = [] if _borrowed(client) == GPU_MB else [f"vision borrowed {_borrowed(client)} MiB"]

    asked_at = local_now()
    own = Job(pool, "speech", "speech")
    owner = own.start(store)
    own.works(client)
    reclaim_s = local_now() - asked_at
    victim, token = jobs[0], held[0].token
    if (code := runs[0].wait(START_S)) != PREEMPTED:
        wrong.append(f"the victim's run ended with {code}")
    saved = victim.path.with_name(f"{victim.name}.state").read_text().strip()

    again = victim.start(hosts[1], "--after", token)
    time.sleep(AFTER_S + 2)  # a team at its quota takes nothing back
    if len(client.queue()) != 1:
        wrong.append("the victim does not wait at the other host")
    runs[1].send_signal(signal.SIGTERM)
    began = f"begins at {saved} on {hosts[1].name}"
    eventually(lambda: began in victim.log, START_S)
    lease = victim.works(client)
    if lease.evictions != 1:
        wrong.append(f"the pool counts {lease.evictions} preemptions of the job")

    for run in (again, owner, runs[2]):
        run.send_signal(signal.SIGTERM)
    codes = [run.wait(START_S) for run in (again, owner, *runs[1:])]
    if any(codes):
        wrong.append(f"the other runs ended with {codes}")
    eventually(lambda: not client.leases(), START_S)
    if sums := [team for team in client.teams() if team.used_mb or team.leases]:
        wrong.append(f"sums of teams are left: {sums}")
    outcome = pool.finish()
    told = [(x.token, x.fields["for_team"]) for x in outcome.said.events if x.event == "preempting"]
    if told != [(token, "speech")]:
        wrong.append(f"notices: {told}")
    client.close()
    seen = {"reclaim_s": reclaim_s, "saved_at": float(saved), "notices": float(len(told))}
    return Seen(seen, wrong + outcome.violations)


def _borrowed(client: LeaseClient) -> int:
    """Return what the team `vision` holds beyond its quota, in MiB."""
    return next(team.borrowed_mb for team in client.teams() if team.name == "vision")

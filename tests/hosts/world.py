"""Redis, brokers, reporters and agents as real processes on the hosts of a private world.

None of them is cleaned up after: the world ends them with itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import redis

from agent_sdk import LeaseClient, Store
from agent_sdk.clock import local_now
from tests.api.brokers import PROGRAM, environment, eventually
from tests.audit import audit
from tests.hosts import checker, history
from tests.hosts.checker import Fault, PoolSaid
from tests.hosts.nets import Host, Lan
from tests.servers import binary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]

REPORT_S = 0.5

DEADLINE_S = 3 * REPORT_S

TTL_S = 3.0
"""Seconds of the agents' leases."""

GONE_S = 20.0
"""Longest life of traces of a waiter that was killed at its offer: its last poll, the offer."""

CLAIM_S = 15.0
"""Seconds to claim an offer, which stands for 10."""

START_S = 30.0
"""Seconds in which a process must answer, on two cores that others use too."""

STOP_S = 15.0
"""Seconds in which a process that was told to end must have ended."""

PORT, SENTINEL_PORT, HTTP_PORT = 6379, 26379, 8014

SERVICE = "gpu"

EXAMPLES = ROOT / "deploy" / "redis" / "sentinel"
"""Configurations of primaries, replicas and Sentinels."""


@dataclass
class World:
    """All hosts and what runs on them; what was done to them is written down in `faults`."""

    folder: Path
    lan: Lan = field(default_factory=Lan)
    faults: list[Fault] = field(default_factory=list)

    def host(self, name: str) -> Host:
        """The host of that name."""
        return self.lan.host(name)

    def start(self, host: Host, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """A process on a host; what it says goes into `NAME.log`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*host.inside, *command],
                cwd=ROOT,
                env=environment(PYTHONFAULTHANDLER="1", **env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def redis(
        self, host: Host, *options: str, port: int = PORT, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A server on a host, answering."""
        name = f"redis-{host.name}-{port}"
        (self.folder / name).mkdir(exist_ok=True)
        started = self.start(
            host, name, str(binary("redis")), "--port", str(port), "--bind", "0.0.0.0",
            "--protected-mode", "no", "--dir", str(self.folder / name), "--save", "", *options,
            **(env or {}),
        )  # fmt: skip
        eventually(lambda: _answers(host.address, port), START_S)
        return started

    def sentinel(self, host: Host, primary: Host) -> None:
        """A Sentinel on a host that watches over the primary and its replicas."""
        name = f"sentinel-{host.name}"
        conf = self.folder / f"{name}.conf"
        text = (EXAMPLES / "sentinel.conf").read_text().replace("10.0.0.1", primary.address)
        conf.write_text(f"{text}bind 0.0.0.0\nprotected-mode no\ndir {self.folder}\n")
        self.start(host, name, str(binary("redis")), str(conf), "--sentinel")
        eventually(lambda: _answers(host.address, SENTINEL_PORT), START_S)

    @contextmanager
    def fault(self, what: str, **whom: Any) -> Iterator[None]:
        """The length of the block is written down as a fault; see `Fault`."""
        since = local_now()
        yield
        self.faults.append(Fault(what, since, local_now(), **whom))

    @contextmanager
    def without_route(self, one: Host, other: Host) -> Iterator[None]:
        """Two hosts that do not reach each other; the others reach both."""
        names = frozenset({one.name})
        self.lan.unroute(one, other)
        try:
            with self.fault(f"no route {one.name} {other.name}", cut=names, silent=names):
                yield
        finally:
            self.lan.reroute(one, other)

    @contextmanager
    def cut_off(self, host: Host) -> Iterator[None]:
        """A host from which, and to which, packets vanish."""
        names = frozenset({host.name})
        self.lan.cut(host)
        try:
            with self.fault(f"cut {host.name}", cut=names, silent=names):
                yield
        finally:
            self.lan.heal(host)


@dataclass
class Pool:
    """One pool and everybody in it."""

    world: World
    url: str
    name: str = "default"
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    diaries: list[Path] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """Return the environment of each of them."""
        return {"REDIS_URL": self.url, "GPU_BROKER_POOL": self.name}

    def client(self) -> LeaseClient:
        """A client of the pool."""
        return LeaseClient(Store(self.url), pool=self.name, hostname="nobody")

    def reporter(self, host: Host, devices: str) -> subprocess.Popen[bytes]:
        """`gpu-broker host`, once the pool has heard of it."""
        started = self.world.start(
            host, f"reporter-{self.name}-{host.name}", PROGRAM, "host", **self.env,
            SAFE_MODE="false", GPU_BROKER_DEVICES=devices, GPU_BROKER_HOSTNAME=host.name,
            GPU_BROKER_REPORT_S=str(REPORT_S),
        )  # fmt: skip
        with self.client() as client:
            eventually(
                lambda: any(d.host == host.name and d.state == "ok" for d in client.devices()),
                START_S,
            )
        return started

    def broker(self, host: Host, port: int = HTTP_PORT) -> Replica:
        """`gpu-broker serve`, ready; it reports no devices."""
        command = (PROGRAM, "serve", "--host", "0.0.0.0", "--port", str(port), "--insecure")
        env = {**self.env, "SAFE_MODE": "false", "GPU_BROKER_DEVICES": "none"}

        def start() -> subprocess.Popen[bytes]:
            return self.world.start(host, f"serve-{host.name}-{port}", *command, **env)

        return Replica(f"http://{host.address}:{port}", start)

    def agent(
        self, host: Host, name: str, *options: str, env: Mapping[str, str] | None = None
    ) -> None:
        """An agent on a host; see `agent.py`."""
        path = self.world.folder / f"{name}.history"
        self.agents[name] = self.world.start(
            host, name, sys.executable, "-m", "tests.hosts.agent", "--name", name,
            "--history", str(path), "--ttl", str(TTL_S), *options,
            **self.env, **(env or {}), GPU_BROKER_HOSTNAME=host.name,
        )  # fmt: skip
        self.diaries.append(path)
        eventually(path.exists, START_S)

    def holds(self, name: str, host: Host) -> None:
        """Wait until an agent has a lease on its host, past what was offered to who is dead."""
        with self.client() as client:
            mine = (name, host.name)
            eventually(
                lambda: any((x.agent, x.asked_host) == mine for x in client.leases()), CLAIM_S
            )

    def kill(self, name: str) -> None:
        """SIGKILL of an agent."""
        agent = self.agents.pop(name)
        agent.kill()
        agent.wait()

    def finish(self, seen: Mapping[str, float] | None = None) -> Outcome:
        """Stop the agents, wait until their leases must be over, and judge.

        seen: by a reader of the stream, where the pool's clock was stepped; see `PoolSaid`.
        """
        for agent in self.agents.values():
            agent.send_signal(signal.SIGTERM)
        codes = {name: agent.wait(START_S) for name, agent in self.agents.items()}
        with self.client() as client:
            said = replace(self._said(client), seen=seen or {})
            found = [f"agent {name} ended with {code}" for name, code in codes.items() if code]
            try:
                audit(client.redis, client.keys)
            except AssertionError as error:
                found.append(f"sums: {error}")
        known = history.read(self.diaries)
        lines = [json.dumps(asdict(event)) for event in said.events]
        (self.world.folder / f"{self.name}.events").write_text("\n".join(lines))
        found += checker.violations(known, said, self.world.faults)
        return Outcome(known, said, found)

    def _said(self, client: LeaseClient) -> PoolSaid:
        left = _tokens(client)
        until = local_now() + GONE_S + checker.LATE_S
        while left and local_now() < until:
            time.sleep(0.1)
            client.reap()
            left = _tokens(client)
        seconds, micros = client.redis.time()
        ahead_ms = seconds * 1000 + micros / 1000 - local_now() * 1000
        devices = client.devices()
        return PoolSaid(
            events=client.events(10_000),
            capacities={d.uuid: d.total_mb - d.system_mb for d in devices},
            hosts={d.uuid: d.host for d in devices},
            left=left,
            ahead_ms=ahead_ms,
            deadline_s=DEADLINE_S,
        )


class Replica:
    """A `gpu-broker serve` that can be stopped and started again at the same address."""

    def __init__(self, url: str, start: Any) -> None:
        self.url = url
        self._start = start
        self._process: subprocess.Popen[bytes] = start()
        self.wait()

    def wait(self) -> None:
        """Wait until it is ready."""
        eventually(self._ready, START_S)

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.url
        try:
            return httpx2.get(f"{self.url}/ready", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL, and the next one ready."""
        self._process.kill()
        self._process.wait()
        self._process = self._start()
        self.wait()

    def restart(self) -> None:
        """SIGTERM, and the next one ready."""
        self._process.terminate()
        try:
            assert self._process.wait(STOP_S) == 0
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # where each thread is, goes into its log
            raise
        self._process = self._start()
        self.wait()


@dataclass(frozen=True)
class Outcome:
    """All that a pool's agents and the pool saw, and what of it is wrong."""

    history: history.History
    said: PoolSaid
    violations: list[str]

    def first(self, event: str, after: float, **fields: str) -> float:
        """Seconds from a moment to the first event of that kind with these fields after it.

        Raises:
            AssertionError: there is none.
        """
        for each in self.said.events:
            at = self.said.at(each)
            if each.event == event and at > after and fields.items() <= each.fields.items():
                return at - after
        raise AssertionError(f"no {event} {fields}")


def _answers(address: str, port: int) -> bool:
    try:
        with redis.Redis(address, port, socket_timeout=1) as client:
            return bool(client.ping())
    except redis.exceptions.RedisError:
        return False


def _tokens(client: LeaseClient) -> tuple[str, ...]:
    """Every token that has a record or a lease key."""
    base = client.keys.base
    found: Any = [
        name
        for kind in ("record", "lease")
        for name in client.redis.scan_iter(f"{base}:{kind}:*", count=5000)
    ]
    return tuple(sorted({name.rpartition(":")[2] for name in found}))

"""Stores of several servers for the suite, with the configuration of deploy/redis."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.crc import key_slot

from tests.servers import Server, binary, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEPLOY = Path(__file__).parents[1] / "deploy" / "redis"

SERVICE = "gpu"

SLOTS = 16384


def until(holds: Callable[[], Any], within_s: float = 20, every_s: float = 0.05) -> Any:
    """Wait for something to be true; what it gave."""
    end = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(every_s)
    return found


@contextmanager
def _server(kind: str, include: str, *options: str) -> Iterator[Server]:
    """A server with redis.conf and one of the files beside it."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-broker-", dir="/tmp"))
    port = free_port()
    server = Server(
        binary(kind),
        folder,
        port,
        ("--include", str(DEPLOY / "redis.conf"), "--include", str(DEPLOY / include),
         "--port", str(port), *options),
    )  # fmt: skip
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Sentinels:
    """Three Sentinels, and three servers of which the first began as primary.

    Attributes:
        ports: of the Sentinels.
    """

    servers: list[Server]
    ports: list[int]
    processes: list[subprocess.Popen[bytes]]

    @property
    def url(self) -> str:
        nodes = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{nodes}/{SERVICE}"

    def ask(self, sentinel: int, *command: str) -> Any:
        """Return a Sentinel's answer; None: it gives none."""
        with (
            suppress(redis.RedisError),
            redis.Redis(port=self.ports[sentinel], decode_responses=True) as client,
        ):
            return client.execute_command("SENTINEL", *command)
        return None

    def named(self, sentinel: int = 0) -> int:
        """The port of the primary, as a Sentinel says."""
        return int(self.ask(sentinel, "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def primary(self) -> Server:
        """The server that is primary."""
        return next(server for server in self.servers if server.port == self.named())

    def down_after(self, ms: int) -> None:
        """Set the silence after which a primary is taken for dead."""
        for sentinel in range(len(self.ports)):
            assert self.ask(sentinel, "SET", SERVICE, "down-after-milliseconds", str(ms)) == "OK"

    def fail_over(self, *, replicated: bool = True) -> float:
        """SIGKILL the primary; when a Sentinel named another. `replicated`: both replicas have all.

        Dead after 1 s: less than is wise (see sentinel.conf), so only until the new one is named.
        """
        old = self.primary()
        self.down_after(1000)
        if replicated:
            with old.connect() as admin:
                assert admin.wait(2, 2000) == 2
        old.kill()
        until(lambda: self.named() != old.port, every_s=0.01)
        named_at = time.monotonic()
        self.down_after(5000)
        return named_at

    def part(self) -> None:
        """Let the primary write on, and no replica have it: they log in as nobody."""
        primary = self.primary()
        for server in self.servers:
            with server.connect() as admin:
                if server is primary:
                    admin.config_set("min-replicas-to-write", 0)
                else:
                    admin.config_set("masterauth", "nobody's")
        with primary.connect() as admin:
            assert admin.execute_command("CLIENT", "KILL", "TYPE", "replica") == 2

    def join(self) -> None:
        """Let replicas log in again."""
        for server in self.living():
            with server.connect() as admin:
                admin.config_set("masterauth", "")

    def living(self) -> list[Server]:
        """List the servers that run."""
        return [s for s in self.servers if s.process is not None and s.process.poll() is None]

    def mend(self) -> None:
        """Start what was killed, and wait until all is as at the beginning."""
        for server in self.servers:
            if server not in self.living():
                server.start()
        self.settle()

    def settle(self) -> None:
        """Wait until all is as at the beginning: a primary with two replicas, all agreed."""

        def settled() -> bool:
            for sentinel in range(len(self.ports)):
                seen = self.ask(sentinel, "MASTER", SERVICE)
                if not seen or seen["flags"] != "master" or seen["num-other-sentinels"] != "2":
                    return False
                replicas = self.ask(sentinel, "REPLICAS", SERVICE)
                if [r["flags"] for r in replicas] != ["slave", "slave"]:
                    return False
            with self.primary().connect() as client:
                info = client.info("replication")
            states = {info.get(f"slave{n}", {}).get("state") for n in range(2)}
            return info["role"] == "master" and states == {"online"}

        until(settled, 60)


def write_sentinel_conf(folder: Path, port: int, primary: int) -> Path:
    """The example, for servers of this machine."""
    text = (DEPLOY / "sentinel" / "sentinel.conf").read_text()
    text = text.replace("port 26379", f"port {port}")
    text = text.replace("10.0.0.1 6379 2", f"127.0.0.1 {primary} 2")
    assert text.count(str(primary)) == text.count(f"port {port}") == 1
    path = folder / "sentinel.conf"
    path.write_text(f"{text}\nbind 127.0.0.1\nlogfile log\ndir {folder}\n")
    return path


@contextmanager
def sentinels(kind: str = "redis") -> Iterator[Sentinels]:
    """A service that Sentinels watch, for the length of a block."""
    with ExitStack() as stack:
        enter = stack.enter_context
        first = enter(_server(kind, "sentinel/replicated.conf"))
        replica = ("--replicaof", "127.0.0.1", str(first.port))
        others = [enter(_server(kind, "sentinel/replicated.conf", *replica)) for _ in range(2)]
        fleet = Sentinels([first, *others], [], [])
        with first.connect() as client:
            until(lambda: "online" in str(client.info("replication").get("slave1")))
        for _ in range(3):
            folder = Path(tempfile.mkdtemp(prefix="gpu-broker-", dir="/tmp"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            port = free_port()
            path = write_sentinel_conf(folder, port, first.port)
            process = subprocess.Popen([binary(kind), path, "--sentinel"], cwd=folder)
            stack.callback(process.wait)
            stack.callback(process.kill)
            fleet.ports.append(port)
            fleet.processes.append(process)
        fleet.settle()
        yield fleet


@dataclass
class Cluster:
    """Three primaries, each with a third of the slots, and replicas of the first of them."""

    nodes: list[Server]
    replicas: list[Server]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def call(self, node: Server, *command: Any) -> Any:
        """Return a node's answer."""
        with node.connect() as client:
            return client.execute_command(*command)

    def id_of(self, node: Server) -> str:
        return str(self.call(node, "CLUSTER MYID"))

    def owner(self, pool: str) -> Server:
        """The node that has a pool."""
        return self.nodes[slot_of(pool) * len(self.nodes) // SLOTS]

    def move(self, pool: str, source: Server, target: Server) -> Iterator[list[str]]:
        """Move a pool's slot as redis-cli does; yields the keys that are about to move."""
        slot, ids = slot_of(pool), {id(n): self.id_of(n) for n in (source, target)}
        self.call(target, "CLUSTER SETSLOT", slot, "IMPORTING", ids[id(source)])
        self.call(source, "CLUSTER SETSLOT", slot, "MIGRATING", ids[id(target)])
        while keys := self.call(source, "CLUSTER GETKEYSINSLOT", slot, 10):
            yield keys
            self.call(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        yield []
        for node in (target, source, *self.nodes):
            self.call(node, "CLUSTER SETSLOT", slot, "NODE", ids[id(target)])


def slot_of(pool: str) -> int:
    """Return the slot of all keys of a pool."""
    return key_slot(f"gpu:{{{pool}}}".encode())


def pool_in(part: int, prefix: str = "p") -> str:
    """The name of a pool in this third of the slots."""
    names = (f"{prefix}-{n}" for n in range(1000))
    return next(name for name in names if slot_of(name) * 3 // SLOTS == part)


@contextmanager
def cluster(kind: str = "redis", *, replicas: int = 0) -> Iterator[Cluster]:
    """A Cluster for the length of a block."""
    with ExitStack() as stack:

        def node() -> Server:
            bus = ("--cluster-port", str(free_port()))
            return stack.enter_context(_server(kind, "cluster/cluster.conf", *bus))

        made = Cluster([node() for _ in range(3)], [node() for _ in range(replicas)])
        everyone = [*made.nodes, *made.replicas]
        for number, each in enumerate(everyone):
            made.call(each, "CLUSTER SET-CONFIG-EPOCH", number + 1)
        for part, each in enumerate(made.nodes):
            first = -(-part * SLOTS // 3)
            last = -(-(part + 1) * SLOTS // 3) - 1
            made.call(each, "CLUSTER ADDSLOTSRANGE", first, last)
        for each, other in combinations(everyone, 2):
            bus_port = other.options[other.options.index("--cluster-port") + 1]
            made.call(each, "CLUSTER MEET", "127.0.0.1", other.port, bus_port)

        def known(node: Server) -> bool:
            state = str(made.call(node, "CLUSTER INFO"))
            count = f"'cluster_known_nodes': '{len(everyone)}'"
            return "'cluster_state': 'ok'" in state and count in state

        until(lambda: all(known(each) for each in everyone))
        for each in made.replicas:
            made.call(each, "CLUSTER REPLICATE", made.id_of(made.nodes[0]))
        for each in made.replicas:
            until(
                lambda each=each: (
                    made.call(each, "INFO", "replication")["master_link_status"] == "up"
                )
            )
        yield made

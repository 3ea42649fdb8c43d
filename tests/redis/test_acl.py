"""deploy/redis/users.acl: what each user may do, asked of the server and done for real."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_sdk import Denied, LeaseClient, Store
from tests.api.brokers import GRANTING, Broker, eventually
from tests.pools import device
from tests.reports import register
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server

ROOT = Path(__file__).parents[2]

FILE = ROOT / "deploy" / "redis" / "users.acl"

ONCE = Retry(NoBackoff(), 0)
"""A wrong password does not get better."""

USERS = ("broker", "agent", "operator", "viewer")

POOL = "gpu:{acl}"

TABLE: list[tuple[tuple[str, ...], str]] = [
    # command, and the initials of the users who may: b a o v
    (("HGETALL", f"{POOL}:pool"), "baov"),
    (("ZRANGE", f"{POOL}:deadlines", "0", "-1"), "baov"),
    (("XRANGE", f"{POOL}:events", "-", "+"), "baov"),
    (("GET", f"{POOL}:lease:gpu-a:token"), "baov"),
    (("PTTL", f"{POOL}:lease:gpu-a:token"), "baov"),
    (("EVALSHA", "0" * 40, "1", POOL), "bao"),
    (("SCRIPT", "LOAD", "return 1"), "bao"),
    (("BLMPOP", "1", "1", f"{POOL}:inbox:me", "LEFT"), "bao"),
    (("HSET", f"{POOL}:pool", "safe_mode", "1"), "bao"),
    (("DEL", f"{POOL}:pool"), "bao"),
    (("FCALL", "gpu_release", "1", POOL), "bao"),
    (("FUNCTION", "LOAD", "x"), "bo"),
    (("INFO",), "baov"),
    (("MULTI",), "baov"),
    (("LRANGE", f"{POOL}:ended", "0", "-1"), "baov"),
    (("XINFO", "STREAM", f"{POOL}:events"), "baov"),
    (("HSETNX", f"{POOL}:hook:ops", "url", "http://x.example"), "bo"),
    (("WATCH", f"{POOL}:hooks_sender"), "bo"),
    (("SCAN", "0"), "ov"),
    (("CONFIG", "GET", "maxmemory"), "o"),
    (("CLIENT", "LIST"), "o"),
    (("SLOWLOG", "GET"), "o"),
    (("MEMORY", "USAGE", f"{POOL}:pool"), "o"),
    (("HGETALL", "somebody:elses"), ""),
    (("GET", "gpu:default"), ""),
    (("SET", "somebody:elses", "1"), ""),
    (("EVAL", "return 1", "0"), ""),
    (("FLUSHALL",), ""),
    (("FLUSHDB",), ""),
    (("KEYS", "*"), ""),
    (("CONFIG", "SET", "maxmemory", "1"), ""),
    (("CONFIG", "REWRITE"), ""),
    (("DEBUG", "SLEEP", "1"), ""),
    (("MONITOR",), ""),
    (("SHUTDOWN",), ""),
    (("ACL", "SETUSER", "me"), ""),
    (("SCRIPT", "FLUSH"), ""),
    (("FUNCTION", "FLUSH"), ""),
    (("FUNCTION", "DELETE", "gpu_broker"), ""),
    (("CLIENT", "KILL", "ID", "1"), ""),
    (("CLIENT", "PAUSE", "1"), ""),
    (("REPLICAOF", "NO", "ONE"), ""),
    (("SUBSCRIBE", "x"), ""),
    (("PUBLISH", "x", "y"), ""),
]


def password(user: str) -> str:
    return f"secret-of-{user}"


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with our users; the default one stays, for the test's own use."""
    with running(request.param) as server:
        with server.connect() as root:
            for line in FILE.read_text().splitlines():
                _, name, *rights = line.split()
                if name != "default":
                    digest = hashlib.sha256(password(name).encode()).hexdigest()
                    root.execute_command("ACL", "SETUSER", name, *rights, f"#{digest}")
        yield server


@pytest.fixture
def as_user(server: Server) -> Iterator[Callable[[str], LeaseClient]]:
    """Makes clients of the pool `acl` on host h1, by the name of a user."""
    clients = []

    def make(user: str) -> LeaseClient:
        url = f"redis://{user}:{password(user)}@127.0.0.1:{server.port}"
        clients.append(LeaseClient(Store(url), pool="acl", hostname="h1"))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_file_is_what_the_scripts_need() -> None:
    """Generated, and generated again after a change of the Lua."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_acl.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_file_is_read_by_both_servers_and_lets_nobody_in(server: Server, tmp_path: Path) -> None:
    """Started with it: the default user is off, and a user without a password cannot log in."""
    copy = tmp_path / "users.acl"
    copy.write_text(FILE.read_text())
    command = [str(server.binary), "--port", "0", "--unixsocket", "s", "--dir", str(tmp_path),
               "--aclfile", str(copy), "--save", ""]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        try:
            client = redis.Redis(unix_socket_path=str(tmp_path / "s"), retry=ONCE)
            for _ in range(100):
                try:
                    client.ping()
                except redis.exceptions.AuthenticationError:
                    break
                except redis.exceptions.RedisError:
                    time.sleep(0.05)
            else:
                pytest.fail("it did not ask for a password")
            for user in USERS:
                there = str(tmp_path / "s")
                with (
                    redis.Redis(
                        unix_socket_path=there, username=user, password="x", retry=ONCE
                    ) as guess,
                    pytest.raises(redis.exceptions.AuthenticationError),
                ):
                    guess.ping()
            client.close()
        finally:
            process.terminate()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: " ".join(row[0])[:40])
def test_user_may_what_the_table_says(server: Server, row: tuple[tuple[str, ...], str]) -> None:
    """By the server's own dry run."""
    command, allowed = row
    with server.connect() as root:
        may = "".join(
            user[0]
            for user in USERS
            if root.execute_command("ACL", "DRYRUN", user, *command) == "OK"
        )
    assert may == allowed


@pytest.mark.parametrize("user", ["broker", "agent", "operator"])
def test_every_verb_runs_for_who_may_lease(
    as_user: Callable[[str], LeaseClient], user: str
) -> None:
    """The SDK's whole surface: report, lease, wait, renew, look, operate, release."""
    client = as_user(user)
    register(client, device("gpu-a"))
    with client.lease("a", memory_mb=800, ttl_s=1) as lease:
        client.renew(lease)
        with pytest.raises(Exception, match="free memory"):
            client.acquire("b", memory_mb=800, wait_s=0.1)
        assert client.explain(lease.token).code == "active"
        assert [x.token for x in client.leases()] == [lease.token]
        assert client.queue() == ()
    client.drain("device", "gpu-a")
    client.undrain("device", "gpu-a")
    client.set_policy(default_memory_mb=100)
    held = client.acquire("a", memory_mb=10)
    assert client.usage(by=("team",)).total.running == 1
    client.revoke(held.token, force=True)
    client.reap()
    assert client.history().more is False
    assert client.hosts()[0].host == "h1"


def test_viewer_sees_and_changes_nothing(
    as_user: Callable[[str], LeaseClient], server: Server
) -> None:
    """Every look works, no verb does, and nothing is different after it was tried."""
    register(as_user("broker"), device("gpu-a"))
    viewer = as_user("viewer")
    assert viewer.devices()[0].uuid == "gpu-a"
    assert viewer.pool().ready
    assert viewer.leases() == ()
    assert viewer.usage().total.running == 0
    assert viewer.history().more is False
    with server.connect() as root:
        before = {key: root.dump(key) for key in root.scan_iter("gpu:{acl}:*")}
        for verb in (
            lambda: viewer.acquire("a", memory_mb=10),
            lambda: viewer.release(uuid4().hex),
            lambda: viewer.set_policy(safe_mode=True),
            lambda: viewer.drain("host", "h1"),
            viewer.reap,
        ):
            with pytest.raises(Denied):
                verb()
        assert {key: root.dump(key) for key in root.scan_iter("gpu:{acl}:*")} == before


def test_broker_serves_as_its_user(server: Server) -> None:
    """Ready, leases, metrics, the stream, webhooks; nothing is denied; no log has its password."""
    url = f"redis://broker:{password('broker')}@127.0.0.1:{server.port}"
    with Broker(**GRANTING, REDIS_URL=url, GPU_BROKER_POOL="acl-broker") as broker:
        broker.wait()
        lease = broker.granted(min_memory_mb=100)
        assert broker.release(lease["token"]).status_code == 200
        hook = {"url": "http://127.0.0.1:9/", "name": "ops", "on": ["released"]}
        assert broker.http.post("/hooks", json=hook).status_code == 200
        assert broker.http.post("/hooks/ops/test").json()["delivered"] is False
        broker.release(broker.granted(min_memory_mb=100)["token"])
        eventually(lambda: broker.http.get("/hooks/ops").json()["failed"] > 1, 20)
        assert broker.http.delete("/hooks/ops").status_code == 200
        assert "gpu_broker_redis_up 1.0" in broker.http.get("/metrics").text
        assert "denied" not in broker.said().lower()
        assert password("broker") not in broker.said()


def test_broker_with_the_rights_of_an_older_file_goes_on_beside_hooks(server: Server) -> None:
    """Metrics stay, and whoever asks for the hooks is told that the store denies them."""
    pool, secret = "acl-older", password("older")
    with server.connect() as root:
        (rights,) = (x.split()[2:] for x in FILE.read_text().splitlines() if " broker " in x)
        root.execute_command("ACL", "SETUSER", "older", *rights, f">{secret}", "-xinfo|stream")
        root.hset(f"gpu:{{{pool}}}:hook:ops", mapping={"url": "https://x.example", "life": "1"})
        root.sadd(f"gpu:{{{pool}}}:hooks", "ops")
    url = f"redis://older:{secret}@127.0.0.1:{server.port}"
    with Broker(**GRANTING, REDIS_URL=url, GPU_BROKER_POOL=pool) as broker:
        broker.wait()
        scraped = broker.http.get("/metrics")
        assert (scraped.status_code, "gpu_broker_device_info{" in scraped.text) == (200, True)
        refused = broker.http.get("/hooks")
        assert (refused.status_code, refused.json()["code"]) == (403, "denied")
        assert "xinfo|stream" in refused.json()["detail"]

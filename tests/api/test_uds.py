"""`gpu-broker serve --uds PATH`: the API at a unix socket, which its mode guards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.api.brokers import GRANTING, Broker, environment, eventually
from tests.api.keys import new_key
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

STARTS_S = 60
"""Seconds within which each of several starts has come up or ended, on a busy machine."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users of the machine may look into."""
    made = Path(tempfile.mkdtemp(prefix="gpu-broker-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextmanager
def serving(server: Server, path: Path, *args: str, **settings: str) -> Iterator[Broker]:
    """A broker at a socket, and a client that asks it there."""
    pool = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "uds"}
    with Broker("--uds", str(path), *args, **GRANTING | pool | settings) as broker:
        broker.http.close()
        # httpx2 leaves a descriptor open for each connection to a socket that is not had.
        eventually(lambda: broker.process.poll() is not None or connects(path), STARTS_S)
        assert broker.process.poll() is None, broker.said()
        transport = httpx2.HTTPTransport(uds=str(path))
        broker.http = httpx2.Client(transport=transport, base_url="http://localhost", timeout=10)
        yield broker.wait()


def refused(server: Server, *args: str, **settings: str) -> str:
    """The one sentence of a start that is refused."""
    pool = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "uds", "GPU_BROKER_DEVICES": "none"}
    done = called("serve", *args, **pool | settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def curl(path: Path, url: str, *more: str, **options: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "-s", "--max-time", "20", "--unix-socket", str(path), *more, url],
        env=environment(), capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def test_lease_over_a_socket(server: Server, folder: Path) -> None:
    """By httpx and by curl, under any host's name; there is no port beside it."""
    path = folder / "http.sock"
    with serving(server, path) as broker:
        token = broker.granted(min_memory_mb=10)["token"]
        assert broker.http.post("/v1/renew", json={"token": token}).status_code == 200
        listed = curl(path, "http://any.name/allocations")
        assert json.loads(listed.stdout)["allocations"].keys() == {token}
        assert broker.release(token).status_code == 200
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", broker.port)) != 0
        assert f"--unix-socket {path} http://localhost/gpu/info" in broker.said()
        assert broker.stop() == 0
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_mode_keeps_other_users_out(server: Server, folder: Path) -> None:
    """By default; with another mode and keys, users need a key."""
    path = folder / "http.sock"
    nobody = 65534
    with serving(server, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert curl(path, "http://localhost/ready").returncode == 0
        assert curl(path, "http://localhost/ready", user=nobody, group=nobody).returncode != 0
    key = new_key(folder / "keys", "ann", "viewer")
    (folder / "keys").chmod(0o600)
    settings = {"GPU_BROKER_KEYS_FILE": str(folder / "keys"), "GPU_BROKER_UDS_MODE": "0666"}
    with serving(server, path, **settings):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        for header, status in (("X-None: 1", "401"), (f"Authorization: Bearer {key}", "200")):
            asks = ("-o", "/dev/null", "-w", "%{http_code}", "-H", header)
            url = "http://localhost/gpu/info"
            assert curl(path, url, *asks, user=nobody, group=nobody).stdout == status


def test_wider_mode_needs_keys(server: Server, folder: Path) -> None:
    """A port beyond this machine does, too."""
    path = folder / "http.sock"
    said = refused(server, "--uds", str(path), GPU_BROKER_UDS_MODE="0660")
    assert "mode 0660" in said
    assert "--insecure" in said
    assert not path.exists()
    with serving(server, path, "--insecure", GPU_BROKER_UDS_MODE="0660") as broker:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert "every client of this socket" in broker.said()


def test_stale_socket_is_replaced(server: Server, folder: Path) -> None:
    """After SIGKILL; one to which a broker listens is not, nor is a file."""
    path = folder / "http.sock"
    with serving(server, path) as broker:
        assert "another program listens there" in refused(server, "--uds", str(path))
        assert broker.http.get("/ready").status_code == 200
        broker.kill()
        assert path.is_socket()
    with serving(server, path) as broker:
        assert broker.http.get("/ready").status_code == 200
    (folder / "file").write_text("mine")
    assert "is no socket" in refused(server, "--uds", str(folder / "file"))
    assert (folder / "file").read_text() == "mine"


def test_of_several_starts_one_serves(server: Server, folder: Path) -> None:
    """All at once, on a stale socket: the others say so, and the one is reached."""
    path = folder / "http.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    pool = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "uds", "GPU_BROKER_DEVICES": "none"}
    started = [Broker("--uds", str(path), **pool) for _ in range(4)]
    try:
        eventually(lambda: [x.process.poll() for x in started].count(2) == 3, STARTS_S)
        (one,) = (each for each in started if each.process.poll() is None)
        eventually(lambda: connects(path), STARTS_S)
        one.kill()
        assert not connects(path)
    finally:
        for each in started:
            each.__exit__()


def test_socket_of_another_is_not_removed(server: Server, folder: Path) -> None:
    """Another socket may have taken the place in the meantime."""
    path = folder / "http.sock"
    with serving(server, path) as broker, socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(str(path))
        assert broker.stop() == 0
        assert path.is_socket()


def test_workers_share_a_socket(server: Server, folder: Path) -> None:
    """And it is removed once, at the end of all."""
    path = folder / "http.sock"
    with serving(server, path, "--workers", "2") as broker:
        token = broker.granted(min_memory_mb=10)["token"]
        assert broker.release(token).status_code == 200
        assert broker.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("args", "settings", "says"),
    [
        (("--uds", "h.sock", "--port", "8015"), {}, "in place of --host and --port"),
        (("--uds", "/nowhere/h.sock"), {}, "can hold no socket"),
        (("--uds", "/tmp/" + "x" * 120), {}, "AF_UNIX path too long"),
        (("--uds", "/tmp/h.sock"), {"GPU_BROKER_UDS_MODE": "rw"}, "GPU_BROKER_UDS_MODE"),
    ],
)
def test_socket_that_cannot_be_is_refused(
    server: Server, args: tuple[str, ...], settings: dict[str, str], says: str
) -> None:
    """With what to change."""
    assert says in refused(server, *args, **settings)


def test_unread_answer_gives_its_lease_back(server: Server, folder: Path) -> None:
    """The client has closed, and the answer lies unread: over TCP it is the same."""
    path = folder / "http.sock"
    body = json.dumps({"agent": "gone", "min_memory_mb": 10})
    head = "POST /lease HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serving(server, path) as broker:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            client.recv(1, socket.MSG_PEEK)
            assert len(broker.allocations()) == 1
        eventually(lambda: not broker.allocations(), 5)
        assert "hung up before it read of it: given back" in broker.said()


BOX = ("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all")

ASKS = "curl -sf --unix-socket $0 http://localhost/ready; echo; read -r _; "


def makes_sandboxes() -> bool:
    return (
        bool(shutil.which("bwrap"))
        and not subprocess.run([*BOX, "true"], capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not makes_sandboxes(), reason="bwrap makes no sandbox here")
def test_sandbox_without_network_reaches_it(server: Server, folder: Path) -> None:
    """By the folder alone, also the socket of a broker that has begun anew."""
    path = folder / "http.sock"
    with subprocess.Popen(
        [*BOX, "--", "sh", "-c", f"read -r _; {ASKS}{ASKS}", str(path)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as inside:  # fmt: skip
        try:
            assert inside.stdin is not None
            assert inside.stdout is not None
            for _ in range(2):
                with serving(server, path):
                    inside.stdin.write("ask\n")
                    inside.stdin.flush()
                    assert json.loads(inside.stdout.readline()) == {"ready": True}
        finally:
            inside.kill()

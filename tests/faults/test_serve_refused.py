"""`gpu-broker serve` where it cannot serve: at its start, and on a store that does not suit."""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import GRANTING, PROGRAM, Broker, environment, eventually
from tests.program import called
from tests.servers import free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

STARTS_S = 90
"""Within which each of ten starts at once has ended, on a busy machine."""

WRONG: dict[str, tuple[list[str], dict[str, str], str]] = {
    "SAFE_MODE": ([], {"SAFE_MODE": "maybe"}, "SAFE_MODE"),
    "devices": ([], {"GPU_BROKER_DEVICES": "foo"}, "GPU_BROKER_DEVICES"),
    "port": ([], {"GPU_ORCHESTRATOR_PORT": "high"}, "GPU_ORCHESTRATOR_PORT"),
    "bind": (["--host", "0.0.0.0"], {}, "--insecure"),
    "bind by name": ([], {"GPU_ORCHESTRATOR_HOST": "gpu.example"}, "--insecure"),
    "nvml": ([], {"GPU_BROKER_DEVICES": "nvml", "ENABLE_NVML": "false"}, "ENABLE_NVML"),
    "pool": ([], {"GPU_BROKER_POOL": "Not A Pool"}, "GPU_BROKER_POOL"),
    "url": ([], {"REDIS_URL": "localhost:6379"}, "REDIS_URL"),
}
"""Arguments, environment, and the word that must be in the sentence."""

WRONG_TOO = (
    ({"GPU_BROKER_DEVICES": "scenario:nope.yaml"}, "nope.yaml cannot be read"),
    ({"GPU_BROKER_DEVICES": "scenario:/dev/null"}, "/dev/null"),
    ({"GPU_BROKER_KEYS": "ann"}, "line 1 of the keys"),
    ({"GPU_BROKER_KEYS_FILE": "/nope"}, "GPU_BROKER_KEYS_FILE"),
    ({"GPU_BROKER_HOSTNAME": "a/b"}, "GPU_BROKER_HOSTNAME"),
)


def check_refused(process: subprocess.Popen[str], word: str) -> None:
    """It ended with exit code 2 and one plain sentence that names what to change."""
    said, _ = process.communicate(timeout=STARTS_S)
    assert process.returncode == 2, said
    assert word in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    assert said.startswith("gpu-broker serve: ")


def start(folder: Path, args: list[str], settings: dict[str, str]) -> subprocess.Popen[str]:
    """A serve that should not come up; if it does, then in a folder of the test's."""
    given = {"GPU_ORCHESTRATOR_PORT": str(free_port()), "GPU_BROKER_STATE_DIR": str(folder)}
    return subprocess.Popen(
        [PROGRAM, "serve", *args],
        env=environment(**given | {"GPU_BROKER_DEVICES": "none"} | settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All wrong starts at once; one that comes up starts no store that would outlive it."""
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    started = {
        name: start(tmp_path_factory.mktemp("state"), args, nowhere | settings)
        for name, (args, settings, _) in WRONG.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize("name", WRONG)
def test_serve_with_a_wrong_setting_exits_2_with_one_sentence(
    refused: dict[str, subprocess.Popen[str]], name: str
) -> None:
    """A start that cannot be meant ends at once, says why and what to change, without a trace."""
    check_refused(refused[name], WRONG[name][2])


def test_serve_on_a_port_in_use_exits_2_with_one_sentence(tmp_path: Path) -> None:
    """A port that somebody else has is named, with how to choose another; no store is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = start(tmp_path / "state", [], {"GPU_ORCHESTRATOR_PORT": port})
        try:
            check_refused(process, port)
        finally:
            process.kill()
    assert not (tmp_path / "state").exists()


def test_serve_twice_at_once_on_one_port_leaves_one(tmp_path: Path) -> None:
    """Two start on a port at the same moment: one serves; the other says so and ends."""
    port = str(free_port())
    both = [start(tmp_path / name, [], {"GPU_ORCHESTRATOR_PORT": port}) for name in "ab"]
    try:
        eventually(lambda: any(process.poll() is not None for process in both), STARTS_S)
        ended, going = sorted(both, key=lambda process: process.poll() is None)
        check_refused(ended, port)
        assert going.poll() is None
    finally:
        for process in both:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


@pytest.mark.parametrize("command", ["serve", "host"])
def test_start_that_fails_touches_nothing_of_the_pool(
    server: Server, tmp_path: Path, command: str
) -> None:
    """Beside a broker that serves: its GPUs stay as they are, and not a key of the pool changes."""
    pool = {"REDIS_URL": server.url, "GPU_BROKER_POOL": f"untouched-{command}"}
    with Broker(**GRANTING | pool) as broker, server.connect() as redis:
        broker.wait()
        held = broker.granted(min_memory_mb=10, ttl_s=600)
        events = redis.xlen(f"gpu:{{untouched-{command}}}:events")
        in_use = str(broker.port) if command == "serve" else "high"
        wrong = [(settings, said) for _, settings, said in WRONG.values() if said != "--insecure"]
        for settings, said in (*wrong, *WRONG_TOO, ({"GPU_ORCHESTRATOR_PORT": in_use}, in_use)):
            given = {"GPU_BROKER_STATE_DIR": str(tmp_path / "s"), "GPU_BROKER_HOSTNAME": "h1"}
            done = called(command, **pool | given | settings)
            assert (done.returncode, done.stdout, said in done.stderr) == (2, "", True), settings
        assert redis.xlen(f"gpu:{{untouched-{command}}}:events") == events
        assert [gpu["state"] for gpu in broker.http.get("/gpu/info").json()["gpus"]] == ["ok"]
        assert held["token"] in broker.allocations()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1", "::1%nosuch"])
def test_address_that_is_none_of_this_machine_is_said(tmp_path: Path, host: str) -> None:
    """No other broker is in the way, and another port is no help."""
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    process = start(tmp_path, ["--host", host, "--insecure"], nowhere)
    check_refused(process, f"{host} is no address of this machine")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_url_of_an_ipv6_address_has_brackets(tmp_path: Path) -> None:
    """A person pastes it."""
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    with start(tmp_path, ["--host", "::", "--insecure"], nowhere) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("gpu-broker on http://[::]:")
        process.terminate()


@pytest.fixture(scope="module")
def unsuitable() -> Iterator[dict[str, tuple[Broker, Server]]]:
    """A broker each on a server that evicts and on a read-only replica."""
    with ExitStack() as stack:
        enter = stack.enter_context
        primary = enter(running())
        servers = {
            "evicts": enter(running("redis", "--maxmemory-policy", "allkeys-lru")),
            "replica": enter(running("redis", "--replicaof", "127.0.0.1", str(primary.port))),
        }
        found = {
            name: (enter(Broker(**GRANTING | {"REDIS_URL": server.url})), server)
            for name, server in servers.items()
        }
        for broker, _ in found.values():
            broker.wait("/health")
        yield found


@pytest.mark.parametrize(
    ("name", "words", "way_out"),
    [
        ("evicts", "maxmemory-policy is allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
        ("replica", "read-only replica of 127.0.0.1:", "set REDIS_URL to the primary"),
    ],
)
def test_ready_on_a_server_that_does_not_suit_is_503_with_the_reason(
    unsuitable: dict[str, tuple[Broker, Server]], name: str, words: str, way_out: str
) -> None:
    """A server that cannot keep leases is not ready, and says in one sentence what to do."""
    broker, _ = unsuitable[name]

    def reason() -> str | None:
        answer = broker.http.get("/ready")
        assert answer.status_code == 503, answer.text
        said = str(answer.json()["reason"])
        return said if words in said and way_out in said else None

    eventually(reason, 10)
    for _ in range(5):  # it does not flicker
        assert reason(), broker.http.get("/ready").text


def test_ready_on_a_server_that_no_longer_evicts_recovers(
    unsuitable: dict[str, tuple[Broker, Server]],
) -> None:
    """Once the advice is followed the broker is ready by itself."""
    broker, server = unsuitable["evicts"]
    with server.connect() as client:
        client.config_set("maxmemory-policy", "noeviction")
    eventually(lambda: broker.http.get("/ready").status_code == 200, 2 * 2)
    with server.connect() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

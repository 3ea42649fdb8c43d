"""Several workers behind one port: one broker, whichever answers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from agent_sdk.store.embedded import EmbeddedStore
from tests.api.brokers import GRANTING, PROGRAM, Broker, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

WORKERS = 2


@pytest.fixture(scope="module")
def group(own: Server) -> Iterator[Broker]:
    """A group for the tests that leave it as it was."""
    with Broker("--workers", str(WORKERS), **GRANTING, REDIS_URL=own.url) as broker:
        yield ready(broker)


@pytest.fixture
def ending(own: Server) -> Iterator[Broker]:
    """A group that a test ends."""
    here = GRANTING | {"REDIS_URL": own.url, "GPU_BROKER_POOL": "ending"}
    with Broker(GPU_BROKER_WORKERS=str(WORKERS), **here) as broker:
        yield ready(broker)


def ready(broker: Broker) -> Broker:
    """Wait until every worker answers."""
    eventually(lambda: "gpu-broker on http" in broker.said(), 60)
    return broker


def children(broker: Broker) -> set[int]:
    """The pids of the workers."""
    pid = broker.process.pid
    return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def asked(broker: Broker, path: str) -> httpx2.Response:
    """Ask on a connection of its own, so that any worker may answer."""
    return httpx2.get(f"http://127.0.0.1:{broker.port}{path}", timeout=10)


def of_all(broker: Broker, path: str) -> dict[int, Any]:
    """The answer of each worker to a GET, by its number: connections are held until all have."""
    found: dict[int, Any] = {}
    held = []
    until = time.monotonic() + 30
    while len(found) < WORKERS:
        assert time.monotonic() < until, found
        client = httpx2.Client(base_url=f"http://127.0.0.1:{broker.port}", timeout=10)
        held.append(client)
        found[client.get("/health").json()["worker"]] = client.get(path)
    for client in held:
        client.close()
    return found


def figures(text: str) -> dict[str, float]:
    """The series of a scrape."""
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def leader(broker: Broker) -> int:
    """The pid of the worker that reports and reaps: it alone holds the lock."""
    held = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "FLOCK" in words and (pid := int(words[words.index("FLOCK") + 3])) in children(broker):
            held.add(pid)
    (found,) = held
    return found


def test_every_worker_answers_alike(group: Broker) -> None:
    """One replica, its devices known to each; a lease of one is another's to renew and release."""
    health = of_all(group, "/health")
    assert len({answer.json()["replica"] for answer in health.values()}) == 1
    assert set(health) == set(range(1, WORKERS + 1))
    for answer in of_all(group, "/ready").values():
        assert answer.json() == {"ready": True}
    for answer in of_all(group, "/gpu/info").values():
        assert [gpu["host"] for gpu in answer.json()["gpus"]] == ["h1"]
    token = group.granted(min_memory_mb=10)["token"]
    for answer in of_all(group, f"/lease/{token}").values():
        assert answer.json()["token"] == token
    assert group.release(token).status_code == 200


def test_one_reports_and_reaps_and_its_end_hands_both_on(group: Broker) -> None:
    """SIGKILL of the leading worker: it is replaced, another leads, and leases still expire."""
    first, before = leader(group), children(group)
    assert len(before) == WORKERS
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(children(group)) == WORKERS and first not in children(group), 10)
    second = eventually(lambda: any_leader(group), 10)
    assert second != first
    token = group.http.post(
        "/lease", json={"agent": "a", "min_memory_mb": 10, "ttl_s": 1, "host": "h1"}
    ).json()["token"]
    eventually(lambda: token not in asked(group, "/allocations").text, 10)
    assert re.search(r"worker \d ended with -9: it is replaced", group.said())
    assert set(of_all(group, "/health")) == set(range(1, WORKERS + 1))
    eventually(lambda: asked(group, "/gpu/info").json()["gpus"][0]["state"] == "ok", 10)


def any_leader(broker: Broker) -> int | None:
    with suppress(ValueError):
        return leader(broker)
    return None


def test_counters_never_fall_whichever_worker_is_scraped(group: Broker) -> None:
    """Each scrape has the sum of all workers, and a killed one takes nothing of it along."""
    last: dict[str, float] = {}
    for number in range(40):
        asked(group, "/health")
        if number == 20:
            killed = next(iter(children(group)))
            os.kill(killed, signal.SIGKILL)
            eventually(lambda gone=killed: gone not in children(group), 10)
        with suppress(httpx2.TransportError):  # the killed worker's
            now = figures(asked(group, "/metrics").text)
            counted = {n: v for n, v in now.items() if re.search(r"_(total|count|bucket)\b", n)}
            fallen = {n: (last[n], v) for n, v in counted.items() if v < last.get(n, 0)}
            assert not fallen
            assert last.keys() <= counted.keys()
            last = counted
    assert last["gpu_orchestrator_requests_total"] >= 78
    assert last['gpu_broker_http_requests_total{method="GET",route="/health",status="200"}'] >= 39


def test_events_are_counted_once(group: Broker) -> None:
    """All workers hear of each lease; its duration stands in the figures of all once."""
    name = 'gpu_broker_hold_seconds_count{reason="released"}'
    before = figures(asked(group, "/metrics").text)[name]
    for _ in range(5):
        group.release(group.granted(min_memory_mb=10)["token"])
    eventually(lambda: figures(asked(group, "/metrics").text)[name] >= before + 5, 5)
    time.sleep(1)  # for a worker that counts them too
    for answer in of_all(group, "/metrics").values():
        assert figures(answer.text)[name] == before + 5


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_stop_ends_all_in_good_order(ending: Broker, name: str) -> None:
    """Exit code 0, no worker left, the port free."""
    workers = children(ending)
    ending.process.send_signal(signal.Signals[name])
    assert ending.process.wait(20) == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ending.port), 1)
    assert "Traceback" not in ending.said()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_second_signal_ends_the_wait_for_leases(own: Server, workers: str) -> None:
    """The first one has no GPU offered any more, and waits for the leases that there are."""
    here = GRANTING | {"REDIS_URL": own.url, "GPU_BROKER_POOL": f"drains-{workers}"}
    here |= {"GPU_BROKER_DRAIN_ON_STOP_S": "60", "GPU_BROKER_WORKERS": workers}
    with Broker(**here) as broker:
        ready(broker).wait().granted(min_memory_mb=100)
        broker.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            broker.process.wait(7)
        broker.process.send_signal(signal.SIGTERM)
        assert broker.process.wait(7) == 0


def test_workers_end_with_their_parent(ending: Broker) -> None:
    """SIGKILL of the parent leaves no worker that holds the port."""
    workers = children(ending)
    ending.kill()
    eventually(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()], 20)


def test_log_lines_say_which_worker(group: Broker) -> None:
    """Each line of a worker has its number."""
    group.release(group.granted(min_memory_mb=10)["token"])
    eventually(lambda: re.search(r" lease .*worker=[12]", group.said()), 5)


def test_demo_with_workers_has_its_embedded_store(tmp_path: Path) -> None:
    """The parent holds the store, so a killed worker does not end it; a clean stop does."""
    state = tmp_path / "state"
    here = {"GPU_BROKER_STATE_DIR": str(state), "GPU_BROKER_HOSTNAME": "h1"}
    with Broker("--demo", "--workers", "2", program=(PROGRAM,), **here) as broker:
        ready(broker)
        token = broker.granted(min_memory_mb=10, host="any")["token"]
        os.kill(leader(broker), signal.SIGKILL)
        eventually(lambda: any_leader(broker) and asked(broker, "/ready").status_code == 200, 20)
        assert token in asked(broker, "/allocations").text
        assert broker.stop() == 0
    assert EmbeddedStore(state).refuses()


def test_systemd_hears_the_group_once(server: Server, tmp_path: Path) -> None:
    """READY when all are, WATCHDOG while all live, STOPPING at the end; from the main process."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(60)
        here = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "wsystemd"}
        with Broker(
            "--workers", "2", NOTIFY_SOCKET=str(path), WATCHDOG_USEC="9000000", **here
        ) as broker:
            first = channel.recv(4096).decode().splitlines()
            assert "READY=1" in first
            assert len(children(broker)) == 2
            # READY is told after the first look at the store; /ready waits for SAFE_MODE as well,
            # which the first worker writes into the policy
            eventually(lambda: broker.http.get("/ready").status_code == 200, 5)
            assert "WATCHDOG=1" in channel.recv(4096).decode()
            assert broker.stop() == 0
            rest = [channel.recv(4096).decode()]
            while "STOPPING=1" not in rest[-1]:
                rest.append(channel.recv(4096).decode())
            assert not any("READY=1" in each for each in rest)


def test_port_in_use_is_said_once(group: Broker) -> None:
    """The parent takes the port, before it starts any worker."""
    with Broker("--workers", "2", "--port", str(group.port), **GRANTING) as second:
        assert second.process.wait(30) == 2
        assert second.said().count("cannot be had") == 1

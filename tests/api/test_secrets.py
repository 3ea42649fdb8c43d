"""Keys, passwords and tokens: where they may be seen, and where never."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import redis

from agent_sdk import AsyncLeaseClient, GPUOrchestratorClient, LeaseClient, LeaseError, Store
from agent_sdk.settings import read_orchestrator_settings, read_settings
from agent_sdk.store.url import parse
from broker.settings import load_settings
from tests.api.brokers import GRANTING, PROGRAM, Broker, environment, eventually
from tests.api.keys import PASSWORD
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server


@pytest.fixture(scope="module")
def url(locked: Server) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{locked.port}"


@pytest.fixture(scope="module")
def broker(url: str, key_file: Path, key: str) -> Iterator[Broker]:
    settings = {
        "REDIS_URL": url,
        "GPU_BROKER_KEYS_FILE": str(key_file),
        "GPU_BROKER_POOL": "secrets",
    }
    with Broker(**GRANTING, **settings) as broker:
        broker.http.headers["Authorization"] = f"Bearer {key}"
        yield broker.wait()


@contextmanager
def monitored(locked: Server) -> Iterator[list[str]]:
    """Return what MONITOR shows during a block, a command an entry."""
    said: list[str] = []
    with redis.Redis(port=locked.port, password=PASSWORD) as client, client.monitor() as monitor:

        def listen() -> None:
            while said[-1:] != ["ECHO the end"]:
                said.append(str(monitor.next_command()["command"]))

        thread = threading.Thread(target=listen)
        thread.start()
        with redis.Redis(port=locked.port, password=PASSWORD) as other:
            yield said
            other.execute_command("ECHO", "the end")
            thread.join(10)


def process_shows(pid: int) -> str:
    """Return what the machine's users see of a process and of its threads: arguments and names."""
    folder = Path(f"/proc/{pid}")
    files = [folder / "cmdline", folder / "comm", *folder.glob("task/*/comm"), folder / "stat"]
    return "\n".join(path.read_bytes().replace(b"\0", b" ").decode() for path in files)


def test_monitor_shows_no_key_and_no_password(
    locked: Server, broker: Broker, key: str, url: str
) -> None:
    """MONITOR shows tokens, which are in the keys' names; it does not show the key of a request."""
    with monitored(locked) as said:
        lease = broker.granted(min_memory_mb=10)
        broker.http.post("/renew", json={"token": lease["token"]})
        broker.release(lease["token"])
        with LeaseClient(Store(url), pool="secrets", hostname="h1") as client:
            client.release(client.acquire("sdk", memory_mb=10))
        with pytest.raises(LeaseError):
            LeaseClient(Store(url.replace("hunter2", "hunter3")), pool="secrets").devices()
    everything = "\n".join(said)
    assert lease["token"] in everything
    for secret in (key, PASSWORD, "hunter3", key.removeprefix("gbk_")):
        assert secret not in everything


def test_ps_shows_nothing_of_serve_host_and_run(url: str, key: str, tmp_path: Path) -> None:
    """Arguments, names of processes and threads; nor does a command under a lease say which."""
    settings = {"REDIS_URL": url, "GPU_BROKER_API_KEY": key, "GPU_BROKER_POOL": "ps"}
    tells = tmp_path / "token"
    under = ["sh", "-c", f'echo "$GPU_LEASE_TOKEN" > {tells}.new; mv {tells}.new {tells}; sleep 60']
    with ExitStack() as stack:
        started = []

        def start(*words: str, **more: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [PROGRAM, *words], env=environment(**settings, **more), stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.send_signal, signal.SIGTERM)
            started.append(process)
            return process

        start("host", **GRANTING)
        with LeaseClient(Store(url), pool="ps", hostname="h1") as client:
            eventually(client.devices, 20)
            client.set_policy(safe_mode=False)
        run = start("run", "--memory", "10", "--", *under, GPU_BROKER_HOSTNAME="h1")
        token = eventually(lambda: tells.exists() and tells.read_text().strip(), 20)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert children
        shown = "".join(
            process_shows(pid) for pid in [p.pid for p in started] + list(map(int, children))
        )
        for secret in (PASSWORD, key, token):
            assert secret not in shown


def test_metrics_page_and_log_show_no_token(broker: Broker) -> None:
    """Neither of who holds, nor of who waits, nor of who came too late."""
    lease = broker.granted(min_memory_mb=900)
    waiter = broker.lease(min_memory_mb=900, wait_s=0.2).json()
    told = "".join(broker.http.get(path).text for path in ("/metrics", "/health", "/ready", "/"))
    broker.release(lease["token"])
    broker.release(lease["token"])
    told += broker.http.get("/metrics").text + broker.said()
    for token in filter(None, (lease["token"], waiter.get("token"))):
        assert token not in told


def failures(url: str) -> dict[str, Callable[[], object]]:
    """Calls that fail, each for another reason, at a URL with a password in it."""
    away = f"redis://:{PASSWORD}@127.0.0.1:1"
    return {
        "away": lambda: LeaseClient(Store(away), deadline_s=0.1).devices(),
        "wrong password": lambda: LeaseClient(Store(url.replace(":hunter", ":x-hunter"))).devices(),
        "no url": lambda: LeaseClient(Store(f"http://:{PASSWORD}@h")).devices(),
        "no port": lambda: LeaseClient(Store(f"redis://:{PASSWORD}@h:port")).devices(),
        "no service": lambda: LeaseClient(Store(f"redis+sentinel://:{PASSWORD}@h")).devices(),
        "no sentinel": lambda: LeaseClient(
            Store(f"redis+sentinel://:{PASSWORD}@127.0.0.1:1/s?sentinel_password={PASSWORD}", 0.1),
            deadline_s=0.1,
        ).devices(),
        "bad call": lambda: LeaseClient(Store(url)).acquire("a b"),
        "bad pool": lambda: LeaseClient(Store(url), pool="NO POOL"),
    }  # fmt: skip


@pytest.mark.parametrize("name", failures(""))
def test_traceback_shows_no_password(name: str, url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The whole chain of an error with its words, and whatever was logged on the way."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises((LeaseError, ValueError)) as raised:
        failures(url)[name]()
    told = "".join(traceback.format_exception(raised.value)) + caplog.text
    assert PASSWORD not in told


def test_what_is_printed_of_our_objects_has_no_password(
    url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a debugger, a log, an assertion: a Store's repr had the whole URL in it."""
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("GPU_BROKER_API_KEY", key)
    store = Store(url)
    made: list[Any] = [
        store, read_settings(), read_orchestrator_settings(), load_settings(), parse(url),
        LeaseClient(store), LeaseClient(store).redis, AsyncLeaseClient(store),
        store.connect().connection_pool, GPUOrchestratorClient(),
    ]  # fmt: skip
    for each in made:
        for secret in (PASSWORD, key):
            assert secret not in f"{each!r} {each}", type(each)


@pytest.mark.parametrize(
    "command",
    ["doctor", "status", "leases", "hosts", "policy get", "keys list", "events", "serve --port x"],
)
def test_command_prints_no_secret(command: str, url: str, key: str, key_file: Path) -> None:
    """With everything set, right and wrong."""
    for where in (url, f"redis://user:{PASSWORD}@127.0.0.1:1", f"rediss://:{PASSWORD}@h:x/0"):
        said = called(
            *command.split(), REDIS_URL=where, GPU_BROKER_API_KEY=key, GPU_BROKER_POOL="secrets",
            GPU_BROKER_KEYS_FILE=str(key_file), GPU_BROKER_DEVICES="none",
        )  # fmt: skip
        for secret in (PASSWORD, key, key.removeprefix("gbk_")):
            assert secret not in said.stdout + said.stderr, said.args


def test_key_file_and_embedded_store_are_ours_alone(key_file: Path, key: str) -> None:
    """Nobody else on the machine reads hashes of keys, or connects to the store."""
    assert key not in key_file.read_text()
    assert key_file.stat().st_mode & 0o077 == 0
    state = Path(f"/tmp/gpu-broker-secret-{os.getpid()}")
    try:
        with Broker(GPU_BROKER_STATE_DIR=str(state), **GRANTING) as broker:
            broker.wait()
            assert (state / "redis.sock").exists()
            assert state.stat().st_mode & 0o077 == 0  # nobody gets into it, whatever is inside
            assert broker.stop() == 0  # the last who uses the store ends it
    finally:
        shutil.rmtree(state, ignore_errors=True)


def test_key_in_a_url_is_no_key(broker: Broker, key: str) -> None:
    """It would be in everybody's access log; and the answer does not repeat it."""
    without = httpx2.Client(base_url=broker.http.base_url)
    with without:
        for query in (f"?key={key}", f"?access_token={key}", f"?Authorization=Bearer%20{key}"):
            answer = without.get(f"/policy{query}")
            assert answer.status_code == 401
            assert key not in answer.text
    time.sleep(0.1)
    assert not re.search(re.escape(key), broker.said())

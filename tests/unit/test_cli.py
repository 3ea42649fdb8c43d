"""The command line against a real pool: what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.scripts.library import own_library
from broker.cli import COMMANDS
from tests.api.brokers import PROGRAM, environment
from tests.pools import device
from tests.program import called
from tests.reports import register
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker

DEVICE = "SIM-test-host-0"

DOCS = Path(__file__).parents[2] / "docs"


pool = broker_of_the_file()
"""Two devices of 24576 MiB on one host."""


@pytest.fixture(autouse=True)
def clean(pool: TestBroker) -> Iterator[None]:
    """Afterwards nothing is leased and nothing is drained."""
    yield
    for lease in pool.client.leases():
        pool.client.release(lease.token)
    pool.client.undrain("host", pool.host)


def gpu_broker(*args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """One call of the program, as a shell makes it."""
    return subprocess.run(
        [PROGRAM, *args],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def on(pool: TestBroker, *args: str, code: int = 0) -> str:
    """One call on the pool that must end with that code: what it printed, or said on stderr."""
    answer = called(*args, REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)
    assert answer.returncode == code, (answer.stdout, answer.stderr)
    return answer.stderr if code else answer.stdout


def data(pool: TestBroker, *args: str) -> Any:
    """The same with -o json, parsed; its schema is 1."""
    parsed = json.loads(on(pool, *args, "-o", "json"))
    assert parsed.pop("schema") == 1
    return parsed


def test_status_shows_devices_and_who_holds_them(pool: TestBroker) -> None:
    """One line per device, its leases below, CPU leases last."""
    held = pool.client.acquire("analyst", memory_mb=8192)
    pool.client.acquire("critic", host="elsewhere", on_unavailable="cpu")
    text = on(pool, "status")
    assert "test-host:0" in text
    assert "└ analyst" in text
    assert "CPU LEASES" in text
    assert "critic" in text
    (lease, _) = data(pool, "status")["leases"]
    assert (lease["token"], lease["memory_mb"]) == (held.token, 8192)


def test_leases_lists_whole_tokens_and_filters_by_agent(pool: TestBroker) -> None:
    """The list has in full all that revoke needs."""
    held = pool.client.acquire("analyst", memory_mb=10)
    pool.client.acquire("critic", memory_mb=10)
    assert held.token in on(pool, "leases")
    (lease,) = data(pool, "leases", "--agent", "analyst")["leases"]
    assert lease["token"] == held.token


def test_leases_of_a_host_or_a_gpu(pool: TestBroker) -> None:
    """A drained host is empty once none is left there; leases without a GPU are nowhere."""
    held = pool.client.acquire("analyst", memory_mb=10)
    pool.client.acquire("critic", host="elsewhere", on_unavailable="cpu")
    uuid, here = held.devices[0].uuid, held.devices[0].index
    there = 1 - here
    for place in (pool.host, f"{pool.host}:{here}", uuid):
        assert [x["token"] for x in data(pool, "leases", "--host", place)["leases"]] == [held.token]
    assert data(pool, "leases", "--host", f"{pool.host}:{there}")["leases"] == []
    assert on(pool, "leases", "--host", f"{pool.host}:{there}") == "no such leases\n"
    page = (DOCS / "how-to" / "operate.md").read_text()
    assert "safe to touch, when `leases --host` says `no such leases`" in page
    assert "no host and no device" in on(pool, "leases", "--host", "nowhere", code=1)


def test_hosts_says_who_reports(pool: TestBroker) -> None:
    """Each host with its state and devices."""
    assert "test-host  alive" in on(pool, "hosts")
    (host,) = data(pool, "hosts")["hosts"]
    assert (host["host"], host["devices"]) == ("test-host", 2)


def test_host_whose_devices_are_all_drained_one_by_one_is_draining(pool: TestBroker) -> None:
    """Nothing is left on it to lease; what it reports anew would be taken, so it is not drained."""
    uuids = [device.uuid for device in pool.client.devices()]
    pool.client.drain("device", uuids[0])
    assert "alive  " in on(pool, "hosts")
    for uuid in uuids:
        pool.client.drain("device", uuid)
    assert "alive, draining" in on(pool, "hosts")
    pool.client.undrain("host", pool.host)
    assert "alive  " in on(pool, "hosts")


@pytest.mark.parametrize(
    ("name", "takes"), [("test-host", "2 devices take"), (DEVICE, "1 device takes")]
)
def test_drain_and_undrain_by_the_name_alone(pool: TestBroker, name: str, takes: str) -> None:
    """A host or a device: the name says which."""
    assert f"{takes} no new leases" in on(pool, "drain", name, "--reason", "new driver")
    assert "drained" in on(pool, "status")
    assert f"{takes} leases again" in on(pool, "undrain", name)
    assert "drained" not in on(pool, "status")
    assert "no host and no device" in on(pool, "drain", "nobody", code=1)


def test_forget_by_the_name_alone(pool: TestBroker) -> None:
    """A device or a host leaves every list; with a lease on it, the words say what to do."""
    for host in ("pod-1", "pod-2"):
        gone = device(f"gpu-gone-{host}", model="gone")
        register(pool.client, gone, host=host, deadline_ms=60_000)
    lease = pool.client.acquire("analyst", host="pod-1", memory_mb=10)
    for name in ("pod-1", "gpu-gone-pod-1"):
        assert "gpu-gone-pod-1 has a lease, or memory that is not free yet" in on(
            pool, "forget", name, code=1
        )
    pool.client.release(lease)
    assert "device gpu-gone-pod-1: forgotten" in on(pool, "forget", "gpu-gone-pod-1")
    assert "host pod-1: forgotten, with 0 devices" in on(pool, "forget", "pod-1")
    assert data(pool, "forget", "pod-2", "--reason", "sent back") == {"devices": 1}
    assert "pod-" not in on(pool, "hosts")
    assert "no host and no device" in on(pool, "forget", "pod-2", code=1)


@pytest.mark.parametrize(
    ("command", "says"), [("undrain", "leases again"), ("forget", "forgotten")]
)
def test_drain_of_what_the_pool_has_forgotten_is_ended_by_its_name(
    pool: TestBroker, command: str, says: str
) -> None:
    """It is in no list any more, and comes back drained unless an operator says otherwise."""
    pool.client.redis.zadd(f"{pool.client.keys.base}:drains", {"host:pod-3": 1})
    assert says in on(pool, command, "pod-3")
    assert "no host and no device" in on(pool, command, "pod-3", code=1)


def test_revoke_needs_a_target_and_a_reason(pool: TestBroker) -> None:
    """By token, agent or host; at the next renewal, or now."""
    token = pool.client.acquire("analyst", memory_mb=10).token
    on(pool, "revoke", token, code=2)
    on(pool, "revoke", "--reason", "x", code=2)
    on(pool, "revoke", token, "--agent", "analyst", "--reason", "x", code=2)
    assert "within a minute" in on(pool, "revoke", token, "--reason", "x")
    assert data(pool, "revoke", token, "--reason", "x", "--force")["revoked"] == [token]
    assert "revoked" in on(pool, "revoke", token, "--reason", "x", code=1)
    other = pool.client.acquire("critic", memory_mb=10).token
    assert data(pool, "revoke", "--host", pool.host, "--reason", "x")["revoked"] == [other]
    assert data(pool, "revoke", "--agent", "nobody", "--reason", "x")["revoked"] == []


def test_policy_get_and_set(pool: TestBroker) -> None:
    """All of what is named, or nothing; a wrong word says which words there are."""
    assert data(pool, "policy", "get")["policy"]["kill_on_oom"] is False
    changed = data(pool, "policy", "set", "kill_on_oom=true", "default_memory_mb=99")["policy"]
    assert (changed["kill_on_oom"], changed["default_memory_mb"]) == (True, 99)
    on(pool, "policy", "set", "kill_on_oom=false", "default_memory_mb=2048")
    assert "max_memory_per_agent_mb" in on(pool, "policy", "set", "size=1", code=2)
    on(pool, "policy", "set", "default_memory_mb=many", code=2)
    assert "is 10 to" in on(pool, "policy", "set", f"idle_after_s={'9' * 5000}", code=2)
    assert "idle_action" in on(pool, "policy", "set", "idle_action=No!", code=1)
    words = ("idle_action=notify", "idle_after_s=60", "xid_actions=31=suspect,79=hold")
    changed = data(pool, "policy", "set", *words)["policy"]
    assert (changed["idle_action"], changed["idle_after_s"]) == ("notify", 60)
    assert changed["xid_actions"] == "31=suspect,79=hold"
    on(pool, "policy", "set", "idle_action=observe", "idle_after_s=600", "xid_actions=")
    assert "xid_actions\n" in on(pool, "policy", "get")
    assert "max_memory_per_agent_mb" in on(
        pool, "policy", "set", "max_memory_per_agent_mb=1", code=1
    )


def test_doctor_says_what_is_in_effect_and_nothing_is_wrong(pool: TestBroker) -> None:
    """Settings with where they come from, the store, the devices."""
    text = on(pool, "doctor")
    assert "nothing is wrong" in text
    assert "GPU_ORCHESTRATOR_PORT" in text
    assert "environment" in text
    found = data(pool, "doctor")
    assert found["findings"] == []
    assert {s["name"] for s in found["settings"]} >= {"REDIS_URL", "SAFE_MODE"}
    assert found["keys"].startswith("none: ")
    assert found["store"]["verbs"].startswith("scripts; ")
    on(pool, "functions", "load")
    assert data(pool, "doctor")["store"]["verbs"] == f"functions, {own_library().name}"
    on(pool, "functions", "delete")


def test_doctor_finds_what_is_wrong_and_hides_the_password() -> None:
    """A store that is away, a wrong setting: each with its remedy; no secret is printed."""
    away = {"REDIS_URL": "redis://user:hunter2@127.0.0.1:1"}
    answer = called("doctor", **away, SAFE_MODE="maybe")
    assert answer.returncode == 2
    assert "WRONG" in answer.stdout
    assert "SAFE_MODE" in answer.stdout
    assert "redis://user:***@127.0.0.1:1" in answer.stdout
    assert "hunter2" not in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    "command",
    ["status", "status -w", "leases", "hosts", "queue", "events -f", "events --since 1-0"],
)
def test_command_without_a_store_ends_69_with_a_hint(command: str) -> None:
    """Soon, and with what to do."""
    began = time.monotonic()
    call = gpu_broker if command == "status" else called  # one as a shell sees it
    answer = call(*command.split(), REDIS_URL="redis://user:hunter2@127.0.0.1:1")
    assert answer.returncode == 69, answer.stderr
    assert time.monotonic() - began < 4
    assert "Start that server, or name one that suits in REDIS_URL" in answer.stderr
    assert "hunter2" not in answer.stderr


@pytest.mark.parametrize("command", ["status", "status -w", "events -f --since 1-0"])
def test_command_that_the_store_denies_ends_77(pool: TestBroker, command: str) -> None:
    """A user without rights is told so."""
    pool.client.redis.execute_command(
        "ACL", "SETUSER", "guest", "on", ">guest", "+ping", "~nothing"
    )
    path = pool.url.removeprefix("unix://")
    call = gpu_broker if command == "status" else called  # as above
    answer = call(*command.split(), REDIS_URL=f"unix://guest:guest@{path}")
    assert answer.returncode == 77, answer.stderr
    assert "denies" in answer.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str) -> None:
    """--help teaches."""
    answer = called(command, "--help")
    assert answer.returncode == 0
    assert "Example" in answer.stdout
    assert f"gpu-broker {command}" in answer.stdout
    begins = [line.strip() for line in answer.stdout.splitlines() if "Example" in line]
    assert all(re.fullmatch(r"Examples?( of a file)?:", line) for line in begins), begins
    assert "\\b" not in answer.stdout
    sentences = answer.stdout.partition("Example")[0].splitlines()
    assert max(map(len, sentences)) <= 80  # a terminal's width: they wrap
    # without a name a command means the lease of this shell, or is wrong
    assert answer.stdout.count("xargs") == answer.stdout.count("xargs -r")


@pytest.mark.parametrize("words", ["--help", "status --help"])
def test_help_is_quick(words: str) -> None:
    """Promised below 300 ms; in CPU time, which other programs on the machine do not lengthen."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([PROGRAM, *words.split()], capture_output=True, check=False)
        assert done.returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.6


@pytest.mark.parametrize("words", ["--help", "status --help", "run --help"])
def test_help_imports_little(words: str) -> None:
    """No command is imported for the table of all, and none of these imports the broker."""
    program = (
        "import atexit, sys; from broker.cli import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        f"main({words.split()}, 'gpu-broker')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    modules = set(done.stderr.split())
    assert "broker.cli" in modules, done.stderr
    assert modules & {"fastapi", "uvicorn", "pydantic", "prometheus_client", "pynvml"} == set()
    assert words != "--help" or not any(m.startswith("broker.cli.commands.") for m in modules)

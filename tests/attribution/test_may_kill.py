"""A reporter that may end processes, and callers that name processes of others.

A lease's pid is what its caller says it is. These callers lie; the victims are real.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import AsyncLeaseClient, LeaseClient, evidence
from agent_sdk.fork import identity
from agent_sdk.protocol.messages import new_token
from agent_sdk.request import process_id
from agent_sdk.testing import running_broker
from broker.attribution.processes import Programs
from tests.api.brokers import eventually
from tests.attribution.machine import SLEEP, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534

NAMELESS = "a-token-of-nobody"

FORKS = """
import os, sys, time
from agent_sdk import LeaseClient
client = LeaseClient.from_env()
lease = client.acquire("holder", memory_mb=1000, ttl_s=1)
child = os.fork()
if not child:
    time.sleep(120)
print(lease.token, child, flush=True)
time.sleep(120)
"""


@contextmanager
def victim(machine: Machine, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has nothing to do with the liar."""
    command = [sys.executable, "-c", SLEEP]
    with subprocess.Popen(
        command, env=machine.env | env, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def naming(machine: Machine, pid: int) -> LeaseClient:
    """A client that says of itself that it is the process `pid`."""
    start = Programs().look({pid})[pid].start
    client = LeaseClient(machine.client.store, pool=machine.env["GPU_BROKER_POOL"], hostname="h1")
    caller = client._caller
    caller._processes[identity()] = caller._process()._replace(pid=f"{pid}:{start}")
    return client


def enforce(machine: Machine, **more: Any) -> None:
    """End whatever can be ended, at once."""
    machine.client.set_policy(
        orphan_action="enforce", squatter_action="enforce", enforce_after_s=0, expiry_grace_s=1,
        **more,
    )  # fmt: skip


def looks(machine: Machine, count: int = 4) -> None:
    """Wait until the reporter has looked so many times more."""
    for _ in range(count):
        before = machine.sampled_ms
        eventually(lambda before=before: machine.sampled_ms > before, 10)


def for_others(machine: Machine) -> LeaseClient:
    """Lease as the HTTP API does: no process is registered."""
    pool = machine.env["GPU_BROKER_POOL"]
    return LeaseClient(machine.client.store, pool=pool, hostname="h1", for_others=True)


@pytest.mark.parametrize("how", ["orphan", "oom", "squatter"])
@pytest.mark.parametrize("named", [False, True])
def test_process_of_a_lease_is_not_ended_for_who_names_its_pid(
    machine: Machine, how: str, named: bool
) -> None:
    """Its own lease is of HTTP, and it has its token or not; the liar's runs out or is small."""
    with machine.reporter("--may-kill"), for_others(machine) as http:
        enforce(machine, kill_on_oom=how == "oom")
        mine = http.acquire("victim", memory_mb=9500, ttl_s=0)
        with victim(machine, **({"GPU_LEASE_TOKEN": mine.token} if named else {})) as process:
            machine.is_now((process.pid, 9000))
            looks(machine, 2)
            with naming(machine, process.pid) as liar:
                lie = liar.acquire("evil", memory_mb=1, ttl_s=1 if how == "orphan" else 0)
                if how == "squatter":
                    liar.release(lie)
                if how == "oom":
                    machine.is_now((process.pid, 9990))
                if how == "orphan":
                    eventually(lambda: machine.client.reap() and not _lives(machine, lie.token), 10)
                looks(machine)
                assert process.poll() is None
                assert machine.events("process_ended") == []
                assert machine.gpu().state == "ok"


def _lives(machine: Machine, token: str) -> bool:
    return any(lease.token == token for lease in machine.client.leases())


def test_neighbour_is_not_ended_for_who_names_the_parent_of_both(machine: Machine) -> None:
    """A liar names a process far above: its children are not the liar's."""
    with machine.reporter("--may-kill"), machine.holder("keep", memory_mb=4000) as holder:
        enforce(machine)
        machine.is_now((holder.child, 3000))
        looks(machine, 2)
        with naming(machine, os.getpid()) as liar:
            liar.acquire("evil", memory_mb=1, ttl_s=1)
            looks(machine, 6)
        assert machine.events("process_ended") == []
        (row,) = machine.gpu().processes
        assert (row.token, row.finding) == (holder.token, "")


def test_squatter_under_a_living_lease_of_another_kind_is_told_and_not_ended(
    machine: Machine,
) -> None:
    """It belongs to a lease on the CPU by its environment: that is a path."""
    with machine.reporter("--may-kill"):
        cpu = machine.client.acquire("a", memory_mb=99_999, on_unavailable="cpu", ttl_s=0)
        assert cpu.on_cpu
        with victim(machine, GPU_LEASE_TOKEN=cpu.token) as process:
            machine.is_now((process.pid, 2000))
            eventually(lambda: machine.found() == {("squatter", str(process.pid))}, 10)
            enforce(machine)
            looks(machine)
            assert process.poll() is None
            machine.client.release(cpu)
            assert process.wait(15) == -15, "now it belongs to none that lives"


def test_orphan_of_who_showed_its_lease_is_ended_though_its_holder_is_gone(
    machine: Machine,
) -> None:
    """The process that was seen to hold the lease is remembered; a forked child shows it itself."""
    with machine.reporter("--may-kill"), machine.python(FORKS) as parent:
        assert parent.stdout
        token, child = parent.stdout.readline().split()
        machine.is_now((int(child), 900))
        eventually(lambda: machine.gpu().processes and machine.gpu().processes[0].token, 10)
        enforce(machine)
        parent.kill()
        (said,) = eventually(lambda: machine.events("process_ended"), 15)
        assert (said["pid"], said["token"], said["signal"]) == (child, token, "TERM")


@pytest.mark.parametrize("kind", [LeaseClient, AsyncLeaseClient])
async def test_each_client_shows_what_it_asks_for(machine: Machine, kind: Any) -> None:
    """Before it asks; of a token that it never named, nothing."""
    with machine.reporter():
        pool = machine.env["GPU_BROKER_POOL"]
        client = kind(machine.client.store, pool=pool, hostname="h1")
        lease = client.acquire("a", memory_mb=1)
        lease = await lease if kind is AsyncLeaseClient else lease
        pid, _, start = process_id().partition(":")
        system = Programs()
        assert system.evidence(int(pid), int(start), lease.token) is True
        assert system.evidence(int(pid), int(start), NAMELESS) is False
        assert system.evidence(int(pid), int(start) + 1, lease.token) is False
        for done in (client.release(lease), client.close()):
            if kind is AsyncLeaseClient:
                await done


def test_lease_for_others_shows_nothing(machine: Machine) -> None:
    """The broker asks for agents: its own process holds none of their leases."""
    with machine.reporter(), for_others(machine) as http:
        lease = http.acquire("a", memory_mb=1)
        pid, _, start = process_id().partition(":")
        assert Programs().evidence(int(pid), int(start), lease.token) is False


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users")
def test_evidence_that_was_handed_to_a_process_is_none() -> None:
    """A file of another user's under our name, open in a process that took it, shows nothing."""
    show = f"import os; from agent_sdk import evidence; evidence.show({NAMELESS!r}); "
    with subprocess.Popen(
        [sys.executable, "-c", show + SLEEP], stdout=subprocess.PIPE, text=True
    ) as honest:
        assert honest.stdout
        honest.stdout.readline()
        page = next(
            int(fd) for fd in os.listdir(f"/proc/{honest.pid}/fd")  # noqa: PTH208 - numbers
            if evidence.NAME in os.readlink(f"/proc/{honest.pid}/fd/{fd}")  # noqa: PTH115 - a text
        )  # fmt: skip
        start = Programs().look({honest.pid})[honest.pid].start
        assert Programs().evidence(honest.pid, start, NAMELESS) is True
        os.chown(f"/proc/{honest.pid}/fd/{page}", NOBODY, NOBODY)
        assert Programs().evidence(honest.pid, start, NAMELESS) is False
        honest.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")
def test_evidence_of_a_process_that_we_may_not_look_into_is_unknown() -> None:
    """A reporter without rights reckons its memory to the lease that is said to have it."""
    code = (
        "import sys; from broker.attribution.processes import Programs; "
        "pid, start = map(int, sys.argv[1:]); print(Programs().evidence(pid, start, 'a' * 16))"
    )
    pid, _, start = process_id().partition(":")
    setpriv = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --".split()
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    command = [*setpriv, "/usr/bin/python3", "-c", path + code, pid, start]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no interpreter that every user may run")
    assert done.stdout.strip() == "None"


def test_descriptors_that_are_all_closed_hurt_no_file_that_comes_after(tmp_path: object) -> None:
    """A daemon closes what it has; its next file gets the number, and none of our bytes."""
    code = (
        "import os, sys; from agent_sdk import evidence; evidence.show('a' * 16); "
        "os.closerange(3, 100); "
        "file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); "
        "[os.dup(file) for _ in range(20)]; "
        "[evidence.show(str(n) * 16) for n in range(9)]; os._exit(0)"
    )
    file = f"{tmp_path}/data"
    subprocess.run([sys.executable, "-c", code, file], check=True)
    assert os.stat(file).st_size == 0  # noqa: PTH116 - a name


def test_held_lease_is_shown_however_many_others_come_and_go() -> None:
    """Others are asked for, as many as a process shows; once it is given back it may give way."""

    def shown(token: str) -> bool:
        return evidence.shows(bytes(evidence._pages[identity()]._memory), token)

    with running_broker(devices=1, memory_mb=1000) as broker:
        held = broker.client.acquire("agent", memory_mb=10, ttl_s=600)
        for _ in range(evidence.SLOTS):
            evidence.show(new_token())
        given = broker.client.acquire("agent", memory_mb=1)
        broker.client.release(given)
        for _ in range(evidence.SLOTS - 1):
            evidence.show(new_token())
        assert (shown(held.token), shown(given.token)) == (True, False)
        broker.client.release(held)
        for _ in range(evidence.SLOTS):
            evidence.show(new_token())
        assert not shown(held.token)


def test_page_of_held_leases_alone_shows_the_newest() -> None:
    """A program that drops its leases without a word cannot fill it for ever."""
    page = evidence._Page()
    tokens = [f"token-{n:04}-0123456789" for n in range(evidence.SLOTS + 3)]
    for token in tokens:
        page.hold(token)
    content = bytes(page._memory)
    assert [evidence.shows(content, token) for token in tokens[:4]] == [False, False, False, True]
    page.hold(tokens[0])
    assert evidence.shows(bytes(page._memory), tokens[0])
    began = time.perf_counter()
    for token in tokens:
        page.add(token)
        page.hold(token)
    assert time.perf_counter() - began < 1, "none looks for a place among all that are held"


def test_page_that_is_full_shows_the_newest() -> None:
    """More tokens than it has room for: the oldest give way, none is shown in part."""
    tokens = [f"token-{n:04}-0123456789" for n in range(evidence.SLOTS + 3)]
    page = evidence._Page()
    for token in tokens:
        page.add(token)
    content = bytes(page._memory)
    assert [evidence.shows(content, token) for token in tokens[:4]] == [False, False, False, True]
    assert all(evidence.shows(content, token) for token in tokens[3:])
    began = time.perf_counter()
    assert not evidence.shows(content, NAMELESS)
    assert time.perf_counter() - began < 0.5

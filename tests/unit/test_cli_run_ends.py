"""`gpu-broker run` never holds a GPU for ever: stopped commands, orphans, leavers, a store away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sdk.errors import CODES
from tests.api.brokers import PROGRAM, environment
from tests.pools import Pool, device, granted
from tests.servers import running
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_sdk.testing import TestBroker

WITHIN_S = 60
"""For what takes a second on a machine that does nothing else."""


pytestmark = pytest.mark.usefixtures("client")
"""A lease whose `run` was killed is given back before the next test."""

pool = broker_of_the_file(devices=1, memory_mb=1000)
"""One device of 1000 MiB."""


@contextmanager
def run(pool: TestBroker, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`gpu-broker run` of a shell's words; it is killed at the end of the block."""
    process = subprocess.Popen(
        [PROGRAM, "run", "-q", "--memory", "1", *words],
        env=environment(REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()
        process.wait()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state(pid: int) -> str:
    """A process's letter in /proc; empty: it is gone."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_command_goes_on_to_hear_that_it_ends(
    pool: TestBroker, number: signal.Signals
) -> None:
    """A debugger or a background read has stopped it: it gets the signal and SIGCONT."""
    loop = "trap 'exit 5' TERM HUP; echo $$; while :; do sleep 0.05; done"
    with run(pool, "--", "sh", "-c", loop) as process:
        command = int(line(process))
        os.kill(command, signal.SIGSTOP)
        until(lambda: state(command) == "T")
        process.send_signal(number)
        assert process.wait(WITHIN_S) == 5
    assert pool.client.leases() == ()


@pytest.mark.parametrize("_", range(3))
def test_stopped_command_that_is_deaf_ends_after_its_grace(pool: TestBroker, _: int) -> None:
    """It is not waited for for ever, also where its stop and the SIGTERM come together."""
    loop = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    with run(pool, "--grace", "0.3s", "--", "sh", "-c", loop) as process:
        command = int(line(process))
        os.kill(command, signal.SIGSTOP)
        until(lambda: state(command) == "T")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 128 + signal.SIGKILL
    assert pool.client.leases() == ()


def test_running_command_that_is_deaf_is_not_killed(pool: TestBroker) -> None:
    """A command that handles SIGTERM takes its time, as under env."""
    loop = "trap 'echo told' TERM; echo $$; for n in 1 2 3 4 5 6 7 8; do sleep 0.2; done; exit 6"
    with run(pool, "--grace", "0.1s", "--", "sh", "-c", loop) as process:
        line(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 6


def test_orphans_are_buried(pool: TestBroker) -> None:
    """A command that starts short helpers and lets go of them for days leaves no zombies."""
    script = (
        "for i in 1 2 3 4 5 6 7 8 9 10; do ( sleep 0.01 & ) ; done; echo started; "
        "while :; do sleep 0.05; done"
    )
    with run(pool, "--", "sh", "-c", script) as process:
        assert line(process) == "started"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        states = lambda: [state(int(pid)) for pid in children.read_text().split()]  # noqa: E731 - one line
        until(lambda: len(states()) == 2)  # the command and the guard
        assert "Z" not in states()
        process.terminate()
        process.wait(WITHIN_S)
    assert pool.client.leases() == ()


def test_guard_that_was_killed_costs_the_command_nothing(pool: TestBroker) -> None:
    """It would be told of the command just before that begins."""
    with (
        pool.client.lease("holder", memory_mb=1, exclusive=True, host=pool.host),
        run(pool, "--", "sh", "-c", "echo went; exit 3") as process,
    ):
        until(pool.client.queue)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (guard,) = map(int, children.read_text().split())
        os.kill(guard, signal.SIGKILL)
        until(lambda: state(guard) in {"", "Z"})
        pool.client.revoke(pool.client.leases()[0].token, force=True)
        assert (line(process), process.wait(WITHIN_S)) == ("went", 3)


LEAVER = "setsid sh -c 'echo $$; exec sleep 1000' & "


def test_what_left_its_group_ends_with_the_command(pool: TestBroker) -> None:
    """A daemon that could use the GPU after the lease was given back."""
    with run(pool, "--grace", "1s", "--", "sh", "-c", LEAVER + "sleep 5; exit 3") as process:
        left = int(line(process))
        assert process.wait(WITHIN_S) == 3
        assert state(left) in {"", "Z"}
    assert pool.client.leases() == ()


def test_what_left_its_group_ends_when_run_is_killed(pool: TestBroker) -> None:
    """By its environment, which names the lease; another lease's goes on."""
    other = subprocess.Popen(["sleep", "1000"], env={**os.environ, "GPU_LEASE_TOKEN": "x" * 20})
    try:
        with run(pool, "--", "sh", "-c", LEAVER + "sleep 1000") as process:
            left = int(line(process))
            process.kill()
            process.wait()
            until(lambda: state(left) in {"", "Z"})
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_store_that_is_gone_for_good_ends_the_wait() -> None:
    """It says so while it waits, and ends with 69 after a bound."""
    with running("redis") as server, server.connect() as admin:
        pool = Pool(admin)
        pool.report((device("D0"),), deadline_ms=86_400_000)
        settings = environment(
            REDIS_URL=server.url, GPU_BROKER_POOL=pool.keys.pool_name, GPU_BROKER_HOSTNAME="h1"
        )
        granted(pool.acquire(memory_mb=1000, ttl_ms=600_000))
        words = [PROGRAM, "run", "--memory", "1000", "--store-timeout", "1s", "--", "true"]
        with subprocess.Popen(words, env=settings, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            assert "waiting" in waiting.stderr.readline()
            server.kill()
            assert waiting.wait(WITHIN_S) == 69
            said = waiting.stderr.read()
    # The second where its last poll was on its way.
    assert any(CODES[code].says in said for code in ("store_unavailable", "outcome_unknown"))

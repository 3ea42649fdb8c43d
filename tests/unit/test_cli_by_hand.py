"""Leases held by hand: `acquire`, `hold`, `extend`, `release`, `wait`, with real shells."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.testing import TestBroker, running_broker
from broker.hold.control import Control, ask_keeper
from broker.hold.life import ProcessLife
from tests.api.brokers import eventually
from tests.unit.cli_runs import alive
from tests.unit.shells import TELL, on, said, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

ACQUIRE = 'eval "$(gpu-broker acquire --memory 100 --ttl 2 {} --export)"'


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    """A pool of two devices of 4000 MiB."""
    with running_broker(devices=2, memory_mb=4000) as running:
        yield running


@pytest.fixture(autouse=True)
def clean(pool: TestBroker) -> Iterator[None]:
    """Leave no lease and no waiter to the next test."""
    yield
    for lease in pool.client.leases():
        pool.client.release(lease.token)
    eventually(lambda: not pool.client.queue(), 20)


def keeper_of(pool: TestBroker, token: str) -> int:
    """Return the pid of the process that holds a lease."""
    found: Any = pool.client.lookup(token)
    return int(found.pid.partition(":")[0])


def held(pool: TestBroker) -> set[str]:
    """Return the tokens of the living leases."""
    pool.client.reap()
    return {lease.token for lease in pool.client.leases()}


@pytest.mark.parametrize("program", ["sh", "bash"])
def test_lease_lives_as_long_as_its_shell(pool: TestBroker, program: str) -> None:
    """SIGKILL of the shell gives it back at once."""
    with shell(pool, f"{ACQUIRE.format('')}; {TELL}", program) as process:
        code, token = said(process).split()
        keeper = keeper_of(pool, token)
        assert code == "0"
        assert keeper != process.pid
        assert held(pool) == {token}
    eventually(lambda: pool.client.lookup(token) == "released", 20)
    eventually(lambda: not alive(keeper), 20)


def test_lease_outlives_a_store_that_is_away_for_less_than_its_ttl(pool: TestBroker) -> None:
    """The keeper renews once the store answers again."""
    server = int(pool.client.redis.info("server")["process_id"])
    with shell(pool, f"{ACQUIRE.format('--ttl 6')}; {TELL}") as process:
        token = said(process).split()[1]
        os.kill(server, signal.SIGSTOP)
        time.sleep(2.5)  # a renewal, at 2 s, gets no answer
        os.kill(server, signal.SIGCONT)
        begun = pool.client.lookup(token)
        eventually(lambda: pool.client.lookup(token).expires_at_ms > begun.expires_at_ms, 20)


def test_lease_of_a_killed_keeper_ends_by_its_ttl(pool: TestBroker) -> None:
    """Nothing renews it; `release` of an ended lease says how it ended."""
    with shell(pool, f"{ACQUIRE.format('--ttl 1')}; {TELL}") as process:
        token = said(process).split()[1]
        os.kill(keeper_of(pool, token), signal.SIGKILL)
        eventually(lambda: token not in held(pool), 20)
        done = on(pool, "release", token)
        assert (done.returncode, "had ended before" in done.stdout) == (0, True)


@pytest.mark.parametrize("killed", ["command", "shell"])
def test_kill_during_the_wait_leaves_the_queue(pool: TestBroker, killed: str) -> None:
    """Either the command is killed, or the shell that called it."""
    for _ in range(2):
        pool.client.acquire("other", memory_mb=4000)
    script = "echo $$; gpu-broker acquire --memory 100 --agent me; read -r _"
    with shell(pool, script) as process:
        pid = int(said(process))
        token = eventually(pool.client.queue, 20)[0].token
        if killed == "command":
            listed = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, check=True
            )
            pid = int(listed.stdout.split()[0])
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pool.client.lookup(token) in {"cancelled", "released"}, 8)


def test_failure_fails_in_the_shell(pool: TestBroker) -> None:
    """`eval` returns the exit code; nothing is exported."""
    refused = ACQUIRE.format("--wait 0").replace("--memory 100", "--memory 100 --gpus 2")
    pool.client.acquire("other", memory_mb=1)
    with shell(pool, f"{refused}; {TELL}") as process:
        assert said(process) == "75"


@pytest.mark.parametrize("wrong", ["--memroy 8GiB", "--memory banana", "--ttl 0", "--pid 4194304"])
def test_wrong_call_fails_in_the_shell_too(pool: TestBroker, wrong: str) -> None:
    """`eval` of nothing would succeed, and what stands behind it would run without a lease."""
    with shell(
        pool, f'eval "$(gpu-broker acquire {wrong} --export)" && echo ran; echo $?'
    ) as process:
        assert said(process) == "2"


def test_lease_that_cannot_be_told_of_is_given_back(pool: TestBroker) -> None:
    """A full disk, or a closed stdout, fails; a closed stdin and stderr are no matter."""
    with shell(pool, "gpu-broker acquire --memory 100 > /dev/full; echo $?") as process:
        assert said(process) == "1"
    eventually(lambda: not held(pool), 20)
    with shell(pool, "gpu-broker acquire --memory 100 >&- ; echo $?") as process:
        assert said(process) == "1"
    assert held(pool) == set()
    script = ACQUIRE.format("").replace(')"', ' <&- 2>&- | cat)"')
    with shell(pool, f"{script}; {TELL}") as process:
        token = said(process).split()[1]
        assert on(pool, "wait", token, "--end", "--timeout", "0.5").returncode == 75
        assert held(pool) == {token}


def test_extend_moves_the_end_that_a_keeper_was_told(pool: TestBroker) -> None:
    """By the beginning of the token; without, the lease is given back at its time."""
    with shell(pool, f"{ACQUIRE.format('--for 1')}; {TELL}") as process:
        token = said(process).split()[1]
        told = json.loads(on(pool, "extend", token[:8], "1h", "-o", "json").stdout)
        assert told["kept"]
        assert 3590 < told["ends_at"] - time.time() < 3603
        time.sleep(1.2)
        assert held(pool) == {token}
    with shell(pool, f"{ACQUIRE.format('--for 0.5')}; {TELL}") as process:
        token = said(process).split()[1]
        eventually(lambda: pool.client.lookup(token) == "released", 20)


def test_extend_says_what_limits_it(pool: TestBroker) -> None:
    """Its keeper's missing end, seven days, a lease without an expiry, an unknown one."""
    plain = pool.client.acquire("a", memory_mb=1)
    assert "ends in 60 min" in on(pool, "extend", plain.token, "3570s").stdout
    assert "7 days without a renewal at most" in on(pool, "extend", plain.token, "30d").stdout
    endless = pool.client.acquire("a", memory_mb=1, ttl_s=0)
    assert "has no expiry" in on(pool, "extend", endless.token, "1h").stdout
    with shell(pool, f"{ACQUIRE.format('')}; {TELL}") as process:
        token = said(process).split()[1]
        assert f"until process {process.pid} ends" in on(pool, "extend", token, "1h").stdout
    assert on(pool, "extend", "no-such-token-at-all", "1h").returncode == 1


def test_release_gives_back_and_ends_the_keeper(pool: TestBroker) -> None:
    """Several at once, by their beginnings; an unknown one fails, and the others are done."""
    script = f'{ACQUIRE.format("")}; {TELL}; eval "$(gpu-broker release --export)"; {TELL}'
    with shell(pool, script) as process:
        token = said(process).split()[1]
        keeper, other = keeper_of(pool, token), pool.client.acquire("a", memory_mb=1).token
        done = on(pool, "release", other[:8], "no-such-token-at-all", "-o", "json")
        assert json.loads(done.stdout)["released"] == [other]
        assert done.returncode == 1
        assert "no-such-token-at-all; gpu-broker leases lists all" in done.stderr
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        assert said(process) == "0"
        assert pool.client.lookup(token) == "released"
        eventually(lambda: not alive(keeper), 20)


def test_hold_gives_back_at_ctrl_c(pool: TestBroker) -> None:
    """It holds a whole GPU; the end that was asked for is no failure."""
    with shell(pool, "exec gpu-broker hold --ttl 2 -o json") as process:
        assert process.stdout
        lines = iter(process.stdout.readline, "}\n")
        token = json.loads("".join([*lines, "}"]))["token"]
        assert pool.client.lookup(token).memory_mb == 4000
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert pool.client.lookup(token) == "released"


def test_hold_says_how_it_ends(pool: TestBroker) -> None:
    """By its time, by `release` and by Ctrl-C."""
    with shell(pool, "exec gpu-broker hold --memory 100 --for 1s 2>&1") as process:
        text = process.communicate()[0]
    ways = r"kept until [\d:]+; gpu-broker release \w{8} gives it back, and so does Ctrl-C\n"
    assert re.search(ways, text), text


def test_detached_hold_outlives_its_shell(pool: TestBroker) -> None:
    """It needs an end; it ends by `release`."""
    assert "--detach needs an end" in on(pool, "hold", "--detach").stderr
    script = "gpu-broker hold --memory 100 --for 1h --detach -o json"
    with shell(pool, script) as process:
        facts = json.loads(process.communicate()[0])
    assert held(pool) == {facts["token"]}
    assert alive(facts["keeper_pid"])
    on(pool, "release", facts["token"])
    eventually(lambda: not alive(facts["keeper_pid"]), 20)


def test_wait_returns_when_a_waiter_has_its_lease(pool: TestBroker) -> None:
    """And with `--end` when a lease ends. 75 after `--timeout`, 1 for a wait without a lease."""
    full = [pool.client.acquire("other", memory_mb=4000) for _ in range(2)]
    assert on(pool, "wait", full[0].token, "--end", "--timeout", "0.1").returncode == 75
    with shell(pool, "gpu-broker acquire --memory 100 -o json; read -r _"):
        token = eventually(pool.client.queue, 20)[0].token
        assert on(pool, "wait", token, "--timeout", "0.1").returncode == 75
        with shell(pool, f"exec gpu-broker wait {token} -o json") as waiting:
            pool.client.release(full[0])
            told = json.loads(waiting.communicate(timeout=20)[0])
        assert (told["state"], told["lease"]["token"]) == ("active", token)
        with shell(pool, f"exec gpu-broker wait {token} --end -o json") as waiting:
            pool.client.release(token)
            told = json.loads(waiting.communicate(timeout=20)[0])
        assert (waiting.returncode, told["outcome"]) == (0, "released")
    assert on(pool, "wait", token).returncode == 1
    assert on(pool, "wait", "no-such-token-at-all").returncode == 1


@contextmanager
def silent(pool: TestBroker) -> Iterator[None]:
    """Let the server answer nothing for a block, once a `wait` reads the pool's events."""
    redis: Any = pool.client.redis
    server = int(redis.info("server")["process_id"])
    eventually(lambda: any("xread" in each["cmd"] for each in redis.client_list()), 20)
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server, signal.SIGCONT)


def test_wait_outlives_a_store_that_does_not_answer(pool: TestBroker) -> None:
    """It goes on when the store does, as after a refused connection."""
    lease = pool.client.acquire("other", memory_mb=100, ttl_s=60)
    with shell(pool, f"exec gpu-broker wait {lease.token} --end") as waiting:
        with silent(pool):
            time.sleep(4)  # a call of a second or two gets no answer
        pool.client.release(lease)
        assert waiting.wait(20) == 0


def test_wait_ends_by_its_timeout_also_without_a_store(pool: TestBroker) -> None:
    """An outage does not prolong the time that the caller has, and is told."""
    lease = pool.client.acquire("other", memory_mb=100, ttl_s=60)
    with shell(pool, f"exec gpu-broker wait {lease.token} --end --timeout 3") as waiting:
        with silent(pool):
            assert waiting.wait(20) == 75
        assert waiting.stderr is not None
        assert "Redis" in waiting.stderr.readline()
        assert "has not ended after 3 s" in waiting.stderr.readline()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_keeper_obeys_its_user_alone() -> None:
    """Another user's request gets no answer, and another user's keeper is not asked."""
    read, write = os.pipe()
    acts: list[Any] = []
    with Control("a-token-of-root-1") as control:
        if (other := os.fork()) == 0:
            try:
                os.setuid(65534)
                asked = ask_keeper("a-token-of-root-1", do="release")
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                    link.settimeout(20)
                    link.connect(control._socket.getsockname())
                    said_back = b""
                    with suppress(OSError):  # closed with our message unread, or before it
                        link.send(b'{"do": "release"}')
                        said_back = link.recv(100)
                    os.write(write, repr((asked, said_back)).encode())
            finally:
                os._exit(0)
        os.close(write)
        control._socket.settimeout(20)
        for _ in range(2):
            control.answer(lambda request: acts.append(request) or {})
        assert os.read(read, 100) == b"(None, b'')"
        os.waitpid(other, 0)
    os.close(read)
    assert acts == []
    assert ask_keeper("a-token-of-root-1") is None


def test_keeper_that_cannot_be_asked_sleeps() -> None:
    """Its address is taken: it waits as any other, and the first one is asked."""
    with Control("a-token-of-two-0") as first, Control("a-token-of-two-0") as second:
        assert select.select([first, second], [], [], 0.2)[0] == []
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(ask_keeper, "a-token-of-two-0", do="tell")
            assert select.select([first, second], [], [], 20)[0] == [first]
            first.answer(lambda _: {"kept": True})
            assert asked.result(20) == {"kept": True}


def test_life_is_seen_without_a_descriptor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pidfd /proc tells; a process that is gone has no life."""

    def refuse(_: int) -> int:
        raise PermissionError

    with subprocess.Popen(["sleep", "100"]) as process:
        lives = [ProcessLife(process.pid)]
        monkeypatch.setattr(os, "pidfd_open", refuse)
        lives.append(ProcessLife(process.pid))
        assert [life.over for life in lives] == [False, False]
        process.kill()
    assert [life.over for life in lives] == [True, True]
    with pytest.raises(ProcessLookupError):
        ProcessLife(process.pid)

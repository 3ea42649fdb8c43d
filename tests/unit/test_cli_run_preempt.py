"""`gpu-broker run` whose lease is taken back: the notice, the time to save, and the next lease."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.errors import LeaseError
from tests.api.brokers import PROGRAM, eventually
from tests.unit.brokers import broker_of_the_file
from tests.unit.cli_runs import alive, run, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.state.snapshot import LeaseStatus
    from agent_sdk.testing import TestBroker

WITHIN_S = 60

GRACE_S = 6
"""Seconds from a notice to the end of a lease here."""

SAVES = """
trap 'echo $((n)) > {0}; echo saved; exit 0' USR1
n=$(cat {0} 2>/dev/null || echo 0)
echo "attempt $GPU_BROKER_ATTEMPT at $n"
[ "$n" -gt 0 ] && exit 0
while :; do n=$((n + 1)); sleep 0.05; done
"""
"""Count, save the count at SIGUSR1, and be content where another process has begun."""

TOLD = "echo up $$; trap 'echo told; exit 5' TERM; while :; do sleep 0.05; done"

pool = broker_of_the_file(devices=1, memory_mb=1000)


@pytest.fixture(autouse=True)
def lab(pool: TestBroker) -> Iterator[None]:
    """Preemption after a second, and afterwards no lease and no waiter."""
    pool.client.set_policy(reclaim_after_s=1, min_runtime_s=0, preempt_grace_s=GRACE_S)
    yield
    eventually(lambda: not pool.client.queue(), 20)
    for lease in pool.client.leases():
        pool.client.release(lease.token)


@contextmanager
def victim(pool: TestBroker, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a preemptible command, whose lease is renewed every second, and kill it at the end."""
    process = subprocess.Popen(
        [PROGRAM, "run", "--memory", "900", "--preemptible", "--ttl", "3", "-o", "json", *words],
        env=settings(pool), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


class Asker:
    """Waiter of a higher priority; `lease` is what it got."""

    def __init__(self, pool: TestBroker) -> None:
        self.lease: Any = None
        self.at = 0.0
        self._client = pool.client
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        ask: dict[str, Any] = {"memory_mb": 900, "priority": 5, "host": "any", "ttl_s": 600}
        try:
            self.lease = self._client.acquire("asker", wait_s=WITHIN_S, **ask)
        except LeaseError as error:
            self.lease = error.code
        self.at = time.time()

    def leave(self) -> None:
        """Leave the queue, and give back what was granted."""
        for waiter in self._client.queue():
            if waiter.agent == "asker":
                self._client.release(waiter.token)
        self._thread.join(WITHIN_S)
        if hasattr(self.lease, "token"):
            self._client.release(self.lease.token)

    def wait(self) -> None:
        """Wait for the lease."""
        self._thread.join(WITHIN_S)
        assert hasattr(self.lease, "token"), self.lease


@contextmanager
def asker(pool: TestBroker) -> Iterator[Asker]:
    found = Asker(pool)
    try:
        yield found
    finally:
        found.leave()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def told(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Wait for a message of that name."""
    assert process.stderr is not None
    for text in process.stderr:
        if not text.startswith("{"):  # the shell's own words, of a child that a signal ended
            continue
        found: dict[str, Any] = json.loads(text)
        if found["event"] == event:
            return found
    raise AssertionError(f"no message {event}")


def record(pool: TestBroker, token: str) -> dict[str, str]:
    found: dict[str, str] = pool.client.redis.hgetall(f"{pool.client.keys.base}:record:{token}")
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def only_lease(pool: TestBroker) -> LeaseStatus:
    (lease,) = pool.client.leases()
    return lease


def test_command_saves_at_the_notice_and_the_asker_gets_the_room_early(
    pool: TestBroker, tmp_path: Path
) -> None:
    """The lease is given back when it ends; the code says: preempted, though it ended with 0."""
    words = ("--on-preempt", "SIGUSR1", "--", "sh", "-c", SAVES.format(tmp_path / "state"))
    with victim(pool, *words) as process:
        assert line(process).startswith("attempt")
        with asker(pool) as other:
            notice = told(process, "preempting")
            assert notice["signal"] == "SIGUSR1"
            assert 0 < notice["preempt_at"] - time.time() <= GRACE_S
            assert line(process) == "saved"
            assert process.wait(WITHIN_S) == 75
            other.wait()
            assert other.at < notice["preempt_at"]


def test_command_without_a_wish_runs_to_the_end_of_its_time(pool: TestBroker) -> None:
    """SIGTERM then, as after a revoke."""
    with victim(pool, "--", "sh", "-c", TOLD) as process:
        line(process)
        with asker(pool) as other:
            notice = told(process, "preempting")
            assert line(process) == "told"
            assert time.time() > notice["preempt_at"] - 1.5
            assert process.wait(WITHIN_S) == 75
            other.wait()


def test_messages_are_all_of_one_form(pool: TestBroker) -> None:
    """The SDK logs nothing of a lease beside them."""
    with victim(pool, "--", "sleep", "1000") as process:
        eventually(pool.client.leases, 20)
        with asker(pool) as other:
            lines = process.communicate(timeout=WITHIN_S)[1].splitlines()
            other.wait()
    assert [json.loads(text)["event"] for text in lines] == [
        "granted", "started", "preempting", "lost", "ended",
    ]  # fmt: skip


def test_command_beside_finds_what_it_needs_and_its_end_ends_the_other(
    pool: TestBroker, tmp_path: Path
) -> None:
    """Token, time and pid; its exit code is told, also one of failure."""
    seen = tmp_path / "seen"
    beside = (
        f'echo "$GPU_BROKER_TOKEN $GPU_BROKER_PREEMPT_AT $GPU_BROKER_COMMAND_PID '
        f'$GPU_LEASE_TOKEN" > {seen}; exit 3'
    )
    with victim(pool, "--on-preempt", beside, "--", "sh", "-c", TOLD) as process:
        pid = line(process).split()[1]
        token = only_lease(pool).token
        with asker(pool):
            notice = told(process, "preempting")
            assert told(process, "checkpointed")["exit_code"] == 3
            assert line(process) == "told"
            assert process.wait(WITHIN_S) == 75
    by, at, found, lease = seen.read_text().split()
    assert (by, lease, found) == (token, token, pid)
    assert abs(float(at) - notice["preempt_at"]) < 0.01


@pytest.mark.parametrize("wish", ["SIGUSR1", "exec sleep 1000"])
def test_window_ends_before_the_lease_does(pool: TestBroker, wish: str) -> None:
    """A command that does nothing with the signal, or one beside it that takes for ever."""
    words = ("--on-preempt", wish, "--checkpoint-window", "1s", "--grace", "1s")
    deaf = f"trap '' USR1; {TOLD}"
    with victim(pool, *words, "--", "sh", "-c", deaf) as process:
        line(process)
        with asker(pool) as other:
            notice = told(process, "preempting")
            assert notice["window_s"] == 1
            assert line(process) == "told"
            assert process.wait(WITHIN_S) == 75
            other.wait()
            assert other.at < notice["preempt_at"]


def test_window_is_never_longer_than_the_lease(pool: TestBroker) -> None:
    """Whatever is asked for."""
    words = ("--on-preempt", "SIGWINCH", "--checkpoint-window", "10m", "--", "sh", "-c", TOLD)
    with victim(pool, *words) as process:
        line(process)
        with asker(pool) as other:
            assert told(process, "preempting")["window_s"] <= GRACE_S
            assert process.wait(WITHIN_S) == 75
            other.wait()


def test_requeued_command_goes_on_from_what_it_saved(pool: TestBroker, tmp_path: Path) -> None:
    """It waits behind the asker, under a new lease, which is protected for longer."""
    words = ("--on-preempt", "SIGUSR1", "--requeue", "--", "sh", "-c")
    with victim(pool, *words, SAVES.format(tmp_path / "state")) as process:
        assert line(process) == "attempt 1 at 0"
        first = only_lease(pool).token
        with asker(pool) as other:
            assert line(process) == "saved"
            again = told(process, "requeued")
            assert (again["after"], again["attempt"]) == (first, 2)
            other.wait()
            eventually(lambda: [w.agent for w in pool.client.queue()] != [], 20)
            waiter = pool.client.queue()[0].token
        saved = int((tmp_path / "state").read_text())
        assert line(process) == f"attempt 2 at {saved}"
        assert saved > 0
        assert waiter != first
        assert process.wait(WITHIN_S) == 0


def test_next_lease_of_the_job_is_protected_for_longer(pool: TestBroker, tmp_path: Path) -> None:
    """The pool counts how often the job was preempted."""
    words = ("--on-preempt", "SIGUSR1", "--requeue", "--", "sh", "-c")
    script = SAVES.format(tmp_path / "state").replace("] && exit 0", "] && read -r _ < /dev/zero")
    with victim(pool, *words, script) as process:
        line(process)
        with asker(pool) as other:
            told(process, "requeued")
            other.wait()
        told(process, "granted")
        assert record(pool, only_lease(pool).token)["evictions"] == "1"


def test_withdrawn_notice_leaves_the_command_its_own_end(pool: TestBroker, tmp_path: Path) -> None:
    """It is told, and after its window its code counts again."""
    words = ("--on-preempt", "SIGWINCH", "--checkpoint-window", "2s", "--", "sh", "-c")
    script = "echo up; read -r _ < $0; exit 4"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pool.client.set_policy(preempt_grace_s=30)
    with victim(pool, *words, script, str(pipe)) as process:
        line(process)
        with asker(pool):
            told(process, "preempting")
        told(process, "preemption_withdrawn")
        time.sleep(2.5)
        pipe.write_text("\n")
        assert process.wait(WITHIN_S) == 4


def test_kill_of_run_in_the_window_ends_all_that_it_started(
    pool: TestBroker, tmp_path: Path
) -> None:
    """The command, the one beside it, and the lease, whose room the asker gets."""
    seen = tmp_path / "beside"
    beside = f"echo $$ > {seen}.new; mv {seen}.new {seen}; sleep 1000"
    with victim(pool, "--on-preempt", beside, "--", "sh", "-c", TOLD) as process:
        pid = int(line(process).split()[1])
        with asker(pool) as other:
            told(process, "preempting")
            eventually(seen.exists, 20)
            process.kill()
            process.wait()
            eventually(lambda: not alive(pid), 20)
            eventually(lambda: not alive(int(seen.read_text())), 20)
            other.wait()


@pytest.mark.parametrize("of", ["command", "beside"])
def test_kill_in_the_window_costs_the_other_nothing(
    pool: TestBroker, tmp_path: Path, of: str
) -> None:
    """A killed command is requeued; one beside it that is killed has the command asked to end."""
    seen, begun = tmp_path / "beside", tmp_path / "begun"
    beside = f"echo $$ > {seen}.new; mv {seen}.new {seen}; exec sleep 1000"
    script = f"[ -e {begun} ] && exit 0; : > {begun}; {TOLD}"
    words = ("--on-preempt", beside, "--requeue", "--checkpoint-window", "4s")
    with victim(pool, *words, "--", "sh", "-c", script) as process:
        pid = int(line(process).split()[1])
        with asker(pool) as other:
            told(process, "preempting")
            eventually(seen.exists, 20)
            os.kill(pid if of == "command" else int(seen.read_text()), signal.SIGKILL)
            if of == "beside":
                assert told(process, "checkpointed")["exit_code"] == 128 + signal.SIGKILL
                assert line(process) == "told"
            assert told(process, "requeued")["attempt"] == 2
            other.wait()
            assert not alive(int(seen.read_text()))
        assert process.wait(WITHIN_S) == 0


@pytest.mark.parametrize("moment", ["window", "queue"])
def test_caller_that_ends_it_has_no_new_attempt(
    pool: TestBroker, tmp_path: Path, moment: str
) -> None:
    """SIGTERM in the window ends the command for good; in the queue it gives up the place."""
    script = TOLD if moment == "window" else SAVES.format(tmp_path / "state")
    wish = "SIGWINCH" if moment == "window" else "SIGUSR1"
    with victim(pool, "--on-preempt", wish, "--requeue", "--", "sh", "-c", script) as process:
        line(process)
        with asker(pool) as other:
            told(process, "preempting" if moment == "window" else "requeued")
            if moment == "queue":
                other.wait()
                eventually(pool.client.queue, 20)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN_S) == (5 if moment == "window" else 128 + signal.SIGTERM)
            eventually(lambda: all(w.agent == "asker" for w in pool.client.queue()), 20)


LEAVES = """
trap 'echo saved; exit 0' USR1
(trap '' TERM USR1; exec sleep 1000) &
echo up $$; while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(
    ("moment", "number"),
    [("leftovers", signal.SIGTERM), ("beside", signal.SIGINT), ("release", signal.SIGTERM)],
)
def test_caller_that_ends_it_between_two_attempts_has_no_new_one(
    pool: TestBroker, moment: str, number: signal.Signals
) -> None:
    """After its command has ended, while leftovers, the one beside it, or the store are awaited."""
    wish = "exec sleep 1000" if moment == "beside" else "SIGUSR1"
    script = TOLD if moment == "beside" else LEAVES
    if moment == "release":
        script = LEAVES.replace("(trap '' TERM USR1; exec sleep 1000) &", "")
    with victim(pool, "--on-preempt", wish, "--requeue", "--", "sh", "-c", script) as process:
        pid = int(line(process).split()[-1])
        with asker(pool):
            told(process, "preempting")
            if moment == "release":
                pool.client.redis.client_pause(2000)
            if moment == "beside":
                os.kill(pid, signal.SIGKILL)
            else:
                assert line(process) == "saved"
            if moment == "leftovers":
                told(process, "left_behind")
            eventually(lambda: not Path(f"/proc/{pid}").exists(), 20)  # it has seen the end
            process.send_signal(number)
            code = process.wait(WITHIN_S)
            assert code == (-number if number == signal.SIGINT else 128 + number)
            assert process.stderr is not None
            assert "requeued" not in process.stderr.read()


def test_revoked_lease_is_not_taken_for_a_preempted_one(pool: TestBroker) -> None:
    """An operator ends it while the notice is open: the command's code, and no new attempt."""
    words = ("--on-preempt", "SIGWINCH", "--requeue", "--", "sh", "-c", TOLD)
    with victim(pool, *words) as process:
        line(process)
        with asker(pool):
            told(process, "preempting")
            pool.client.revoke(only_lease(pool).token)
            assert process.wait(WITHIN_S) == 5


@pytest.mark.parametrize(
    ("wish", "says"), [("SIGKILL", "no command can save"), ("SIGUSR9", "SIGUSR1"), ("", "SIGUSR1")]
)
def test_signal_that_cannot_be_is_refused(pool: TestBroker, wish: str, says: str) -> None:
    done = run(pool, "--on-preempt", wish, "--", "true")
    assert done.returncode == 2
    assert says in done.stderr


def test_asked_holder_says_which_agent_wants_how_much(pool: TestBroker) -> None:
    """On stderr, once; a holder that said nothing of yielding is not asked."""
    with victim(pool, "--yields", "--", "sh", "-c", TOLD) as process:
        line(process)
        pool.client.set_policy(reclaim_after_s=0)
        with asker(pool):
            waiter = eventually(pool.client.queue, 20)[0].token
            assert pool.client.request_yield(only_lease(pool).token, waiter)
            wanted = told(process, "wanted")
            assert (wanted["agent"], wanted["memory_mb"]) == ("asker", 900)
            process.terminate()
            rest = process.communicate(timeout=WITHIN_S)[1]
            assert '"wanted"' not in rest


def test_guard_forgets_what_has_ended(tmp_path: Path) -> None:
    """A group that gets the number of an ended attempt's is not killed with `run`."""
    script = (
        "import os, sys\n"
        "from broker.run.guard import Guard\n"
        "with Guard() as guard:\n"
        "    guard.watch(int(sys.argv[1]), 'a' * 32)\n"
        "    if sys.argv[2] == 'forget':\n"
        "        guard.forget()\n"
        "    guard.watch(int(sys.argv[3]), 'b' * 32)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    for does in ("forget", "keep"):
        groups = [
            subprocess.Popen(["sleep", "1000"], process_group=0, stdin=subprocess.DEVNULL)
            for _ in range(2)
        ]
        try:
            pids = [str(group.pid) for group in groups]
            subprocess.run(
                [sys.executable, "-c", script, pids[0], does, pids[1]], check=False, cwd=tmp_path
            )
            assert groups[1].wait(WITHIN_S) == -signal.SIGKILL
            if does == "keep":
                assert groups[0].wait(WITHIN_S) == -signal.SIGKILL
            else:
                assert groups[0].poll() is None
        finally:
            for group in groups:
                group.kill()
                group.wait()

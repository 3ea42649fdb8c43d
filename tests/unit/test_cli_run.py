"""`gpu-broker run` against a real pool: what it says, what the command finds, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.testing import TestBroker, running_broker
from tests.api.brokers import PROGRAM, eventually
from tests.program import called
from tests.servers import free_port
from tests.unit.cli_runs import alive, events, run, running, settings
from tests.unit.terminals import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOW_ENV = "env | grep -E '^(GPU_LEASE|CUDA)' | sort"

UNTIL_TOLD = "echo up; trap 'echo told; exit 5' TERM; while :; do sleep 0.05; done"
"""Says when it is there, and when it gets SIGTERM."""

DEAF = "echo up; trap '' TERM; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    """Two devices of 1000 MiB, and somebody who takes back what is over, as brokers do."""
    over = threading.Event()
    with running_broker(devices=2, memory_mb=1000) as running:

        def tick() -> None:
            while not over.wait(0.5):
                running.client.reap()

        ticker = threading.Thread(target=tick)
        ticker.start()
        yield running
        over.set()
        ticker.join()


@pytest.fixture(autouse=True)
def clean(pool: TestBroker) -> Iterator[None]:
    """Afterwards nobody holds anything or waits."""
    yield
    eventually(lambda: not pool.client.queue(), 5)
    for lease in pool.client.leases():
        pool.client.release(lease.token)
    pool.client.set_policy(safe_mode=False)


def test_command_finds_its_lease_in_its_environment_and_gives_its_code(pool: TestBroker) -> None:
    """The lease's own env and the share of the device; nothing is held afterwards."""
    done = run(pool, "--memory", "350", "--", "sh", "-c", f"{SHOW_ENV}; exit 3")
    assert done.returncode == 3
    env = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert env["CUDA_VISIBLE_DEVICES"].startswith("SIM-test-host-")
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (env["GPU_LEASE_MEMORY_MB"], env["GPU_LEASE_MEMORY_FRACTION"]) == ("350", "0.35")
    assert int(env["GPU_LEASE_FENCE"]) > 0
    assert env["GPU_LEASE_TOKEN"][:8] in done.stderr
    assert "350 MiB on test-host GPU" in done.stderr
    assert pool.client.leases() == ()


def test_options_of_the_command_are_its_own(pool: TestBroker) -> None:
    """Also without `--` before it."""
    done = run(pool, "--memory", "10", "sh", "-c", "echo $0 $1", "-o", "--wait")
    assert (done.returncode, done.stdout) == (0, "-o --wait\n")


def test_json_lines_tell_the_whole_story(pool: TestBroker) -> None:
    """One object a line on stderr; stdout is the command's alone."""
    done = run(pool, "--memory", "1GiB", "--exclusive", "-o", "json", "--", "echo", "hello")
    assert (done.returncode, done.stdout) == (1, "")
    (failed,) = events(done.stderr)
    assert (failed["event"], failed["code"], failed["schema"]) == ("failed", "never_fits", 1)
    done = run(pool, "--gpus", "2", "--memory", "500", "-o", "json", "--", "echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    granted, started, ended = events(done.stderr)
    assert [x["event"] for x in (granted, started, ended)] == ["granted", "started", "ended"]
    assert len(granted["devices"]) == 2
    assert granted["env"]["CUDA_VISIBLE_DEVICES"].count(",") == 1
    assert ended["exit_code"] == 0


def test_wait_says_why_and_ends_when_there_is_room(pool: TestBroker) -> None:
    """In words and as JSON; the command starts as soon as the GPUs are given back."""
    held = [pool.client.acquire("holder", memory_mb=900) for _ in range(2)]
    with running(pool, "--memory", "900", "-o", "json", "--", "echo", "mine") as waiting:
        line = json.loads(waiting.stderr.readline())
        assert (line["event"], line["code"], line["ahead"]) == ("waiting", "next", 0)
        assert "holder does not renew" in line["basis"]
        (place,) = pool.client.queue()
        assert place.token == line["token"]
        pool.client.release(held[0])
        out, err = waiting.communicate(timeout=5)
    assert (waiting.returncode, out) == (0, "mine\n")
    assert [x["event"] for x in events(err)] == ["granted", "started", "ended"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--memory", "900", "--wait", "0"], 75, "--wait waits longer"),
        (["--memory", "900", "--wait", "3"], 75, "waiting: next in queue"),
        (["--memory", "9GiB"], 1, "gpu-broker status"),
        (["--memory", "10", "--host", "nowhere"], 1, "--host any"),
        (["--memory", "ten"], 2, "8GiB"),
        (["--wait", "soon"], 2, "10m"),
    ],
)
def test_lease_that_is_not_had_ends_with_its_code(
    pool: TestBroker, args: list[str], code: int, said: str
) -> None:
    """And says what to do next; the command never runs, and the queue is left empty."""
    for _ in range(2):
        pool.client.acquire("holder", memory_mb=900)
    done = run(pool, *args, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
    assert pool.client.queue() == ()


def test_safe_mode_is_denied_or_runs_on_the_cpu(pool: TestBroker) -> None:
    """77, and with --or-cpu without a GPU."""
    pool.client.set_policy(safe_mode=True)
    done = run(pool, "--memory", "10", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (77, "")
    assert "SAFE_MODE" in done.stderr
    done = run(pool, "--memory", "10", "--or-cpu", "--", "sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]")
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert "runs on the CPU" in done.stderr


def test_store_that_is_away_is_69_or_runs_on_the_cpu(pool: TestBroker) -> None:
    """Within its deadline."""
    away = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    done = run(pool, "--memory", "10", "--", "echo", "ran", **away)
    assert (done.returncode, done.stdout) == (69, "")
    assert "start that server, or name one that suits in REDIS_URL" in done.stderr
    done = run(pool, "--memory", "10", "--or-cpu", "-q", "--", "echo", "ran", **away)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_full_pool_runs_on_the_cpu_if_that_will_do(pool: TestBroker) -> None:
    """At once, unless --wait says to wait first."""
    held = [pool.client.acquire("holder", memory_mb=900) for _ in range(2)]
    show = ["--", "sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"]
    assert run(pool, "--memory", "900", "--or-cpu", *show).stdout == "[]\n"
    with running(pool, "--memory", "900", "--or-cpu", "--wait", "20", *show) as waiting:
        eventually(pool.client.queue, 5)
        pool.client.release(held[0])
        assert waiting.stdout.readline() == f"[{held[0].devices[0].uuid}]\n"


def test_command_that_cannot_run_holds_nothing(pool: TestBroker, tmp_path: Any) -> None:
    """127 before anything is asked for, 126 when the kernel refuses."""
    done = run(pool, "--", "no-such-command")
    assert (done.returncode, done.stderr) == (127, "gpu-broker: no-such-command: no such command\n")
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = run(pool, "--memory", "1", "--", str(script))
    assert done.returncode == 126
    script.write_bytes(b"\x7fELF\0")
    assert run(pool, "--memory", "1", "--", str(script)).returncode == 126
    script.chmod(0o644)
    assert run(pool, "--memory", "1", "--", str(script)).returncode == 126
    assert pool.client.leases() == ()


def test_script_without_an_interpreters_line_is_run_by_sh(pool: TestBroker, tmp_path: Any) -> None:
    """Env and every shell do so; also with one that is found in PATH."""
    script = tmp_path / "job"
    script.write_text('echo "$GPU_LEASE_MEMORY_MB $*"; exit 5\n')
    script.chmod(0o755)
    for name in (str(script), "job"):
        done = run(pool, "-q", "--memory", "9", "--", name, "a b", PATH=f"{tmp_path}:/usr/bin:/bin")
        assert (done.returncode, done.stdout) == (5, "9 a b\n")


def test_wait_that_an_operator_ends_is_told_as_a_wait(pool: TestBroker) -> None:
    """No lease is lost, and no GPU is in use: `revoke`, `run` and `wait` say so."""
    for _ in range(2):
        pool.client.acquire("holder", memory_mb=900)
    with running(pool, "--memory", "900", "--", "echo", "ran") as waiting:
        (place,) = eventually(pool.client.queue, 5)
        revoked = called("revoke", place.token, "--reason", "x", REDIS_URL=pool.url)
        assert revoked.stdout == f"{place.token} ends now\n"
        out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (1, "")
    assert "gpu-broker: an operator ended the wait; gpu-broker events has it" in err
    assert "stop using the GPU" not in err
    ended = called("wait", place.token, REDIS_URL=pool.url)
    assert ended.returncode == 1
    assert ended.stdout == f"{place.token[:8]} has ended: an operator revoked it\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_waiting_leaves_the_queue(pool: TestBroker, number: signal.Signals) -> None:
    """At once, with the code of a process that the signal ended; by SIGINT itself, for scripts."""
    for _ in range(2):
        pool.client.acquire("holder", memory_mb=900)
    with running(pool, "--memory", "900", "--", "echo", "ran") as waiting:
        eventually(pool.client.queue, 5)
        waiting.send_signal(number)
        ended = -number if number == signal.SIGINT else 128 + number
        assert waiting.wait(5) == ended
        assert pool.client.queue() == ()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
)
def test_signal_reaches_the_command_and_what_it_started(
    pool: TestBroker, number: signal.Signals
) -> None:
    """All of its group; run goes on until the command has ended, and gives the lease back."""
    name = number.name.removeprefix("SIG")
    inner = f"trap 'echo inner; exit' {name}; echo up; while :; do sleep 0.05; done"
    outer = f'trap "echo outer" {name}; sh -c "{inner}"; exit 9'
    with running(pool, "--memory", "100", "--", "sh", "-c", outer) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert [process.stdout.readline() for _ in range(2)] == ["inner\n", "outer\n"]
        assert process.wait(5) == 9
    assert pool.client.leases() == ()


def test_code_of_a_command_that_a_signal_ended_is_a_shells(pool: TestBroker) -> None:
    """128 + its number."""
    assert run(pool, "--memory", "1", "--", "sh", "-c", "kill -KILL $$").returncode == 137


@pytest.mark.parametrize(("script", "code"), [(UNTIL_TOLD, 5), (DEAF, 137)])
def test_lost_lease_ends_the_command(pool: TestBroker, script: str, code: int) -> None:
    """SIGTERM, and SIGKILL after the grace for one that does not listen."""
    args = ["--memory", "100", "--ttl", "1", "--grace", "0.5", "--", "sh", "-c", script]
    with running(pool, *args) as process:
        process.stdout.readline()
        (held,) = pool.client.leases()
        pool.client.revoke(held.token, force=True, why="test")
        assert process.wait(5) == code
        assert "is lost (revoked): sent SIGTERM" in process.stderr.read()


def test_time_is_the_most_that_it_is_held(pool: TestBroker) -> None:
    """--time ends it although it is renewed."""
    began = time.monotonic()
    done = run(
        pool, "--memory", "1", "--time", "1s", "--ttl", "1", "--", "sh", "-c", UNTIL_TOLD
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (5, "up\ntold\n")
    assert time.monotonic() - began < 4


def test_what_the_command_leaves_behind_is_ended(pool: TestBroker) -> None:
    """Before the lease is given back: it could use the GPU."""
    deaf = f"sh -c '{DEAF.removeprefix('echo up; ')}' & echo $!; exit 4"
    done = run(pool, "--memory", "1", "--grace", "0.3", "--", "sh", "-c", deaf)
    assert done.returncode == 4
    assert "left processes behind" in done.stderr
    assert not alive(int(done.stdout))


def test_grace_is_given_once(pool: TestBroker) -> None:
    """A loss, a command that takes its time to end, and a child of it that does not listen."""
    deaf = DEAF.removeprefix("echo up; ")
    script = f'sh -c "{deaf}" & trap "sleep 1; exit 6" TERM; echo up; while :; do sleep 0.05; done'
    args = ["--memory", "100", "--ttl", "1", "--grace", "1.5", "--", "sh", "-c", script]
    with running(pool, *args) as process:
        process.stdout.readline()
        (held,) = pool.client.leases()
        began = time.monotonic()
        pool.client.revoke(held.token, force=True, why="test")
        assert process.wait(8) == 6
        assert time.monotonic() - began < 0.5 + 1.5 + 1
        assert "left processes" not in process.stderr.read()


@pytest.mark.parametrize("stderr", ["/dev/full", "closed"])
def test_stderr_that_breaks_changes_nothing(pool: TestBroker, stderr: str) -> None:
    """The command runs, its code is ours, and the lease is given back."""
    to = ">&-" if stderr == "closed" else f"> {stderr}"
    command = f"{PROGRAM} run --memory 10 -- sh -c 'echo ran; exit 3' 2{to}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=settings(pool), capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "ran\n")
    assert pool.client.leases() == ()


def test_hang_up_that_was_ignored_stays_so(pool: TestBroker) -> None:
    """nohup gpu-broker run ... outlives its terminal."""
    command = f"trap '' HUP; exec {PROGRAM} run --memory 10 -- sh -c 'echo up; sleep 1; exit 3'"
    with subprocess.Popen(
        ["/bin/sh", "-c", command], env=settings(pool), stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 3


def test_children_that_were_ignored_are_heard_of(pool: TestBroker) -> None:
    """Whoever started us may not have wanted to hear of its own."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, PROGRAM, "run", "--memory", "10", "--", "sh", "-c", "exit 3"],
        env=settings(pool), capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 3


def test_lease_without_end_is_refused(pool: TestBroker) -> None:
    """Nobody would end it if this process were killed."""
    done = run(pool, "--memory", "10", "--ttl", "0", "--", "true")
    assert done.returncode == 2
    assert "--ttl" in done.stderr


def test_run_killed_takes_the_command_with_it(pool: TestBroker) -> None:
    """SIGKILL: the command and what it started are gone at once, the lease by its ttl."""
    script = "sleep 100 & echo $$ $!; wait"
    with running(pool, "--memory", "100", "--ttl", "1", "--", "sh", "-c", script) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert all(alive(pid) for pid in pids)
        process.kill()
        eventually(lambda: not any(alive(pid) for pid in pids), 2)
        assert len(pool.client.leases()) == 1
        eventually(lambda: not pool.client.leases(), 5)


def test_run_stopped_past_its_ttl_ends_the_command_when_it_goes_on(pool: TestBroker) -> None:
    """The GPU may be another's by then, who is not touched."""
    args = ["--memory", "900", "--exclusive", "--ttl", "1", "--", "sh", "-c", UNTIL_TOLD]
    with running(pool, *args) as process:
        process.stdout.readline()
        (old,) = pool.client.leases()
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: not pool.client.leases(), 5)
        news = [pool.client.acquire("new", memory_mb=900, ttl_s=30) for _ in range(2)]
        assert min(new.fence for new in news) > old.fence
        process.send_signal(signal.SIGCONT)
        assert process.wait(5) == 5
        assert {x.token for x in pool.client.leases()} == {new.token for new in news}


def test_command_that_stops_or_spins_cannot_starve_the_renewal(pool: TestBroker) -> None:
    """Another process renews: a stopped command still has its lease, and so has a busy one."""
    script = "(while :; do :; done) & (while :; do :; done) & (while :; do :; done) & kill -STOP $$"
    script = f"echo $$; {script}; echo on; kill 0"
    with running(pool, "--memory", "100", "--ttl", "3", "--", "sh", "-c", script) as process:
        child = int(process.stdout.readline())
        (before,) = pool.client.leases()
        time.sleep(5)
        (after,) = pool.client.leases()
        assert (after.token, after.fence) == (before.token, before.fence)
        os.kill(child, signal.SIGCONT)
        assert process.wait(5) == 143


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_terminal_shows_the_wait_in_one_line(pool: TestBroker) -> None:
    """Written over each second, gone when the lease is there."""
    held = [pool.client.acquire("holder", memory_mb=900) for _ in range(2)]
    args = ["--memory", "900", "--", "echo", "mine"]
    with terminal(settings(pool), PROGRAM, "run", *args) as shown:
        shown.until("waiting 2 s: next in queue · 2 GPUs full · 2", within_s=8)
        assert "\n" not in shown.seen
        pool.client.release(held[0])
        shown.until("mine", within_s=8)
        assert "\r\x1b[K" in shown.seen
        assert shown.end() == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_command_that_reads_the_terminal_gets_it(pool: TestBroker) -> None:
    """It is in a group of its own, and yet a person can talk to it; Ctrl-C ends it alone."""
    # Short sleeps: Python may miss a signal that comes just before a long one.
    code = (
        "import time; print(input('name? ') + ' it is', flush=True)\nwhile True: time.sleep(0.01)"
    )
    args = ["--memory", "1", "--", sys.executable, "-c", code]
    with terminal(settings(pool), PROGRAM, "run", *args) as shown:
        shown.until("name? ", within_s=8)
        shown.type("ann\n")
        shown.until("ann it is", within_s=8)
        shown.type("\x1a")  # Ctrl-Z
        shown.until("Ctrl-Z does not stop it", within_s=8)
        shown.type("\x03")
        shown.until("KeyboardInterrupt", within_s=8)
        assert shown.end() in {1, -signal.SIGINT}
    assert pool.client.leases() == ()

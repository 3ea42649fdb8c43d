"""The system's record of processes: real ones, in this pid namespace and in one below."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent_sdk import evidence
from agent_sdk.request import process_id
from broker.attribution.processes import ENVIRON_S, Programs
from broker.identity import PROC, start_of

SLEEP = "import time; print('up', flush=True); time.sleep(60)"


def test_look_tells_a_process_and_its_ancestors() -> None:
    """Name, user, and the queue of who started whom, as leases register it."""
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout
            child.stdout.readline()
            program = Programs().look({child.pid})[child.pid]
        finally:
            child.kill()
    assert program.line[0] == f"{child.pid}:{program.start}"
    assert program.line[1] == process_id()
    assert program.name.startswith("python")
    assert program.user in {"root", Path.home().owner()}
    assert program.token == ""


def test_look_reads_the_token_of_a_process_that_was_given_one() -> None:
    """GPU_LEASE_TOKEN in its environment, as `lease.env()` and `gpu-broker run` set it."""
    token = "3f0c7d3e-5c1f-4d0e-9a51-c1f2a7b1d001"
    env = os.environ | {"GPU_LEASE_TOKEN": token, "ZZZ": "1"}
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE, env=env) as child:
        try:
            assert child.stdout
            child.stdout.readline()
            assert Programs().look({child.pid})[child.pid].token == token
        finally:
            child.kill()


def test_look_at_a_process_that_is_over_finds_nobody() -> None:
    """Neither one that was reaped, nor one that waits to be, nor one that never was."""
    child = subprocess.Popen(["true"])
    until = time.monotonic() + 10
    while (pids := Programs().look({child.pid})) and time.monotonic() < until:
        time.sleep(0.01)
    assert pids == {}, "it is a zombie"
    child.wait()
    assert Programs().look({child.pid, 2**22 + 1}) == {}


def test_lives_is_said_of_the_very_process() -> None:
    """A pid with another start time is another process."""
    system = Programs()
    pid, _, start = process_id().partition(":")
    assert system.lives(f"{pid}:{start}")
    assert not system.lives(f"{pid}:{int(start) + 1}")
    for odd in ("", pid, f"{pid}:", f":{start}", "x:y"):
        assert not system.lives(odd)


def test_environment_that_does_not_end_to_be_read_holds_nothing_up(tmp_path: Path) -> None:
    """One thread waits for it, however often it is asked for; what it says counts once it comes."""
    folder, token = tmp_path / "4242", "3f0c7d3e-5c1f-4d0e-9a51-c1f2a7b1d002"
    (folder / "fd").mkdir(parents=True)
    for name in ("stat", "status"):
        (folder / name).write_text((PROC / "self" / name).read_text())
    os.mkfifo(folder / "environ")
    system, start = Programs(tmp_path), int(process_id().partition(":")[2])
    began = time.monotonic()
    assert system.lives(f"4242:{start}")
    assert not system.adopts(f"4242:{start}", token, 4242, f"4242:{start}")
    assert time.monotonic() - began < ENVIRON_S
    assert [system.evidence(4242, start, token) for _ in range(50)] == [None] * 50
    assert time.monotonic() - began < 10 * ENVIRON_S
    assert sum(thread.name == "environ" for thread in threading.enumerate()) == 1
    (folder / "environ").write_bytes(b"A=1\0GPU_LEASE_TOKEN=%s\0" % token.encode())
    until = time.monotonic() + 10
    while (shown := system.evidence(4242, start, token)) is None and time.monotonic() < until:
        time.sleep(0.01)
    assert shown is True


def test_reporter_without_further_threads_still_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The environment of a holder is unknown then, and that is no error of the whole report."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pid, start_ticks = (int(part) for part in process_id().split(":"))
    monkeypatch.setattr(threading.Thread, "start", start)
    assert Programs().evidence(pid, start_ticks, "no-lease-of-this-process") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_holder_shows_its_lease_for_a_process_of_its_own_user_alone() -> None:
    """Another user's process is not adopted by its word, and no process by another's."""
    read, write = os.pipe()
    with subprocess.Popen(["sleep", "100"], user=65534) as theirs:
        ours, own = process_id(), f"{theirs.pid}:{start_of(PROC, str(theirs.pid))}"
        if (holder := os.fork()) == 0:
            try:
                os.setuid(65534)
                for process in (own, ours):
                    evidence.show_for("token-of-a-holder", process)
                os.write(write, process_id().encode())
                signal.pause()
            finally:
                os._exit(0)
        try:
            said, system = os.read(read, 100).decode(), Programs()
            assert system.adopts(said, "token-of-a-holder", theirs.pid, own)
            assert not system.adopts(said, "token-of-another-1", theirs.pid, own)
            assert not system.adopts(said, "token-of-a-holder", theirs.pid, f"{own}1")
            assert not system.adopts(said, "token-of-a-holder", os.getpid(), ours)
            assert not system.adopts(ours, "token-of-a-holder", theirs.pid, own)
        finally:
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
            theirs.kill()
            os.close(read)
            os.close(write)


def test_look_finds_who_registered_inside_a_container() -> None:
    """In a pid namespace of its own it has another pid there, and registers that one."""
    code = "from agent_sdk.request import process_id; print(process_id(), flush=True); " + SLEEP
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a pid namespace")
    with subprocess.Popen(
        [*command, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as outer:
        try:
            assert outer.stdout
            registered = outer.stdout.readline().strip()
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            (pid,) = map(int, children)
            program = Programs().look({pid})[pid]
        finally:
            outer.kill()
    assert registered.startswith("1:")
    assert program.line[0] == registered
    assert not Programs().lives(registered), "pid 1 of ours is another"


def test_unseen_says_why_where_the_driver_s_pids_mean_nothing(tmp_path: Path) -> None:
    """In a container without the host's pids nobody can be called anything."""
    assert Programs().unseen("host") == ""
    assert "GPU_BROKER_PROCESSES=none" in Programs().unseen("none")
    assert "no /proc" in Programs(tmp_path).unseen("auto")
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").touch()
    assert "container" in Programs(tmp_path).unseen("auto")


@pytest.mark.parametrize("hidepid", ["off", "noaccess", "invisible"])
def test_unseen_says_that_other_users_processes_are_hidden(hidepid: str) -> None:
    """Under ProtectProc=invisible with a user of its own they would all look gone."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; "
        "from broker.attribution.processes import ENVIRON_S, Programs; "
        "print(Programs().unseen('host'))"
    )
    script = f"mount -t proc -o hidepid={hidepid} proc /proc && exec setpriv --reuid=33 --regid=33 "
    script += '--clear-groups /usr/bin/python3 -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", code], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"needs root and an interpreter that every user may run: {done.stderr[-200:]}")
    assert ("hidden" in done.stdout) == (hidepid != "off")


def test_values_of_a_variable_are_those_of_processes_by_name(tmp_path: Path) -> None:
    """A process that does not have it, or may not be read, tells none."""
    for pid, name, environment in (
        (1, "nvidia-cuda-mps", b"A=1\0CUDA_VISIBLE_DEVICES=GPU-a,1\0"),
        (2, "nvidia-cuda-mps", b"A=CUDA_VISIBLE_DEVICES=2\0"),
        (3, "python3", b"CUDA_VISIBLE_DEVICES=3\0"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
        (tmp_path / str(pid) / "environ").write_bytes(environment)
    (tmp_path / "4").mkdir()  # it has just ended
    values = Programs(tmp_path).values_of("nvidia-cuda-mps", "CUDA_VISIBLE_DEVICES")
    assert sorted(values, key=str) == ["GPU-a,1", None]

"""`gpu-broker run` beside `env` and GNU `timeout`: what a command and its caller see of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent_sdk.testing import running_broker
from tests.api.brokers import PROGRAM, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = (PROGRAM, "run", "-q", "--memory", "1", "--")

TIMEOUT_S = 60
"""A probe takes well under a second, on a machine that does nothing else."""


@dataclass(frozen=True)
class Property:
    """One thing that `env` does not change.

    Attributes:
        command: prints what it sees of it.
        within: words before the wrapper, which set it up.
        differs: `timeout` does not keep it either.
    """

    command: tuple[str, ...]
    within: tuple[str, ...] = ()
    differs: bool = False


SIGNALS = """
import os, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python's own doing
    signal.signal(number, signal.SIG_DFL)
names = [getattr(signal, name) for name in sys.argv[2].split(",")]
if sys.argv[1] == "block":
    signal.pthread_sigmask(signal.SIG_BLOCK, names)
else:
    for number in names:
        signal.signal(number, signal.SIG_IGN)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def blocking(*names: str) -> tuple[str, ...]:
    """Run what follows with these signals blocked."""
    return (sys.executable, "-c", SIGNALS, "block", ",".join(names))


def ignoring(*names: str) -> tuple[str, ...]:
    """Run what follows with these signals ignored."""
    return (sys.executable, "-c", SIGNALS, "ignore", ",".join(names))


def shell(line: str) -> tuple[str, ...]:
    """A shell that runs what follows as its last words, and says how that ended."""
    return ("sh", "-c", f'{line}; "$@"; echo "rc $?"', "sh")


MASK = ("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")

PROPERTIES = {
    "arguments": Property(("printf", "[%s]", "a b", "", "$x", "*", "--", "ü")),
    "working folder": Property(("pwd",)),
    "umask": Property(("sh", "-c", "umask"), shell("umask 027")),
    "limits": Property(("sh", "-c", "ulimit -n; ulimit -c"), shell("ulimit -n 199; ulimit -c 0")),
    "niceness": Property(("nice",), ("nice", "-n", "3")),
    "stdin": Property(("cat",), shell("echo said | exec 0<&0; exec 0</proc/sys/kernel/ostype")),
    "stdin closed": Property(("sh", "-c", "test -e /proc/self/fd/0; echo $?"), shell("exec <&-")),
    "stderr closed": Property(("sh", "-c", "echo out"), shell("exec 2>&-")),
    "exit code": Property(("sh", "-c", "exit 3"), shell(":")),
    "exit code of a shell's kind": Property(("sh", "-c", "exit 300"), shell(":")),
    "no such command": Property(("./no-such-command",), shell("exec 2>/dev/null")),
    "not executable": Property(("/etc/passwd",), shell("exec 2>/dev/null")),
    "death by SIGINT": Property(("sh", "-c", "kill -INT $$")),
    "death by SIGQUIT": Property(("sh", "-c", "kill -QUIT $$"), ("env", "-C", "/")),
    "signals as they are": Property(MASK, shell(":")),
    "SIGCHLD blocked": Property(MASK, blocking("SIGCHLD"), differs=True),
    "SIGTERM blocked": Property(MASK, blocking("SIGTERM", "SIGINT", "SIGHUP")),
    "others blocked": Property(MASK, blocking("SIGUSR1", "SIGWINCH", "SIGTSTP")),
    "SIGTERM ignored": Property(MASK, shell("trap '' TERM HUP USR1"), differs=True),
    "SIGPIPE ignored": Property(MASK, shell("trap '' PIPE")),
    "SIGCHLD ignored": Property(MASK, ignoring("SIGCHLD"), differs=True),
    "SIGPIPE ends a writer": Property(("sh", "-c", "yes | head -1")),
    "descriptors above 2": Property(("sh", "-c", "cat <&7"), shell("exec 7</etc/hostname")),
    "sockets of systemd": Property(
        ("sh", "-c", 'test "$LISTEN_PID" = $$ && cat <&3'),
        ("sh", "-c", 'export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@" 3</etc/hostname', "sh"),
        differs=True,
    ),
}  # fmt: skip
"""By name: run must be as `env` is."""


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, str]]:
    """Settings of a pool with room for all."""
    with running_broker(devices=1, memory_mb=1000) as pool:
        yield environment(REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)


def ran(
    settings: dict[str, str], *words: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run words in a session of their own.

    GNU timeout leaves its process group. If it ends before a child that stayed there, and anything
    in that group is stopped, the kernel hangs the group up: the suite, which stops processes.
    """
    return subprocess.run(
        words, env=settings, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False, start_new_session=True,
    )  # fmt: skip


def seen(settings: dict[str, str], what: Property, *wrapper: str) -> tuple[int, str]:
    """Give how the wrapper ended, and what the command printed."""
    done = ran(settings, *what.within, *wrapper, *what.command)
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", PROPERTIES)
def test_run_is_as_transparent_as_env(settings: dict[str, str], name: str) -> None:
    """The same output and the same end; GNU timeout is beside it, for what it keeps."""
    what = PROPERTIES[name]
    plain = seen(settings, what, "env")
    assert seen(settings, what, *RUN) == plain
    assert (seen(settings, what, "timeout", str(TIMEOUT_S)) != plain) == what.differs


@pytest.mark.parametrize(
    "wrapper", [("env",), ("timeout", "60"), RUN], ids=["env", "timeout", "run"]
)
def test_process_substitution_works(settings: dict[str, str], wrapper: tuple[str, ...]) -> None:
    """A shell's /dev/fd/63."""
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    words = " ".join(wrapper)
    line = f"{words} diff <(echo a) <(echo a) && {words} cat <(echo same)"
    done = ran(settings, "bash", "-c", line)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


@pytest.mark.parametrize(
    "wrapper", [("env",), ("timeout", "60"), RUN], ids=["env", "timeout", "run"]
)
def test_jobserver_of_make_is_reached(
    settings: dict[str, str], wrapper: tuple[str, ...], tmp_path: Path
) -> None:
    """Else a make below it warns, and uses one core."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    (tmp_path / "sub.mk").write_text("all: ; @echo made\n")
    (tmp_path / "top.mk").write_text(f"all:\n\t+@{' '.join(wrapper)} make -f sub.mk\n")
    done = ran(settings, "make", "-j2", "-f", "top.mk", cwd=tmp_path)
    assert (done.returncode, "made" in done.stdout) == (0, True), done.stderr
    assert "jobserver" not in done.stderr


def test_run_needs_no_shell(settings: dict[str, str]) -> None:
    """An image may have none: /bin and /usr/bin are hidden from run itself."""
    command = f"{sys.executable} -c 'print(1)'"
    inner = f"mount -t tmpfs none /usr/bin && exec {sys.executable} {' '.join(RUN)} {command}"
    done = ran(settings, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no user namespaces here")
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_run_needs_neither_dev_nor_proc(settings: dict[str, str]) -> None:
    """In a root of its own nothing is mounted."""
    inner = f"mount -t tmpfs none /proc && mount -t tmpfs none /dev && exec {' '.join(RUN)} echo on"
    done = ran(settings, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no user namespaces here")
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_keeper_needs_no_proc_unless_it_watches_a_process(settings: dict[str, str]) -> None:
    """It goes on in the background, or says what it needs."""
    hold = f"{PROGRAM} hold --memory 1 --for 1s --detach; {PROGRAM} acquire --memory 1"
    inner = f"mount -t tmpfs none /proc && {hold}"
    done = ran(settings, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no user namespaces here")
    assert "GPU_LEASE_TOKEN=" in done.stdout, done.stderr
    assert (done.returncode, "no /proc here" in done.stderr) == (2, True), done.stderr


def test_signal_that_was_blocked_reaches_us(settings: dict[str, str]) -> None:
    """SIGTERM, blocked by the parent, ends the wait; the command's own stays blocked."""
    wait = [PROGRAM, "run", "--memory", "900", "--", "true"]
    hold = [*RUN[:-2], "900", "--", "sh", "-c", "echo up; read x"]
    with subprocess.Popen(
        hold, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        with subprocess.Popen(
            [*blocking("SIGTERM"), *wait], env=settings, stderr=subprocess.PIPE, text=True
        ) as waiting:
            assert waiting.stderr is not None
            assert "waiting" in waiting.stderr.readline()
            waiting.send_signal(signal.SIGTERM)
            assert waiting.wait(TIMEOUT_S) == 128 + signal.SIGTERM
        holder.communicate("\n", timeout=TIMEOUT_S)
    assert os.WIFEXITED(holder.returncode << 8)

"""`gpu-broker run` on a terminal, beside `env`: reading, Ctrl-C, the size of the window."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from agent_sdk.testing import running_broker
from tests.api.brokers import PROGRAM, environment
from tests.unit.terminals import WITHIN_S, Terminal, terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = f"{PROGRAM} run -q --memory 1 --"

ASKS = f"""{sys.executable} -c 'print("GO"+"T", input("NAM"+"E? "))'"""

TELLS_SIZE = f"""{sys.executable} -uc '
import os, signal, time
signal.signal(signal.SIGWINCH, lambda *_: print("SI"+"ZE", os.get_terminal_size().columns))
print("REA"+"DY")
time.sleep(60)'"""


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, str]]:
    """Settings of a pool with room for all."""
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    with running_broker(devices=1, memory_mb=1000) as pool:
        yield environment(REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host, TERM="xterm")


@contextmanager
def shell(settings: dict[str, str]) -> Iterator[Terminal]:
    """An interactive bash with job control."""
    with terminal(settings, "bash", "--norc", "--noprofile", "-i") as found:
        found.type("PS1='PRO''MPT> '\n")
        found.until("PROMPT> ")
        yield found


@pytest.mark.parametrize("wrapper", ["env", RUN, f"{RUN} {RUN}"], ids=["env", "run", "nested"])
def test_ctrl_c_ends_the_script_around_it(settings: dict[str, str], wrapper: str) -> None:
    """A script's loop does not go on with its next step."""
    step = f"sh -c 'echo UP; exec sleep {WITHIN_S}'"
    script = f"for i in 1 2 3; do {wrapper} {step}; echo WENT ON; done"
    with terminal(settings, "bash", "-c", script) as found:
        found.until("UP")
        found.type("\x03")
        assert found.end() == -signal.SIGINT
        assert "WENT ON" not in found.rest


def test_ctrl_c_while_it_waits_ends_the_script_around_it(settings: dict[str, str]) -> None:
    """By the signal, as any command of the script."""
    hold = f"{PROGRAM} run -q --memory 1000 -- sh -c 'echo UP; exec sleep {WITHIN_S}'"
    script = f"{PROGRAM} run --memory 1000 -- true; echo WENT ON"
    with terminal(settings, "bash", "-c", hold) as holder:
        holder.until("UP")
        with terminal(settings, "bash", "-c", script) as found:
            found.until("waiting")
            found.type("\x03")
            assert found.end() == -signal.SIGINT
            assert "WENT ON" not in found.rest
        holder.type("\x03")
        holder.end()


def test_ctrl_c_that_the_command_heeds_itself_lets_the_script_go_on(
    settings: dict[str, str],
) -> None:
    """A command that ends by itself after it tells of no interrupt."""
    command = "sh -c 'trap \"exit 4\" INT; echo UP; while :; do sleep 0.1; done'"
    with terminal(settings, "bash", "-c", f"{RUN} {command}; echo code $?") as found:
        found.until("UP")
        found.type("\x03")
        found.until("code 4")


@pytest.mark.parametrize(
    "wrapper",
    ["env", RUN, f"{RUN} {RUN}", f"{RUN} timeout --foreground 60", f"{RUN} env A=1"],
    ids=["env", "run", "nested", "timeout in run", "env in run"],
)
def test_command_reads_the_terminal(settings: dict[str, str], wrapper: str) -> None:
    """Itself, and through a grandchild; afterwards the shell has it back."""
    with shell(settings) as found:
        found.type(f"{wrapper} {ASKS}\n")
        found.until("NAME? ")
        found.type("bob\n")
        found.until("GOT bob")
        found.until("PROMPT> ")
        found.type("echo BA''CK\n")
        found.until("BACK")


@pytest.mark.parametrize("wrapper", ["env", RUN, f"{RUN} {RUN}"], ids=["env", "run", "nested"])
def test_command_in_the_background_reads_after_fg(settings: dict[str, str], wrapper: str) -> None:
    """It waits until then, as a job does."""
    with shell(settings) as found:
        found.type(f'{wrapper} sh -c \'echo U""P; read x; echo GO""T $x\' &\n')
        found.until("UP")
        found.type("\nfg\n")
        found.until("PROMPT> ")
        found.type("bob\n")
        found.until("GOT bob")
        found.until("PROMPT> ")


@pytest.mark.parametrize("wrapper", ["env", RUN, f"{RUN} {RUN}"], ids=["env", "run", "nested"])
def test_size_of_the_window_is_heard_of(settings: dict[str, str], wrapper: str) -> None:
    """SIGWINCH reaches the command, once the size is another."""
    with shell(settings) as found:
        found.type(f"{wrapper} {TELLS_SIZE}\n")
        found.until("READY")
        found.size(123)
        found.until("SIZE 123")
        found.type("\x03")
        found.until("PROMPT> ")


def test_pager_beside_it_in_a_pipeline_reads_the_terminal(settings: dict[str, str]) -> None:
    """The command does not take the terminal from others of its pipeline."""
    pager = "sh -c 'cat >/dev/null; read y </dev/tty; echo PAG\"\"ER $y'"
    with shell(settings) as found:
        found.type(f"{RUN} sh -c 'seq 100; echo U\"\"P >&2' | {pager}\n")
        found.until("UP")
        found.type("ann\n")
        found.until("PAGER ann")


def test_lost_terminal_ends_it(settings: dict[str, str], tmp_path: Path) -> None:
    """An ssh that breaks: the command hears SIGHUP."""
    heard = tmp_path / "heard"
    command = f'trap "echo hup >{heard}; exit" HUP; echo REA""DY; while :; do sleep 0.1; done'
    pid, master = pty.fork()
    if pid == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], settings)
    found = Terminal(pid, master)
    found.type(f"{RUN} sh -c '{command}'\n")
    found.until("READY")
    os.close(master)
    os.waitpid(pid, 0)
    until = time.monotonic() + WITHIN_S
    while not heard.exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_dumb_terminal_gets_no_escapes(settings: dict[str, str]) -> None:
    """Neither from a wait that is shown nor from a picture in colours."""
    dumb = {**settings, "TERM": "dumb"}
    hold = [PROGRAM, "run", "-q", "--memory", "1000", "--", "sh", "-c", "echo up; read x"]
    with subprocess.Popen(
        hold, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        for words in (["run", "--wait", "3", "--memory", "1000", "--", "true"], ["status"]):
            with terminal(dumb, PROGRAM, *words) as found:
                found.end()
                assert "\x1b" not in found.rest
                assert found.rest
        with terminal(dumb, PROGRAM, "status", "-w") as found:
            found.until("GPU")
            found.type("\x03")
            found.end()
            assert "\x1b" not in found.rest
        holder.communicate("\n", timeout=WITHIN_S)

"""Ending processes: real ones, and only the very ones that were looked at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker.attribution import enforcement
from broker.attribution.enforcement import KillTarget, ProcessKiller
from broker.attribution.processes import Programs

if TYPE_CHECKING:
    from collections.abc import Iterator

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(60)"
)
WILLING = "import time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs the code of the test's parameter."""
    command = [sys.executable, "-c", request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def condemned(process: subprocess.Popen[bytes]) -> KillTarget:
    """It, as it was looked at."""
    return KillTarget("GPU-a", Programs().look({process.pid})[process.pid], "t" * 16, "why")


def done(end: ProcessKiller, one: KillTarget) -> str:
    """Return the act on it now, as a report tells it; empty: none."""
    end.end(one)
    acts = end.untold()
    end.told(acts)
    assert end.untold() == {}
    return acts.get("GPU-a", "")


def test_acts_are_told_one_after_the_other_for_each_device() -> None:
    """A report has room for one of a device; none is forgotten."""
    end, me = (
        ProcessKiller(Programs(), may_kill=False),
        Programs().look({os.getpid(), os.getppid()}),
    )
    for program in me.values():
        end.end(KillTarget("GPU-a", program, "", "why"))
    told: list[str] = []
    while acts := end.untold():
        told += acts.values()
        end.told(acts)
    assert told == [f"{pid} NONE - why" for pid in me]


@pytest.mark.parametrize("child", [WILLING], indirect=True)
def test_end_sends_sigterm_once(child: subprocess.Popen[bytes]) -> None:
    """The act is said once; when it is over, nothing is left open."""
    end, one = ProcessKiller(Programs(), may_kill=True), condemned(child)
    assert done(end, one) == f"{child.pid} TERM {'t' * 16} why"
    assert done(end, one) == ""
    assert child.wait(10) == -signal.SIGTERM
    assert done(end, one) == ""
    end.forget(set())


@pytest.mark.parametrize("child", [STUBBORN], indirect=True)
def test_end_sends_sigkill_to_who_does_not_listen(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time, and once."""
    monkeypatch.setattr(enforcement, "TERM_S", 0.3)
    end, one = ProcessKiller(Programs(), may_kill=True), condemned(child)
    assert " TERM " in done(end, one)
    assert done(end, one) == ""
    time.sleep(0.35)
    assert " KILL " in done(end, one)
    assert child.wait(10) == -signal.SIGKILL
    assert done(end, one) == ""
    end.forget(set())


@pytest.mark.parametrize("child", [WILLING], indirect=True)
def test_end_of_another_process_with_the_same_pid_does_nothing(
    child: subprocess.Popen[bytes],
) -> None:
    """Its start time says that it is not the one that was looked at."""
    end, one = ProcessKiller(Programs(), may_kill=True), condemned(child)
    other = replace(one, program=replace(one.program, start=one.program.start - 1))
    assert done(end, other) == ""
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    end.forget(set())


@pytest.mark.parametrize("child", [WILLING], indirect=True)
def test_end_without_may_kill_only_says_what_it_would_do(child: subprocess.Popen[bytes]) -> None:
    """Once for each process, and nobody is harmed."""
    end, one = ProcessKiller(Programs(), may_kill=False), condemned(child)
    assert done(end, one) == f"{child.pid} NONE {'t' * 16} why"
    assert done(end, one) == ""
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)

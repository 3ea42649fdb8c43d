"""Ending processes: real ones, and only the very ones that were looked at."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker.truth import ending
from broker.truth.ending import Condemned, Ending
from broker.truth.programs import Programs

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


def condemned(process: subprocess.Popen[bytes]) -> Condemned:
    """It, as it was looked at."""
    return Condemned("GPU-a", Programs().look({process.pid})[process.pid], "t" * 16, "why")


@pytest.mark.parametrize("child", [WILLING], indirect=True)
def test_end_sends_sigterm_once(child: subprocess.Popen[bytes]) -> None:
    """What is done is said once; when it is over, nothing is left open."""
    end, one = Ending(Programs(), may_kill=True), condemned(child)
    assert end.end(one) == f"{child.pid} TERM {'t' * 16} why"
    assert end.end(one) == ""
    assert child.wait(10) == -signal.SIGTERM
    assert end.end(one) == ""
    end.close()


@pytest.mark.parametrize("child", [STUBBORN], indirect=True)
def test_end_sends_sigkill_to_who_does_not_listen(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time, and once."""
    monkeypatch.setattr(ending, "TERM_S", 0.3)
    end, one = Ending(Programs(), may_kill=True), condemned(child)
    assert " TERM " in end.end(one)
    assert end.end(one) == ""
    time.sleep(0.35)
    assert " KILL " in end.end(one)
    assert child.wait(10) == -signal.SIGKILL
    assert end.end(one) == ""
    end.close()


@pytest.mark.parametrize("child", [WILLING], indirect=True)
def test_end_of_another_process_with_the_same_pid_does_nothing(
    child: subprocess.Popen[bytes],
) -> None:
    """Its start time says that it is not the one that was looked at."""
    end, one = Ending(Programs(), may_kill=True), condemned(child)
    other = replace(one, program=replace(one.program, start=one.program.start - 1))
    assert end.end(other) == ""
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    end.close()


@pytest.mark.parametrize("child", [WILLING], indirect=True)
def test_end_without_may_kill_only_says_what_it_would_do(child: subprocess.Popen[bytes]) -> None:
    """Once for each process, and nobody is harmed."""
    end, one = Ending(Programs(), may_kill=False), condemned(child)
    assert end.end(one) == f"{child.pid} NONE {'t' * 16} why"
    assert end.end(one) == ""
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)

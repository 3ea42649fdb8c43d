"""`%%gpu` in a real IPython shell, on a real pool."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.brokers import broker_of_the_file
from tests.unit.cli_runs import settings

if TYPE_CHECKING:
    from agent_sdk.testing import TestBroker

pool = broker_of_the_file(devices=1, memory_mb=1000)

CELLS = """
import json, os, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "agent_sdk.notebook")
answers = []
for cell in json.loads(sys.argv[1]):
    done = shell.run_cell(cell)
    error = done.error_before_exec or done.error_in_exec
    answers.append([done.success, str(error or ""), shell.user_ns.get("seen")])
json.dump(answers, sys.stderr)
"""

SEEN = """
import os
seen = [lease.agent, lease.memory_mb, os.environ["CUDA_VISIBLE_DEVICES"] == lease.devices[0].uuid]
"""

AFTER = "import os; seen = ['lease' in globals(), 'GPU_LEASE_TOKEN' in os.environ]"


def ran(pool: TestBroker, *cells: str) -> list[Any]:
    """Each cell's success, its error, and what it left in `seen`."""
    done = subprocess.run(
        [sys.executable, "-c", CELLS, json.dumps(cells)], env=settings(pool),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stderr.splitlines()[-1]))


def test_cell_runs_under_a_lease_that_ends_with_it(pool: TestBroker) -> None:
    """Names and variables are as before afterwards."""
    held, after = ran(pool, f"%%gpu --memory 900MiB --agent ann\n{SEEN}", AFTER)
    assert held == [True, "", ["ann", 900, True]]
    assert after == [True, "", [False, False]]
    assert pool.client.leases() == ()


def test_cell_that_fails_gives_its_lease_back_and_fails(pool: TestBroker) -> None:
    """A notebook that is run as a whole stops there; a name of the user's is as it was."""
    _, failed, after = ran(pool, "lease = 7", "%%gpu --gpus 1\n1 / 0", "seen = lease")
    assert failed[:2] == [
        False,
        "%%gpu: the cell failed, as is shown above; its lease is given back",
    ]
    assert after[2] == 7
    assert pool.client.leases() == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [("--memory 2000MiB", "no registered device"), ("--memory much", "memory"),
     ("--gpus 0", "devices")],
)  # fmt: skip
def test_lease_that_is_not_had_is_said_in_one_line(pool: TestBroker, line: str, says: str) -> None:
    """The cell does not run."""
    [(success, error, seen)] = ran(pool, f"%%gpu {line}\nseen = 1")
    assert not success
    assert says in error
    assert "\n" not in error
    assert seen is None

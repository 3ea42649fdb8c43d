"""Recipes of docs/how-to/recipes.md, each block run as it stands: real tools, a real store."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from agent_sdk import LeaseClient, Store
from agent_sdk.state.events import order
from tests.api.brokers import BIN, Broker, environment, eventually
from tests.unit.cli_runs import alive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "recipes.md").read_text()

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)

LAUNCHER = """#!/bin/sh
for program; do :; done  # the last word
exec python launch.py "$program"
"""
"""A `torchrun` for machines without torch."""

CELLS = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in json.loads(sys.argv[1]):
    shell.run_cell(cell).raise_error()
print(shell.user_ns["answer"], end="")
"""


class Recipe(NamedTuple):
    """Section of the page.

    Attributes:
        files: blocks with a title that is a file's name.
        steps: blocks of shell that are run in their order.
        texts: other blocks with a title.
    """

    files: dict[str, str]
    steps: list[str]
    texts: dict[str, str]


def sections() -> dict[str, Recipe]:
    """The page's recipes by their headings; what is above the first heading has none."""
    found = {}
    for section in re.split(r"^## ", f"\n{PAGE}", flags=re.MULTILINE):
        recipe = Recipe({}, [], {})
        for language, title, text in BLOCK.findall(section):
            if not title:
                assert language == "sh", text
                recipe.steps.append(text)
            else:
                (recipe.texts if language == "text" else recipe.files)[title] = text
        found[section.partition("\n")[0]] = recipe
    return found


RECIPES = sections()


@pytest.fixture(scope="module")
def readers(own: Server) -> Iterator[LeaseClient]:
    """A client of a pool as readers have it: a broker that reports two simulated GPUs."""
    devices = {"GPU_BROKER_DEVICES": "sim:2x24576", "GPU_BROKER_REPORT_S": "0.5"}
    with Broker(REDIS_URL=own.url, SAFE_MODE="false", **devices) as broker:
        broker.wait()
        with LeaseClient(Store(own.url)) as client:
            yield client


@pytest.fixture
def here(tmp_path: Path, own: Server) -> Path:
    """A folder with every file of the page, as a reader makes them who follows all of it."""
    for recipe in RECIPES.values():
        for name, text in recipe.files.items():
            store = own.url.removeprefix("redis://")
            (tmp_path / name).write_text(text.replace("localhost:6379", store))
    return tmp_path


@contextmanager
def started(step: str, here: Path, own: Server, path: str = "") -> Iterator[subprocess.Popen[str]]:
    """A block of shell while it runs, in a session of its own, of which nothing is left."""
    env = environment(REDIS_URL=own.url) | {"HOME": str(here)}
    env["PATH"] = f"{path}:{env['PATH']}"
    with subprocess.Popen(
        ["bash", "-euc", step], cwd=here, env=env, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def shell(step: str, here: Path, own: Server, path: str = "") -> str:
    """Return the output of a block of shell, which must end with 0."""
    with started(step, here, own, path) as process:
        printed, said = process.communicate(timeout=90)
    assert process.returncode == 0, (step, printed, said)
    return printed


class Seen:
    """Events of a pool from the construction on."""

    def __init__(self, readers: LeaseClient) -> None:
        self._readers = readers
        self._begin = order(readers.events(1)[-1].id)

    def count(self, name: str) -> int:
        new = [x for x in self._readers.events(1000) if order(x.id) > self._begin]
        return [x.event for x in new].count(name)


@contextmanager
def leased(readers: LeaseClient, times: int) -> Iterator[None]:
    """Require that the block leases so many times, and leaves no lease."""
    seen = Seen(readers)
    yield
    eventually(lambda: not readers.leases(), 10)
    assert seen.count("granted") == times


def gpus(text: str) -> list[str]:
    return re.findall(r"\bSIM-[\w.-]+", text)


def test_every_block_of_the_page_is_run() -> None:
    """By the tests below, which name the headings; each file is named by what runs it."""
    tested = {
        "torchrun and other launchers", "Celery", "Dask", "pytest", "Jupyter",
        "xargs and GNU parallel", "cron", "A shell script",
    }  # fmt: skip
    assert RECIPES.keys() - {""} == tested
    assert RECIPES[""] == ({"model.py": RECIPES[""].files["model.py"]}, [], {})
    for heading in tested:
        files, steps, texts = RECIPES[heading]
        assert steps or texts
        run = "\n".join([*steps, *texts.values()])
        for name in files.keys() - {"conftest.py"}:
            assert re.search(rf"\b{Path(name).stem}\b", run), name


def test_ranks_of_a_launcher_share_one_lease(readers: LeaseClient, own: Server, here: Path) -> None:
    """Each has a GPU of its own; torchrun's where torch is installed."""
    tools = here / "bin"
    tools.mkdir()
    if find_spec("torch") is None:
        (tools / "torchrun").write_text(LAUNCHER)
        (tools / "torchrun").chmod(0o755)
    steps = RECIPES["torchrun and other launchers"].steps
    assert len(steps) == 2
    for step in steps:
        with leased(readers, 1):
            printed = shell(step, here, own, str(tools))
        lines = sorted(re.findall(r"rank (\d) of 2 on (\S+) by (\w+)", printed))
        assert [number for number, *_ in lines] == ["0", "1"]
        assert len({gpu for _, gpu, _ in lines}) == 2
        assert len({token for *_, token in lines}) == 1


@pytest.mark.parametrize("how", ["lost", "failed"])
def test_ranks_end_together(readers: LeaseClient, own: Server, here: Path, how: str) -> None:
    """By the loss of their lease, and by the failure of one of them."""
    # One fails once the other has said its pid: it is ended at once
    fails = (
        "if os.environ['RANK'] == '0':\n"
        "    while not os.path.exists('1'): time.sleep(0.01)\n"
        "    sys.exit(3)\n"
    )
    (here / "ranks.py").write_text(
        "import os, sys, time\nprint(os.getpid(), flush=True)\n"
        "open(os.environ['RANK'], 'w').close()\n"
        f"{fails if how == 'failed' else ''}time.sleep(100)\n"
    )
    step = "gpu-broker run --gpus 2 --ttl 2 --grace 2 -- python launch.py ranks.py"
    with leased(readers, 1), started(step, here, own) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        if how == "lost":
            (lease,) = readers.leases()
            readers.revoke(lease.token, force=True, why="a test")
        assert process.wait(30) != 0
        assert not any(alive(pid) for pid in pids)


def test_task_of_celery_leases(readers: LeaseClient, own: Server, here: Path) -> None:
    """In a worker of its own, which ends by SIGTERM."""
    (step,) = RECIPES["Celery"].steps
    with leased(readers, 1):
        printed = shell(step, here, own)
    assert re.search(r"^a letter on SIM-", printed, re.MULTILINE)


def test_task_of_celery_without_a_lease_goes_back_to_its_queue(
    readers: LeaseClient, own: Server, here: Path
) -> None:
    """And is done when there is room; the waits are shorter here than on the page."""
    tasks = here / "tasks.py"
    text = (
        tasks.read_text().replace("wait_s=60", "wait_s=0.2").replace("countdown=30", "countdown=1")
    )
    assert text.count("wait_s=0.2") == text.count("countdown=1") == 1
    tasks.write_text(text)
    (step,) = RECIPES["Celery"].steps
    seen = Seen(readers)
    with started(step, here, own) as process:
        with readers.lease("other", exclusive=True, devices=2):
            eventually(lambda: seen.count("cancelled") >= 2, 60)  # it was asked for again
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, len(gpus(printed))) == (0, 1), said
    assert readers.leases() == ()


def test_functions_of_dask_lease(readers: LeaseClient, own: Server, here: Path) -> None:
    """In processes of its scheduler."""
    (step,) = RECIPES["Dask"].steps
    with leased(readers, 3):
        printed = shell(step, here, own)
    assert [line.split()[0] for line in printed.splitlines()] == ["one", "two", "three"]
    assert len(gpus(printed)) == 3


def test_tests_lease_and_use_the_plugin(readers: LeaseClient, own: Server, here: Path) -> None:
    """Under pytest-xdist: two tests, of which one has a lease of this pool."""
    (step,) = RECIPES["pytest"].steps
    with leased(readers, 1):
        assert "2 passed" in shell(step, here, own)


def test_cell_of_a_notebook_leases(readers: LeaseClient, own: Server, here: Path) -> None:
    """By the cells of the page, in IPython."""
    texts = RECIPES["Jupyter"].texts
    assert list(texts) == ["first cell", "second cell"]
    cells = json.dumps(list(texts.values()))
    with leased(readers, 1):
        printed = shell(shlex.join(["python", "-c", CELLS, cells]), here, own)
    assert re.search(r"^a cell on SIM-", printed, re.MULTILINE)


def is_gnu_parallel() -> bool:
    """moreutils has another `parallel`."""
    if not shutil.which("parallel"):
        return False
    asked = subprocess.run(
        ["parallel", "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return b"GNU parallel" in asked.stdout


@pytest.mark.parametrize(
    ("number", "leases"),
    [
        pytest.param(0, 6, id="xargs"),
        pytest.param(
            1,
            6,
            id="parallel",
            marks=pytest.mark.skipif(not is_gnu_parallel(), reason="GNU parallel is not installed"),
        ),
        pytest.param(2, 1, id="one_lease"),
    ],
)
def test_items_lease(
    readers: LeaseClient, own: Server, here: Path, number: int, leases: int
) -> None:
    """Every item is worked on once, though not all fit at a time."""
    steps = RECIPES["xargs and GNU parallel"].steps
    assert len(steps) == 3
    with leased(readers, leases):
        printed = shell(steps[number], here, own)
    assert sorted(line.split()[0] for line in printed.splitlines()) == list("abcdef")
    assert len(gpus(printed)) == 6


def test_job_of_the_crontab_leases(readers: LeaseClient, own: Server, here: Path) -> None:
    """With nothing in its environment but what cron sets and the crontab says."""
    text = RECIPES["cron"].texts["crontab"]
    (job,) = (line for line in text.splitlines() if re.match(r"[\d*]", line))
    command = job.split(maxsplit=5)[5]
    assert "%" not in command  # cron makes a line's end of it
    env = {"HOME": str(here), "LOGNAME": "ann", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
    env |= dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert env["REDIS_URL"] == "redis://gpu-store:6379"
    env |= {"REDIS_URL": own.url, "PATH": env["PATH"].replace("/opt/gpu/bin", str(BIN))}
    with leased(readers, 1):
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=here, env=env, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nightly on SIM-")


def test_script_holds_a_lease_for_a_part(readers: LeaseClient, own: Server, here: Path) -> None:
    """And its environment is as before afterwards."""
    (step,) = RECIPES["A shell script"].steps
    with leased(readers, 1):
        printed = shell(step, here, own).splitlines()
    assert [line.split()[0] for line in printed] == ["prepare,", "one", "two", "the"]
    assert len(set(gpus("\n".join(printed)))) == 1
    assert printed[-1].endswith(": none")


def test_script_without_a_lease_ends_there(readers: LeaseClient, own: Server, here: Path) -> None:
    """By the code of `acquire`."""
    script = here / "job.sh"
    script.write_text(script.read_text().replace("--wait 10m", "--wait 0"))
    with readers.lease("other", exclusive=True, devices=2), started("sh job.sh", here, own) as it:
        printed, said = it.communicate(timeout=60)
    assert (it.returncode, printed) == (75, "prepare, without a GPU\n"), said

"""Fixtures: one real server per kind and session, a pool of its own for every test."""

from __future__ import annotations

import gc
import os
import random
from contextlib import suppress
from functools import wraps
from importlib import import_module
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING

import pytest

from tests.audit import audit
from tests.extent import EVERYTHING, takes_longer
from tests.pools import Pool
from tests.servers import Server, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


LONG = (
    "agents/", "browser/", "scripts/", "deploy/", "api/test_events_slow", "api/test_live",
    "api/test_orchestrator_client", "api/test_safe_mode", "api/test_slow_clients",
    "api/test_document", "api/test_uds", "docs/test_recipes", "redis/test_cluster",
    "redis/test_sentinel", "hosts/test_scenarios",
    "faults/test_redis_away", "faults/test_data_loss", "faults/test_device_faults",
    "faults/test_driver_untouched", "faults/test_preempted_failover", "model/test_explore",
    "model/test_walk", "lua/test_cost", "lua/test_arguments_fuzz", "unit/test_cli_run",
    "api/test_secrets",
)  # fmt: skip
"""Files that take more than some 20 s, most of it waiting for real processes."""

SHORT_BETWEEN = 4

ORDER = os.environ.get("GPU_BROKER_ORDER")
"""A seed: the files, and the tests in each, run in an order that it makes."""


def _sparing_us(send: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Refuse a signal to our own process group: pid 0 would end the suite without a word."""

    @wraps(send)
    def checked(pid: int, number: int) -> None:
        if pid <= 0:
            raise ValueError(f"a test sends signal {number} to pid {pid}, which is our group")
        send(pid, number)

    return checked


os.kill, os.killpg = _sparing_us(os.kill), _sparing_us(os.killpg)


gc.disable()
"""No search for garbage until all tests are collected: what that makes stays."""


def pytest_report_header() -> str:
    """Say how much of the suite runs."""
    return "extent: " + (
        "everything"
        if EVERYTHING
        else "what a change needs at once; GPU_BROKER_TESTS=all: everything"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what takes longer, unless it is named."""
    if EVERYTHING or not takes_longer(collection_path):
        return None
    asked = (config.rootpath / arg.partition("::")[0] for arg in config.args)
    named = any(takes_longer(each) and collection_path.is_relative_to(each) for each in asked)
    return None if named else True


def pytest_collection(session: pytest.Session) -> None:
    """Import this worker's share of the files first.

    pytest rewrites the assertions of a changed file, and keeps the result for the next process
    that imports it. In the order of the collection each worker would rewrite every file.
    """
    worker = getattr(session.config, "workerinput", None)
    if worker is None:
        return
    root = session.config.rootpath
    asked = (root / arg.partition("::")[0] for arg in session.config.args)
    files = sorted({path for arg in asked for path in arg.rglob("test_*.py")})
    for path in files[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        with suppress(Exception, pytest.skip.Exception):  # the collection tells it
            import_module(".".join(path.relative_to(root).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Leave what was collected out of every later search for garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, each followed by short ones: some wait while others work,
    and none has a long file left when the others are done.
    """
    if ORDER:
        _shuffle(items, random.Random(ORDER))
        return
    files = [list(found) for _, found in groupby(items, key=lambda item: item.path)]
    long = [found for found in files if any(f"tests/{x}" in str(found[0].path) for x in LONG)]
    short = [found for found in files if found not in long]
    between = [short[i : i + SHORT_BETWEEN] for i in range(0, len(short), SHORT_BETWEEN)]
    ordered = [
        found
        for first, rest in zip_longest(long, between)
        for found in (*([first] if first else ()), *(rest or ()))
    ]
    items[:] = [item for found in ordered for item in found]


def _shuffle(items: list[pytest.Item], order: random.Random) -> None:
    """Shuffle files, and the tests of each: what holds in one order alone is wrong."""
    files = [list(found) for _, found in groupby(items, key=lambda item: item.path)]
    order.shuffle(files)
    for found in files:
        order.shuffle(found)
    items[:] = [item for found in files for item in found]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A plain Redis."""
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A plain Redis of the file's own: no other file writes to it, counts in it or stops it."""
    with running() as server:
        yield server


@pytest.fixture
def pool(server: Server) -> Iterator[Pool]:
    """A pool nobody has reported to; its sums and indexes are audited when the test is over."""
    with server.connect() as client:
        pool = Pool(client)
        yield pool
        audit(client, pool.keys)

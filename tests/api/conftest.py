"""The brokers under test, started together once; each test leaves their pool without leases."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk.keys import Keys
from tests.api.brokers import GRANTING, SIM, Answered, Broker, at_once
from tests.audit import audit
from tests.pools import Pool
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server


@dataclass
class Fleet:
    """Brokers by what is special about them.

    Attributes:
        plain: one simulated device of 1000 MiB, leases are given.
        replica: on the same pool, without devices of its own.
        none: on a pool without devices.
        nvml: NVML is asked for and cannot be had.
        safe: the same with SAFE_MODE=true.
        unset: a new pool on a named server, SAFE_MODE unset.
        storeless: nobody listens where its store should be.
        keys: of the pool of `plain` and `replica`.
    """

    plain: Broker
    replica: Broker
    none: Broker
    nvml: Broker
    safe: Broker
    unset: Broker
    storeless: Broker
    keys: Keys


@pytest.fixture(scope="session")
def fleet(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All of them, ready."""
    keys = [Keys(f"api-{uuid4().hex[:8]}") for _ in range(5)]
    nvml = broken_nvml(tmp_path_factory.mktemp("nvml"))
    here = [{"REDIS_URL": server.url, "GPU_BROKER_POOL": k.pool_name} for k in keys]
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    none = GRANTING | {"GPU_BROKER_DEVICES": "none"}
    asked = [
        GRANTING | here[0],
        none | here[0] | {"GPU_BROKER_HOSTNAME": "h2"},
        none | here[1],
        GRANTING | nvml | here[2],
        GRANTING | nvml | here[3] | {"SAFE_MODE": "true"},
        SIM | here[4],
        GRANTING | nowhere,
    ]
    with ExitStack() as stack:
        brokers = [stack.enter_context(Broker(**settings)) for settings in asked]
        for broker in brokers[:-1]:
            broker.wait()
        brokers[-1].wait("/health")
        yield Fleet(*brokers, keys[0])


def broken_nvml(folder: Path) -> dict[str, str]:
    """Settings that ask for an NVML library that is none, also on a machine that has a GPU."""
    (folder / "libnvidia-ml.so.1").write_text("no library")
    return {
        "GPU_BROKER_DEVICES": "nvml",
        "ENABLE_NVML": "true",
        "LD_LIBRARY_PATH": str(folder),
    }


TOKEN = {"token": "00000000-0000-4000-8000-000000000000"}

ASKED: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/health", None),
    ("POST", "/health", None),
    ("GET", "/ready", None),
    ("GET", "/gpu/info", None),
    ("GET", "/policy", None),
    ("GET", "/allocations", None),
    ("GET", "/metrics", None),
    ("GET", f"/lease/{TOKEN['token']}", None),
    ("POST", "/lease", {"agent": "analyst", "min_memory_mb": 1, "on_unavailable": "refuse"}),
    ("POST", "/lease/cpu", {"agent": "analyst", "min_memory_mb": 1}),
    ("POST", "/renew", TOKEN),
    ("POST", "/release", TOKEN),
)
"""Every endpoint; `/lease/cpu` stands for a /lease that would take the CPU."""


@pytest.fixture(scope="session")
def storeless(fleet: Fleet) -> dict[tuple[str, str], Answered]:
    """What a broker without its store answers to every request, by method and path."""
    asks = [(method, path.replace("/lease/cpu", "/lease"), body) for method, path, body in ASKED]
    answers = at_once(fleet.storeless, asks)
    return {ask[:2]: answer for ask, answer in zip(ASKED, answers, strict=True)}


@pytest.fixture
def plain(fleet: Fleet, server: Server) -> Iterator[Broker]:
    """The plain broker; afterwards its pool is emptied and audited."""
    yield fleet.plain
    for token in fleet.plain.allocations():
        fleet.plain.release(token)
    assert fleet.plain.allocations() == {}
    with server.connect() as client:
        audit(client, fleet.keys)


@pytest.fixture
def api_pool(fleet: Fleet, server: Server) -> Iterator[Pool]:
    """The plain broker's pool, to look at."""
    with server.connect() as client:
        yield Pool(client, fleet.keys)

"""The brokers under test, started together once; each test leaves their pool without leases."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk.keys import Keys
from broker.api_keys import add
from tests.api.brokers import GRANTING, SIM, Answered, Broker, at_once, eventually
from tests.api.keys import PASSWORD
from tests.audit import audit
from tests.pools import Pool
from tests.servers import free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server


class Fleet:
    """Brokers by what is special about them; each starts when a test first asks for it.

    Attributes:
        keys: of the pool of `plain` and `replica`.
    """

    def __init__(self, server: Server, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._folder = folder
        pools = [Keys(f"api-{uuid4().hex[:8]}") for _ in range(5)]
        self.keys = pools[0]
        self._at = [{"REDIS_URL": server.url, "GPU_BROKER_POOL": k.pool_name} for k in pools]

    def _started(self, path: str = "/ready", **settings: str) -> Broker:
        return self._stack.enter_context(Broker(**settings)).wait(path)

    @cached_property
    def plain(self) -> Broker:
        """One simulated device of 1000 MiB, leases are given."""
        return self._started(**GRANTING | self._at[0])

    @cached_property
    def replica(self) -> Broker:
        """On the same pool, without devices of its own."""
        return self._started(**NONE | self._at[0] | {"GPU_BROKER_HOSTNAME": "h2"})

    @cached_property
    def none(self) -> Broker:
        """On a pool without devices."""
        return self._started(**NONE | self._at[1])

    @cached_property
    def nvml(self) -> Broker:
        """NVML is asked for and cannot be had, which it knows."""
        broker = self._started(**GRANTING | broken_nvml(self._folder) | self._at[2])
        eventually(lambda: "nvml_init_error" in broker.http.get("/gpu/info").json(), 20)
        return broker

    @cached_property
    def safe(self) -> Broker:
        """The same with SAFE_MODE=true."""
        return self._started(
            **GRANTING | broken_nvml(self._folder) | self._at[3] | {"SAFE_MODE": "true"}
        )

    @cached_property
    def unset(self) -> Broker:
        """A new pool on a named server, SAFE_MODE unset."""
        return self._started(**SIM | self._at[4])

    @cached_property
    def storeless(self) -> Broker:
        """Nobody listens where its store should be."""
        nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
        return self._started("/health", **GRANTING | nowhere)


NONE = GRANTING | {"GPU_BROKER_DEVICES": "none"}


@pytest.fixture(scope="module")
def broker(own: Server) -> Iterator[Broker]:
    """One simulated device of 1000 MiB, on a server of the file's own; leases are given."""
    with Broker(**GRANTING, REDIS_URL=own.url) as broker:
        yield broker.wait()


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A server with a password, of the file's own."""
    with running() as server:
        with server.connect() as client:
            client.config_set("requirepass", PASSWORD)
        yield server


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a key file."""
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def key(key_file: Path) -> str:
    """An operator's key, in the key file."""
    return add(key_file, "ann", "operator")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A plain Redis of these files: a library that another file deletes closes pools."""
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def fleet(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All of them."""
    with ExitStack() as stack:
        yield Fleet(server, tmp_path_factory.mktemp("nvml"), stack)


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
    ("GET", "/events", None),
    ("GET", f"/lease/{TOKEN['token']}", None),
    ("POST", "/lease", {"agent": "analyst", "min_memory_mb": 1, "on_unavailable": "refuse"}),
    ("POST", "/lease/cpu", {"agent": "analyst", "min_memory_mb": 1}),
    ("POST", "/renew", TOKEN),
    ("POST", "/release", TOKEN),
)
"""Every endpoint; `/lease/cpu` stands for a /lease that would take the CPU."""


@pytest.fixture(scope="session")
def storeless(fleet: Fleet) -> dict[tuple[str, str], Answered]:
    """Return a storeless broker's answers to every request, by method and path."""
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

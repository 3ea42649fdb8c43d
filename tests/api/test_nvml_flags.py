"""ENABLE_NVML, SAFE_MODE and the driver's library: what each combination says, on real brokers.

Twelve brokers start together, one for each pair of flags; the library that all of them would load
then changes under them, from none to a good one, and each is asked at each stage.
"""

from __future__ import annotations

import ctypes.util
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk import LeaseClient, Store
from tests.api.brokers import BIN, Broker, eventually
from tests.program import called
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.servers import Server

FAKE = Path(__file__).parents[1] / "fakes" / "nvml" / "nvml.c"

UNREADY = """
#define nvmlInitWithFlags ready
#include "%s"
#undef nvmlInitWithFlags
int nvmlInitWithFlags(unsigned flags) { return access("%s", F_OK) ? ready(flags) : 9; }
"""
"""The stand-in for NVML, whose driver is not loaded while a file exists."""

ENABLE_NVML = ("unset", "true", "false")

SAFE_MODE = ("true", "false", "unset, the pool is safe", "unset, the pool is open")

LIBRARIES = ("absent", "no library", "broken", "present")
"""In the order in which they can follow each other: a library that was loaded stays so."""

FAILURES = {
    "absent": "No NVIDIA driver library (libnvidia-ml.so.1) on this machine",
    "no library": "No NVIDIA driver library (libnvidia-ml.so.1) on this machine",
    "broken": "The NVIDIA driver is not loaded",
}
"""Names of NVML's failures."""

REAL = ctypes.util.find_library("nvidia-ml")


@dataclass(frozen=True)
class Told:
    """A broker's answers at one stage.

    Attributes:
        log: all that it had written until then.
    """

    info: dict[str, Any]
    metrics: dict[str, float]
    log: str
    host_alive: bool


def enabled(flag: str) -> dict[str, str]:
    """ENABLE_NVML as a broker gets it."""
    return {} if flag == "unset" else {"ENABLE_NVML": flag}


def safe(flag: str) -> dict[str, str]:
    """SAFE_MODE as a broker gets it."""
    return {"SAFE_MODE": flag} if flag in {"true", "false"} else {}


@dataclass(frozen=True)
class Flagged:
    """A broker under one pair of flags, in a pool of its own."""

    broker: Broker
    agent: LeaseClient

    def reported(self) -> bytes | str | None:
        """Return the time of its host's last report."""
        return self.agent.redis.hget(self.agent.keys.host("h1"), "reported_ms")

    def told(self) -> Told:
        """Return its answers now."""
        (host,) = self.broker.http.get("/hosts").json()["hosts"]
        info = self.broker.http.get("/gpu/info").json()
        return Told(info, self.broker.metrics(), self.broker.said(), host["alive"])


def settle(fleet: Iterable[Flagged]) -> None:
    """Wait until each has reported a look at its devices that began after now."""
    for _ in range(2):  # the first report may tell of a look before
        before = [(flagged, flagged.reported()) for flagged in fleet]
        eventually(lambda b=before: all(flagged.reported() != at for flagged, at in b), 15, 0.05)


@pytest.fixture(scope="module")
def told(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str, str], Told]]:
    """Return each broker's answers, by ENABLE_NVML, SAFE_MODE and library."""
    assert shutil.which("gcc"), "no gcc on PATH: apt-get install gcc libc6-dev"
    folder = tmp_path_factory.mktemp("nvml")
    library, unready = folder / "libnvidia-ml.so.1", folder / "unready"
    source = folder / "unready.c"
    source.write_text(UNREADY % (FAKE, unready))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "fake.so", source], check=True)
    unready.touch()
    here = {
        "REDIS_URL": server.url,
        "GPU_BROKER_HOSTNAME": "h1",
        "GPU_BROKER_REPORT_S": "0.4",
        "PATH": str(BIN),  # no nvidia-smi
        "LD_LIBRARY_PATH": str(folder),
        "FAKE_NVML": "count=2",
    }
    found: dict[tuple[str, str, str], Told] = {}
    with ExitStack() as stack:
        fleet: dict[tuple[str, str], Flagged] = {}
        for nvml, mode in product(ENABLE_NVML, SAFE_MODE):
            pool = f"flags-{uuid4().hex[:8]}"
            flags = enabled(nvml) | safe(mode) | {"GPU_BROKER_POOL": pool}
            broker = stack.enter_context(Broker(**here | flags))
            agent = LeaseClient(Store(server.url), pool=pool, hostname="h1")
            fleet[nvml, mode] = Flagged(broker, stack.enter_context(agent))
        for (_, mode), flagged in fleet.items():
            flagged.broker.wait()
            if mode.endswith("open"):
                flagged.agent.set_policy(safe_mode=False)
        for stage in LIBRARIES:
            if stage == "no library":
                library.write_text("no library")
            elif stage == "broken":
                (folder / "fake.so").replace(library)
            elif stage == "present":
                unready.unlink()
            settle(fleet.values())
            found |= {(*flags, stage): flagged.told() for flags, flagged in fleet.items()}
        yield found


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("mode", SAFE_MODE)
@pytest.mark.parametrize("nvml", ENABLE_NVML)
def test_nvml_flags_say_what_was_asked_for_and_what_came_of_it(
    told: dict[tuple[str, str, str], Told], nvml: str, mode: str, library: str
) -> None:
    """NVML is asked if it may be: else nothing speaks of it; its failure is told and ends nothing.

    A driver that is installed or loaded later is found without a restart.
    """
    if library == "absent" and REAL:
        pytest.skip(f"this machine has {REAL}: its driver's library cannot be absent")
    this = told[nvml, mode, library]
    asked = nvml == "true" and mode in {"false", "unset, the pool is open"}
    works = asked and library == "present"
    info = this.info
    assert info["nvml_supported"] is info["nvml_enriched"] is info["available"] is works
    assert len(info["gpus"]) == (2 if works else 0)
    assert info.get("nvml_init_error") == (FAILURES.get(library) if asked else None)
    assert this.metrics["gpu_orchestrator_nvml_supported"] == works
    failed = asked and not works
    assert this.metrics.get("gpu_orchestrator_nvml_error_info") == (1 if failed else None)
    assert this.host_alive
    # That reporting goes on again is also said after a pause of the store, which is said too.
    paused = library == "present" and "reporting h1 failed" in this.log
    assert (FAILURES.get(library, "reporting h1") in this.log) is (asked or paused)


def test_nvml_flags_that_contradict_each_other_stop_the_start() -> None:
    """GPU_BROKER_DEVICES=nvml with ENABLE_NVML=false is one sentence with the way out, exit 2."""
    asked = {"GPU_BROKER_DEVICES": "nvml", "ENABLE_NVML": "false", "SAFE_MODE": "false"}
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    for command in ("serve", "host"):
        ended = called(command, **asked | nowhere)
        assert ended.returncode == 2
        (sentence,) = ended.stderr.splitlines()
        assert "GPU_BROKER_DEVICES=nvml, but ENABLE_NVML=false" in sentence

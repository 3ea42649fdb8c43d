"""Processes with memory of a real GPU, seen by a real `gpu-broker host`."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pynvml
import pytest

from agent_sdk import LeaseClient, Refused, Store
from agent_sdk.state.devices import Finding
from broker.devices.nvml.limits import SINCE
from broker.run.cgroups import place_of
from tests.api.brokers import PROGRAM, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.state.devices import DeviceStatus, ProcessStatus
    from tests.servers import Server

pytestmark = pytest.mark.gpu

HOLDER = Path(__file__).parent / "holder.py"

SEEN_S = 15
"""Seconds within which a process's act is reported; reports come each second."""

AGREE_MB = 600
"""The broker and the driver may differ by so much: samples are not of the same moment."""

BUSY_PCT = 5.0
"""Percent of one core that a reporter may take, at its default interval."""

WATCH_S = 30


@dataclass(frozen=True)
class Card:
    """The machine's first GPU, as the driver tells it."""

    uuid: str
    handle: object

    def memory_mb(self) -> tuple[int, int]:
        """Free, and kept by the driver for itself."""
        told = pynvml.nvmlDeviceGetMemoryInfo(self.handle, version=pynvml.nvmlMemory_v2)
        return told.free >> 20, told.reserved >> 20

    def pids(self) -> set[int]:
        """Return the pids of the processes that compute on it."""
        return {each.pid for each in pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)}


class Holder:
    """A process that takes leases and GPU memory when it is told to."""

    def __init__(self, card: Card, **settings: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, HOLDER],
            env=environment(CUDA_VISIBLE_DEVICES=card.uuid, **settings),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self.process.pid

    def told(self, order: str) -> str:
        """Its answer to an order."""
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, f"the holder ended at: {order}"
        return answer

    def end(self) -> None:
        """Kill it; the driver then takes its memory back."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def holding(card: Card, **settings: str) -> Iterator[Holder]:
    """A holder for the length of a block."""
    holder = Holder(card, **settings)
    try:
        yield holder
    finally:
        holder.end()


@pytest.fixture(scope="module")
def card() -> Iterator[Card]:
    """The first GPU; the tests are skipped where there is none, or where pids mean nothing."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"needs a real GPU: {error}")
    try:
        if not pynvml.nvmlDeviceGetCount():
            pytest.skip("needs a real GPU: NVML counts none")
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            pytest.skip(f"needs CUDA's driver library: {error}")
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        card = Card(pynvml.nvmlDeviceGetUUID(handle), handle)
        with holding(card) as probe:
            probe.told("hold 64")
            if probe.pid not in card.pids():
                pytest.skip("needs the host's pid namespace: the driver names other pids than ours")
        yield card
    finally:
        pynvml.nvmlShutdown()


@dataclass(frozen=True)
class Watched:
    """The card in a pool of its own, reported by a `gpu-broker host`."""

    card: Card
    agent: LeaseClient
    settings: dict[str, str]

    def device(self) -> DeviceStatus:
        """The card's row."""
        return next(d for d in self.agent.devices() if d.uuid == self.card.uuid)

    def process(self, pid: int) -> ProcessStatus | None:
        """A process on the card, if it is reported."""
        return next((p for p in self.device().processes or () if p.pid == pid), None)

    def found(self, kind: str, subject: object) -> bool:
        """Return whether the host finds this on the card."""
        return Finding(kind, str(subject)) in self.device().findings

    def holder(self) -> Holder:
        """A process that may ask this pool for a lease."""
        return Holder(self.card, **self.settings)


@contextmanager
def reported(server: Server, card: Card, **more: str) -> Iterator[tuple[Watched, int]]:
    """A reporter's pool and its pid, once it has told of the card; other cards are drained."""
    settings = {
        "REDIS_URL": server.url,
        "GPU_BROKER_POOL": f"real-{uuid4().hex[:8]}",
        "GPU_BROKER_HOSTNAME": "h1",
    }
    driver = {"GPU_BROKER_DEVICES": "nvml", "ENABLE_NVML": "true", "SAFE_MODE": "false"}
    # The card's fixture has seen that the driver names pids as they are here.
    seen = {"GPU_BROKER_PROCESSES": "host"}
    process = subprocess.Popen(
        [PROGRAM, "host"], env=environment(**settings | driver | seen | more),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pool = settings["GPU_BROKER_POOL"]
    try:
        with LeaseClient(Store(server.url), pool=pool, hostname="h1") as agent:
            watched = Watched(card, agent, settings)
            eventually(lambda: card.uuid in {d.uuid for d in agent.devices()}, 30)
            eventually(lambda: watched.device().state == "ok", 30)
            for device in agent.devices():
                if device.uuid != card.uuid:
                    agent.drain("device", device.uuid)
            yield watched, process.pid
    finally:
        process.terminate()
        process.wait(15)


@pytest.fixture
def watched(server: Server, card: Card) -> Iterator[Watched]:
    """The card, reported each second."""
    with reported(server, card, GPU_BROKER_REPORT_S="1") as (watched, _):
        yield watched


@pytest.fixture
def holder(watched: Watched) -> Iterator[Holder]:
    """A process that holds nothing yet."""
    holder = watched.holder()
    try:
        yield holder
    finally:
        holder.end()


def test_real_driver_keeps_an_enforced_command_in_its_lease(watched: Watched) -> None:
    """An allocation beyond the lease fails (2: out of memory), one within it does not."""
    branch, own = int(pynvml.nvmlSystemGetDriverVersion().split(".")[0]), place_of()
    if branch < SINCE or own is None or str(own.root) != "/sys/fs/cgroup" or os.geteuid():
        pytest.skip(f"needs driver {SINCE}, cgroup v2 and root; this is driver {branch}")
    done = subprocess.run(
        [PROGRAM, "run", "--memory", "1GiB", "--enforce", "--", sys.executable, HOLDER],
        env=environment(**watched.settings), input="hold 256\nhold 4096\n",
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "held\n", done.stderr
    assert "cuMemAlloc_v2 failed with 2" in done.stderr


def test_real_holder_within_its_lease_is_shown_with_it(watched: Watched, holder: Holder) -> None:
    """Its process is listed with its memory and its lease's token, and nothing is found of it."""
    token = holder.told("lease 4096")
    holder.told("hold 1024")
    seen = eventually(lambda: watched.process(holder.pid), SEEN_S)
    assert (seen.token, seen.finding) == (token, "")
    assert 1024 <= seen.memory_mb <= 4096
    time.sleep(3)
    assert not watched.found("overuse", token)
    assert watched.process(holder.pid).finding == ""


def test_real_holder_over_its_lease_is_found_and_counted(watched: Watched, holder: Holder) -> None:
    """Finding overuse, by its token; what it uses beyond its lease is nobody's to lease."""
    token = holder.told("lease 2048")
    holder.told("hold 4096")
    eventually(lambda: watched.found("overuse", token), SEEN_S)
    assert watched.process(holder.pid).memory_mb >= 4096
    free_mb, _ = watched.card.memory_mb()
    assert watched.device().free_mb <= free_mb


def test_real_holder_that_stays_after_its_lease_is_an_orphan(
    watched: Watched, holder: Holder
) -> None:
    """Revoked with force, it still has its memory: found, and that memory is granted to nobody."""
    token = holder.told("lease 4096")
    holder.told("hold 3000")
    eventually(lambda: watched.process(holder.pid), SEEN_S)
    watched.agent.revoke(token, force=True)
    eventually(lambda: watched.found("orphan", holder.pid), SEEN_S)
    assert watched.process(holder.pid).token == token
    for _ in range(5):  # also when what the lease had has cooled
        time.sleep(2)
        free_mb, _ = watched.card.memory_mb()
        assert watched.device().free_mb <= free_mb
        with pytest.raises(Refused):
            watched.agent.acquire("next", memory_mb=free_mb + 1)
    holder.end()
    eventually(lambda: watched.device().state == "ok" and agrees(watched), 60)
    assert not watched.found("orphan", holder.pid)


def test_real_process_without_a_lease_is_a_squatter(watched: Watched, holder: Holder) -> None:
    """Found by its pid; its memory is granted to nobody, until it ends."""
    holder.told("hold 2000")
    eventually(lambda: watched.found("squatter", holder.pid), SEEN_S)
    seen = watched.process(holder.pid)
    assert (seen.token, seen.finding) == ("", "squatter")
    assert seen.memory_mb >= 2000
    eventually(lambda: agrees(watched), SEEN_S)
    holder.end()
    eventually(lambda: not watched.found("squatter", holder.pid), SEEN_S)
    eventually(lambda: agrees(watched), SEEN_S)


def agrees(watched: Watched) -> bool:
    """Return whether broker and driver agree on free memory, the reserves of both included."""
    device, (free_mb, reserved_mb) = watched.device(), watched.card.memory_mb()
    return abs(device.free_mb + device.system_mb - free_mb - reserved_mb) <= AGREE_MB


def test_real_free_memory_is_the_drivers_with_and_without_load(
    watched: Watched, holder: Holder
) -> None:
    """To 600 MiB, while nobody has a lease; and never more than the driver has."""
    for order in ("hold 64", "hold 1500", "hold 3000"):
        holder.told(order)
        eventually(lambda: agrees(watched), SEEN_S)
        assert watched.device().free_mb <= watched.card.memory_mb()[0]


def cpu_s(pid: int) -> float:
    """Return the seconds of one core that a process has computed."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def test_real_reporter_takes_a_twentieth_of_a_core_at_most(server: Server, card: Card) -> None:
    """`gpu-broker host` at its default interval, over half a minute, with a process to look at."""
    with reported(server, card) as (_, pid), holding(card) as holder:
        holder.told("hold 64")
        began, before = time.monotonic(), cpu_s(pid)
        time.sleep(WATCH_S)
        share_pct = 100 * (cpu_s(pid) - before) / (time.monotonic() - began)
    assert share_pct <= BUSY_PCT, f"{share_pct:.1f} % of one core"

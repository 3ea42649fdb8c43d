"""A scripted machine with a real reporter and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agent_sdk import LeaseClient, Store
from tests.api.brokers import PROGRAM, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

SLEEP = "import time; print('up', flush=True); time.sleep(120)"

HOLDER = """
import json, subprocess, sys
from agent_sdk import LeaseClient
client = LeaseClient.from_env()
lease = client.acquire("holder", **json.loads(sys.argv[1]))
if len(sys.argv) > 2:
    client.keep(lease)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
lease.on_notice(lambda lease: print(*lease.notices, flush=True))
print(lease.token, child.pid, flush=True)
lease.wait_lost(120)
print("lost", lease.lost_reason, flush=True)
child.wait()
"""
"""Acquires, starts a child, and says what it is told; keeps the lease if a second argument says."""


class Machine:
    """One host with one GPU of 10,000 MiB, which a file describes."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._file = folder / "machine.yaml"
        self._times: set[int] = set()
        self.env = environment(
            REDIS_URL=server.url,
            GPU_BROKER_POOL=f"host-{uuid4().hex[:8]}",
            GPU_BROKER_HOSTNAME="h1",
            GPU_BROKER_REPORT_S="0.3",
            GPU_BROKER_DEVICES=f"scenario:{self._file}",
            GPU_BROKER_PROCESSES="host",
            SAFE_MODE="false",
        )
        self.is_now()
        store = Store(server.url)
        self.client = LeaseClient(store, pool=self.env["GPU_BROKER_POOL"], hostname="h1")

    def is_now(self, *processes: tuple[int, int], **more: Any) -> None:
        """Set the MiB that each process uses, and other fields of the GPU."""
        rows = [{"pid": pid, "memory_mb": mb, "busy_pct": 50} for pid, mb in processes]
        gpu = {"uuid": "GPU-a", "total_mb": 10_000, "system_mb": 300, "processes": rows} | more
        step = {"after_s": 0, "devices": [gpu]}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"steps": [step]}))  # JSON is YAML
        new.replace(self._file)

    @contextmanager
    def reporter(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """`gpu-broker host` for the length of a block, once it has reported."""
        before = self.sampled_ms
        with subprocess.Popen(
            [PROGRAM, "host", *options], env=self.env, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                eventually(lambda: self.sampled_ms > before, 40)
                yield process
            finally:
                process.kill()

    @contextmanager
    def python(self, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A process for the length of a block."""
        command = [sys.executable, "-c", code, *arguments]
        with subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def holder(self, *keeps: str, **ask: Any) -> Iterator[Holder]:
        """A process that holds a lease."""
        with self.python(HOLDER, json.dumps(ask), *keeps) as process:
            holder = Holder(process)
            try:
                yield holder
            finally:
                holder.end_child()

    @property
    def sampled_ms(self) -> int:
        """The time of the GPU's last sample, on the pool's clock."""
        return max((d.sampled_ms for d in self.client.devices()), default=0)

    def gpu_reports(self) -> int:
        """Count the reports of this GPU by their samples' times."""
        self._times |= {device.sampled_ms for device in self.client.devices()}
        return len(self._times)

    def gpu(self) -> Any:
        """The GPU as the pool knows it."""
        (device,) = self.client.devices()
        return device

    def found(self) -> set[tuple[str, str]]:
        """Give the findings on it: kind and subject."""
        return {(each.kind, each.subject) for each in self.gpu().findings}

    def events(self, name: str) -> list[dict[str, str]]:
        """The fields of all events of this name."""
        rows = self.client.redis.xrange(self.client.keys.events)
        return [row for _, row in rows if row["event"] == name]  # type: ignore[union-attr] # rows


class Holder:
    """A process with a lease, and a child."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout
        self._said = process.stdout
        self.token, child = self._said.readline().split()
        self.child = int(child)

    def hears(self) -> str:
        """Read what it says next."""
        return self._said.readline().strip()

    def end_child(self) -> None:
        """Kill its child, and wait until it is gone."""
        try:
            os.kill(self.child, 9)
        except ProcessLookupError:
            return

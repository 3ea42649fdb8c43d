"""Every door of the broker on a store: what tests of each kind of store walk through."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.api.brokers import GRANTING, PROGRAM, Broker, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def _following(*command: str, **settings: str) -> Iterator[list[str]]:
    """The lines of a command that does not end by itself; they are all there after the block."""
    lines: list[str] = []
    with subprocess.Popen(
        [PROGRAM, *command], env=environment(**settings), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines.append(process.stdout.readline())
        try:
            yield lines
        finally:
            process.terminate()
            lines += process.stdout.readlines()


def check_doors(url: str, pool: str) -> str:
    """serve, run, events -f, status -w, queue, doctor and functions; what doctor says."""
    settings = {"REDIS_URL": url, "GPU_BROKER_POOL": pool, **GRANTING}

    def say(*command: str) -> str:
        return subprocess.run(
            [PROGRAM, *command], env=environment(**settings), capture_output=True, text=True,
            timeout=30, check=True,
        ).stdout  # fmt: skip

    with Broker(**settings) as broker:
        broker.wait()
        with (
            _following("events", "-f", "-o", "json", **settings) as events,
            _following("status", "-w", "-o", "json", **settings) as pictures,
        ):
            token = broker.granted(min_memory_mb=900)["token"]
            eventually(lambda: token in broker.allocations(), 2)
            broker.release(token)
            assert say("run", "--memory", "10MiB", "--", "echo", "ran") == "ran\n"
            assert say("queue") == "no request waits\n"
            assert "gpu_release" in say("functions", "load")
            held = 'gpu_broker_hold_seconds_count{reason="released"}'
            eventually(lambda: broker.metrics()[held] == 2, 5)  # the broker follows the stream
        happened = [json.loads(line)["event"] for line in events]
        assert happened[-4:] == ["granted", "released", "granted", "released"]
        assert len(pictures) > 1
        said = say("doctor")
        assert "verbs: functions, gpu_broker_" in said
        return said

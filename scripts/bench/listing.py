"""Times of the commands that list a large pool, from their start to their end.

A server of our own is filled by the verbs; each command is run several times, and the median told.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import bench
import readers

if TYPE_CHECKING:
    from collections.abc import Sequence

CALLS: Final = (
    "status", "status --host host-7", "status --agent agent-7", "status --state drained",
    "top --once", "leases --limit 20", "leases --agent agent-7", "hosts --limit 20", "queue",
)  # fmt: skip

TIMES: Final = 5


def seconds(program: str, words: str, env: dict[str, str]) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        subprocess.run([program, *words.split()], env=env, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return median(times)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 whatever the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--leases", type=int, default=100_000)
    parser.add_argument(
        "--program", default=str(Path(sys.executable).with_name("gpu-broker")),
        help="the gpu-broker that is measured",
    )  # fmt: skip
    args = parser.parse_args(argv)
    with bench.running_store() as store:
        pool = bench.Pool(store, args.devices)
        readers.fill(pool, args.leases)
        env = os.environ | {"REDIS_URL": store.url, "GPU_BROKER_POOL": "bench"}
        rows = [[f"`{words}`", f"{seconds(args.program, words, env):.2f}"] for words in CALLS]
    print(bench.table(["command", "s"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

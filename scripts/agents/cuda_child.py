"""A child process that scores texts on a leased GPU, and the agent's handle to it.

A CUDA context belongs to a process: it sees the devices that CUDA_VISIBLE_DEVICES named when it was
made, and holds memory for as long as the process lives. So each lease has a child of its own, which
starts with the lease's environment and ends with the lease. A GPU that hangs is a child to kill.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, cast

from sentiment import TorchEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

START_S = 60.0
"""For torch to be imported and the device to be opened."""

TEXT_S = 10.0
"""For one text."""

LOOK_S = 0.05
"""Between two looks at whether the lease is still held."""


class GpuUnusable(Exception):
    """The child has no GPU, or no answer; the message is one word."""


def torch_installed() -> bool:
    """Return whether torch could be imported; it is not."""
    return importlib.util.find_spec("torch") is not None


class CudaChild:
    """An engine like `sentiment.NumpyEngine`, for the length of a block.

    Args:
        environ: the lease's: `lease.env()`.
        held: whether the lease is held; asked while the child works.

    Raises:
        GpuUnusable: at the start or in `score`: go on without it.
    """

    name = TorchEngine.name

    def __init__(self, environ: Mapping[str, str], held: Callable[[], bool]) -> None:
        self._held = held
        try:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env=os.environ | dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
        except OSError as error:
            raise GpuUnusable("no_child") from error
        self._stdin = cast("IO[bytes]", self._process.stdin)
        self._stdout = cast("IO[bytes]", self._process.stdout)
        try:
            self._read(START_S)
        except BaseException:
            self.close()
            raise

    def score(self, text: str) -> float:
        """Return the sentiment of a text, between -1 and 1."""
        try:
            self._stdin.write(json.dumps(text).encode() + b"\n")
        except OSError as error:
            raise GpuUnusable("child_ended") from error
        return float(self._read(TEXT_S))

    def _read(self, within_s: float) -> float:
        until = time.monotonic() + within_s
        while not select.select([self._stdout], [], [], LOOK_S)[0]:
            if not self._held():
                raise GpuUnusable("lease_lost")
            if time.monotonic() > until:
                raise GpuUnusable("gpu_timeout")
        line = self._stdout.readline()
        if not line:
            raise GpuUnusable("child_ended")
        try:
            answer: float | str = json.loads(line)
        except ValueError as error:  # a library printed something of its own
            raise GpuUnusable("bad_answer") from error
        if isinstance(answer, str):
            raise GpuUnusable(answer)
        return answer

    def close(self) -> None:
        """Kill the child: its memory on the GPU is free when this returns."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the child."""
        self.close()


def main() -> None:
    """Say 0 when the device is open, then a score for each line of JSON, or one word of refusal."""
    try:
        engine = TorchEngine("cuda")
    except (ImportError, RuntimeError) as error:
        print(error, file=sys.stderr)
        print(json.dumps("no_cuda"), flush=True)
        return
    print(0, flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.score(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

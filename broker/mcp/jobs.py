"""Commands of agents under leases of their own, by `gpu-broker run`."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

TAIL_BYTES: Final = 8192
"""Bytes of the last output that are kept: a model reads all of it."""

MOST_ENDED: Final = 32
"""Most ended commands whose end is still told."""

END_S: Final = 1.0
"""Seconds that commands have to end when the session does."""

# -P: no module in the folder of the command takes the place of ours
BOUND: Final = (sys.executable, "-P", "-c", "from broker.cli.bound import main; main()")


@dataclass(slots=True, eq=False)
class Job:
    """Command that runs, waits for its lease, or has ended.

    Attributes:
        cut: earlier output than `output` was left out.
    """

    name: str
    process: Process
    output: bytearray = field(default_factory=bytearray)
    cut: bool = False
    reading: asyncio.Task[None] | None = None

    @property
    def exit_code(self) -> int | None:
        """Exit code as a shell gives it; None: it has not ended, or its output has not."""
        code = self.process.returncode
        if code is None or (self.reading and not self.reading.done()):
            return None
        return 128 - code if code < 0 else code

    @property
    def text(self) -> str:
        """Last output as text."""
        return self.output.decode(errors="replace")

    def stop(self) -> None:
        """Ask it to end: `gpu-broker run` passes the signal on, and gives the lease back."""
        with suppress(ProcessLookupError):
            self.process.terminate()

    async def ended(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        if self.reading:
            await asyncio.wait({self.reading}, timeout=seconds)

    async def read(self) -> None:
        """Keep the end of its output, until there is no more and it has ended."""
        assert self.process.stdout is not None  # noqa: S101 - `Jobs.start` makes it a pipe
        while part := await self.process.stdout.read(TAIL_BYTES):
            self.output += part
            self.cut = self.cut or len(self.output) > TAIL_BYTES
            del self.output[:-TAIL_BYTES]
        await self.process.wait()


class Jobs:
    """Commands of one session."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def get(self, name: str) -> Job | None:
        """Return a command by its name."""
        return self._jobs.get(name)

    async def start(self, options: Sequence[str], command: Sequence[str], cwd: str | None) -> Job:
        """Start `gpu-broker run` with these options.

        Raises:
            OSError: the folder is not there, or no process can be had.
            ValueError: a word has letters that no program can be given.
        """
        process = await asyncio.create_subprocess_exec(
            *BOUND,
            str(os.getpid()),
            "run",
            *options,
            "--",
            *command,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        job = Job(token_hex(8), process)
        job.reading = asyncio.ensure_future(job.read())
        over = [name for name, each in self._jobs.items() if each.exit_code is not None]
        for name in over[:-MOST_ENDED]:
            del self._jobs[name]
        self._jobs[job.name] = job
        return job

    async def end(self) -> None:
        """End all commands: by SIGTERM, and after a second by SIGKILL."""
        alive = [job for job in self._jobs.values() if job.exit_code is None]
        for job in alive:
            job.stop()
        if alive:
            await asyncio.wait({asyncio.ensure_future(x.ended(END_S)) for x in alive})
        for job in alive:
            if job.exit_code is None:
                with suppress(ProcessLookupError):
                    job.process.kill()

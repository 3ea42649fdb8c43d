"""One process of a broker, and what it shares with the other workers of the same `serve`.

One of them leads: it reports this machine's devices, reaps, and counts what the pool's events tell.
The kernel's lock on a file says which: it ends with its process, and another worker takes it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pickle
import signal
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

if TYPE_CHECKING:
    from typing import Self

    from broker.reporter import Reporter

LOOK_S: Final = 0.25
"""Seconds between two looks for the lead, and at the sample of the worker that has it."""


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """WorkerPlace of a worker in its group, as its parent process tells it.

    Attributes:
        number: 1 or more; a worker that replaces another has its number.
        folder: the folder that the workers share.
        replica: the name that the group has among the replicas.
        started: the start of the group, on `time.monotonic`.
        anew: this worker replaces an ended one.
        store_began_anew: the embedded store was started without earlier data.
        listener: the descriptor of the socket to accept from.
        life: the descriptor of a pipe that ends with the parent process.
    """

    number: int
    folder: str
    replica: str
    started: float
    anew: bool
    store_began_anew: bool
    listener: int
    life: int

    @property
    def text(self) -> str:
        """The place as an argument."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the place from the argument."""
        return cls(**json.loads(text))


class Worker:
    """Process of a broker; one without a place is alone, and leads.

    Args:
        place: its place in a group.

    Attributes:
        leads: True while it reports and reaps.
        replica: the name of all workers together among the replicas.
    """

    def __init__(self, place: WorkerPlace | None = None) -> None:
        self.place = place
        self.leads = place is None
        self.replica = place.replica if place else uuid4().hex[:8]
        self._lock = -1 if place is None else _opened(Path(place.folder) / "lead")

    @property
    def number(self) -> int | None:
        """Number in the group; None: it is alone."""
        return self.place.number if self.place else None

    @property
    def decides(self) -> bool:
        """True if it writes our SAFE_MODE: once for a start of `serve`, and at no replacement."""
        return self.place is None or (self.place.number == 1 and not self.place.anew)

    async def report(self, reporter: Reporter) -> None:
        """Report this machine's devices while this worker leads; till then follow the leader's."""
        if self.place is None:
            await reporter.run()
            return
        shared = Path(self.place.folder) / "sample"
        seen = 0
        while not self._takes_lead():
            with_time = shared.stat().st_mtime_ns if shared.exists() else 0
            if with_time != seen:
                seen, reporter.sample = with_time, pickle.loads(shared.read_bytes())  # noqa: S301 - written below, in a folder of our own
            await asyncio.sleep(LOOK_S)
        async with asyncio.TaskGroup() as work:
            work.create_task(reporter.run())
            work.create_task(_share(reporter, shared))

    def _takes_lead(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.leads = True
        return True


async def _share(reporter: Reporter, path: Path) -> None:
    """Write each sample for the other workers."""
    told = None
    while True:
        if reporter.sample is not told:
            told = reporter.sample
            part = path.with_suffix(".part")
            part.write_bytes(pickle.dumps(told))
            part.replace(path)
        await asyncio.sleep(LOOK_S)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def end_with_parent(place: WorkerPlace) -> None:
    """Stop this process in good order once its parent process has ended, however it did."""

    def wait() -> None:
        os.read(place.life, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()

"""Programs on terminals of their own, and the pictures that they draw."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.api.brokers import PROGRAM, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker


class Screen:
    """A program on a terminal of its own.

    Attributes:
        seen: everything that it wrote.
    """

    def __init__(self, *args: str, columns: int, lines: int, **settings: str) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(columns=columns, lines=lines)
        self.process = subprocess.Popen(
            [PROGRAM, *args], env=environment(TERM="xterm", **settings),
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def resize(self, *, columns: int, lines: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, seconds: float = 0.05) -> str:
        """All that it wrote up to now."""
        while select.select([self._ours], [], [], seconds)[0]:
            try:
                more = os.read(self._ours, 65536)
            except OSError:  # its end
                break
            if not more:
                break
            self.seen += more.decode()
        return self.seen

    @property
    def picture(self) -> str:
        """The last picture, as far as it is drawn."""
        return self.read().rpartition("\x1b[H")[2]

    @property
    def lines(self) -> list[str]:
        """The same, as it looks, without colours."""
        return re.sub(r"\x1b\[\d*[A-Za-z]", "", self.picture).splitlines()

    def end(self, name: signal.Signals = signal.SIGINT) -> int:
        """End it by a signal; its exit code."""
        self.process.send_signal(name)
        code = self.process.wait(5)
        self.read()
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def screen(
    pool: TestBroker, *args: str, columns: int = 120, lines: int = 40, **settings: str
) -> Iterator[Screen]:
    opened = Screen(
        *args, columns=columns, lines=lines,
        **{"REDIS_URL": pool.url, "GPU_BROKER_HOSTNAME": pool.host, **settings},
    )  # fmt: skip
    try:
        yield opened
    finally:
        opened.close()

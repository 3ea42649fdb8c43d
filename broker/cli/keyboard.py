"""Single keys of a terminal, for a command that stays; the terminal is put back as it was."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Keyboard:
    """Keys of a terminal, or of none: then no key ever comes.

    Args:
        descriptor: of the terminal, which sends each key at once.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor

    @property
    def watched(self) -> bool:
        """True if keys may come."""
        return self._descriptor is not None

    def pressed(self, seconds: float) -> str:
        """Wait so long for keys; give them as text, empty if none came."""
        if self._descriptor is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return ""
        keys = os.read(self._descriptor, 64)
        if not keys:  # hung up: the signal for that is on its way
            self._descriptor = None
        return keys.decode(errors="replace")


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Take single keys, without an echo, for the length of a block; Ctrl-C works as ever.

    A command in the background, or without a terminal, is left alone.
    """
    descriptor = _terminal()
    if descriptor is None:
        yield Keyboard()
        return
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSADRAIN)
    try:
        yield Keyboard(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _terminal() -> int | None:
    """Find the terminal that is ours to read; a change from the background would stop us."""
    try:
        descriptor = sys.stdin.fileno()
        return descriptor if os.tcgetpgrp(descriptor) == os.getpgrp() else None
    except (AttributeError, OSError, ValueError):
        return None

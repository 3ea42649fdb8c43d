"""Daemon threads, with an error in words when none can be had."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def daemon(target: Callable[..., object], name: str, *args: object) -> threading.Thread:
    """Make a thread that no exit waits for; `begin` starts it."""
    return threading.Thread(target=target, args=args, name=name, daemon=True)


def begin(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        RuntimeError: none can be had: the process is at its limit, or the interpreter ends.
    """
    if sys.is_finalizing():  # before Python 3.12, start() would wait for ever for a thread
        raise RuntimeError("no thread can be started: the interpreter ends")
    try:
        thread.start()
    except RuntimeError as error:
        raise RuntimeError(
            f"no thread can be started ({error}): raise the limit of threads "
            "(ulimit -u, pids.max), or end some"
        ) from error

"""Signals that come at a chosen bytecode of the SDK: a trace function in C counts them."""

from __future__ import annotations

import ctypes
import functools
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import agent_sdk

if TYPE_CHECKING:
    from types import FrameType

SOURCE = Path(__file__).with_name("interrupts.c")
FOLDER = str(Path(agent_sdk.__file__).parent)
"""The folder in whose files bytecodes are counted."""


class Interrupted(KeyboardInterrupt):
    """Error that the signal's handler raises."""


class Interrupt:
    """Block that a signal interrupts at the nth bytecode of the SDK, and perhaps again.

    CPython handles the signal where it handles any: at the next call, loop or function's start.

    Args:
        at: the bytecode's number, from 1; 0: none, they are only counted.
        again: how many bytecodes after the first the second signal comes; 0: none does.

    Attributes:
        steps: how many bytecodes were run.
    """

    def __init__(self, at: int, again: int = 0) -> None:
        self.steps = 0
        self._at = at
        self._again = again

    def __enter__(self) -> Self:
        library = _library()
        self._before = signal.signal(signal.SIGUSR1, _handle)
        library.start(library.trace, FOLDER.encode(), signal.SIGUSR1, self._at, self._again)
        sys.settrace(library.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self.steps = _library().counted()
        signal.signal(signal.SIGUSR1, self._before)


def _handle(_: int, frame: FrameType | None) -> None:
    if not logs(frame):
        raise Interrupted


def logs(frame: FrameType | None) -> bool:
    """Tell whether Python's logging runs, which has one lock for the whole process.

    An error that is raised as it is taken leaves it locked for ever, for whatever else logs.
    redis-py asks for a logger at each connect.
    """
    while frame is not None:
        if frame.f_code.co_filename == logging.__file__:
            return True
        frame = frame.f_back
    return False


@functools.cache
def _library() -> Any:
    """Compile and load the trace function."""
    assert shutil.which("gcc"), "no gcc on PATH: apt-get install gcc libc6-dev"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "interrupts.so"
        options = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", path]
        subprocess.run(["gcc", *options, SOURCE], check=True)
        library = ctypes.PyDLL(str(path))
    number = ctypes.c_long
    library.start.argtypes = [ctypes.py_object, ctypes.c_char_p, ctypes.c_int, number, number]
    library.start.restype = None
    library.counted.restype = number
    library.trace.argtypes = [ctypes.py_object] * 3
    library.trace.restype = ctypes.py_object
    return library

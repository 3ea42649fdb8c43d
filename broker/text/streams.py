"""Output streams of the commands, with incomplete locales, full disks and closed descriptors."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agent_sdk.settings import dumb_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

UNWRITABLE: Final = {errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT}


class NowhereToPrint(click.ClickException):
    """Error of a command whose result cannot be shown: stdout is closed, or takes no more."""


def takes_escapes(stream: int) -> bool:
    """Tell whether a descriptor is a terminal that moves its cursor and has colours."""
    return os.isatty(stream) and not dumb_terminal()


def prepare_streams() -> bool:
    """Make stdout and stderr take every letter, as `?` where the locale lacks it.

    Returns:
        Whether there is a stdout: printed text goes nowhere where it is closed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    there = sys.stdout is not None
    if not there:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
    return there


@contextmanager
def write_errors_in_words() -> Iterator[None]:
    """Let a full disk end a command with a sentence, not with a traceback.

    Raises:
        NowhereToPrint: stdout takes no more.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        with suppress(OSError):  # else the interpreter tries again at its end, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise NowhereToPrint(f"stdout cannot be written: {error.strerror}") from error

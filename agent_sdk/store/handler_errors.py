"""Exceptions of signal handlers that look like failures of the store.

A program's time limit is often a handler that raises TimeoutError. redis-py takes that, like any
other OSError during its reading, for a failure of its connection. The call would be repeated, and
the program would never hear of its time limit.
"""

from __future__ import annotations

import signal
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType


def raised_by_handler(error: BaseException) -> BaseException | None:
    """Return the error of a signal handler, if one is behind this error."""
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    behind: BaseException | None = error
    while behind is not None and codes:
        if any(frame.f_code in codes for frame, _ in traceback.walk_tb(behind.__traceback__)):
            return behind
        behind = behind.__context__
    return None


def raise_of_handler(error: BaseException) -> None:
    """Raise the error of a signal handler that another error hides."""
    struck = raised_by_handler(error)
    if struck is not None and struck is not error:
        raise struck from None


def _code(handler: Callable[..., object] | int | None) -> CodeType | None:
    """Return the code that a handler runs: of a function, a method, or a callable object."""
    for way in (handler, getattr(handler, "__func__", None), getattr(handler, "func", None)):
        if code := getattr(way, "__code__", None):
            found: CodeType = code
            return found
    return getattr(vars(type(handler)).get("__call__"), "__code__", None)

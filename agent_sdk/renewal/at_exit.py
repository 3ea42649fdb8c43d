"""End of the process: what is to be given back then, once and together."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

from agent_sdk.clock import local_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk.renewal.renewer import Renewer

CLOSE_S = 5.0
"""Most seconds that a close waits for the thread, which may be in the middle of a call."""

owing: set[Renewer] = set()
"""Clients with something to give back: a process that ends now has yet to announce its end."""

_before_exit: list[Callable[[], object]] = []
_after_exit: list[Callable[[], object]] = []


def before_exit(abandon: Callable[[], object]) -> None:
    """Register a call for the end of the process, to abandon the leases that it still holds."""
    _before_exit.append(abandon)


def after_exit(close: Callable[[], object]) -> None:
    """Register a call for the end of the process, once nothing is left to give back."""
    _after_exit.append(close)


def _at_exit() -> None:
    """Try once, together, to give abandoned leases back."""
    for abandon in _before_exit:
        abandon()
    keepers, until = list(owing), local_now() + CLOSE_S
    for keeper in keepers:
        keeper.stop()
    for keeper in keepers:
        keeper.close(max(0.0, until - local_now()))
    for close in _after_exit:
        close()


atexit.register(_at_exit)

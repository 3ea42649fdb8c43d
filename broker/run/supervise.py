"""Run the command for as long as the lease is held, and end it when the lease is lost."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from agent_sdk.clocks import local_now
from broker.run.child import Child, Guard
from broker.run.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_sdk import Lease
    from broker.run.tell import Teller

LOOK_S = 0.05
"""Between looks at what is left of a group whose end sends us no signal."""


def supervise(
    command: Sequence[str], env: Mapping[str, str], lease: Lease, grace_s: float, teller: Teller
) -> int:
    """The command's exit code.

    Signals are passed on to its group. When the lease is lost, and for what is left of the group
    when the command has ended: SIGTERM, and after `grace_s` SIGKILL.

    Raises:
        OSError: it cannot be started.
    """
    with Signals() as signals, Guard() as guard:
        child = Child(command, env, guard)
        try:
            teller.started(child.pid)
            lease.on_lost(lambda _: signals.wake())
            code = _while_it_lives(child, lease, grace_s, signals, teller)
            _end_group(child, grace_s, signals, teller)
        except BaseException:
            child.signal(signal.SIGKILL)
            raise
    teller.ended(code)
    return code


def _while_it_lives(
    child: Child, lease: Lease, grace_s: float, signals: Signals, teller: Teller
) -> int:
    kill_at: float | None = None
    while True:
        code, stopped = child.look()
        if code is not None:
            return code
        if stopped:
            teller.not_stopped()
            child.signal(signal.SIGCONT)
        if kill_at is None and lease.lost:
            teller.lost(lease, grace_s)
            child.signal(signal.SIGCONT)
            child.signal(signal.SIGTERM)
            kill_at = local_now() + grace_s
        if kill_at is not None and local_now() >= kill_at:
            child.signal(signal.SIGKILL)
            kill_at = float("inf")
        for number in signals.wait(_pause_s(lease, kill_at)):
            if number == signal.SIGTSTP:
                teller.not_stopped()
            elif number != signal.SIGCHLD:
                child.signal(number)


def _pause_s(lease: Lease, kill_at: float | None) -> float | None:
    """Until there may be something to do; None: a signal will say so."""
    if kill_at is not None:
        return None if kill_at == float("inf") else max(0.0, kill_at - local_now())
    return None if lease.trusted_s == float("inf") else lease.trusted_s


def _end_group(child: Child, grace_s: float, signals: Signals, teller: Teller) -> None:
    """End what the command left behind: the lease is given back next."""
    kill_at = local_now() + grace_s
    told = False
    while child.group_lives:
        if not told:
            teller.left_behind(grace_s)
            child.signal(signal.SIGTERM)
            told = True
        if local_now() >= kill_at:
            child.signal(signal.SIGKILL)
        for number in signals.wait(LOOK_S):
            if number in {signal.SIGINT, signal.SIGTERM}:  # whoever waits for us has waited enough
                kill_at = 0.0

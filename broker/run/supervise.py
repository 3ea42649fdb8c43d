"""Run the command for as long as the lease is held, and end it when the lease is lost."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from agent_sdk.clocks import local_now
from broker.run.child import Child, Guard
from broker.run.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_sdk import Lease
    from broker.run.tell import Teller

LOOK_S = 0.05
"""Between looks at what is left of a group whose end sends us no signal."""


class NotStarted(Exception):
    """The command cannot be started; the message says why."""


def supervise(
    command: Sequence[str],
    env: Mapping[str, str],
    lease: Lease,
    grace_s: float,
    teller: Teller,
    give_back: Callable[[], None],
) -> int:
    """The command's exit code.

    Signals are passed on to its group. When the lease is lost, and for what is left of the group
    when the command has ended: SIGTERM, and after `grace_s` SIGKILL. `give_back` is called when
    nothing of it is left, while signals are still only noted: none of them cuts it short.

    Raises:
        NotStarted: it cannot be started; `give_back` was called.
    """
    with Signals() as signals:
        try:
            with Guard() as guard:
                try:
                    child = Child(command, env, guard)
                except OSError as error:
                    raise NotStarted(error.strerror or str(error)) from error
                code = _Supervision(child, lease, grace_s, signals, teller).until_all_ended()
        finally:
            give_back()
    teller.ended(code)
    return code


class _Supervision:
    """One command that runs.

    Attributes:
        kill_at: when SIGKILL follows the SIGTERM that was sent, on our clock; None: none was.
    """

    def __init__(
        self, child: Child, lease: Lease, grace_s: float, signals: Signals, teller: Teller
    ) -> None:
        self._child = child
        self._lease = lease
        self._grace_s = grace_s
        self._signals = signals
        self._teller = teller
        self.kill_at: float | None = None

    def until_all_ended(self) -> int:
        """The command's exit code, once nothing of its group is left."""
        try:
            self._teller.started(self._child.pid)
            self._lease.on_lost(lambda _: self._signals.wake())
            self._lease.on_notice(self._teller.noticed)
            code = self._while_it_lives()
            self._end_group()
        except BaseException:
            self._child.signal(signal.SIGKILL)
            raise
        return code

    def _while_it_lives(self) -> int:
        child, killed = self._child, False
        while True:
            code, stopped = child.look()
            if code is not None:
                return code
            if stopped:
                self._teller.not_stopped()
                child.signal(signal.SIGCONT)
            if self.kill_at is None and self._lease.lost:
                self._teller.lost(self._lease, self._grace_s)
                child.signal(signal.SIGCONT)
                self._terminate()
            if self.kill_at is not None and not killed and local_now() >= self.kill_at:
                child.signal(signal.SIGKILL)
                killed = True
            for number in self._signals.wait(self._pause_s(killed=killed)):
                if number == signal.SIGTSTP:
                    self._teller.not_stopped()
                elif number != signal.SIGCHLD:
                    child.signal(number)

    def _pause_s(self, *, killed: bool) -> float | None:
        """Until there may be something to do; None: a signal will say so."""
        if killed:
            return None
        if self.kill_at is not None:
            return max(0.0, self.kill_at - local_now())
        return None if self._lease.trusted_s == float("inf") else self._lease.trusted_s

    def _terminate(self) -> None:
        self._child.signal(signal.SIGTERM)
        self.kill_at = local_now() + self._grace_s

    def _end_group(self) -> None:
        """End what the command left behind: the lease is given back next."""
        while self._child.group_lives:
            if self.kill_at is None:
                self._teller.left_behind(self._grace_s)
                self._terminate()
            elif local_now() >= self.kill_at:
                self._child.signal(signal.SIGKILL)
            for number in self._signals.wait(LOOK_S):
                if number in {signal.SIGINT, signal.SIGTERM}:  # who waits for us waited enough
                    self.kill_at = 0.0

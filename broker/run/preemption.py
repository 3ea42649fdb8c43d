"""Preemption of the command's lease: what is done from the notice to the end of its time."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from agent_sdk.clock import local_now
from broker.text.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk import Lease
    from broker.run.child import Beside, Child
    from broker.run.progress import Progress

UNCATCHABLE: Final = {signal.SIGKILL, signal.SIGSTOP}

SLACK_S: Final = 1.0
"""Seconds before its time at which a lease may end for the notice: clocks differ."""


@dataclass(frozen=True, slots=True)
class OnPreempt:
    """Wish for the time between the notice and the end.

    Attributes:
        sends: the signal that the command gets; None: none.
        command: the shell's command that runs beside it; empty: none.
        window_s: the longest time for either, which never goes beyond the lease's; 0: all of it.
    """

    sends: signal.Signals | None = None
    command: str = ""
    window_s: float = 0.0

    @property
    def acts(self) -> bool:
        """Tell whether the notice brings anything but a message."""
        return self.sends is not None or bool(self.command)


class SignalOrCommand(click.ParamType[OnPreempt]):
    """Click parameter type: the name of a signal, else a command for the shell."""

    name = "signal|command"

    def convert(
        self,
        value: str | OnPreempt,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> OnPreempt:
        """Return the wish; the name of no signal ends the command with the nearest one."""
        if isinstance(value, OnPreempt):
            return value
        known = signal.Signals.__members__
        if not value.strip():
            self.fail("name a signal, such as SIGUSR1, or a command", param, ctx)
        if not value.startswith("SIG") or not value.isalnum():
            return OnPreempt(command=value)
        if value not in known:
            meant = did_you_mean(value, known) or "kill -l lists them"
            self.fail(f"no signal is called {value}; {meant}", param, ctx)
        if known[value] in UNCATCHABLE:
            self.fail(f"no command can save anything at {value}: name another", param, ctx)
        return OnPreempt(sends=known[value])


class Preemption:
    """Notices about one lease, and what its command gets for them.

    Args:
        wish: what is to be done at a notice.
        child: the command.
        lease: its lease, which is renewed.
        teller: tells of it.
        env: the command's environment.
    """

    def __init__(
        self,
        wish: OnPreempt,
        child: Child,
        lease: Lease,
        teller: Progress,
        env: Mapping[str, str],
    ) -> None:
        self._wish, self._child, self._lease, self._teller = wish, child, lease, teller
        self._env = env
        self._at: float | None = None
        self._until = 0.0
        self._open = self._ended_it = False
        self._beside: Beside | None = None

    @property
    def sends(self) -> signal.Signals | None:
        """Signal that the command gets at a notice, or None."""
        return self._wish.sends

    @property
    def left_s(self) -> float | None:
        """Seconds until the command's time is over; None: no notice brings anything but words."""
        if not self._open or not self._wish.acts:
            return None
        return max(0.0, self._until - local_now())

    @property
    def runs_beside(self) -> bool:
        """True while the command beside it may go on."""
        return self._beside is not None and self._beside.runs and self._until > local_now()

    @property
    def caused_an_end(self) -> bool:
        """True if an end of the command, now, counts as that of a preempted one.

        It does where a notice was acted on and its time, which a withdrawal does not shorten, is
        not over; and where the lease ended by its notice.
        """
        reason = self._lease.lost_reason
        if reason not in {None, "preempted", "expired", "unreachable"}:
            return False
        if reason == "preempted" or self._ended_it:
            return True
        if self._at is None:
            return False
        if self._wish.acts and (self._open or local_now() < self._until):
            return True
        return self._lease.lost and time.time() > self._at - SLACK_S

    def over(self) -> bool:
        """Act on a new notice; return True once the command is to be ended for it."""
        at = self._lease.preempt_at
        if at is None:
            if self._open:
                self._open = False
                self._teller.preemption_withdrawn(self._lease)
            return False
        if not self._open or self._at is None or abs(at - self._at) > SLACK_S:
            self._begin(at)
        if not self._wish.acts or self._ended_it:
            return False
        if self._beside is not None and not self._beside.runs:
            self._teller.beside_ended(self._beside.code)
            self._ended_it = True
        elif self.left_s == 0.0:
            self._teller.window_over()
            self._ended_it = True
        return self._ended_it

    def end_beside(self, number: signal.Signals) -> None:
        """Send the command beside it a signal, if it still runs."""
        if self._beside is not None and self._beside.runs:
            self._beside.signal(number)

    def _begin(self, at: float) -> None:
        """Do what is wished, also at a notice that comes again."""
        left_s = max(0.0, at - time.time())
        window_s = min(self._wish.window_s or left_s, left_s)
        self._at, self._until, self._open = at, local_now() + window_s, True
        self._teller.preempting(self._lease, at, self._wish, window_s)
        if self._wish.sends is not None:
            self._child.signal_alone(self._wish.sends)
            self._child.signal(signal.SIGCONT)
        elif self._wish.command and not (self._beside is not None and self._beside.runs):
            env = {
                **self._env,
                "GPU_BROKER_TOKEN": self._lease.token,
                "GPU_BROKER_PREEMPT_AT": f"{at:.3f}",
                "GPU_BROKER_COMMAND_PID": str(self._child.pid),
            }
            self._beside = self._child.start_beside(["sh", "-c", self._wish.command], env)
            if self._beside is None:
                self._teller.not_beside(self._wish.command)

"""Supervision of the command: it runs while the lease is held, and ends when that is lost."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_sdk.clock import local_now
from broker.run.child import Child
from broker.run.containers import ContainerClient
from broker.run.preemption import OnPreempt, Preemption
from broker.run.signals import STOPPING, Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_sdk import Lease
    from broker.run.containers import Containers
    from broker.run.guard import Guard
    from broker.run.inherited import Inherited
    from broker.run.progress import Progress

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask for an end: a stopped command is continued, so that it can end."""

TERMINAL_S = 1.0
"""Seconds between checks for a terminal to give to the command, as after `fg`."""

ENDING_S = 0.2
"""Seconds in which leftovers may end by themselves: a sandbox's last process ends after its first.
"""

LOOK_S = 0.05
"""Seconds between checks of a group's leftovers: their end sends us no signal."""


class NotStarted(Exception):
    """Error of a command that cannot be started; the message has the reason."""


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """End of a command.

    Attributes:
        code: its exit code, 128 + the number of a signal that ended it.
        by: the signal of a terminal that ended it, and is to end us too.
        alone: True if its group was in the foreground: our waiting parents did not get the signal.
        preempted: True if it was ended, or ended itself, because its lease was preempted.
        stopped: of a preempted one, the signal that then asked us to end.
    """

    code: int
    by: signal.Signals | None = None
    alone: bool = False
    preempted: bool = False
    stopped: signal.Signals | None = None


def supervise(
    words: Sequence[str],
    env: Mapping[str, str],
    lease: Lease,
    grace_s: float,
    teller: Progress,
    keep: Callable[[], None],
    release: Callable[[], None],
    *,
    guard: Guard,
    inherited: Inherited,
    containers: Containers | None = None,
    on_preempt: OnPreempt | None = None,
) -> CommandEnd:
    """Run the command, and return its end.

    Signals are passed on to its group. A lost lease, or leftovers of the ended command, bring
    SIGTERM, and after `grace_s` SIGKILL. `keep` is called when the command runs, and begins the
    renewals: their thread would hold its start up. `release` is called when no process of it is
    left, while signals are still only noted: no signal cuts it short. `containers` are the lease's,
    where the command is the client of an engine. `on_preempt` is wished for a notice of
    preemption.

    Raises:
        NotStarted: it cannot be started; `release` was called.
    """
    with Signals() as signals:
        try:
            try:
                if containers is None:
                    child = Child(words, env, guard, inherited)
                else:
                    child = ContainerClient(words, env, guard, inherited, containers)
            except OSError as error:
                raise NotStarted(error.strerror or str(error)) from error
            preemption = Preemption(on_preempt or OnPreempt(), child, lease, teller, env)
            supervision = _Supervision(child, lease, grace_s, signals, teller, preemption)
            code = supervision.until_all_ended(keep)
        finally:
            release()
    if containers is not None and containers.silent:
        teller.engine_silent(containers.engine, containers.silent)
    teller.ended(code)
    if supervision.preempted:
        supervision.note(signals.unread)
        return CommandEnd(code, preempted=True, stopped=supervision.stopped_by)
    return CommandEnd(code, child.interrupted, child.had_terminal)


class _Supervision:
    """Supervision of one running command.

    Attributes:
        kill_at: time of the SIGKILL after the SIGTERM, on our clock; None: no SIGTERM was sent.
        preempted: True if the command's end came of a preemption.
        stopped_by: the first signal by which a person, or our caller, asked for the end, or None.
    """

    def __init__(
        self,
        child: Child,
        lease: Lease,
        grace_s: float,
        signals: Signals,
        teller: Progress,
        preemption: Preemption,
    ) -> None:
        self._child = child
        self._lease = lease
        self._grace_s = grace_s
        self._signals = signals
        self._teller = teller
        self._preemption = preemption
        self.stopped_by: signal.Signals | None = None
        self.kill_at: float | None = None
        self.preempted = False

    def until_all_ended(self, keep: Callable[[], None]) -> int:
        """Return the command's exit code, once no process of its group is left."""
        try:
            keep()
            self._teller.started(self._child.pid)
            self._lease.on_lost(lambda _: self._signals.wake())
            self._lease.on_notice(self._noticed)
            code = self._while_it_lives()
            self.preempted = self._preemption.caused_an_end and not self._was_stopped()
            self._while_beside_lives()
            self._end_group()
        except BaseException:
            self._child.kill()
            raise
        finally:
            self._preemption.end_beside(signal.SIGKILL)
        return code

    def _noticed(self, lease: Lease) -> None:
        self._teller.noticed(lease)
        self._signals.wake()

    def _was_stopped(self) -> bool:
        """Tell whether a person, or our caller, has ended the command meanwhile."""
        by = self._child.interrupted
        return self.stopped_by is not None or by not in {None, self._preemption.sends}

    def note(self, signals: Sequence[signal.Signals]) -> None:
        """Note the first of these that asks for the end."""
        for number in signals:
            if number in STOPPING:
                self.stopped_by = self.stopped_by or number

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
                child.terminate(self._grace_s)
                self.kill_at = local_now() + self._grace_s
            elif self.kill_at is None and self._preemption.over():
                self._preemption.end_beside(signal.SIGTERM)
                child.terminate(self._grace_s)
                self.kill_at = local_now() + self._grace_s
            if self.kill_at is not None and not killed and local_now() >= self.kill_at:
                child.kill()
                killed = True
            for number in self._signals.wait(self._pause_s(killed=killed)):
                self._pass_on(number)

    def _while_beside_lives(self) -> None:
        """Let the command that runs beside an ended one go on until the window is over."""
        while self._preemption.runs_beside and not self._lease.lost and self.stopped_by is None:
            self.note(self._signals.wait(LOOK_S))
        self._preemption.end_beside(signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        """Pass a signal of ours on to the command, and continue a stopped one."""
        self.note([number])
        if number == signal.SIGTSTP:
            self._teller.not_stopped()
        elif number != signal.SIGCHLD:
            self._child.signal(number)
        if number in ENDING:
            self._child.look()  # it may have been stopped since the last look
            if self._child.stopped and self.kill_at is None:
                self.kill_at = local_now() + self._grace_s
            self._child.signal(signal.SIGCONT)

    def _pause_s(self, *, killed: bool) -> float | None:
        """Return the seconds until there may be work; None: a signal will tell."""
        pauses = [TERMINAL_S] if self._child.waits_for_terminal else []
        if not killed and self.kill_at is not None:
            pauses.append(max(0.0, self.kill_at - local_now()))
        elif not killed and self._lease.trusted_s != float("inf"):
            pauses.append(self._lease.trusted_s)
        if self.kill_at is None and (left_s := self._preemption.left_s) is not None:
            pauses.append(left_s)
        return min(pauses, default=None)

    def _end_group(self) -> None:
        """End the command's leftovers, in its group or out of it: the lease ends next."""
        asked_at = local_now() + ENDING_S
        while self._child.rest_lives:
            if self.kill_at is None and local_now() < asked_at:
                pass
            elif self.kill_at is None:
                self._teller.left_behind(self._grace_s)
                self.kill_at = local_now() + self._grace_s
                self._child.terminate_rest(self._grace_s)
            elif local_now() >= self.kill_at:
                self._child.kill_rest()
            came = self._signals.wait(LOOK_S)
            self.note(came)
            if {signal.SIGINT, signal.SIGTERM} & {*came}:  # our own caller has waited enough
                self.kill_at = 0.0

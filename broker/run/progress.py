"""Messages of `run` while it waits and works: on stderr, because stdout is the command's."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from agent_sdk.errors import LeaseError
from agent_sdk.state.finding_kinds import NOTICES
from broker.text.printable import printable
from broker.text.streams import takes_escapes
from broker.text.table import age, gib, many

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_sdk import Lease
    from agent_sdk.state.explain import Explanation
    from broker.run.engines import EngineSetup
    from broker.run.preemption import OnPreempt

    Why: TypeAlias = Explanation | LeaseError | None

SCHEMA: Final = 1
"""Schema number of the JSON lines: fields are added under the same number, never changed."""

NOTHING_NEW_S: Final = 30.0
"""Most seconds of a wait without a line, where there is no terminal."""

WENT_WELL: Final = {
    "waiting",
    "granted",
    "doubt",
    "hint",
    "limited",
    "mps",
    "started",
    "ended",
    "over",
    "wanted",
}
"""Events that are left out when only trouble is to be told."""


class Progress:
    """Writer of messages in a form: text for people, json (an object a line), trouble alone.

    On a terminal the line about a wait is written over; elsewhere a new line follows when there is
    news. In JSON `event` names the event and `at` its time, in epoch seconds.
    """

    def __init__(self, form: Literal["text", "json", "trouble"]) -> None:
        self._form = form
        # Not sys.stderr: it would retry a failed write at exit, and our exit code would change.
        self._out = None if sys.stderr is None else sys.stderr.fileno()
        self._live = form == "text" and self._out is not None and takes_escapes(self._out)
        self._line = ""
        self._line_at = 0.0
        self._notices: tuple[str, ...] = ()
        self._wanted: tuple[str, int] | None = None
        self._taken_at: float | None = None

    @property
    def tells_of_waits(self) -> bool:
        """True if a wait is told of: with trouble alone it need not be explained."""
        return self._form != "trouble"

    def waiting(self, waited_s: float, why: Why) -> None:
        """Tell of the wait in the queue; `why` is None until known. Call this every second."""
        said = _reason(why)
        if self._live:
            self._rewrite(f"gpu-broker: waiting {age(round(waited_s * 1000))}: {said}")
            return
        now = time.monotonic()
        if why is None or (said == self._line and now - self._line_at < NOTHING_NEW_S):
            return
        self._line, self._line_at = said, now
        facts: dict[str, Any] = {"code": why.code, "reason": said}
        if not isinstance(why, LeaseError):
            facts |= {
                "token": why.token,
                "reason": why.summary,
                "ahead": why.ahead_count,
                "estimate_s": why.estimate_s,
                "basis": why.basis,
            }
        self._say("waiting", f"waiting: {said}", waited_s=round(waited_s, 3), **facts)

    def granted(self, lease: Lease, waited_s: float, why_on_cpu: str | None) -> None:
        """Tell of the granted lease: place, size, time waited; or the reason for the CPU."""
        where = ", ".join(f"{d.host} GPU {d.index} ({d.name})" for d in lease.devices)
        after = f", after {age(round(waited_s * 1000))}" if waited_s > 1 else ""
        self._say(
            "granted",
            f"no GPU ({why_on_cpu}): the command runs on the CPU"
            if lease.on_cpu
            else f"lease {lease.token[:8]}: {gib(lease.memory_mb)} on {where}{after}",
            waited_s=round(waited_s, 3),
            token=lease.token,
            fence=lease.fence,
            memory_mb=lease.memory_mb,
            on_cpu=lease.on_cpu,
            reason=lease.reason,
            devices=[
                {"uuid": d.uuid, "index": d.index, "host": d.host, "name": d.name}
                for d in lease.devices
            ],
            env=lease.env(),
        )

    def engine_set_up(self, engine: str, setup: EngineSetup) -> None:
        """Tell of the settings that an engine was given, and of what they do not bound."""
        if setup.added:
            text = f"given to {engine}: {', '.join(setup.added)}"
            self._say("hint", text, engine=engine, flag=setup.flag or None, env=setup.env)
        for remark in setup.remarks:
            self.unbounded(engine, remark)

    def unbounded(self, engine: str, text: str) -> None:
        """Tell of something that may keep an engine from staying inside its lease."""
        self._say("unbounded", text, engine=engine, detail=text)

    def doubted(self, text: str) -> None:
        """Ask about a request that may be meant otherwise; empty: no doubt.

        The request is taken as it is.
        """
        if text:
            self._say("doubt", text, detail=text)

    def limited(self, lease: Lease) -> None:
        """Tell that the driver limits the command's memory."""
        text = f"the driver limits the command to {gib(lease.memory_mb)}"
        self._say("limited", text, memory_mb=lease.memory_mb)

    def not_limited(self, why: str) -> None:
        """Tell that the driver does not limit the command's memory, and that it runs anyway."""
        self._say("not_limited", f"the driver does not limit the command: {why}", detail=why)

    def mps(self, added: Mapping[str, str], kept: Sequence[str]) -> None:
        """Tell of MPS's limits that the command gets, and of those that are the user's own."""
        if added:
            words = " ".join(f"{name}={value}" for name, value in added.items())
            self._say("mps", f"added to the environment: {words}", env=dict(added))
        if kept:
            text = (
                f"{' and '.join(kept)} stay as they are: MPS does not keep the command in its lease"
            )
            self._say("mps_kept", text, names=list(kept))

    def started(self, pid: int) -> None:
        """Tell that the command runs, in a process group of the same number."""
        self._say("started", None, pid=pid)

    def not_stopped(self) -> None:
        """Tell that Ctrl-Z does not stop the command."""
        text = "Ctrl-Z does not stop it: a stopped command would go on holding its GPU"
        self._say("not_stopped", text)

    def lost(self, lease: Lease, grace_s: float) -> None:
        """Tell that the lease is lost, and that the command was asked to end."""
        why = lease.lost_reason
        self._say(
            "lost",
            f"lease {lease.token[:8]} is lost ({why}): sent SIGTERM to the command, SIGKILL "
            f"follows in {grace_s:g} s",
            token=lease.token,
            reason=why,
            grace_s=grace_s,
        )

    def noticed(self, lease: Lease) -> None:
        """Tell of changed findings about the lease by the GPU's host, and of waiters that ask."""
        if lease.wanted != self._wanted:
            self._wanted = lease.wanted
            self._tell_wanted(lease)
        if lease.notices == self._notices:
            return
        self._notices = lease.notices
        said = "; ".join(NOTICES.get(word, word) for word in lease.notices)
        text = f"lease {lease.token[:8]}: {said}" if said else None
        self._say("notice", text, token=lease.token, notices=lease.notices)

    def _tell_wanted(self, lease: Lease) -> None:
        if lease.wanted is None:
            return
        agent, memory_mb = lease.wanted
        text = f"{agent} asks for lease {lease.token[:8]}: it wants {gib(memory_mb)}"
        self._say("wanted", text, token=lease.token, agent=agent, memory_mb=memory_mb)

    def preempting(self, lease: Lease, at: float, wish: OnPreempt, window_s: float) -> None:
        """Tell that the lease is taken back, at `at` in epoch seconds, and what is done now."""
        left = age(round(max(0.0, at - time.time()) * 1000))
        if wish.sends is not None:
            does = f"sent {wish.sends.name} to the command, which has {window_s:.0f} s"
        elif wish.command:
            does = f"run for at most {window_s:.0f} s: {wish.command}"
        else:
            does = "the command gets SIGTERM then"
        self._say(
            "preempting",
            f"lease {lease.token[:8]} is taken back in {left} for another team or priority: {does}",
            token=lease.token,
            preempt_at=round(at, 3),
            window_s=round(window_s, 3),
            signal=wish.sends and wish.sends.name,
            command=wish.command or None,
        )

    def noticed_by_hand(self, lease: Lease) -> None:
        """Tell all news of a lease that is held by hand: no command of ours acts on it."""
        self.noticed(lease)
        before, self._taken_at = self._taken_at, lease.preempt_at
        if self._taken_at is None and before is not None:
            self.preemption_withdrawn(lease)
        if self._taken_at is not None and before is None:
            left = age(round(max(0.0, self._taken_at - time.time()) * 1000))
            self._say(
                "preempting",
                f"lease {lease.token[:8]} is taken back in {left} for another team or priority: "
                f"end what uses it; gpu-broker release {lease.token[:8]} gives it back before",
                token=lease.token,
                preempt_at=round(self._taken_at, 3),
            )

    def preemption_withdrawn(self, lease: Lease) -> None:
        """Tell that the lease goes on after all."""
        text = f"lease {lease.token[:8]} is not taken back after all"
        self._say("preemption_withdrawn", text, token=lease.token)

    def beside_ended(self, code: int) -> None:
        """Tell that the command of --on-preempt has ended, and that the other one is to."""
        text = f"the command of --on-preempt ended with {code}: sent SIGTERM to the command"
        self._say("checkpointed", text, exit_code=code)

    def not_beside(self, command: str) -> None:
        """Tell that the command of --on-preempt could not be started."""
        self._say("not_checkpointed", f"--on-preempt could not be started: {command}")

    def window_over(self) -> None:
        """Tell that the command has had its time after a notice."""
        self._say("window_over", "its time after the notice is over: sent SIGTERM to the command")

    def requeued(self, token: str, attempt: int) -> None:
        """Tell that the command waits again, behind the lease that was taken back."""
        text = f"the lease was taken back: waiting for another one, attempt {attempt}"
        self._say("requeued", text, after=token, attempt=attempt)

    def left_behind(self, grace_s: float) -> None:
        """Tell that the ended command left processes, which were asked to end."""
        text = (
            "the command left processes behind that could use its GPU: sent them SIGTERM, "
            f"SIGKILL follows in {grace_s:g} s"
        )
        self._say("left_behind", text, grace_s=grace_s)

    def engine_silent(self, engine: str, why: str) -> None:
        """Tell that an engine did not say whether a container is left: it may outlive its lease."""
        text = f"{engine} did not say whether a container of the lease is left ({why})"
        self._say("engine_silent", text, engine=engine, detail=why)

    def ended(self, code: int) -> None:
        """Tell that all is over."""
        self._say("ended", None, exit_code=code)

    def kept_until(self, lease: Lease, how: str) -> None:
        """Tell of the end of a lease that was kept by hand."""
        self._say("over", f"lease {lease.token[:8]} is {how}", token=lease.token, reason=how)

    def not_returned(self, lease: Lease, error: LeaseError) -> None:
        """Tell that the lease could not be given back."""
        ends = f"it ends within {lease.ttl_ms / 1000:g} s" if lease.ttl_ms else "it has no expiry"
        text = f"lease {lease.token[:8]} could not be given back ({error}): {ends}"
        self._say("not_returned", text, token=lease.token, code=error.code, detail=str(error))

    def failed(self, code: str, text: str) -> None:
        """Tell that there is no lease, or no such command."""
        self._say("failed", text, code=code, detail=text)

    def _say(self, event: str, text: str | None, **facts: Any) -> None:
        if self._form == "json":
            line = {"schema": SCHEMA, "event": event, "at": round(time.time(), 3), **facts}
            self._write(json.dumps(line) + "\n")
        elif text is not None and (self._form == "text" or event not in WENT_WELL):
            self._rewrite("")
            self._write(f"gpu-broker: {printable(text)}\n")

    def _write(self, text: str) -> None:
        """Write to stderr if it is open: the command goes on without a reader as well."""
        if self._out is not None:
            with suppress(OSError):
                os.write(self._out, text.encode(errors="replace"))

    def _rewrite(self, text: str) -> None:
        """Write the terminal's line anew."""
        if not self._live or text == self._line:
            return
        self._line = text
        self._write("\r\x1b[K" + printable(text)[: self._columns() - 1])

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._out or 0).columns
        except OSError:
            return 80


def _reason(why: Why) -> str:
    """Return place, reason and estimate, short enough for a line."""
    if why is None:
        return "asking"
    if isinstance(why, LeaseError):
        return str(why)
    from agent_sdk.state.placement import ELSEWHERE  # noqa: PLC0415 - only after a wait

    place = {"next": "next in queue", "behind": f"{why.ahead_count} ahead"}.get(why.code)
    parts = [place or why.summary]
    if place and (counts := Counter(d.reason for d in why.devices if d.reason not in ELSEWHERE)):
        parts.append(", ".join(f"{many(n, 'GPU', 'GPUs')} {word}" for word, n in counts.items()))
    if why.estimate_s is not None and why.first_end is not None:
        left = age(round(why.estimate_s * 1000))
        renews = why.first_end.basis == "expiry"
        parts.append(
            f"{left} left to {why.first_end.agent} unless renewed" if renews else f"about {left}"
        )
    return " · ".join(parts)

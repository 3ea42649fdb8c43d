"""What `run` says while it waits and works: on stderr, because stdout is the command's."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from agent_sdk.errors import LeaseError
from agent_sdk.lease import NOTICES
from agent_sdk.state.placement import ELSEWHERE
from broker.text.printable import printable
from broker.text.streams import takes_escapes
from broker.text.table import age, gib, many

if TYPE_CHECKING:
    from agent_sdk import Lease
    from agent_sdk.state.explain import Explanation

    Why: TypeAlias = Explanation | LeaseError | None

SCHEMA: Final = 1
"""Of the JSON lines: fields are added under the same number, never changed."""

NOTHING_NEW_S: Final = 30.0
"""Without a terminal: how long a wait goes on without a line that says so."""

WENT_WELL: Final = {"waiting", "granted", "doubt", "hint", "started", "ended"}
"""What is not said when only trouble is to be heard of."""


class Progress:
    """Says it in a form: text for people, json (an object a line) for programs, trouble alone.

    On a terminal the line about a wait is written over; otherwise it is said again when there is
    something new. In JSON `event` is what happened and `at` when, in epoch seconds.
    """

    def __init__(self, form: Literal["text", "json", "trouble"]) -> None:
        self._form = form
        # Not sys.stderr itself: what it cannot write it tries again at the end; our code changes.
        self._out = None if sys.stderr is None else sys.stderr.fileno()
        self._live = form == "text" and self._out is not None and takes_escapes(self._out)
        self._line = ""
        self._line_at = 0.0

    def waiting(self, waited_s: float, why: Why) -> None:
        """It stands in the line; `why` is None until that is known. To be called every second."""
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
        """The lease is held: where, how much, and after how long; or why it is on the CPU."""
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

    def hint(self, flag: str) -> None:
        """This was added to the command."""
        self._say("hint", f"added to the command: {flag}", flag=flag)

    def doubted(self, text: str) -> None:
        """Say that the request is taken as it is, and may be meant otherwise; empty: it is not."""
        if text:
            self._say("doubt", text, detail=text)

    def started(self, pid: int) -> None:
        """The command runs, in a process group of the same number."""
        self._say("started", None, pid=pid)

    def not_stopped(self) -> None:
        """Ctrl-Z does not stop it."""
        text = "Ctrl-Z does not stop it: a stopped command would go on holding its GPU"
        self._say("not_stopped", text)

    def lost(self, lease: Lease, grace_s: float) -> None:
        """The lease is lost, and the command was told to end."""
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
        """What the GPU's host finds of the lease is another than before."""
        said = "; ".join(NOTICES.get(word, word) for word in lease.notices)
        text = f"lease {lease.token[:8]}: {said}" if said else None
        self._say("notice", text, token=lease.token, notices=lease.notices)

    def left_behind(self, grace_s: float) -> None:
        """The command ended and left processes, which were told to end."""
        text = (
            "the command left processes behind that could use its GPU: sent them SIGTERM, "
            f"SIGKILL follows in {grace_s:g} s"
        )
        self._say("left_behind", text, grace_s=grace_s)

    def ended(self, code: int) -> None:
        """All is over."""
        self._say("ended", None, exit_code=code)

    def not_returned(self, lease: Lease, error: LeaseError) -> None:
        """The lease could not be given back."""
        ends = f"it ends within {lease.ttl_ms / 1000:g} s" if lease.ttl_ms else "it has no expiry"
        text = f"lease {lease.token[:8]} could not be given back ({error}): {ends}"
        self._say("not_returned", text, token=lease.token, code=error.code, detail=str(error))

    def failed(self, code: str, text: str) -> None:
        """There is no lease, or no such command."""
        self._say("failed", text, code=code, detail=text)

    def _say(self, event: str, text: str | None, **facts: Any) -> None:
        if self._form == "json":
            line = {"schema": SCHEMA, "event": event, "at": round(time.time(), 3), **facts}
            self._write(json.dumps(line) + "\n")
        elif text is not None and (self._form == "text" or event not in WENT_WELL):
            self._rewrite("")
            self._write(f"gpu-broker: {printable(text)}\n")

    def _write(self, text: str) -> None:
        """Nobody may hear us: the command goes on all the same."""
        if self._out is not None:
            with suppress(OSError):
                os.write(self._out, text.encode(errors="replace"))

    def _rewrite(self, text: str) -> None:
        """Write the line of a terminal anew."""
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
    """Place, reason and estimate, short enough for a line."""
    if why is None:
        return "asking"
    if isinstance(why, LeaseError):
        return str(why)
    place = {"next": "next in line", "behind": f"{why.ahead_count} ahead"}.get(why.code)
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

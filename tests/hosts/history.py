"""Beliefs of agents, with times: a JSON object a line, on the one clock that a machine has.

Network namespaces share CLOCK_BOOTTIME, so the beliefs of all hosts can be laid side by side.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent_sdk.clock import local_now

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agent_sdk.leases.lease import HeldLease


class Diary:
    """One process's history; each line is one write, so that SIGKILL tears none."""

    def __init__(self, path: Path, **about: Any) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._write("began", **about)

    def called(self, verb: str, began: float, code: str) -> None:
        """A call was answered, or was not: `ok`, or the error's code."""
        self._write("call", verb=verb, began=began, code=code)

    def granted(self, lease: HeldLease, began: float, *, exclusive: bool, asked: str) -> None:
        """From now on the process believes that it holds this lease."""
        self._write(
            "granted",
            token=lease.token,
            fence=lease.fence,
            devices={device.uuid: device.memory_mb for device in lease.devices},
            exclusive=exclusive,
            asked=asked,
            began=began,
            until=lease.trusted_until,
        )

    def renewed(self, lease: HeldLease) -> None:
        """It believes in it for longer than it did."""
        self._write("renewed", token=lease.token, until=lease.trusted_until)

    def ended(self, lease: HeldLease, lost: str | None) -> None:
        """It believes in it no more: lost, and why, or about to be released."""
        self._write("ended", token=lease.token, lost=lost)

    def starved(self, since: float) -> None:
        """It did not run from then to now."""
        self._write("starved", since=since)

    def _write(self, what: str, **fields: Any) -> None:
        line = json.dumps({"what": what, "at": local_now(), **fields}) + "\n"
        os.write(self._file, line.encode())


@dataclass(slots=True)
class Window:
    """One lease as its holder believed in it; times are seconds on `clocks.local_now`'s clock.

    Attributes:
        who: the process that held it.
        host: the host that it ran on.
        asked: the host that it asked for, or "any".
        devices: device id -> MiB.
        asked_at: when acquire was called.
        since: when its answer was there.
        until: the trust that the grant or the last renewal gave.
        renewed_at: when that was, as far as the holder has seen.
        ended_at: when the holder gave it up or found it lost; None: it never did, it was killed.
        lost: why it was lost; None: it was not.
    """

    who: str
    host: str
    asked: str
    token: str
    fence: int
    devices: dict[str, int]
    exclusive: bool
    asked_at: float
    since: float
    until: float
    renewed_at: float
    ended_at: float | None = None
    lost: str | None = None
    renewals: int = 0

    @property
    def believed_until(self) -> float:
        """The end of the belief."""
        return self.until if self.ended_at is None else min(self.until, self.ended_at)


@dataclass(frozen=True, slots=True)
class Called:
    """A call and what came of it."""

    who: str
    host: str
    verb: str
    began: float
    at: float
    code: str

    @property
    def seconds(self) -> float:
        """Return how long it took."""
        return self.at - self.began


@dataclass(frozen=True, slots=True)
class Starved:
    """A process that was not let run: stopped, or by a busy machine."""

    who: str
    since: float
    until: float


@dataclass(slots=True)
class History:
    """All that the agents of a pool believed and called."""

    windows: list[Window] = field(default_factory=list)
    calls: list[Called] = field(default_factory=list)
    starved: list[Starved] = field(default_factory=list)

    def failed(self) -> list[Called]:
        """The calls that did not do what they are for."""
        return [call for call in self.calls if call.code not in DECIDED]


DECIDED = frozenset({"ok", "no_capacity", "closed"})
"""Outcomes of a call that did not fail."""


def read(paths: Iterable[Path]) -> History:
    """The histories of these processes as one."""
    history = History()
    for path in paths:
        _read_one(path, history)
    return history


def _read_one(path: Path, into: History) -> None:
    first, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    about = {"who": first["who"], "host": first["host"]}
    windows: dict[str, Window] = {}
    for line in lines:
        what, at = line.pop("what"), line.pop("at")
        if what == "call":
            into.calls.append(Called(**about, **line, at=at))
            continue
        if what == "starved":
            into.starved.append(Starved(first["who"], line["since"], at))
            continue
        if what == "granted":
            line |= {"asked_at": line.pop("began"), "since": at, "renewed_at": at}
            windows[line["token"]] = Window(**about, **line)
            continue
        window = windows[line["token"]]
        if what == "renewed":
            window.until, window.renewed_at = line["until"], at
            window.renewals += 1
        else:
            window.ended_at, window.lost = at, line["lost"]
    into.windows += windows.values()

"""Leases that a command takes and a keeper holds: in this process, or in the background."""

from __future__ import annotations

import shlex
import signal
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.engines.visible import OF_OTHERS, on_amd
from agent_sdk.errors import LeaseError
from agent_sdk.evidence import show_for
from broker.cli import FAILED
from broker.cli.leasing.refusal import LATER, explained, waiting_client
from broker.cli.names import PREFIX
from broker.cli.store import show
from broker.hold.background import ForkedKeeper, NotKept
from broker.hold.keeper import LOST, KeptLease, ended_in_words
from broker.identity import user_at_host
from broker.run.progress import Progress
from broker.run.signals import leave_at_signals
from broker.run.wait import get_lease
from broker.text.screen import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk import Lease
    from agent_sdk.request import LeaseOptions
    from broker.hold.life import ProcessLife


NO_ROOM_FOR_IT: Final = (
    "its GPU takes no lease now, or has no room beyond what it uses: gpu-broker status shows it"
)
"""Way out where a running process gets no lease."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Lease to be taken and kept.

    Attributes:
        command: the command that takes it.
        agent: the agent that asks; None: the user.
        store_timeout_s: seconds for which the store may be away during the wait.
        for_s: seconds for which it is kept; 0: no end by time.
        life: the process that it ends with, or None.
        adopts: the lease is for that process, which has used its GPU before.
    """

    command: str
    agent: str | None
    ask: LeaseOptions
    store_timeout_s: float
    for_s: float = 0.0
    life: ProcessLife | None = None
    adopts: bool = False


def in_background(hold: Hold, output: str) -> None:
    """Take a lease, print it, and leave it to a keeper in the background; exit where there is none.

    With the output `export` stdout is for a shell's `eval`, and a failure fails there too.
    """
    teller = Progress("text" if output != "json" else "trouble")
    stays_open = hold.life.descriptors if hold.life else set[int]()
    keeper = ForkedKeeper(lambda hand: _keep(hold, teller, hand.tell), stays_open)
    try:
        facts = keeper.granted()
        _print(facts, "token" if hold.adopts and output == "text" else output)
        sys.stdout.flush()
    except NotKept as failed:
        _fail(failed.code, output)
    except KeyboardInterrupt:  # the keeper ends with us
        _fail(128 + signal.SIGINT, output)
    keeper.confirm()
    if output != "json":
        say(f"gpu-broker: {_end_in_words(facts)}", err=True)


def in_foreground(hold: Hold, output: str) -> None:
    """Take a lease, print it, and keep it until its end, or until a signal; exit with the code."""
    leave_at_signals()

    def told(facts: dict[str, Any]) -> bool:
        _print(facts, output)
        sys.stdout.flush()
        if output != "json":
            say(f"gpu-broker: {_end_in_words(facts)}, and so does Ctrl-C", err=True)
        return True

    sys.exit(_keep(hold, Progress("text" if output != "json" else "trouble"), told))


def _keep(hold: Hold, teller: Progress, tell: Callable[[dict[str, Any]], bool]) -> int:
    """Take the lease, tell of it, and keep it until its end; return the exit code."""
    try:
        if hold.life:
            hold.life.end_ours_with()
        with waiting_client(f"gpu-broker-{hold.command}", hold.store_timeout_s) as client:
            lease = get_lease(client, hold.agent or user_at_host(), hold.ask, teller)
            if hold.life and hold.adopts:
                show_for(lease.token, hold.life.process)
            lease.on_notice(teller.noticed_by_hand)
            kept = KeptLease(client, lease, hold.for_s, hold.life)
            try:
                why = kept.keep(lambda: tell(_facts(kept)))
            except LeaseError as error:
                teller.not_returned(lease, error)
                return FAILED
            teller.kept_until(lease, ended_in_words(kept, why))
            return FAILED if why == LOST else 0
    except (LeaseError, ValueError) as error:
        safe = "without SAFE_MODE it may be granted"
        late = NO_ROOM_FOR_IT if hold.adopts else LATER
        return explained(error, teller, hold.command, safe, late)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _facts(kept: KeptLease) -> dict[str, Any]:
    """Return the lease for programs: what it holds, its environment, and its end."""
    lease = kept.lease
    return {
        "token": lease.token,
        "agent": lease.agent,
        "fence": lease.fence,
        "memory_mb": lease.memory_mb,
        "devices": [
            {"uuid": d.uuid, "index": d.index, "host": d.host, "name": d.name}
            for d in lease.devices
        ],
        "env": lease.env(),
        "unset": _unset(lease),
        "ends_at": kept.ends_at,
        "with_pid": kept.with_pid,
    }


def _unset(lease: Lease) -> list[str]:
    return list(OF_OTHERS) if on_amd(lease.devices) else []


def _print(facts: dict[str, Any], output: str) -> None:
    if output == "export":
        lines = [f"export {name}={shlex.quote(value)}" for name, value in facts["env"].items()]
        say("\n".join([*lines, *(f"unset {name}" for name in facts["unset"])]))
        return
    text = "\n".join(f"{name}={value}" for name, value in facts["env"].items())
    show(output, facts["token"] if output == "token" else text, facts)


def _fail(code: int, output: str) -> None:
    if output == "export":
        say(f"(exit {code})")
    sys.exit(code)


def _end_in_words(facts: dict[str, Any]) -> str:
    """Return the end of a lease that was taken, and the way to give it back before."""
    ends = []
    if facts["ends_at"] is not None:
        ends.append(f"until {clock_time(facts['ends_at'])}")
    if facts["with_pid"] is not None:
        ends.append(f"while process {facts['with_pid']} lives")
    kept = " at most, and ".join(ends) or "until it is released"
    return f"kept {kept}; gpu-broker release {facts['token'][:PREFIX]} gives it back"


def clock_time(at: float) -> str:
    """Return a time of today or later as text for people, by this machine's clock."""
    when = datetime.fromtimestamp(at).astimezone()
    today = datetime.now().astimezone().date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M")

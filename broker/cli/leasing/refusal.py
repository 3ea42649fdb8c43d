"""Reasons for which a request got no lease, with the exit code and the way out of each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from agent_sdk.errors import (
    BadRequest,
    BrokerUnavailable,
    Denied,
    HostUnknown,
    LeaseError,
    LeaseLost,
    OutcomeUnknown,
    SafeMode,
    TeamLimit,
)
from broker.cli import DENIED, FAILED, NOT_IN_TIME, UNAVAILABLE
from broker.cli.own_words import in_options
from broker.cli.store import connect, way_out
from broker.text.unknown_host import look_for

if TYPE_CHECKING:
    from agent_sdk import LeaseClient
    from broker.run.progress import Progress

LATER: Final = "--wait waits longer, gpu-broker explain names the obstacles"

DEADLINE_S: Final = 5.0
"""Seconds for which a call is tried."""


def waiting_client(name: str, store_timeout_s: float) -> LeaseClient:
    """Return a client that lets the store be away for so long while it waits.

    News of its leases is not logged: the command prints it in its own form.
    """
    logging.getLogger("agent_sdk.leases").addHandler(logging.NullHandler())
    client = connect(name, DEADLINE_S)
    client.away_s = store_timeout_s
    return client


def explained(
    error: LeaseError | ValueError, teller: Progress, command: str, safe: str, late: str = LATER
) -> int:
    """Tell the reason for which there is no lease; return the exit code for it.

    Args:
        error: the reason.
        teller: tells it.
        command: the command that asked, such as `run`.
        safe: the way out under SAFE_MODE.
        late: the way out where there is no room now.
    """
    if not isinstance(error, LeaseError):
        teller.failed("bad_request", str(error))
        return FAILED
    text = str(error)
    if isinstance(error, HostUnknown):
        with connect(f"gpu-broker-{command}", DEADLINE_S) as client:
            teller.failed(error.code, look_for(client, error.asked))
        return FAILED
    if isinstance(error, (BrokerUnavailable, OutcomeUnknown)):
        code, advice = UNAVAILABLE, way_out(error)
    elif isinstance(error, Denied):
        code, advice = DENIED, way_out(error)
    elif isinstance(error, SafeMode):
        code, advice = DENIED, safe
    elif error.retryable:
        code, advice = NOT_IN_TIME, late
    elif isinstance(error, BadRequest):
        text, code, advice = in_options(text), FAILED, f"gpu-broker {command} --help says more"
    elif isinstance(error, LeaseLost):
        text = "an operator ended the wait" if error.code == "revoked" else text
        code, advice = FAILED, "gpu-broker events has it, with the reason if one was given"
    elif isinstance(error, TeamLimit):
        code, advice = FAILED, "gpu-broker teams -o wide shows each team's limits"
    else:
        code, advice = FAILED, "gpu-broker status shows what there is"
    teller.failed(error.code, f"{text}; {advice[0].lower()}{advice[1:]}")
    return code

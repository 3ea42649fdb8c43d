"""The reporter's verb, without the waiting: see `protocol` for how such a generator is driven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict

from agent_sdk.errors import HostTaken
from agent_sdk.protocol.messages import PROTOCOL, Answer, Call, Moment
from agent_sdk.protocol.replies import failure, moment, of_known_form

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Unpack

Fields = tuple[tuple[str, str | int], ...]

Report = tuple[str, Fields]
"""What is said of one device: its id, then (field, value); `lua/report.lua` lists the fields."""


class About(TypedDict):
    """What a report says beside the devices.

    deadline_ms: without another report for so long, the host's devices take no new leases.
    sampled_ms: the pool's time when the devices were looked at; 0 = unknown.
    epoch: the last one seen, or empty.
    safe_mode: policy of a pool that this report creates.
    version: the reporter's.
    reporter: its identity (see `broker.identity`); empty: it does not say.
    over: a reporter that is known to have ended, or empty.
    seen_ms: `now_ms` of the last reply: a pool that has forgotten it has lost data, and closes.
    """

    deadline_ms: int
    sampled_ms: int
    epoch: str
    safe_mode: bool
    version: str
    reporter: NotRequired[str]
    over: NotRequired[str]
    seen_ms: NotRequired[int]


@dataclass(frozen=True, slots=True)
class Contested:
    """A device that another host's reporter, which lives, lists too: it stays that one's."""

    uuid: str
    host: str
    reporter: str


@dataclass(frozen=True, slots=True)
class Reported(Moment):
    """The answer to a report.

    Attributes:
        rival: the reporter that was refused this host's name lately, or empty.
        contested: devices of the report that were not taken.
    """

    rival: str = ""
    contested: tuple[Contested, ...] = ()


def report(
    host: str, devices: tuple[Report, ...], **about: Unpack[About]
) -> Generator[Call, Answer, Reported]:
    """Say which devices a host has and that it lives; at most 64 devices in one call.

    Without devices it is a heartbeat: those already known stay as they were.

    Raises:
        HostTaken: another reporter that lives has the name; it says which.
    """
    flat: list[str | int] = []
    for uuid, fields in devices:
        flat += (uuid, len(fields))
        for pair in fields:
            flat += pair
    known = f"{about['epoch']}:{about['seen_ms']}" if about.get("seen_ms") else about["epoch"]
    head = (
        PROTOCOL, host, about["deadline_ms"], about["sampled_ms"], known,
        int(about["safe_mode"]), about["version"],
    )  # fmt: skip
    if about.get("reporter"):
        flat += ("", about["reporter"], about.get("over", ""))
    answer = yield Call("report", (*head, *flat))
    match answer.raw:
        case ["REPORTED", *_]:
            return _reported(answer)
        case ["REFUSED", _, _, _, _, "host_taken", str(reporter)]:
            error = HostTaken("host_taken")
            error.reporter = reporter
            raise error
        case _:
            raise failure(answer, None)


@of_known_form
def _reported(answer: Answer) -> Reported:
    seen = moment(answer)
    rival, contested = (*answer.raw[5:7], "", "")[:2]
    devices = (Contested(*each.split("|")) for each in filter(None, contested.split(",")))
    return Reported(
        seen.now_ms, seen.next_deadline_ms, seen.epoch, seen.more, rival, tuple(devices)
    )

"""The reporter's verb, without the waiting: see `protocol` for how such a generator is driven."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from agent_sdk.protocol import PROTOCOL, Answer, Call, Moment, failure, moment

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
    """

    deadline_ms: int
    sampled_ms: int
    epoch: str
    safe_mode: bool
    version: str


def report(
    host: str, devices: tuple[Report, ...], **about: Unpack[About]
) -> Generator[Call, Answer, Moment]:
    """Say which devices a host has and that it lives; at most 64 devices in one call.

    Without devices it is a heartbeat: those already known stay as they were.
    """
    flat: list[str | int] = []
    for uuid, fields in devices:
        flat += (uuid, len(fields))
        for pair in fields:
            flat += pair
    head = (
        PROTOCOL, host, about["deadline_ms"], about["sampled_ms"], about["epoch"],
        int(about["safe_mode"]), about["version"],
    )  # fmt: skip
    answer = yield Call("report", (*head, *flat))
    match answer.raw:
        case ["REPORTED", *_]:
            return moment(answer)
        case _:
            raise failure(answer, None)

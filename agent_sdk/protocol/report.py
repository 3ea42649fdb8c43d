"""Reporter's verb, without the waiting: see `protocol.lease` for driving such a generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NotRequired, TypedDict

from agent_sdk.errors import HostTaken
from agent_sdk.protocol.messages import PROTOCOL, Answer, Call, Moment
from agent_sdk.protocol.replies import failure, moment, of_known_form

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from typing import Unpack

Fields = tuple[tuple[str, str | int], ...]

Report = tuple[str, Fields]
"""Report of one device: its id, then (field, value); `lua/report.lua` lists the fields."""


STATED: Final = frozenset({"state", "reported_unleased_mb"})
"""Fields that every report states: a silent host's devices are `away`, memory is settled anew."""

SUMS: Final = frozenset(
    {"unattributed_mb", "cooling_used_mb", "cooling_unattributed_mb", "cooling"}
)
"""Fields that memory is settled by, where they are not 0 or empty."""

NOTHING: Final = frozenset({None, "", "0"})


class About(TypedDict):
    """Fields of a report beside the devices.

    deadline_ms: without another report for so long, the host's devices take no new leases.
    sampled_ms: the pool's time of the sample; 0 = unknown.
    epoch: the last one seen, or empty.
    safe_mode: policy of a pool that this report creates.
    version: the reporter's.
    reporter: its identity (see `broker.identity`); empty: unknown.
    over: a reporter that is known to have ended, or empty.
    seen_ms: `now_ms` of the last reply: a pool that has forgotten it has lost data, and closes.
    trouble: why the host's GPUs are not seen, in a sentence; empty: they are; None: as said before.
    warning: what its operator should know beside that, likewise; it goes with `trouble`.
    """

    deadline_ms: int
    sampled_ms: int
    epoch: str
    safe_mode: bool
    version: str
    reporter: NotRequired[str]
    over: NotRequired[str]
    seen_ms: NotRequired[int]
    trouble: NotRequired[str | None]
    warning: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Contested:
    """Device that another host's living reporter lists too, and keeps."""

    uuid: str
    host: str
    reporter: str


@dataclass(frozen=True, slots=True)
class Reported(Moment):
    """The answer to a report.

    Attributes:
        rival: a reporter that was lately refused this host's name, or empty.
        contested: devices of the report that were not taken.
    """

    rival: str = ""
    contested: tuple[Contested, ...] = ()


def changes(fields: Fields, row: Mapping[str, str]) -> Fields:
    """Return the part of a device's report that the pool does not have; all of a new state's.

    row: the device's hash, as it was read just before; what it has lost since comes with the next
        report, and a device that is gone since is not registered by this one.
    """
    said = {name: str(value) for name, value in fields}
    if row.get("state") != said.get("state"):
        return fields
    if said.get("listed") == "1":
        del said["listed"]  # a device that is named is listed
    stated = STATED if said.get("reported_unleased_mb") else STATED | {"used_mb"}
    told = (
        (name, value)
        for name, value in said.items()
        if name in stated
        or (row.get(name) != value if name not in SUMS else {value, row.get(name)} - NOTHING)
    )
    return (("same", "1"), *told)


def report(
    host: str, devices: tuple[Report, ...], **about: Unpack[About]
) -> Generator[Call, Answer, Reported]:
    """Report a host's devices, and that it lives; at most 64 devices in one call.

    Without devices it is a heartbeat: known devices stay unchanged.

    Raises:
        HostTaken: another living reporter, named in the error, has the name.
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
    trouble = about.get("trouble")
    if about.get("reporter") or trouble is not None:
        flat += ("", about.get("reporter", ""), about.get("over", ""))
    if trouble is not None:
        flat += (trouble, about.get("warning", ""))
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

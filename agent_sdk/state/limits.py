"""Limits of memory on some devices: what a command's start needs of the pool, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent_sdk.protocol.messages import Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.readings import text, text_or_none

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from agent_sdk.keys import Keys

RULES = ("memory_limit", "mps_thread_share")
"""Fields of the policy about limits."""


class MpsDevice(NamedTuple):
    """Device on which NVIDIA's Multi-Process Service runs.

    Attributes:
        exclusive: the token of the lease that is alone on it, or empty.
    """

    total_mb: int
    exclusive: str


class DeviceLimits(NamedTuple):
    """Limits that a command on some devices gets.

    Attributes:
        memory_limit: the policy's word about limits that the driver enforces.
        mps_thread_share: the policy's rule about threads under MPS.
        under_mps: those of the devices with MPS, by uuid.
    """

    memory_limit: str
    mps_thread_share: bool
    under_mps: dict[str, MpsDevice]


def read(keys: Keys, uuids: Sequence[str]) -> Generator[Read, Answer, DeviceLimits]:
    """Read the limits on these devices, in one pipeline."""
    answer = yield Read((
        ("HMGET", keys.pool, *RULES),
        *(("HMGET", keys.device(uuid), "mps", "total_mb", "exclusive") for uuid in uuids),
    ))  # fmt: skip
    return _limits(answer, uuids)


@of_known_form
def _limits(answer: Answer, uuids: Sequence[str]) -> DeviceLimits:
    rules, *devices = answer.raw
    under_mps = {
        uuid: MpsDevice(int(text(total_mb)), text(exclusive))
        for uuid, (mps, total_mb, exclusive) in zip(uuids, devices, strict=True)
        if float(text_or_none(mps) or 0)
    }
    memory_limit, thread_share = (
        _default(name) if found is None else text(found)
        for name, found in zip(RULES, rules, strict=True)
    )
    return DeviceLimits(memory_limit, thread_share == "1", under_mps)


def _default(name: str) -> str:
    """Return a rule of a pool that older scripts have made."""
    from agent_sdk.policy import FIELDS  # noqa: PLC0415 - most pools have all fields

    return str(FIELDS[name].to_store(FIELDS[name].default))

"""Variables by which a process sees the GPUs of its lease, and no other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from agent_sdk.errors import error_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk.protocol.messages import Device

    Visible = Literal["uuid", "index"]

NOT_NUMBERED = (
    "{} has no number that is certain for CUDA: a GPU of its host is divided, lost, or not "
    "identified, or its reporter does not say. A MIG device never has one. Use UUIDs"
)


BARE = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
"""UUID without `GPU-` or `MIG-`, as Jetsons have it: CUDA reads its first digits as a number."""


def variables(devices: Sequence[Device], form: Visible = "uuid") -> dict[str, str]:
    """Return the variables for these GPUs; without any, no GPU is visible.

    GPUs whose UUIDs CUDA does not take have their numbers, where those are certain.

    Raises:
        BadRequest: numbers are asked for, and a GPU has none.
    """
    if not devices:
        return {
            "CUDA_VISIBLE_DEVICES": "",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "NVIDIA_VISIBLE_DEVICES": "void",
        }
    uuids = ",".join(device.uuid for device in devices)
    if any(BARE.fullmatch(device.uuid) for device in devices) and not without_number(devices):
        form, uuids = "index", ",".join(device.runtime_id for device in devices)
    if form == "index" and (unnumbered := without_number(devices)):
        raise error_for("bad_request", NOT_NUMBERED.format(unnumbered[0].uuid))
    return {
        "CUDA_VISIBLE_DEVICES": uuids
        if form == "uuid"
        else ",".join(device.runtime_id for device in devices),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": uuids,
    }


def without_number(devices: Sequence[Device]) -> list[Device]:
    """Return the GPUs whose number for CUDA, in PCI order, is not certain."""
    return [device for device in devices if not device.runtime_id.isdecimal()]

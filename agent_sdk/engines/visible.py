"""Variables by which a process sees the GPUs of its lease, and no other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

from agent_sdk.errors import error_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk.protocol.messages import Device

    Visible = Literal["uuid", "index"]

NOT_NUMBERED: Final = (
    "{} has no number that is certain for CUDA: a GPU of its host is divided, lost, or not "
    "identified, or its reporter does not say. A MIG device never has one. Use UUIDs"
)


BARE = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
"""UUID without `GPU-` or `MIG-`, as Jetsons have it: CUDA reads its first digits as a number."""

AMD: Final = "amd:"
"""Beginning of the ids of AMD's GPUs."""

OF_OTHERS: Final = ("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""Variables that would select again among the GPUs of ROCR_VISIBLE_DEVICES."""


def variables(devices: Sequence[Device], form: Visible = "uuid") -> dict[str, str]:
    """Return the variables for these GPUs; without any, no GPU is visible.

    GPUs whose UUIDs CUDA does not take have their numbers, where those are certain.

    An empty ROCR_VISIBLE_DEVICES hides AMD's GPUs, also from HIP, which reads
    CUDA_VISIBLE_DEVICES too; an empty HIP_VISIBLE_DEVICES hides none.

    Raises:
        BadRequest: numbers are asked for, and a GPU has none.
    """
    none = {
        "CUDA_VISIBLE_DEVICES": "",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": "void",
        "ROCR_VISIBLE_DEVICES": "",
    }
    if not devices:
        return none
    if on_amd(devices):
        return none | {"ROCR_VISIBLE_DEVICES": ",".join(device.runtime_id for device in devices)}
    uuids = ",".join(device.uuid for device in devices)
    if any(BARE.fullmatch(device.uuid) for device in devices) and not without_number(devices):
        form, uuids = "index", ",".join(device.runtime_id for device in devices)
    if form == "index" and (unnumbered := without_number(devices)):
        raise error_for("bad_request", NOT_NUMBERED.format(unnumbered[0].uuid))
    numbers = ",".join(device.runtime_id for device in devices)
    return none | {
        "CUDA_VISIBLE_DEVICES": numbers if form == "index" else uuids,
        "NVIDIA_VISIBLE_DEVICES": uuids,
    }


def on_amd(devices: Sequence[Device]) -> bool:
    """Return whether these are GPUs of AMD; one host's GPUs of one model are."""
    return any(device.uuid.startswith(AMD) for device in devices)


def without_number(devices: Sequence[Device]) -> list[Device]:
    """Return NVIDIA's GPUs whose number for CUDA, in PCI order, is not certain."""
    return [
        device
        for device in devices
        if not device.uuid.startswith(AMD) and not device.runtime_id.isdecimal()
    ]

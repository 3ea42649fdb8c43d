"""Devices that the pool has of a host, and that a look does not show.

They were there before the reporter started, and its source has never seen them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.devices import UNNAMED
from broker.devices.last_known import Fault, quiet
from broker.devices.smi.mig import UNTOLD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk.state.devices import DeviceStatus
    from broker.devices import Sample

NOT_LISTED: Final = "the driver does not list this device"

_GONE: Final = Fault("lost", NOT_LISTED, gone=True)


def with_missing(sample: Sample, missing: Mapping[str, DeviceStatus]) -> Sample:
    """Return a sample with a row for each missing device that has a name.

    A driver that fails, or has not answered yet, does not say that one is gone. Nor does one that
    cannot name the GPU where the missing one was, or cannot read the GPU of a missing part: what is
    wrong there is of the missing one too.
    """
    faults: dict[int | str, Fault] = {}
    for device in sample.devices:
        if device.state in {"lost", "error"} or device.reason == UNTOLD:
            at = device.index if device.uuid.startswith(UNNAMED) else device.uuid
            state = "error" if device.state == "mig" else device.state
            faults[at] = Fault(state, device.reason, gone=not device.listed)
    other = Fault("error", sample.error) if sample.error else _GONE
    rows = []
    for uuid, status in sorted(missing.items()):
        if not uuid.startswith(UNNAMED):
            of = status.parent if status.parent not in missing else missing[status.parent].index
            fault = faults.get(of if status.parent else status.index, other)
            rows.append(quiet(status, fault))
    return replace(sample, devices=(*sample.devices, *rows))

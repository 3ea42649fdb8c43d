"""Memory of identified devices: a device that falls silent keeps its row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from broker.devices.sample import DeviceSample, State, label_of, system_mb_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk.state.devices import DeviceStatus


UNNAMED: Final = "UNKNOWN-"
"""Beginning of the id of a GPU that the driver counts and cannot name."""

MOST_GONE: Final = 16
"""Most rows kept for MIG devices that are no longer there."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Reason for which a device could not be read, in one sentence.

    ``ended``: nothing can be read before the driver is opened anew. ``gone``: the driver works,
    and does not list it.
    """

    state: State
    reason: str
    ended: bool = False
    gone: bool = False


def quiet(last: DeviceSample | DeviceStatus, fault: Fault) -> DeviceSample:
    """Return the device as last known here, or by the pool, without what may have changed since."""
    return DeviceSample(
        uuid=last.uuid,
        index=last.index,
        name=last.name,
        model=last.model,
        total_mb=last.total_mb,
        system_mb=last.system_mb,
        used_mb=None,
        state=fault.state,
        reason=fault.reason,
        simulated=last.simulated,
        parent=last.parent,
        unified=last.unified,
        listed=not fault.gone,
    )


class Known:
    """Register of devices by UUID, with the device last read at each index."""

    def __init__(self, host: str) -> None:
        self._host = label_of(host)
        self._last: dict[str, DeviceSample] = {}
        self._at: dict[int, str] = {}
        self._gone: dict[str, Fault] = {}

    def merge(
        self, answers: Mapping[int, tuple[DeviceSample, ...] | Fault], missing: Fault
    ) -> tuple[DeviceSample, ...]:
        """Return one row for each device ever identified, and for each index that answered.

        An answer is the GPU at that index with its MIG devices. A fault at an index is of the GPU
        last read there; a known device that no answer speaks of gets `missing`, or its GPU's fault
        when it is a MIG device. One that the working driver no longer listed stays so through
        faults of others. An index whose GPU was never identified gets a row under a name that says
        so, `UNKNOWN-<host>-<index>`, until the driver can name it.
        """
        read = [
            self._filled(device)
            for answer in answers.values()
            if not isinstance(answer, Fault)
            for device in answer
        ]
        rows = {device.uuid: device for device in read}
        for index, answer in answers.items():
            if isinstance(answer, Fault):
                row = self._faulty(index, answer, rows)
                rows[row.uuid] = row
        for uuid, last in self._last.items():
            if uuid not in rows:
                fault = _fault_of_gpu(rows.get(last.parent)) or missing
                rows[uuid] = quiet(last, fault if fault.gone else self._gone.get(uuid, fault))
        for device in read:
            self._last[device.uuid] = device
            self._at[device.index] = device.uuid
        self._gone = {
            uuid: Fault(row.state, row.reason, gone=True)
            for uuid, row in rows.items()
            if not row.listed and (uuid in self._gone or not _is_with_its_gpu(row, rows))
        }
        self._forget([device for device in rows.values() if device.parent and not device.listed])
        return tuple(sorted(rows.values(), key=lambda device: (device.index, device.uuid)))

    def parts_of(self, parent: str, fault: Fault) -> tuple[DeviceSample, ...]:
        """Return the parts of a GPU as last known, of which its driver tells nothing now."""
        return tuple(
            quiet(last, self._gone.get(uuid, fault))
            for uuid, last in self._last.items()
            if last.parent == parent
        )

    def _forget(self, gone: list[DeviceSample]) -> None:
        """Drop all but a few MIG devices of earlier layouts: none of them comes back."""
        for device in gone[: max(0, len(gone) - MOST_GONE)]:
            del self._last[device.uuid]
            self._at = {index: at for index, at in self._at.items() if at != device.uuid}

    def _filled(self, device: DeviceSample) -> DeviceSample:
        last = self._last.get(device.uuid)
        if device.state in {"ok", "mig"} or last is None or last.total_mb is None:
            return device
        return replace(
            device,
            name=last.name,
            model=last.model,
            total_mb=last.total_mb,
            system_mb=last.system_mb,
        )

    def _faulty(self, index: int, fault: Fault, rows: Mapping[str, DeviceSample]) -> DeviceSample:
        uuid = self._at.get(index)
        if uuid is not None and uuid not in rows:
            return quiet(self._last[uuid], fault)
        return DeviceSample(
            uuid=f"{UNNAMED}{self._host}-{index}",
            index=index,
            name="Unknown GPU",
            model="unknown",
            total_mb=None,
            system_mb=system_mb_of(None),
            used_mb=None,
            state=fault.state,
            reason=fault.reason,
        )


def _is_with_its_gpu(part: DeviceSample, rows: Mapping[str, DeviceSample]) -> bool:
    """Tell whether a part is gone only because its GPU is: it may be there when that comes back."""
    gpu = rows.get(part.parent)
    return gpu is not None and not gpu.listed


def _fault_of_gpu(gpu: DeviceSample | None) -> Fault | None:
    if gpu is None or gpu.state not in {"lost", "error"}:
        return None
    return Fault(gpu.state, gpu.reason, gone=not gpu.listed)

"""Simulated GPUs for demonstrations and tests; their names tell that they are."""

from __future__ import annotations

import re
from typing import Final

from agent_sdk.state.telemetry import MAX_MB
from broker.devices.sample import MAX_DEVICES, DeviceSample, Sample, label_of

IDLE_W: Final = 60.0
"""Power that a simulated device draws: as a real one does while nothing computes on it."""

_FORM = "sim:COUNTxMIB[,COUNTxMIB...], for example sim:4x24576 or sim:2x24576,2x81920"
_GROUP = re.compile(r"([0-9]{1,9})x([0-9]{1,9})", re.ASCII)


def totals_of(spec: str) -> tuple[int, ...]:
    """Return the MiB of each device that a spec such as ``sim:2x24576,2x81920`` asks for.

    Raises:
        ValueError: the spec has another form, or asks for too much; the message says which.
    """
    kind, _, groups = spec.partition(":")
    totals: list[int] = []
    for group in groups.split(","):
        match = _GROUP.fullmatch(group.strip())
        if kind != "sim" or match is None:
            raise ValueError(f"{spec!r} is not of the form {_FORM}")
        count, total_mb = int(match[1]), int(match[2])
        if not 1 <= count <= MAX_DEVICES - len(totals):
            raise ValueError(f"{spec!r} must ask for 1 to {MAX_DEVICES} devices: {_FORM}")
        if not 1 <= total_mb <= MAX_MB:
            raise ValueError(f"{spec!r} must give each device 1 to {MAX_MB} MiB: {_FORM}")
        totals += [total_mb] * count
    return tuple(totals)


class SimulatedSource:
    """Devices `SIM-<host>-<index>`, always idle: their whole memory can be leased."""

    name = "simulated"

    def __init__(self, totals_mb: tuple[int, ...], host: str) -> None:
        devices = (
            DeviceSample(
                uuid=f"SIM-{label_of(host)}-{index}",
                index=index,
                name=f"Simulated GPU {total_mb} MiB",
                model=f"Simulated GPU {total_mb} MiB",
                total_mb=total_mb,
                system_mb=0,
                used_mb=0,
                simulated=True,
                utilization_gpu_pct=0.0,
                memory_utilization_pct=0.0,
                power_draw_w=IDLE_W,
            )
            for index, total_mb in enumerate(totals_mb)
        )
        self._sample = Sample(tuple(devices), "simulated")

    def sample(self) -> Sample:
        """Return the same devices each time."""
        return self._sample

    def close(self) -> None:
        """Do nothing: no resource is held."""

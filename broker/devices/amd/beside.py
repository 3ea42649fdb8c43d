"""AMD's GPUs beside NVIDIA's in one machine; each driver is asked for its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from broker.devices.sample import Holding, Limiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.devices.amd.source import AmdSource
    from broker.devices.sample import Sample, Source

_NO_LIMITS = "no driver of this host limits memory"


class BesideSource:
    """Source of both; AMD's GPUs follow NVIDIA's in the host's index."""

    def __init__(self, nvidia: Source, amd: AmdSource) -> None:
        self._nvidia, self._amd = nvidia, amd
        self.name = f"{nvidia.name} and amd"

    def sample(self) -> Sample:
        """Ask both drivers for every GPU once."""
        told = self._nvidia.sample()
        places = [device.index + 1 for device in told.devices]
        self._amd.first = max(self._amd.first, *places, 0)
        more = self._amd.sample()
        return replace(
            told,
            devices=told.devices + more.devices,
            error=told.error or more.error,
            warnings=told.warnings + more.warnings,
        )

    def close(self) -> None:
        """Give back what the sources hold."""
        self._nvidia.close()
        self._amd.close()


class BesideHoldingSource(BesideSource):
    """The same, where NVIDIA's source holds its driver between samples."""

    def __init__(self, nvidia: Source, amd: AmdSource) -> None:
        super().__init__(nvidia, amd)
        self._holding = nvidia

    def limits(self, wanted: Mapping[tuple[str, str], int | None]) -> dict[tuple[str, str], str]:
        """Set memory limits through NVIDIA's source, as `Limiting` says."""
        if isinstance(self._holding, Limiting):
            return self._holding.limits(wanted)
        return dict.fromkeys(wanted, _NO_LIMITS)

    def release(self) -> str:
        """Let go of NVIDIA's driver until the next sample; return why it could not."""
        return self._holding.release() if isinstance(self._holding, Holding) else ""


def beside(nvidia: Source, amd: AmdSource) -> Source:
    """Return the source of both."""
    kind = BesideHoldingSource if isinstance(nvidia, Holding) else BesideSource
    return kind(nvidia, amd)

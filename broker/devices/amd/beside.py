"""AMD's GPUs beside NVIDIA's in one machine; each driver is asked for its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from broker.devices.amd.row import HELPER
from broker.devices.amd.topology import nvidia_too
from broker.devices.sample import Holding, Limiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.devices.amd.source import AmdSource
    from broker.devices.sample import Sample, Source

_NO_LIMITS = "no driver of this host limits memory"


class BesideSource:
    """Source of both; AMD's GPUs follow NVIDIA's in the host's index.

    The graphics of a processor are not told beside NVIDIA's GPUs.
    """

    def __init__(self, nvidia: Source, amd: AmdSource) -> None:
        self._nvidia, self._amd = nvidia, amd
        self.name = f"{nvidia.name} and amd"
        self._too = nvidia_too(amd.root)
        amd.alone = not self._too

    def sample(self) -> Sample:
        """Ask both drivers for every GPU once."""
        told = self._nvidia.sample()
        if not told.devices:
            return self._without_nvidia(told)
        self._amd.first = max(self._amd.first, *(device.index + 1 for device in told.devices))
        self._amd.alone, self._too = False, True
        more = self._of_amd()
        return replace(
            told, devices=told.devices + more.devices, warnings=told.warnings + more.warnings
        )

    def _of_amd(self) -> Sample:
        more = self._amd.sample()
        shown = (d for d in more.devices if not (self._too and d.reason == HELPER))
        return replace(more, devices=tuple(shown))

    def _without_nvidia(self, told: Sample) -> Sample:
        """Return AMD's GPUs; that NVIDIA's driver has none is no trouble where it never had."""
        more = self._of_amd()
        if self._too or not more.devices:
            return replace(more, error=told.error, warnings=told.warnings, late=told.late)
        return replace(more, warnings=(*told.warnings, *filter(None, [told.error])))

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

"""Source that asks nvidia-smi where NVML cannot be used, and says that it does."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.devices.last_known import UNNAMED
from broker.devices.sample import Limiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.devices.sample import Sample, Source

AGAIN_S: Final = 60.0
"""Seconds after which NVML is tried again."""

SAYS: Final = (
    "NVML cannot be used, and nvidia-smi is asked in its place, which tells no error codes (XIDs): "
)


class FallbackSource:
    """Source over two: the second one is asked while the first one fails as a whole.

    A first one that has not answered yet is waited for: what hangs for one hangs for the other.
    """

    name = "nvml"

    def __init__(self, first: Source, second: Source, again_s: float = AGAIN_S) -> None:
        self._first = first
        self._second = second
        self._again_s = again_s
        self._why = ""
        self._failed_at = 0.0

    def sample(self) -> Sample:
        """Ask the first source, or the second one with the reason as a warning."""
        if self._why and time.monotonic() - self._failed_at < self._again_s:
            other = self._second.sample()
            if not other.error:
                return self._said(other)
        sample = self._first.sample()
        why = _failure(sample)
        if not why:
            self._why = ""
            return sample
        other = self._second.sample()
        if other.error or not other.devices:
            self._why = ""
            return replace(sample, error=_both(why, other.error)) if sample.error else sample
        self._why, self._failed_at = why, time.monotonic()
        return self._said(other)

    def _said(self, other: Sample) -> Sample:
        said = SAYS + self._why
        return replace(other, warnings=(said, *other.warnings), nvml_error=self._why)

    def limits(self, wanted: Mapping[tuple[str, str], int | None]) -> dict[tuple[str, str], str]:
        """Set memory limits through the first source, as `Limiting` says."""
        if self._why or not isinstance(self._first, Limiting):
            return dict.fromkeys(wanted, SAYS + self._why)
        return self._first.limits(wanted)

    def release(self) -> str:
        """Let go of the driver until the next sample, where the first source holds it."""
        release = getattr(self._first, "release", None)
        return str(release()) if release else ""

    def close(self) -> None:
        """Give back the resources of both."""
        self._first.close()
        self._second.close()


def _failure(sample: Sample) -> str:
    """Return why no GPU is seen; empty: some are, or their driver has not answered yet."""
    if sample.late:
        return ""
    if sample.error:
        return sample.error
    unnamed = [device for device in sample.devices if device.uuid.startswith(UNNAMED)]
    return unnamed[0].reason if unnamed and len(unnamed) == len(sample.devices) else ""


def _both(why: str, other: str | None) -> str:
    return f"{why}; nor does nvidia-smi help: {other}" if other else why

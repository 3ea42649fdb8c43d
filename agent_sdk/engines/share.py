"""Part of a GPU that a lease has, in the forms that engines take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk.protocol.messages import Device

MIB: Final = 1 << 20

DIGITS: Final = 4
"""Digits after the point: 0.0001 of the largest GPU is less than 32 MiB."""

CONTEXT_MB: Final = 512
"""MiB of a CUDA context and its libraries, which no allocator of a framework counts."""


@dataclass(frozen=True, slots=True)
class Share:
    """Part of a GPU that a lease has, in MiB.

    Attributes:
        leased_mb: the lease.
        total_mb: the GPU.
        free_mb: unused when the pool last heard, without the lease: an engine finds so much at
            its start. It is the total where the driver does not tell.
    """

    leased_mb: int
    total_mb: int
    free_mb: int

    @property
    def of_total(self) -> float:
        """The lease as a part of the whole GPU."""
        return min(1.0, self.leased_mb / self.total_mb)

    @property
    def of_free(self) -> float:
        """The lease as a part of what is free, at most all of it."""
        return min(1.0, self.leased_mb / self.free_mb)

    @property
    def left_free_mb(self) -> int:
        """MiB of what is free that are not of the lease."""
        return max(0, self.free_mb - self.leased_mb)

    @property
    def pool_mb(self) -> int:
        """MiB for an allocator that counts only its own: the lease without a context."""
        return max(self.leased_mb - CONTEXT_MB, self.leased_mb // 2)


def share_of(devices: Sequence[Device]) -> Share | None:
    """Return the smallest share of a lease's GPUs; None: none, or their size is unknown.

    An engine takes one value for all of its GPUs.
    """
    shares = [
        Share(d.memory_mb, d.total_mb, max(1, d.memory_mb, d.total_mb - (d.used_mb or 0)))
        for d in devices
        if d.total_mb > 0
    ]
    if not shares or len(shares) < len(devices):
        return None
    least = min(shares, key=lambda share: share.of_total)
    free_mb = max(share.free_mb for share in shares)
    return Share(least.leased_mb, least.total_mb, free_mb)


def decimal(share: float) -> str:
    """Return a share rounded down to four digits, or to its first one: never 0, never more."""
    if share <= 0:
        return "0.0"
    digits = max(DIGITS, math.ceil(-math.log10(share)))
    text = f"{math.floor(share * 10**digits + 1e-6) / 10**digits:.{digits}f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text

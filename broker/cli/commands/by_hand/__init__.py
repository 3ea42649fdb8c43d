"""Commands that hold GPUs by hand; each module has the command of its name."""

from __future__ import annotations

from typing import Final

KEEPING: Final = ("gpu-broker-acquire-", "gpu-broker-hold-", "gpu-broker-adopt-")
"""Beginnings of the clients of leases with a keeper."""

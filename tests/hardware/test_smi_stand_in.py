"""The stand-in for nvidia-smi, read by a real broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported


def test_machine_is_reported_as_its_file_says(reported: Callable[..., Reported]) -> None:
    """Name, UUID, driver and temperature of the file stand in /gpu/info."""
    [gpu] = reported("dgx_spark").until(len)
    assert (gpu["name"], gpu["temperature_c"]) == ("NVIDIA GB10", 42)
    assert gpu["uuid"] == "GPU-2dee1e25-b3b5-007e-2b55-79f2d0f2ebe5"

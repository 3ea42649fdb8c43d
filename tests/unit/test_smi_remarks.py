"""Lines of nvidia-smi that are no rows, as people have reported them."""

from __future__ import annotations

import pytest

from broker.devices.smi.remarks import are_warnings, bus_of, failure, fallen


@pytest.mark.parametrize(
    ("line", "bus", "state", "word"),
    [
        (("Unable to determine the device handle for GPU 0000:0B:00.0: GPU is lost.  Reboot the "
         "system to recover this GPU"), "0:0b:00.0", "lost", "GPU is lost"),
        ("Unable to determine the device handle for GPU0000:07:00.0: Unknown Error",
         "0:07:00.0", "error", "Unknown Error"),
        ("Unable to determine the device handle for gpu 0000:08:00.0: Unknown Error",
         "0:08:00.0", "error", "Unknown Error"),
        ("Unable to determine the device handle for GPU1: 0000:41:00.0: Not Found",
         "0:41:00.0", "error", "Not Found"),
        ("Unable to detect the device handle for GPU0000:B1:00.0: Unknown Error",
         "0:b1:00.0", "error", "Unknown Error"),
        ("Unable to determine the device handle for GPU 000:BA:80.0: Unknown Error",
         "0:ba:80.0", "error", "Unknown Error"),
    ],
)  # fmt: skip
def test_gpu_that_cannot_be_opened_is_known_by_its_place(
    line: str, bus: str, state: str, word: str
) -> None:
    """Versions differ in the words around the bus id."""
    [(found, fault)] = fallen(["a remark", line]).items()
    assert (found, fault.state) == (bus, state)
    assert f": {word}; " in fault.reason


@pytest.mark.parametrize(
    ("cell", "bus"),
    [("00000000:0B:00.0", "0:0b:00.0"), ("0000:0b:00.0", "0:0b:00.0"), ("0001:00:00.0",
     "1:00:00.0"), ("[N/A]", ""), ("", "")],
)  # fmt: skip
def test_bus_ids_have_one_form(cell: str, bus: str) -> None:
    """The query writes eight digits in front, the remarks four."""
    assert bus_of(cell) == bus


@pytest.mark.parametrize(
    ("status", "line", "begin"),
    [
        (18, "Failed to initialize NVML: Driver/library version mismatch",
         "The NVIDIA driver and its library differ in version"),
        (9, ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make "
         "sure that the latest NVIDIA driver is installed and running."),
         "The NVIDIA driver is not loaded"),
        (12, "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.",
         "No NVIDIA driver library"),
        (4, "Failed to initialize NVML: Insufficient Permissions", "This process may not ask NVML"),
        (255, "Failed to initialize NVML: Unknown Error", "The NVIDIA driver reports an unknown"),
    ],
)  # fmt: skip
def test_failure_is_told_in_plain_words_and_its_own(status: int, line: str, begin: str) -> None:
    """Both: a search for the program's words finds what others did."""
    said = failure(status, [line])
    assert said.startswith(begin)
    assert said.endswith(f"(nvidia-smi: {line})")
    assert failure(3, ["something new"]) == "nvidia-smi failed: something new"


def test_warnings_are_known_by_their_own_word() -> None:
    """Any other line beside rows may mean that some are missing."""
    assert are_warnings(["WARNING: infoROM is corrupted at gpu 0000:B3:00.0", "Warning: old"])
    assert not are_warnings(["WARNING: x", "Unable to determine the device handle"])

"""Source that asks nvidia-smi where NVML cannot be used: when it does, and when it stops."""

from __future__ import annotations

import pytest

from broker.devices.fallback import FallbackSource
from broker.devices.sample import DeviceSample, Sample


class Answers:
    """Source whose next sample a test sets."""

    name = "nvml"

    def __init__(self, sample: Sample) -> None:
        self.next = sample
        self.asked = 0

    def sample(self) -> Sample:
        self.asked += 1
        return self.next

    def close(self) -> None:
        self.asked = -1


def gpu(uuid: str, state: str = "ok") -> DeviceSample:
    return DeviceSample(
        uuid=uuid, index=0, name="GPU", model="GPU", total_mb=1000, system_mb=256, used_mb=0,
        state=state, reason="" if state == "ok" else "it is broken",
    )  # fmt: skip


SEEN, BY_SMI = Sample((gpu("GPU-a"),), "nvml"), Sample((gpu("GPU-a"),), "smi")
FAILED = Sample((), "nvml", "no library")


def test_first_source_alone_is_asked_while_it_sees_gpus() -> None:
    """A GPU of several without a name is no reason for the other."""
    mixed = Sample((gpu("GPU-a"), gpu("UNKNOWN-h-1", "error")), "nvml")
    for sample in (SEEN, mixed, Sample((), "nvml")):
        first, second = Answers(sample), Answers(BY_SMI)
        assert FallbackSource(first, second).sample() == sample
        assert second.asked == 0


@pytest.mark.parametrize(
    ("sample", "why"),
    [(FAILED, "no library"), (Sample((gpu("UNKNOWN-h-0", "error"),), "nvml"), "it is broken")],
)
def test_second_source_is_asked_with_the_reason(sample: Sample, why: str) -> None:
    """The first one is left alone for a while, then tried again, and used when it works."""
    first, second = Answers(sample), Answers(BY_SMI)
    source = FallbackSource(first, second, again_s=3600)
    for _ in range(2):
        told = source.sample()
        assert (told.devices, told.source, told.nvml_error) == (BY_SMI.devices, "smi", why)
        assert told.warnings[0].endswith(why)
    assert (first.asked, second.asked) == (1, 2)
    source = FallbackSource(first, second, again_s=0)
    assert source.sample().source == "smi"
    first.next = SEEN
    assert source.sample() == SEEN


def test_late_first_source_is_waited_for() -> None:
    """A driver that hangs for one hangs for the other."""
    late = Sample((), "nvml", "NVML has not answered for 2.0 s", late=True)
    first, second = Answers(late), Answers(BY_SMI)
    assert FallbackSource(first, second).sample() == late
    assert second.asked == 0


@pytest.mark.parametrize("other", [Sample((), "smi", "no GPU either"), Sample((), "smi")])
def test_both_fail(other: Sample) -> None:
    """The first one's rows stand; both reasons are told, and both are closed."""
    rows = (gpu("GPU-a", "error"),)
    first, second = Answers(Sample(rows, "nvml", "no library")), Answers(other)
    source = FallbackSource(first, second)
    told = source.sample()
    assert (told.devices, told.source) == (rows, "nvml")
    more = "; nor does nvidia-smi help: no GPU either" if other.error else ""
    assert told.error == f"no library{more}"
    source.close()
    assert (first.asked, second.asked) == (-1, -1)

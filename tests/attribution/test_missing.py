"""Rows for devices that the pool has and a look does not show."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker.attribution.missing import NOT_LISTED, with_missing
from broker.devices import Sample
from broker.devices.smi.mig import UNTOLD
from tests.attribution.worlds import device_status, gpu

if TYPE_CHECKING:
    from agent_sdk.state.devices import DeviceStatus


def known(uuid: str, index: int = 0, parent: str = "") -> DeviceStatus:
    """A device as the pool has it."""
    return replace(device_status(), uuid=uuid, index=index, parent=parent)


WHOLE = known("GPU-a")
PART = known("MIG-1", 100, "GPU-a")


def rows(sample: Sample, *missing: DeviceStatus) -> dict[str, tuple[str, str, bool]]:
    """The state, the reason and the listing of each row that is added."""
    found = with_missing(sample, {each.uuid: each for each in missing})
    assert found.devices[: len(sample.devices)] == sample.devices
    added = found.devices[len(sample.devices) :]
    assert all(row.used_mb is None and row.total_mb == 10_000 for row in added)
    return {row.uuid: (row.state, row.reason, row.listed) for row in added}


def test_device_that_a_working_driver_does_not_list_is_lost() -> None:
    """Its parts are with it; a row without a name is none."""
    gone = ("lost", NOT_LISTED, False)
    found = rows(Sample((), "nvml"), WHOLE, PART, known("UNKNOWN-h1-3", 3))
    assert found == {"GPU-a": gone, "MIG-1": gone}
    found = rows(Sample((gpu(uuid="GPU-a"), gpu(uuid="GPU-b", index=1)), "nvml"), PART)
    assert found == {"MIG-1": gone}, "its GPU was made whole"


def test_simulated_device_stays_one() -> None:
    """A host that simulates fewer than before, or none now."""
    found = with_missing(Sample((), "simulated"), {"SIM-1": replace(WHOLE, simulated=True)})
    assert [row.simulated for row in found.devices] == [True]


def test_driver_that_fails_tells_of_none_that_it_is_gone() -> None:
    """Each is in error, for the driver's reason."""
    found = rows(Sample((), "nvml", "no answer"), WHOLE, PART)
    assert found == dict.fromkeys(("GPU-a", "MIG-1"), ("error", "no answer", True))


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ({"uuid": "UNKNOWN-h1-0", "state": "error", "reason": "x"}, ("error", "x", True)),
        ({"uuid": "UNKNOWN-h1-0", "state": "lost", "reason": "x"}, ("lost", "x", True)),
        ({"uuid": "UNKNOWN-h1-1", "index": 1, "state": "lost"}, ("lost", NOT_LISTED, False)),
    ],
)
def test_gpu_without_a_name_is_the_one_of_that_index(
    shown: dict[str, Any], told: tuple[str, str, bool]
) -> None:
    """Its parts are as it is."""
    assert rows(Sample((gpu(**shown),), "nvml"), WHOLE, PART) == {"GPU-a": told, "MIG-1": told}


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ({"state": "error", "reason": "x"}, ("error", "x", True)),
        ({"state": "lost", "reason": "x", "listed": False}, ("lost", "x", False)),
        ({"state": "mig", "reason": UNTOLD}, ("error", UNTOLD, True)),
        ({"state": "mig", "reason": "divided"}, ("lost", NOT_LISTED, False)),
    ],
)
def test_part_is_gone_only_where_its_gpu_tells_of_its_parts(
    shown: dict[str, Any], told: tuple[str, str, bool]
) -> None:
    """A GPU that cannot be read now may have it still."""
    assert rows(Sample((gpu(**shown),), "smi"), PART) == {"MIG-1": told}

"""Past use of a caller over MCP: figures of its ended leases, and the advice on their size."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.usage.history import FinishedLease
from broker.mcp.past_use import past_use
from tests.mcp.clients import in_process, refused, said, until_seen

if TYPE_CHECKING:
    from agent_sdk.testing import TestBroker


def over(peak_mb: int | None, mb: int = 8000, devices: int = 1, **more: Any) -> FinishedLease:
    """An hour's lease of so much on each device, half a device each."""
    facts: dict[str, Any] = {
        "id": "1-0", "token": "t", "agent": "a", "team": "default", "owner": "", "host": "h1",
        "model": "m1", "gpus": devices / 2, "mb": mb * devices, "outcome": "released",
        "devices": tuple((f"gpu-{n}", mb) for n in range(devices)), "peak_mb": peak_mb,
        "granted_at_ms": 0, "ended_at_ms": 3_600_000,
    }  # fmt: skip
    return FinishedLease(**facts | more)


@pytest.mark.parametrize(
    ("leases", "asked_mb", "peak_mb", "advice"),
    [
        ((), None, None, "not known"),
        ((over(None),), None, None, "not known"),
        ((over(2000), over(3000)), 8000, 3000, "ask for 3584"),
        ((over(None), over(7000)), 8000, 7000, "the size fits"),
        ((over(9000),), 8000, 9000, "ask for 10240"),
        ((over(6000, devices=2),), 8000, 3000, "ask for 3584"),
        ((over(100, mb=256),), 256, 100, "small enough"),
        ((over(None, devices=0),), None, None, "not known"),
    ],
)
def test_advice_is_by_the_largest_peak(
    leases: tuple[FinishedLease, ...], asked_mb: int | None, peak_mb: int | None, advice: str
) -> None:
    """An eighth more than the peak on a GPU, of leases whose peak is known."""
    found = past_use(leases, "7d")
    assert (found.leases, found.asked_mb, found.peak_mb) == (len(leases), asked_mb, peak_mb)
    assert advice in found.advice


def test_hours_are_by_the_part_of_the_gpu() -> None:
    """Busy and idle ones of what was observed; null where nothing was."""
    seen = over(7000, known_ms=1_800_000, busy_ms=450_000)
    found = past_use((seen, over(None)), "7d")
    assert (found.gpu_hours, found.busy_gpu_hours, found.idle_gpu_hours) == (1.0, 0.062, 0.188)
    assert "75% of their observed time was idle" in found.advice
    unseen = past_use((over(7000),), "7d")
    assert (unseen.busy_gpu_hours, unseen.idle_gpu_hours) == (None, None)
    assert "idle" not in unseen.advice


def folded(gpus: TestBroker) -> int:
    """Have the pool reap, as a broker does each second; how many leases its history has."""
    gpus.client.reap()
    return len(gpus.client.history().leases)


async def test_ended_leases_of_the_caller_are_told(gpus: TestBroker) -> None:
    """Since a time that it names; leases of others are not its own."""
    gpus.client.release(gpus.client.acquire("other", memory_mb=100))
    async with in_process(gpus) as client:
        before = (await said(client, "gpu_usage"))["past"]
        assert (before["leases"], before["gpu_hours"], before["since"]) == (0, 0, "7d")
        token = (await said(client, "gpu_acquire", memory_mb=600))["ticket"]
        await said(client, "gpu_release", token=token)
        await until_seen(lambda: folded(gpus) == 2, 30)
        past = (await said(client, "gpu_usage", since="1h"))["past"]
        assert past["leases"] == 1
        assert past["advice"] == "How much memory they used is not known."
        assert (await said(client, "gpu_usage", since="0s"))["past"]["leases"] == 0
        assert (await refused(client, "gpu_usage", since="yesterday"))["code"] == "bad_request"


async def test_running_leases_count_by_their_part_of_the_gpu(gpus: TestBroker) -> None:
    """A share by its part, a whole GPU as one: as the same leases count once they are over."""
    async with in_process(gpus) as client:
        await said(client, "gpu_acquire", memory_mb=250)
        await said(client, "gpu_acquire", memory_mb=1, exclusive=True)
        await asyncio.sleep(1)
        found = await said(client, "gpu_usage")
        share, whole = sorted(found["leases"], key=lambda row: row["memory_mb"])
        assert whole["gpu_s"] == pytest.approx(whole["age_s"], abs=0.06)
        assert share["gpu_s"] == pytest.approx(share["age_s"] / 4, abs=0.06)
        assert found["gpu_s"] == pytest.approx(share["gpu_s"] + whole["gpu_s"], abs=0.01)

"""A lease for a process that uses a device already: its memory becomes leased, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.pools import device, granted, said, token

if TYPE_CHECKING:
    from tests.pools import Pool

A, B = token("a"), token("b")


@pytest.fixture
def gpu(pool: Pool) -> Pool:
    """Two devices of 1000 MiB; of the first 700 are used without a lease."""
    pool.report((device("gpu-a", used_mb=700, reported_unleased_mb=700), device("gpu-b")))
    return pool


def adopt(pool: Pool, name: str = A, used_mb: int = 700, **ask: Any) -> list[Any]:
    """Ask for the lease of a process that uses so much of the first device."""
    return pool.acquire(name, **{"memory_mb": 700, "uses": f"gpu-a={used_mb}"} | ask)


def test_what_a_process_uses_becomes_leased(gpu: Pool) -> None:
    """On its device, although another has more room; the sum of both stays."""
    assert gpu.number("gpu-a", "unleased_mb") == 700
    assert granted(adopt(gpu)).devices == (("gpu-a", 700),)
    assert [gpu.number("gpu-a", x) for x in ("leased_mb", "unleased_mb")] == [700, 0]
    assert gpu.free() == {"gpu-a": 300, "gpu-b": 1000}
    gpu.release(A)
    assert gpu.free() == {"gpu-a": 1000, "gpu-b": 1000}


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        ({"memory_mb": 1001}, "never_fits"),
        ({"uses": "gpu-x=700"}, "no_capacity"),
        ({"host": "h2"}, "host_unknown"),
        ({"wait_ms": 1000}, "bad_request"),
        ({"devices": 2}, "bad_request"),
    ],
)
def test_what_is_not_unleased_there_is_not_believed(
    gpu: Pool, ask: dict[str, Any], why: str
) -> None:
    """Beyond it the device must have room; another device is none, and nothing waits."""
    assert said(adopt(gpu, **ask))[:2] == ["REFUSED", why]
    assert gpu.number("gpu-a", "unleased_mb") == 700


def test_more_than_it_uses_is_taken_from_what_is_free(gpu: Pool) -> None:
    """The rest of the device stays free."""
    assert granted(adopt(gpu, memory_mb=900))
    assert gpu.free() == {"gpu-a": 100, "gpu-b": 1000}


def test_drained_or_exclusive_device_takes_no_process(gpu: Pool) -> None:
    """It takes no other lease either; a cap of its agent holds too."""
    gpu.drain("gpu-a")
    assert said(adopt(gpu))[1] == "no_capacity"
    gpu.drain("gpu-a", drained=0)
    gpu.policy(max_memory_per_agent_mb=600)
    assert said(adopt(gpu))[1] == "agent_cap"


def test_note_stands_in_the_record(gpu: Pool) -> None:
    """A waiter's is there once it has its lease; a repeat without it is the same lease."""
    granted(gpu.acquire(A, memory_mb=1000, note="debugging, until noon"))
    assert gpu.hash(f"record:{A}")["note"] == "debugging, until noon"
    assert granted(gpu.acquire(A, memory_mb=1000))
    gpu.acquire(B, memory_mb=500, wait_ms=60_000, note="next")
    gpu.release(A)
    granted(gpu.acquire(B, memory_mb=500, wait_ms=60_000, note="next"))
    assert gpu.hash(f"record:{B}")["note"] == "next"

"""A host whose GPUs, or some of them, are not seen: everybody who looks is told why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.api.brokers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported

UNKNOWN = "The NVIDIA driver reports an unknown error"


def host_of(machine: Reported) -> dict[str, Any]:
    """The one host, as GET /hosts shows it."""
    [host] = machine.broker.http.get("/hosts").json()["hosts"]
    return dict(host)


def told(machine: Reported, *commands: str) -> list[str]:
    """Return the output of each of these commands on one line."""
    return [" ".join(machine.command(command).stdout.split()) for command in commands]


def test_gpu_without_a_handle_has_a_row_and_its_host_is_in_trouble(
    reported: Callable[..., Reported],
) -> None:
    """Three GPUs are three rows; every interface says of the one what is wrong with it."""
    machine = reported("one_handle_fails")
    rows = machine.until(lambda rows: len(rows) == 3)
    assert [(row["index"], row["state"], row["uuid"]) for row in rows] == [
        (0, "ok", "GPU-00000000-0000-0000-0000-000000000000"),
        (1, "error", "UNKNOWN-h1-1"),
        (2, "ok", "GPU-00000000-0000-0000-0000-000000000002"),
    ]
    assert rows[1]["reason"] == UNKNOWN
    trouble = f"GPU 1 cannot be identified: {UNKNOWN}"
    host = eventually(lambda: (h := host_of(machine))["trouble"] and h, 5)
    assert (host["trouble"], host["alive"]) == (trouble, True)
    assert machine.broker.http.get("/gpu/info").json()["host_trouble"] == {"h1": trouble}
    assert machine.broker.http.get("/ready").json() == {"ready": True}
    for said in told(machine, "status", "hosts", "doctor"):
        assert trouble in said
    assert machine.command("doctor").returncode == 1
    assert machine.broker.metrics()['gpu_broker_host_trouble{host="h1"}'] == 1.0
    [event] = [e for e in machine.command("events").stdout.splitlines() if "host_trouble" in e]
    assert UNKNOWN in event
    assert machine.broker.said().count(trouble) == 1


def test_gpu_that_is_identified_at_last_leaves_no_row_behind(
    reported: Callable[..., Reported],
) -> None:
    """The row without a UUID goes, and the trouble with it; a lease gets the GPU."""
    machine = reported("one_handle_fails")
    machine.until(lambda rows: len(rows) == 3)
    machine.later()
    rows = machine.until(lambda rows: all(row["state"] == "ok" for row in rows))
    assert [row["uuid"][:4] for row in rows] == ["GPU-"] * 3
    assert host_of(machine)["trouble"] is None
    assert "host_trouble" not in machine.broker.http.get("/gpu/info").json()
    leases = [machine.broker.granted(min_memory_mb=70_000, ttl_s=60) for _ in range(3)]
    assert len({lease["gpus"][0]["uuid"] for lease in leases}) == 3

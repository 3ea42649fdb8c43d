"""GPUs that the pool has, under a reporter that has started since and does not see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.api.brokers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hardware.machines import Reported

SOON_S = 10

UNKNOWN = "The NVIDIA driver reports an unknown error"


def with_a_lease(reported: Callable[..., Reported]) -> tuple[Reported, Any, Any]:
    """Return a machine of two GPUs, an agent, and its lease on the second one."""
    machine = reported("driver_without_gpus")
    machine.words("count=2")
    machine.until(lambda rows: [row["state"] for row in rows] == ["ok"] * 2)
    agent = machine.sdk()
    lease = agent.acquire("trainer", memory_mb=70_000, ttl_s=600)
    if lease.devices[0].index == 0:
        other = agent.acquire("trainer", memory_mb=70_000, ttl_s=600)
        agent.release(lease)
        lease = other
    return machine, agent, lease


def restarted(machine: Reported, *words: str) -> None:
    """Stop the broker, and start another one on these words."""
    machine.broker.stop()
    machine.words(*words)
    machine.restart()


def states(machine: Reported) -> dict[str, tuple[str, str]]:
    return {row["uuid"]: (row["state"], row["reason"] or "") for row in machine.gpus()}


def test_lease_on_a_gpu_that_is_gone_stays_degraded(reported: Callable[..., Reported]) -> None:
    """Its holder is told by the first reporter, and the next one takes nothing of that back."""
    machine, agent, lease = with_a_lease(reported)
    uuid = lease.devices[0].uuid
    restarted(machine, "count=1")
    eventually(
        lambda: states(machine)[uuid] == ("lost", "the driver does not list this device"), SOON_S
    )
    eventually(lambda: agent.renew(lease).notices == ("degraded",), SOON_S)
    restarted(machine, "count=1")
    eventually(lambda: states(machine)[uuid][0] == "lost", SOON_S)
    assert agent.renew(lease).notices == ("degraded",)
    events = machine.command("events").stdout
    assert (events.count("finding_raised"), events.count("finding_cleared")) == (1, 0)
    machine.words("count=2")
    eventually(lambda: agent.renew(lease).notices == (), SOON_S)


def test_driver_that_does_not_answer_says_of_no_gpu_that_it_is_lost(
    reported: Callable[..., Reported],
) -> None:
    """They are in error for its reason, no lease is degraded, and all are as before in the end."""
    machine, agent, lease = with_a_lease(reported)
    restarted(machine, "count=2", "init=999")
    eventually(lambda: set(states(machine).values()) == {("error", UNKNOWN)}, SOON_S)
    machine.words("count=2")
    eventually(lambda: set(states(machine).values()) == {("ok", "")}, SOON_S)
    assert agent.renew(lease).notices == ()
    assert "lost" not in machine.command("events").stdout


def test_gpu_that_cannot_be_named_is_the_one_that_was_there(
    reported: Callable[..., Reported],
) -> None:
    """Its fault is the other's, by index; lost, its lease is degraded; named, it is one row."""
    machine, agent, lease = with_a_lease(reported)
    uuid = lease.devices[0].uuid
    restarted(machine, "count=2", "fail=nvmlDeviceGetUUID/999/1")
    eventually(lambda: states(machine).get("UNKNOWN-h1-1") == ("error", UNKNOWN), SOON_S)
    assert states(machine)[uuid] == ("error", UNKNOWN)
    machine.words("count=2", "lost=1")
    eventually(lambda: states(machine)[uuid][0] == "lost", SOON_S)
    eventually(lambda: agent.renew(lease).notices == ("degraded",), SOON_S)
    machine.words("count=2")
    eventually(lambda: set(states(machine).values()) == {("ok", "")}, SOON_S)
    eventually(lambda: agent.renew(lease).notices == (), SOON_S)
    assert len(machine.gpus()) == 2

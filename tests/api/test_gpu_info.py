"""GET /gpu/info."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.api.brokers import Answered, Broker
    from tests.api.conftest import Fleet

    Storeless = dict[tuple[str, str], Answered]

FLOATS = (
    "memory_total_mb", "memory_used_mb", "utilization_gpu_pct", "temperature_c", "power_draw_w",
    "memory_utilization_pct",
)  # fmt: skip


def test_gpu_info_without_gpus_is_not_available(fleet: Fleet) -> None:
    """With GPU_BROKER_DEVICES=none the list is empty, `available` is false, and it says why."""
    answer = fleet.none.http.get("/gpu/info")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("message")
    assert body == {
        "gpus": [],
        "available": False,
        "nvml_enriched": False,
        "nvml_supported": False,
    }


def test_gpu_info_with_a_simulated_gpu_shows_it(plain: Broker) -> None:
    """A simulated device has every documented field, and says that it is simulated."""
    body = plain.http.get("/gpu/info").json()
    assert body["available"] is True
    assert (body["nvml_enriched"], body["nvml_supported"]) == (False, False)
    assert "nvml_init_error" not in body
    (gpu,) = body["gpus"]
    assert (gpu["index"], gpu["memory_total_mb"], gpu["memory_used_mb"]) == (0, 1000.0, 0.0)
    assert "Simulated" in gpu["name"]
    assert all(gpu[name] is None or isinstance(gpu[name], float) for name in FLOATS)
    assert (gpu["uuid"], gpu["host"], gpu["state"]) == ("SIM-h1-0", "h1", "ok")
    assert (gpu["memory_reserved_mb"], gpu["memory_free_mb"], gpu["leases"]) == (0, 1000, 0)


def test_gpu_info_with_a_lease_shows_what_it_holds(fleet: Fleet, plain: Broker) -> None:
    """The device's row shows the lease on every replica, also on one without devices."""
    plain.granted(min_memory_mb=900)
    for broker in (plain, fleet.replica):
        (gpu,) = broker.http.get("/gpu/info").json()["gpus"]
        assert (gpu["memory_reserved_mb"], gpu["memory_free_mb"], gpu["leases"]) == (900, 100, 1)


def test_gpu_info_when_nvml_fails_has_its_error(fleet: Fleet) -> None:
    """NVML that was asked for and cannot be had is an error in the answer, not of the answer."""
    answer = fleet.nvml.http.get("/gpu/info")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["gpus"], body["available"], body["nvml_supported"]) == ([], False, False)
    assert isinstance(body["nvml_init_error"], str)
    assert body["nvml_init_error"]
    assert body["message"]


def test_gpu_info_under_safe_mode_never_asked_nvml(fleet: Fleet) -> None:
    """SAFE_MODE leaves NVML alone, so it cannot have failed either."""
    body = fleet.safe.http.get("/gpu/info").json()
    assert body["available"] is False
    assert "nvml_init_error" not in body


def test_gpu_info_without_redis_has_no_gpus(storeless: Storeless) -> None:
    """Without the store nothing is available, and the message says why."""
    answer = storeless["GET", "/gpu/info"].http
    assert answer.status_code == 200
    body = answer.json()
    assert (body["gpus"], body["available"]) == ([], False)
    assert "Redis" in body["message"]

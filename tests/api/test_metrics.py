"""GET /metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.api.brokers import Answered, Broker
    from tests.api.conftest import Fleet

    Storeless = dict[tuple[str, str], Answered]

PREFIX = "gpu_orchestrator_"

REQUESTS = {
    f"{PREFIX}{name}_requests_total"
    for name in ("gpu_info", "policy_get", "policy_post", "lease", "release")
}

SHARED = {f"{PREFIX}active_leases", f"{PREFIX}lease_expired_total"}

NAMES = (
    REQUESTS
    | SHARED
    | {
        f"{PREFIX}{n}"
        for n in ("uptime_seconds", "requests_total", "nvml_supported", "mps_enabled")
    }
    | {"justnews_requests_total"}
)

ACTIVE, EXPIRED = f"{PREFIX}active_leases", f"{PREFIX}lease_expired_total"


def test_metrics_has_the_documented_names_without_labels(plain: Broker) -> None:
    """Every documented name is there as `name value`, each value a float, no `_created`."""
    answer = plain.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    samples = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert all(float(line.rsplit(" ", 1)[1]) >= 0 for line in samples)
    names = [line.split(" ")[0] for line in samples if len(line.split(" ")) == 2]
    assert set(names) >= NAMES
    assert len(names) == len(set(names))
    assert not any(name.endswith("_created") for name in names)
    ours = [name for name in names if name.startswith((PREFIX, "justnews_"))]
    assert not any("{" in name for name in ours)
    assert f"{PREFIX}nvml_error_info" not in names


def test_metrics_types_are_what_the_contract_says(plain: Broker) -> None:
    """Each family has one TYPE line: counters for totals, gauges for the rest."""
    lines = plain.http.get("/metrics").text.splitlines()
    types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    for name in NAMES:
        assert types[name] == ("counter" if name.endswith("_total") else "gauge"), name


def test_metrics_count_requests(plain: Broker) -> None:
    """Each documented request adds one to its own count and to both totals."""
    before = plain.metrics()
    plain.http.get("/gpu/info")
    plain.http.get("/policy")
    token = plain.granted(min_memory_mb=1)["token"]
    plain.release(token)
    plain.release(token)
    after = plain.metrics()
    grown = {name: after[name] - before[name] for name in REQUESTS}
    assert grown == {
        f"{PREFIX}gpu_info_requests_total": 1,
        f"{PREFIX}policy_get_requests_total": 1,
        f"{PREFIX}policy_post_requests_total": 0,
        f"{PREFIX}lease_requests_total": 1,
        f"{PREFIX}release_requests_total": 2,
    }
    assert after[f"{PREFIX}requests_total"] - before[f"{PREFIX}requests_total"] == 6
    assert after["justnews_requests_total"] == after[f"{PREFIX}requests_total"]
    assert after[f"{PREFIX}uptime_seconds"] > before[f"{PREFIX}uptime_seconds"]


def test_metrics_count_paths_of_dashboards(plain: Broker) -> None:
    """The same answer under the path that dashboards ask counts as the same request."""
    before = plain.metrics()
    for path in ("/orchestrator/gpu/info", "/v1/orchestrator/gpu/info", "/orchestrator/gpu/policy"):
        assert plain.http.get(path).status_code == 200
    after = plain.metrics()
    grown = {name: after[name] - before[name] for name in REQUESTS}
    assert {name: n for name, n in grown.items() if n} == {
        f"{PREFIX}gpu_info_requests_total": 2,
        f"{PREFIX}policy_get_requests_total": 1,
    }


def test_metrics_active_leases_follow_leases_on_every_replica(fleet: Fleet, plain: Broker) -> None:
    """GPU leases that live are counted, CPU leases are not, and every replica says the same."""

    def active() -> float:
        values = {broker.metrics()[ACTIVE] for broker in (plain, fleet.replica)}
        assert len(values) == 1
        return values.pop()

    assert active() == 0
    first = plain.granted(min_memory_mb=400)
    assert active() == 1
    second = fleet.replica.granted(min_memory_mb=400)
    assert active() == 2
    assert plain.granted(min_memory_mb=400)["gpu"] == "cpu"
    assert active() == 2
    fleet.replica.release(first["token"])
    plain.release(second["token"])
    assert active() == 0


def test_metrics_count_what_expires_on_every_replica(fleet: Fleet, plain: Broker) -> None:
    """A lease that nobody renews leaves active_leases and adds one to lease_expired_total."""
    before = plain.metrics()
    plain.granted(min_memory_mb=400, ttl_s=1)
    time.sleep(1.2)
    after = [broker.metrics() for broker in (plain, fleet.replica)]
    assert [m[EXPIRED] - before[EXPIRED] for m in after] == [1, 1]
    assert [m[ACTIVE] for m in after] == [0, 0]


def test_metrics_when_nvml_fails_have_its_error(fleet: Fleet) -> None:
    """nvml_supported is always there; nvml_error_info only after a failed start of NVML."""
    metrics = fleet.nvml.metrics()
    assert metrics[f"{PREFIX}nvml_supported"] == 0
    errors = [value for name, value in metrics.items() if name.startswith(f"{PREFIX}nvml_error")]
    assert errors == [1]
    safe = fleet.safe.metrics()
    assert safe[f"{PREFIX}nvml_supported"] == 0
    assert not [name for name in safe if name.startswith(f"{PREFIX}nvml_error")]


def test_metrics_without_redis_have_what_this_process_knows(storeless: Storeless) -> None:
    """Without the store the figures that replicas share are left out, not made up."""
    answer = storeless["GET", "/metrics"].http
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    names = {line.split(" ")[0] for line in lines}
    assert {n for n in names if n.startswith((PREFIX, "justnews_"))} == NAMES - SHARED

"""GET /live: every row once, then what is other, and nothing that is not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from agent_sdk import LeaseClient
from agent_sdk.store.store import Store
from broker.live.rows import KINDS
from tests.api.brokers import GRANTING, Broker
from tests.api.keys import new_key
from tests.api.sse import Following, following
from tests.servers import running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import Server


class Mirror:
    """The rows as a page keeps them."""

    def __init__(self, stream: Following) -> None:
        self.stream = stream
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.told: list[dict[str, Any]] = []
        self.you: dict[str, Any] = {}
        self.hear()

    def hear(self) -> dict[str, Any]:
        """Take the next message."""
        (message,) = self.stream.take(1)
        said = message.data
        if message.event == "reset":
            self.rows = {kind: {} for kind in KINDS}
            self.you = said["you"]
        for kind, rows in said["rows"].items():
            for name, row in rows.items():
                self.rows[kind][name] = self.rows[kind].get(name, {}) | row
        for kind, names in said.get("gone", {}).items():
            for name in names:
                del self.rows[kind][name]
        self.told += said["events"]
        return said

    def until(self, holds: Any, within_s: float = 5) -> None:
        """Hear until something holds of the rows."""
        until = time.monotonic() + within_s
        while not holds(self):
            assert time.monotonic() < until, self.rows
            self.hear()


def leases(mirror: Mirror) -> list[str]:
    return [lease["token"] for lease in mirror.rows["leases"].values()]


def life(mirror: Mirror) -> list[str]:
    """The last two grants and releases that were told; rows may be ahead of events."""
    told = [event["event"] for event in mirror.told]
    return [event for event in told if event in {"granted", "released"}][-2:]


def test_rows_follow_a_lease_and_hold_what_the_endpoints_say(broker: Broker) -> None:
    """First all, then only fields that are other; in the end the same as /allocations says."""
    with following(broker, "/live") as stream:
        mirror = Mirror(stream)
        assert mirror.you == {"name": "", "role": "operator", "keys": False}
        assert mirror.rows["devices"]["SIM-h1-0"]["memory_free_mb"] == 1000
        token = broker.granted(min_memory_mb=300)["token"]
        mirror.until(lambda m: leases(m) == [token])
        (row,) = mirror.rows["leases"].values()
        said = broker.allocations()[token]
        assert {name: said[name] for name in row if name in said} == row
        assert mirror.rows["devices"]["SIM-h1-0"]["memory_free_mb"] == 700
        assert mirror.rows["pool"]["pool"]["leases"] == 1
        broker.release(token)
        mirror.until(lambda m: not leases(m) and life(m) == ["granted", "released"])
        assert mirror.rows["devices"]["SIM-h1-0"]["memory_free_mb"] == 1000


def test_change_is_no_more_than_the_fields_that_changed(broker: Broker) -> None:
    """A lease of 1 MiB changes four fields of its device, a report the time of its sample."""
    with following(broker, "/live") as stream:
        Mirror(stream)
        token = broker.granted(min_memory_mb=1)["token"]
        changed: dict[str, Any] = {}
        while changed.keys() <= {"sampled_at"}:
            (message,) = stream.take(1)
            changed = message.data["rows"].get("devices", {}).get("SIM-h1-0", {})
        broker.release(token)
        assert changed.keys() - {"sampled_at"} == {
            "memory_reserved_mb", "memory_free_mb", "memory_left_mb", "leases",
        }  # fmt: skip


def test_newcomer_is_told_the_minutes_before(broker: Broker) -> None:
    """It has each GPU's use and memory; the last point is what its row says."""
    with following(broker, "/live") as stream:
        (reset,) = stream.take(1)
        assert reset.event == "reset"
        trends = reset.data["trends"]
        (step, busy, memory) = trends["devices"]["SIM-h1-0"][-1]
        row = reset.data["rows"]["devices"]["SIM-h1-0"]
        assert busy == row["utilization_gpu_pct"]
        assert memory == round(100 * row["memory_used_mb"] / row["memory_total_mb"])
        assert step == reset.data["read_at"] // trends["step_s"]


def test_renewal_and_policy_show(broker: Broker, own: Server) -> None:
    """A renewal makes no event: it shows with the next reading, within 5 s; a policy at once."""
    with following(broker, "/live", silent_s=10) as stream, LeaseClient(Store(own.url)) as client:
        mirror = Mirror(stream)
        lease = client.acquire("analyst", memory_mb=1, ttl_s=60, host="any")
        mirror.until(lambda m: leases(m) == [lease.token])
        ends = next(iter(mirror.rows["leases"].values()))["expires_at"]
        client.renew(lease, 600)
        mirror.until(lambda m: next(iter(m.rows["leases"].values()))["expires_at"] > ends + 500, 10)
        client.release(lease)
        client.set_policy(default_memory_mb=77)
        mirror.until(lambda m: m.rows["pool"]["pool"]["default_memory_mb"] == 77)


def test_nothing_is_free_beside_a_lease_where_the_policy_gives_whole_gpus(
    broker: Broker, own: Server
) -> None:
    """In the rows of the page, in /gpu/info and in the metrics, as soon as the policy says so."""
    with following(broker, "/live") as stream, LeaseClient(Store(own.url)) as client:
        mirror = Mirror(stream)
        try:
            held = client.acquire("analyst", memory_mb=300, host="any")
            mirror.until(lambda m: m.rows["devices"]["SIM-h1-0"]["memory_free_mb"] == 700)
            client.set_policy(allow_fractional_shares=False)
            mirror.until(lambda m: m.rows["devices"]["SIM-h1-0"]["memory_free_mb"] == 0)
            (gpu,) = broker.http.get("/gpu/info").json()["gpus"]
            assert (gpu["memory_free_mb"], gpu["memory_left_mb"]) == (0, 700)
            shown = broker.metrics().items()
            assert [n for name, n in shown if "device_memory_free_bytes" in name] == [0]
            client.release(held)
        finally:
            client.set_policy(allow_fractional_shares=True)


def test_queue_says_why(broker: Broker, own: Server) -> None:
    """Each who waits, with the reason that explain gives."""
    held = broker.granted(min_memory_mb=900)["token"]
    with following(broker, "/live") as stream, LeaseClient(Store(own.url)) as client:
        mirror = Mirror(stream)
        answer = broker.lease(min_memory_mb=500, wait_s=0.2, on_unavailable="refuse")
        assert answer.status_code == 202
        mirror.until(lambda m: m.rows["queue"])
        (row,) = mirror.rows["queue"].values()
        explained = client.explain(answer.json()["token"])
        assert (row["code"], row["why"]) == (explained.code, explained.summary)
        assert row["devices_say"] == {"full": 1}
        broker.release(answer.json()["token"])
        mirror.until(lambda m: not m.rows["queue"])
    broker.release(held)


def test_history_counts_what_happened_before_the_start(broker: Broker, own: Server) -> None:
    """Grants, ends and waits by the minute, from the stream; another replica tells the same."""
    broker.release(broker.granted(min_memory_mb=1)["token"])
    other = GRANTING | {"REDIS_URL": own.url, "GPU_BROKER_HOSTNAME": "h2"}
    with Broker(**other | {"GPU_BROKER_DEVICES": "none"}) as second:
        totals = []
        for each in (broker, second.wait()):
            with following(each, "/live") as stream:
                minutes = Mirror(stream).rows["minutes"].values()
                totals.append([sum(m[name] for m in minutes) for name in ("granted", "ended")])
        assert totals[0] == totals[1]
        assert totals[0][0] >= 1


def test_store_that_is_away_is_told_with_what_was_seen_last() -> None:
    """And that it is back, without a new connection."""
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait()
        with following(broker, "/live", silent_s=20) as stream:
            mirror = Mirror(stream)
            server.kill()
            mirror.until(lambda m: m.rows["broker"]["broker"]["problem"], 15)
            assert mirror.rows["devices"]
            with following(broker, "/live") as late:
                assert Mirror(late).rows["broker"]["broker"]["problem"]
            server.start()
            mirror.until(lambda m: m.rows["broker"]["broker"]["problem"] is None, 15)


def test_viewer_sees_no_whole_token(own: Server, tmp_path: Path) -> None:
    """No lease and no event has one; the row's id is what the viewer gets."""
    file = tmp_path / "keys"
    viewer, operator = (new_key(file, who, who) for who in ("viewer", "operator"))
    alone = {"GPU_BROKER_POOL": "viewed", "REDIS_URL": own.url}
    with Broker(**GRANTING | alone, GPU_BROKER_KEYS_FILE=str(file)) as broker:
        broker.wait()
        as_operator = {"Authorization": f"Bearer {operator}"}
        got = broker.http.post(
            "/lease", json={"agent": "a", "min_memory_mb": 1}, headers=as_operator
        ).json()
        with following(broker, "/live", Authorization=f"Bearer {viewer}") as stream:
            mirror = Mirror(stream)
            assert mirror.you == {"name": "viewer", "role": "viewer", "keys": True}
            (name,) = mirror.rows["leases"]
            assert mirror.rows["leases"][name]["token"] == name
            assert name == f"{got['token'][:8]}…{got['fence']}"
            assert got["token"] not in str(mirror.rows)
            assert got["token"] not in str(mirror.told)
        with following(broker, "/live", Authorization=f"Bearer {operator}") as stream:
            assert leases(Mirror(stream)) == [got["token"]]
        broker.http.post("/release", json={"token": got["token"]}, headers=as_operator)

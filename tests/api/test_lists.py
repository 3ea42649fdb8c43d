"""Lists: filters, pages and slices. Without a parameter each is whole, as documented."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.keys import Keys
from broker.api_keys import add
from tests.api.brokers import GRANTING, Broker, eventually
from tests.audit import audit
from tests.page import of_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

LEASES = 90
"""Enough that the body is longer than what is sent at once."""


@pytest.fixture(scope="module")
def wide(server: Server) -> Iterator[Broker]:
    """A broker of two hosts with two devices each, of which three have series of their own."""
    with ExitStack() as stack:
        keys = Keys("lists")
        settings = GRANTING | {
            "REDIS_URL": server.url,
            "GPU_BROKER_POOL": keys.pool_name,
            "GPU_BROKER_DEVICES": "sim:2x1000",
            "GPU_BROKER_METRICS_DEVICES": "3",
        }
        broker = stack.enter_context(Broker(**settings)).wait()
        stack.enter_context(Broker(**settings | {"GPU_BROKER_HOSTNAME": "h2"})).wait()
        eventually(lambda: len(broker.http.get("/gpu/info").json()["gpus"]) == 4, 30)
        yield broker
        with server.connect() as client:
            audit(client, keys)


@pytest.fixture(scope="module")
def tokens(wide: Broker) -> list[str]:
    """The tokens of many leases in the order of their grants, every third of another agent."""
    return [
        wide.granted(
            agent="bob" if n % 3 == 0 else "ann", min_memory_mb=1, host="h1" if n % 2 else "h2"
        )["token"]
        for n in range(LEASES)
    ]


def pages(broker: Broker, path: str, name: str, **asked: Any) -> list[Any]:
    """Return all pages of a list, one after the other."""
    found: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        body = broker.http.get(path, params={**asked, **cursor}).json()
        assert len(body[name]) <= asked["limit"]
        found += body[name].items() if isinstance(body[name], dict) else body[name]
        if body["next"] is None:
            assert body["total"] == len(found)
            return found
        cursor = {"cursor": body["next"]}


def test_pages_of_leases_are_the_whole_list_in_the_order_of_grants(
    wide: Broker, tokens: list[str]
) -> None:
    """Each lease is on one page, oldest first; the whole list comes in pieces, and is the same."""
    answer = wide.http.get("/allocations")
    assert answer.headers["transfer-encoding"] == "chunked"
    whole = answer.json()
    assert list(whole) == ["allocations"]
    assert list(whole["allocations"]) == tokens
    found = dict(pages(wide, "/allocations", "allocations", limit=7))
    assert list(found) == tokens
    moves = {"expires_in_s"}
    for token, lease in whole["allocations"].items():
        assert {k: v for k, v in found[token].items() if k not in moves} == {
            k: v for k, v in lease.items() if k not in moves
        }


def test_gpus_are_filtered_by_each_state_that_they_may_have(wide: Broker) -> None:
    """The page explains each of them."""
    states = of_page("words.js", "STATES", "Object.keys(STATES)")
    found = {state: wide.http.get("/gpu/info", params={"state": state}) for state in states}
    assert {state: answer.status_code for state, answer in found.items()} == dict.fromkeys(
        states, 200
    )
    assert len(found["ok"].json()["gpus"]) == 4
    assert found["error"].json()["gpus"] == []


def test_leases_are_filtered_by_agent_host_and_state(wide: Broker, tokens: list[str]) -> None:
    """A filter leaves what matches it, whole or in pages; a lease on the CPU is on no host."""
    cpu = wide.granted(agent="bob", min_memory_mb=999_999)["token"]

    def found(**asked: str) -> list[str]:
        listed = list(wide.http.get("/allocations", params=asked).json()["allocations"])
        paged = pages(wide, "/allocations", "allocations", limit=11, **asked)
        assert [token for token, _ in paged] == listed
        return listed

    try:
        assert found(agent="bob") == [*tokens[::3], cpu]
        assert found(host="h1") == tokens[1::2]
        assert found(host="h1", agent="bob") == tokens[3::6]
        assert found(state="cpu") == [cpu]
        assert found(state="active", agent="bob") == tokens[::3]
        assert found(host="nowhere") == []
    finally:
        wide.release(cpu)


def test_paging_goes_on_beside_grants_and_releases(wide: Broker, tokens: list[str]) -> None:
    """A lease that lives all the while is on exactly one page, whatever comes and goes."""
    first = wide.http.get("/allocations", params={"limit": 40}).json()
    gone = wide.granted(agent="eve", min_memory_mb=1)["token"]
    wide.release(gone)
    new = wide.granted(agent="eve", min_memory_mb=1)["token"]
    rest = wide.http.get("/allocations", params={"cursor": first["next"]}).json()["allocations"]
    wide.release(new)
    assert gone not in rest
    assert [x for x in [*first["allocations"], *rest] if x != new] == tokens


def test_devices_and_hosts_have_filters_and_pages(wide: Broker) -> None:
    """Devices come by host and index, hosts by name; `limit` and `cursor` cut the same list."""
    whole = wide.http.get("/gpu/info").json()
    order = [(gpu["host"], gpu["index"]) for gpu in whole["gpus"]]
    assert order == [("h1", 0), ("h1", 1), ("h2", 0), ("h2", 1)]
    assert "next" not in whole
    paged = pages(wide, "/gpu/info", "gpus", limit=3)
    assert [(gpu["host"], gpu["index"]) for gpu in paged] == order
    of_host = wide.http.get("/gpu/info", params={"host": "h2"}).json()["gpus"]
    assert [(gpu["host"], gpu["index"]) for gpu in of_host] == order[2:]
    lost = wide.http.get("/gpu/info", params={"state": "lost"}).json()
    assert (lost["gpus"], lost["available"]) == ([], False)
    hosts = pages(wide, "/hosts", "hosts", limit=1)
    assert [each["host"] for each in hosts] == ["h1", "h2"]
    assert wide.http.get("/hosts", params={"state": "away"}).json() == {"hosts": []}


@pytest.mark.usefixtures("tokens")
def test_waiters_have_filters_and_pages(wide: Broker) -> None:
    """Waiters come in the order of the queue, on pages too."""
    waits = [
        wide.lease(agent=agent, min_memory_mb=990, exclusive=True, wait_s=0.2, host=host)
        for agent, host in (("ann", "h1"), ("bob", "h1"), ("ann", "h2"), ("bob", "h2"))
    ]
    asked = [answer.json()["token"] for answer in waits]
    try:
        assert [answer.status_code for answer in waits] == [202] * 4
        whole = wide.http.get("/queue").json()
        assert (whole["waiting"], list(whole)) == (4, ["waiting", "queue"])
        assert [each["token"] for each in whole["queue"]] == asked
        assert [each["token"] for each in pages(wide, "/queue", "queue", limit=3)] == asked
        of_bob = wide.http.get("/queue", params={"agent": "bob", "host": "h2"}).json()
        assert [each["token"] for each in of_bob["queue"]] == asked[3:]
    finally:
        for token in asked:
            wide.release(token)


@pytest.mark.parametrize("path", ["/allocations", "/gpu/info", "/queue", "/hosts"])
def test_wrong_limit_or_cursor_is_refused_in_words(wide: Broker, path: str) -> None:
    """A limit out of range and a cursor that no page gave are 422, and the message says why."""
    for limit in ("0", "1001", "ten"):
        answer = wide.http.get(path, params={"limit": limit})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["query", "limit"]
    answer = wide.http.get(path, params={"limit": 5, "cursor": "no/such"})
    assert answer.status_code == 422
    (detail,) = answer.json()["detail"]
    assert "`next` of the page before" in detail["msg"]
    assert "no/such" not in answer.text


def test_viewer_learns_no_token_from_a_page(server: Server, tmp_path: Path) -> None:
    """A page that a viewer sees holds no whole token, neither in its rows nor in its cursor."""
    keys = Keys("lists-viewer")
    viewer, agent = (add(tmp_path / "keys", name, name) for name in ("viewer", "agent"))  # type: ignore[arg-type] # roles
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": keys.pool_name}
    with Broker(**settings, GPU_BROKER_KEYS_FILE=str(tmp_path / "keys")) as broker:
        broker.wait()
        of_agent = {"Authorization": f"Bearer {agent}"}
        asks = {"agent": "ann", "min_memory_mb": 1}
        held = [
            broker.http.post("/lease", json=asks, headers=of_agent).json()["token"]
            for _ in range(2)
        ]
        answer = broker.http.get(
            "/allocations", params={"limit": 1}, headers={"Authorization": f"Bearer {viewer}"}
        )
        assert answer.json()["next"]
        assert not any(token in answer.text for token in held)
        for token in held:
            broker.http.post("/release", json={"token": token}, headers=of_agent)


def test_metrics_of_a_large_pool_are_bounded(wide: Broker) -> None:
    """Devices beyond the limit have no series of their own; their number and states are told."""
    seen = wide.metrics()
    named = [name for name in seen if name.startswith("gpu_broker_device_info{")]
    assert len(named) == 3
    assert seen['gpu_broker_series_left_out{kind="devices"}'] == 1
    assert seen['gpu_broker_series_left_out{kind="hosts"}'] == 0
    assert seen['gpu_broker_devices{state="ok"}'] == 4
    lines = wide.http.get("/metrics").text.splitlines()
    heads = [line for line in lines if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads)), "a family stands in one place"

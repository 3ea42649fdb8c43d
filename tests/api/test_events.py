"""GET /events: what happens, in order, once, also across a gap, a replica and a restart."""

from __future__ import annotations

import asyncio
import os
import re
import time
import timeit
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import httpx2
import pytest

from agent_sdk import LeaseClient, StillWaiting
from agent_sdk.scripts.source import lua_folder
from agent_sdk.state.events import Event
from agent_sdk.store.store import Store
from broker.http.streams import filter_of
from broker.live.feed import GATHER_S
from broker.serializers.lease_json import OTHER_TOKENS
from tests.api.brokers import GRANTING, Broker, eventually
from tests.api.keys import new_key
from tests.api.sse import Following, following
from tests.servers import free_port, running

if TYPE_CHECKING:
    from pathlib import Path

    import redis

    from broker.live.feed import Feed
    from tests.servers import Server

EVENTS = "gpu:{default}:events"

OF_LEASES = "/events?type=granted&type=released"
"""Stream without the word of a host that was starved for a moment, and is back."""

SOAK = bool(os.environ.get("GPU_BROKER_SOAK"))

RESTARTS = 20 if SOAK else 3

PAIRS, FOLLOWERS = (5_000 if SOAK else 500), 200


def lease_and_release(broker: Broker, agent: str = "analyst") -> str:
    token: str = broker.granted(agent=agent, min_memory_mb=100)["token"]
    broker.release(token)
    return token


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest) -> None:
    """Have the broker tell all that the tests before have done: a stream begins where it is."""
    if "broker" in request.fixturenames:
        broker: Broker = request.getfixturevalue("broker")
        agent = f"first-{uuid4().hex}"
        with following(broker, OF_LEASES) as stream:
            lease_and_release(broker, agent)
            while stream.until("released")[-1].data["agent"] != agent:
                pass


def ids(store: redis.Redis, after: str = "-") -> list[str]:
    """The stream's ids after one, by the store itself."""
    entries: Any = store.xrange(EVENTS, after if after == "-" else f"({after}")
    return [name for name, _ in entries]


def test_filter_costs_the_same_however_long_it_is() -> None:
    """An event is looked up, not compared with each of 5,200 names."""
    event = Event("1-0", "granted", {"agent": "nobody", "host": "h"})

    def cost(count: int) -> float:
        names = [f"a{n}" for n in range(count)]
        wanted = filter_of(cast("Feed", None), None, names, names)
        return min(timeit.repeat(lambda: wanted(event), number=1000, repeat=5))

    assert cost(5200) < 20 * cost(1)


def test_events_come_as_they_happen_and_say_what_the_stream_says(
    broker: Broker, own: Server
) -> None:
    """Ids, names and fields of the stream; devices with their host and index."""
    with following(broker, OF_LEASES) as stream:
        token = lease_and_release(broker)
        granted, released = stream.take(2)
    assert (granted.event, released.event) == ("granted", "released")
    assert granted.data["token"] == token
    (device,) = granted.data["devices"]
    assert device == {"uuid": "SIM-h1-0", "host": "h1", "index": 0, "memory_mb": 100}
    with own.connect() as store:
        entries: Any = store.xrange(EVENTS)
        of_leases = [name for name, row in entries if row["event"] in {"granted", "released"}]
        assert of_leases[-2:] == [granted.id, released.id]
    assert granted.data["at"] == pytest.approx(time.time(), abs=5)
    assert isinstance(granted.data["fence"], int)


def test_filters_by_type_host_and_agent(broker: Broker) -> None:
    """Several of one kind are alternatives, several kinds hold together."""
    with ExitStack() as stack:

        def follow(query: str) -> Following:
            return stack.enter_context(following(broker, f"/events?{query}"))

        by_type = follow("type=released&type=drained")
        by_agent = follow("agent=scout&type=granted")
        by_host = follow("host=h1&type=drained&type=granted")
        elsewhere = follow("host=h2")
        lease_and_release(broker, "analyst")
        lease_and_release(broker, "scout")
        for verb in ("drain", "undrain"):
            broker.http.post(f"/{verb}", json={"device": "SIM-h1-0", "reason": "fan"})
        seen = [(m.event, m.data.get("agent")) for m in by_type.take(3)]
        assert seen == [("released", "analyst"), ("released", "scout"), ("drained", None)]
        assert [m.data["agent"] for m in by_agent.take(1)] == ["scout"]
        assert [m.event for m in by_host.take(3)] == ["granted", "granted", "drained"]
        broker.http.post("/drain", json={"host": "h1", "reason": "x"})
        broker.http.post("/undrain", json={"host": "h1"})
        (drained,) = by_host.take(1)
        assert drained.data["host"] == "h1"
        with pytest.raises(httpx2.ReadTimeout):
            stack.enter_context(following(broker, "/events?host=h2", silent_s=0.3)).take(1)
        del elsewhere


@pytest.mark.parametrize("how", ["header", "query"])
def test_coming_back_misses_nothing_and_gets_nothing_twice(broker: Broker, how: str) -> None:
    """From the event after the one that was seen."""
    with following(broker, OF_LEASES) as stream:
        for _ in range(5):
            lease_and_release(broker)
        first = stream.take(4)
    seen = first[-1].id
    path = OF_LEASES if how == "header" else f"{OF_LEASES}&after={seen}"
    headers = {"Last_Event_ID": seen} if how == "header" else {}
    with following(broker, path, **headers) as stream:
        lease_and_release(broker)
        rest = stream.take(8)
    assert [m.id for m in first + rest] == sorted({m.id for m in first + rest})
    assert [m.event for m in first + rest] == ["granted", "released"] * 6


def test_gap_resets_with_the_pool_at_a_named_id(broker: Broker, own: Server) -> None:
    """The trimmed events cannot be told; the whole pool is, and what follows it."""
    for left in broker.allocations():  # by a test before
        broker.release(left)
    with following(broker, "/events?type=granted") as stream:
        token = broker.granted(min_memory_mb=300)["token"]
        stream.take(1)  # the broker has heard of it
    with following(broker, f"{OF_LEASES}&after=1-1") as stream:
        (reset,) = stream.take(1)
        assert reset.event == "reset"
        with own.connect() as store:
            assert reset.id == ids(store)[-1]
        assert reset.data["id"] == reset.id
        rows = reset.data["rows"]
        assert [lease["token"] for lease in rows["leases"].values()] == [token]
        assert rows["devices"]["SIM-h1-0"]["memory_reserved_mb"] == 300
        assert rows["hosts"]["h1"]["alive"] is True
        broker.release(token)
        (released,) = stream.take(1)
    assert released.event == "released"
    assert released.id > reset.id


def test_snapshot_on_demand(broker: Broker) -> None:
    """For who wants to begin with what there is."""
    with following(broker, f"{OF_LEASES}&snapshot=true") as stream:
        (reset,) = stream.take(1)
        assert reset.event == "reset"
        lease_and_release(broker)
        assert [m.event for m in stream.take(2)] == ["granted", "released"]


def test_bad_ids_and_filters_are_told(broker: Broker) -> None:
    """With the way out."""
    answer = broker.http.get("/events?after=x")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "query"
    wrong = broker.http.get("/events?type=grant")
    assert wrong.status_code == 422
    assert "'granted'" in wrong.json()["detail"][0]["msg"]
    assert broker.http.get("/events?agent=a%20b").status_code == 422


@pytest.mark.parametrize("seen", ["12", "undefined", "1-1-1", "9" * 30 + "-0", "-"])
def test_id_of_another_stream_is_a_gap(broker: Broker, seen: str) -> None:
    """An EventSource sends what it was told last at this URL, and gives up for good at a 4xx."""
    with following(broker, OF_LEASES, Last_Event_ID=seen) as stream:
        assert stream.take(1)[0].event == "reset"
        lease_and_release(broker)
        assert [m.event for m in stream.take(2)] == ["granted", "released"]


def test_empty_id_is_none(broker: Broker) -> None:
    """Some clients send the header before they have seen an event."""
    with following(broker, OF_LEASES, Last_Event_ID="") as stream:
        lease_and_release(broker)
        assert [m.event for m in stream.take(2)] == ["granted", "released"]


def test_another_replica_goes_on_where_the_first_was_left(broker: Broker, own: Server) -> None:
    """It began later, and tells what came before its start too."""
    with following(broker) as stream:
        for _ in range(3):
            lease_and_release(broker)
        seen = stream.take(3)[-1].id
    other = {"GPU_BROKER_HOSTNAME": "h9", "GPU_BROKER_DEVICES": "none", "REDIS_URL": own.url}
    with (
        Broker(**GRANTING | other) as second,
        following(second.wait(), Last_Event_ID=seen) as stream,
        own.connect() as store,
    ):
        lease_and_release(broker)
        expected = ids(store, seen)
        assert len(expected) >= 5
        assert [m.id for m in stream.take(len(expected))] == expected


def test_store_that_lost_its_memory_is_a_gap(tmp_path: Path) -> None:
    """Whoever follows is told to look at everything again, and goes on."""
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait()
        with following(broker, silent_s=20) as stream:
            lease_and_release(broker)
            stream.take(2)
            with server.connect() as store:
                store.flushall()
            reset = stream.until("reset")[-1]
            assert reset.data["rows"]["leases"] == {}
            broker.http.post("/drain", json={"host": "h1"})
            assert stream.until("drained")[-1].data["host"] == "h1"


def test_feed_that_may_not_read_says_what_it_needs_and_goes_on_when_it_may(own: Server) -> None:
    """A right that is taken away: followers are told, also on the page; then nothing is missed."""
    rights = ["~gpu:{*", "+@all"]
    with own.connect() as admin:
        admin.execute_command("ACL", "SETUSER", "feeder", "on", ">secret", *rights)
        url = own.url.replace("redis://", "redis://feeder:secret@")
        settings = GRANTING | {"GPU_BROKER_POOL": "feed"}
        with Broker(**settings, REDIS_URL=url) as broker, following(broker.wait()) as stream:
            admin.execute_command("ACL", "SETUSER", "feeder", "-xread")
            (told,) = stream.until("problem")[-1:]
            assert "+xread" in told.data["problem"]
            token = broker.granted(min_memory_mb=100)["token"]
            with following(broker, "/live") as page:
                assert "+xread" in page.take(1)[0].data["rows"]["broker"]["broker"]["problem"]
            admin.execute_command("ACL", "SETUSER", "feeder", "+xread")
            assert stream.until("problem")[-1].data == {"problem": None}
            assert stream.take(1)[0].data["token"] == token
            said = [line for line in broker.said().splitlines() if "+xread" in line]
            assert len(said) == 1
        admin.execute_command("ACL", "DELUSER", "feeder")


def test_problem_is_no_event_to_come_back_after(own: Server) -> None:
    """Its id is that of what was told before, so a cut behind it costs no event and no reset."""
    with own.connect() as admin:
        admin.execute_command("ACL", "SETUSER", "feeder", "on", ">secret", "~gpu:{*", "+@all")
        url = own.url.replace("redis://", "redis://feeder:secret@")
        with Broker(**GRANTING, GPU_BROKER_POOL="cut", REDIS_URL=url) as broker:
            with following(broker.wait(), OF_LEASES) as stream:
                for _ in range(5):
                    lease_and_release(broker)
                told = [m.id for m in stream.take(10)]
            admin.execute_command("ACL", "SETUSER", "feeder", "-xread")
            with following(broker) as stream:
                assert stream.take(1)[0].event == "problem"
            unheard = broker.granted(min_memory_mb=100)["token"]
            for path in ("/events?snapshot=true", "/events?after=1-1"):
                with following(broker, path) as stream:
                    assert stream.take(1)[0].id == "", "a reset is still to come"
            with following(broker, OF_LEASES, Last_Event_ID=told[3]) as stream:
                problem, *_ = stream.take(2)
            assert (problem.event, problem.id) == ("problem", told[3])
            with following(broker, OF_LEASES, Last_Event_ID=problem.id) as stream:
                assert [m.id for m in stream.take(7)] == [told[3], *told[4:]]
                admin.execute_command("ACL", "SETUSER", "feeder", "+xread")
                again, heard = stream.take(2)
            assert (again.event, again.id, again.data) == ("problem", told[-1], {"problem": None})
            assert heard.data["token"] == unheard
        admin.execute_command("ACL", "DELUSER", "feeder")


def test_problem_is_told_while_a_reset_is_still_to_come() -> None:
    """Also where the client came before the store had been away for long."""
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait()
        lease_and_release(broker)
        server.process.kill()
        with following(broker, "/events?snapshot=true", silent_s=20) as stream:
            (told,) = stream.take(1)
        assert (told.event, told.id) == ("problem", "")
        assert "cannot be read" in told.data["problem"]


def test_restart_of_the_broker_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """SIGKILL in the middle of traffic, the same port again, Last-Event-ID: the stream, exactly."""
    with running() as server, server.connect() as store:
        port = str(free_port())
        # Its host must outlive it for as long as nobody is there.
        settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_REPORT_S": "5"}
        seen: list[str] = []
        with LeaseClient(Store(server.url), client_name="t") as client:

            def pairs(count: int) -> None:
                for _ in range(count):
                    client.release(client.acquire("analyst", memory_mb=10, host="any"))

            for run in range(RESTARTS):
                with Broker("--port", port, **settings) as broker:
                    broker.port = int(port)
                    broker.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
                    broker.wait()
                    if run == 0:
                        seen = ids(store)
                    with following(broker, Last_Event_ID=seen[-1]) as stream:
                        pairs(20)
                        seen += [m.id for m in stream.take(30)]  # killed with more on its way
                        broker.kill()
                pairs(10)  # while nobody is there
            with Broker(**settings) as broker:
                broker.wait()
                rest = ids(store, seen[-1])
                with following(broker, Last_Event_ID=seen[-1]) as stream:
                    seen += [m.id for m in stream.take(len(rest))]
        assert seen == ids(store)[: len(seen)]


def test_clean_stop_ends_every_stream_within_two_seconds(own: Server) -> None:
    """Streams of /events and of /live end."""
    alone = {"GPU_BROKER_POOL": "stopped", "REDIS_URL": own.url}
    with Broker(**GRANTING | alone) as broker, ExitStack() as stack:
        broker.wait()
        streams = [
            stack.enter_context(following(broker, path)) for path in ("/events", "/live") * 5
        ]
        for stream in streams[1::2]:
            assert stream.take(1)[0].event == "reset"
        lease_and_release(broker)
        for stream in streams:
            stream.take(1)
        began = time.monotonic()
        assert broker.stop() == 0
        for stream in streams:
            list(stream)  # ends, and not by an error
        assert time.monotonic() - began < 2
        assert "error" not in broker.said()


def test_events_that_come_together_are_read_together(own: Server) -> None:
    """A busy pool costs the broker, and the store, no reading for each event."""
    alone = {"GPU_BROKER_POOL": "busy", "REDIS_URL": own.url}
    with Broker(**GRANTING | alone) as broker, own.connect() as store:
        with following(broker.wait(), OF_LEASES) as stream:
            store.config_resetstat()
            began = time.monotonic()
            for _ in range(200):
                lease_and_release(broker)
            assert len(stream.take(400)) == 400
            took_s = time.monotonic() - began
        readings = cast("Any", store.info("commandstats"))["cmdstat_xread"]["calls"]
    assert readings <= took_s / GATHER_S + 2


async def _follow(port: int, ready: asyncio.Event, last: asyncio.Future[str]) -> bytes:
    """All that one client is sent up to the last event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"retry: 1000\n\n")
    ready.set()
    received = bytearray()
    while not last.done() or f"id: {last.result()}\n".encode() not in received[-4000:]:
        more = await asyncio.wait_for(reader.read(1 << 18), 30)
        assert more, f"the stream ended after {len(received)} bytes"
        received += more
    writer.close()
    return bytes(received)


@pytest.mark.slow
async def test_two_hundred_clients_cost_two_connections_and_miss_nothing() -> None:
    """Each event to each client, in order, over the replica's two connections; soaked, 10,000."""
    rarely = {"GPU_BROKER_REPORT_S": "20"}  # a replica this busy may report late
    with (
        running() as server,
        Broker(**GRANTING | rarely, REDIS_URL=server.url) as broker,
    ):
        broker.wait()
        with server.connect() as store, LeaseClient(Store(server.url)) as client:
            last: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            ready = [asyncio.Event() for _ in range(FOLLOWERS)]
            tasks = [asyncio.create_task(_follow(broker.port, each, last)) for each in ready]
            for each in ready:
                await asyncio.wait_for(each.wait(), 20)
            before = ids(store)[-1]

            def work() -> int:
                for _ in range(PAIRS):
                    client.release(client.acquire("analyst", memory_mb=10, host="any"))
                clients: Any = store.client_list()
                own = {store.client_id(), client.redis.client_id()}
                return sum(int(c["id"]) not in own for c in clients)

            connections = await asyncio.to_thread(work)
            expected = ids(store, before)
            assert len(expected) == 2 * PAIRS
            last.set_result(expected[-1])
            for received in await asyncio.gather(*tasks):
                assert re.findall(rb"^id: (\S+)$", received, re.MULTILINE) == [
                    name.encode() for name in expected
                ]
            assert connections <= 2


def test_waiter_that_a_lease_is_wanted_for_is_masked(own: Server, tmp_path: Path) -> None:
    """Its token stands in a field of its own; a viewer could end its wait with it."""
    file = tmp_path / "keys"
    viewer, operator = (new_key(file, who, who) for who in ("viewer", "operator"))
    pool = {"REDIS_URL": own.url, "GPU_BROKER_POOL": "wanted"}
    with (
        Broker(**GRANTING | pool, GPU_BROKER_KEYS_FILE=str(file)) as broker,
        LeaseClient(Store(own.url), pool="wanted", hostname="h1") as client,
    ):
        broker.wait()
        held = client.acquire("kind", memory_mb=1000, yields=True)
        with pytest.raises(StillWaiting) as waits:
            client.acquire("asker", memory_mb=1000, wait_s=0.01, keep_place=True)
        waiter = str(waits.value.token)
        told = {}
        for key in (viewer, operator):
            with following(broker, "/events?type=wanted", Authorization=f"Bearer {key}") as stream:
                assert client.request_yield(held.token, waiter)
                (message,) = stream.take(1)
                told[key] = message.data
        assert told[viewer]["for"] == f"{waiter[:8]}…"
        assert waiter not in str(told[viewer])
        assert told[operator]["for"] == waiter


def test_every_field_with_a_token_is_masked() -> None:
    """Scripts write tokens to no field of an event that the serializer does not know."""
    text = "\n".join(file.read_text() for file in lua_folder().rglob("*.lua"))
    calls = re.findall(r"broker\.event\(((?:[^()]|\([^()]*\))*)\)", text)
    fields = {name for each in calls for name in re.findall(r"'(\w+)', (?:\w+\.)?token\b", each)}
    assert {"token", "for"} == fields == {"token", *OTHER_TOKENS}


def test_keys_tokens_and_the_end_of_a_key(own: Server, tmp_path: Path) -> None:
    """A viewer sees as much of a token as tells it apart; a revoked key's stream ends."""
    file = tmp_path / "keys"
    viewer, operator = (new_key(file, who, who) for who in ("viewer", "operator"))
    settings = GRANTING | {"REDIS_URL": own.url, "GPU_BROKER_KEYS_FILE": str(file)}
    with Broker(**settings) as broker:
        broker.wait()
        path, seen = "/events?type=granted", {}
        for key in (viewer, operator):
            with following(broker, path, Authorization=f"Bearer {key}") as stream:
                got = broker.http.post(
                    "/lease",
                    json={"agent": "a", "min_memory_mb": 1},
                    headers={"Authorization": f"Bearer {operator}"},
                ).json()
                (message,) = stream.take(1)
                seen[key] = message.data["token"], got
        told, got = seen[viewer]
        assert told == f"{got['token'][:8]}…{got['fence']}"
        told, got = seen[operator]
        assert told == got["token"]
        with following(broker, path, Authorization=f"Bearer {viewer}", silent_s=15) as stream:
            lines = file.read_text().splitlines()
            file.write_text("\n".join(x for x in lines if not x.startswith("viewer")) + "\n")
            assert list(stream) == []
        answer = broker.http.get("/events", headers={"Authorization": f"Bearer {viewer}"})
        assert answer.status_code == 401
        eventually(lambda: broker.process.poll() is None, 1)

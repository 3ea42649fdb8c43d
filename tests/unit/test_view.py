"""Messages to followers: once, in whole, and whatever was written into the store by hand."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agent_sdk import AsyncLeaseClient
from agent_sdk.errors import ProtocolMismatch
from agent_sdk.state.events import Event, News
from agent_sdk.store.store import Store
from broker.api_keys import Principal
from broker.http import streams
from broker.live import feed, view
from broker.live.feed import Feed
from broker.live.view import View
from broker.serializers import lease_json
from tests.pools import Pool, device
from tests.servers import Server, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WHO = Principal("", "operator", "")


@dataclass
class Parts:
    """A replica's feed and view, at work on a pool of two devices."""

    client: AsyncLeaseClient
    feed: Feed
    view: View
    news: list[News]
    admitted: bool = True

    def serves(self, who: Principal) -> bool:
        return self.admitted

    keys = SimpleNamespace(locked=False)

    async def told(self, count: int, within_s: float = 5) -> list[dict[str, Any]]:
        """Return the first messages that a newcomer to /live gets."""
        found: list[dict[str, Any]] = []
        broker: Any = self
        async with asyncio.timeout(within_s):
            async for frame in streams._live(broker, WHO):
                said = (part.partition("data: ")[2] for part in frame.decode().split("\n\n"))
                found += [json.loads(data) for data in said if data]
                if len(found) >= count:
                    return found
        raise AssertionError(found)


@asynccontextmanager
async def at_work(server: Server, *, reading: bool = True) -> AsyncIterator[Parts]:
    """For the length of a block; reading: the stream is read, too."""
    name = f"view-{uuid4().hex[:8]}"
    async with AsyncLeaseClient(
        Store(server.url, 0.5), pool=name, hostname="h1", deadline_s=0.5
    ) as client:
        with server.connect() as store:
            pool = Pool(store, client.keys)
            pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=600_000)
        news: list[News] = []
        shown = View(client, lambda: {"problem": None})
        feed = Feed(client, shown.remember, (news.append, shown.heard))
        parts = Parts(client, feed, shown, news)
        tasks = [asyncio.create_task(shown.run(feed))]
        if reading:
            tasks.append(asyncio.create_task(feed.run()))
            assert await feed.loaded()
        try:
            yield parts
        finally:
            for task in tasks:
                assert not task.done()
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Any, within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - it is not always one event that makes it hold
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("fields", "devices", "fence"),
    [
        ({"devices": "a=5,b=6", "fence": "7"}, (("a", 5), ("b", 6)), 7),
        ({"devices": "a,b"}, (("a", None), ("b", None)), None),
        ({"devices": "garbage", "fence": "x"}, (("garbage", None),), None),
        (
            {"devices": "a=,=5,a=²,,", "fence": ""},
            (("a=", None), ("=5", None), ("a=²", None)),
            None,
        ),
        ({"devices": f"a={'9' * 5000}", "fence": "9" * 5000}, ((f"a={'9' * 5000}", None),), None),
    ],
)
def test_event_of_any_form_has_devices_and_a_fence_or_none(
    fields: dict[str, str], devices: Any, fence: int | None
) -> None:
    """Anybody who may write to the store may write to the stream."""
    event = Event("1-0", "granted", fields)
    assert (event.devices, event.fence) == (devices, fence)


def test_event_says_its_own_id_name_and_time() -> None:
    """Whatever fields the entry has; a fence that is no number is told as it is."""
    fields = {"id": "x", "at": "y", "devices": "a", "fence": "one", "agent": "ann", "token": "t"}
    said = lease_json.event(Event("2000-0", "granted", fields), {}, whole=False)
    assert (said["id"], said["event"], said["at"]) == ("2000-0", "granted", 2.0)
    assert said["devices"] == [{"uuid": "a", "index": None, "host": None, "memory_mb": None}]
    assert (said["fence"], said["agent"]) == ("one", "ann")


async def test_entry_that_a_listener_cannot_take_is_passed_over(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """With a line in the log; what comes after it is told."""
    async with at_work(server) as parts:

        def hear(news: News) -> None:
            assert news.events[-1].fields.get("agent") != "odd", "cannot take this"

        parts.feed._listeners = (hear, *parts.feed._listeners)
        await parts.client.redis.xadd(
            parts.client.keys.events, {"event": "cancelled", "agent": "odd"}
        )
        await until(lambda: "cannot take this" in caplog.text)
        await parts.client.redis.xadd(
            parts.client.keys.events, {"event": "cancelled", "agent": "even"}
        )
        await until(lambda: parts.news)
        assert [event.fields["agent"] for event in parts.news[-1].events] == ["even"]
        assert caplog.text.count("could not be processed") == 1


async def test_record_that_cannot_be_read_hides_nothing_else(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A lease, a waiter, a device and a host with garbage in them; the log names each once."""
    async with at_work(server) as parts:
        client, keys = parts.client, parts.client.keys
        good, bad = [await client.acquire("ann", memory_mb=1) for _ in range(2)]
        await client.redis.hset(keys.record(bad.token), "fence", "garbage")
        await client.redis.hset(keys.record("w" * 16), mapping={"state": "waiting", "rank": "1"})
        await client.redis.zadd(keys.deadlines, {"w" * 16: 9e15})
        await client.redis.hset(keys.device("gpu-b"), "total_mb", "much")
        await client.redis.hset(keys.device("gpu-a"), "temperature_c", "nan")
        await client.redis.sadd(keys.hosts, "h2")
        await client.redis.hset(keys.host("h2"), "reported_ms", "lately")
        for _ in range(2):
            (reset,) = await parts.told(1)
            rows = reset["rows"]
            assert [lease["token"] for lease in rows["leases"].values()] == [good.token]
            assert (list(rows["devices"]), list(rows["hosts"])) == (["gpu-a"], ["h1"])
            assert rows["queue"] == {}
            assert rows["devices"]["gpu-a"]["temperature_c"] is None
        for name in (bad.token[:8], "w" * 8, "gpu-b", "h2"):
            assert caplog.text.count(f"of {name}… is not legible") == 1
        with pytest.raises(ProtocolMismatch):
            await client.lookup(bad.token)
        await client.redis.hset(keys.pool, "waiting", "some")
        with pytest.raises(ProtocolMismatch):
            await client.pool()
        await client.redis.hset(keys.pool, "waiting", "0")
        await client.redis.hset(keys.agents, "ann", "some")
        with pytest.raises(ProtocolMismatch):
            await client.scene()


async def test_reading_that_fails_is_told_once_and_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever was wrong: nobody waits for it for ever."""
    monkeypatch.setattr(view, "REREAD_S", 0.05)
    async with at_work(server) as parts:
        standings = view.scenes.standings

        def broken(_: object) -> None:
            raise ZeroDivisionError("of no known form")

        monkeypatch.setattr(view.scenes, "standings", broken)
        (reset,) = await parts.told(1)
        assert reset["rows"]["devices"] == {}
        with parts.view.watched():
            for _ in range(3):
                assert not await parts.view.fresh()
            assert caplog.text.count("the pool cannot be read") == 1
            monkeypatch.setattr(view.scenes, "standings", standings)
            assert await parts.view.fresh()
        (reset,) = await parts.told(1)
        assert list(reset["rows"]["devices"]) == ["gpu-a", "gpu-b"]


async def test_loop_goes_on_while_the_queue_is_looked_at(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long queue on many devices takes a while; no other request waits for it."""
    turned, standings = threading.Event(), view.scenes.standings

    def long(scene: Any) -> Any:
        assert turned.wait(5), "the loop stands still"
        return standings(scene)

    monkeypatch.setattr(view.scenes, "standings", long)
    async with at_work(server) as parts:
        asyncio.get_running_loop().call_later(0.1, turned.set)
        (reset,) = await parts.told(1)
        assert list(reset["rows"]["devices"]) == ["gpu-a", "gpu-b"]


async def test_what_comes_during_a_reading_is_told_once_and_not_forgotten(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a newcomer, an event either in its reset or after it; after a drain, all is read again."""
    async with at_work(server) as parts:
        scene, readings = parts.client.scene, 0

        async def while_read() -> Any:
            nonlocal readings
            readings += 1
            found = await scene()
            if readings == 1:
                before = parts.feed.last_id
                lease = await parts.client.acquire("ann", memory_mb=1)
                await parts.client.release(lease)
                await parts.client.drain("host", "h1")
                await until(lambda: "drained" in str(parts.news) and parts.feed.last_id != before)
            return found

        monkeypatch.setattr(parts.client, "scene", while_read)
        reset, change = await parts.told(2)
        told = [event["id"] for event in reset["events"] + change["events"]]
        assert told == sorted(set(told))
        names = [event["event"] for event in reset["events"] + change["events"]]
        assert names[-3:] == ["granted", "released", "drained"]
        assert readings == 2  # the second one not after 5 s alone
        assert change["rows"]["hosts"]["h1"]["drained"] is True


async def test_nothing_is_told_as_whole_before_the_stream_was_read(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place in the stream would be none."""
    monkeypatch.setattr(feed, "LOAD_S", 0.1)
    async with at_work(server, reading=False) as parts:
        assert not await parts.feed.loaded()
        with parts.view.watched():
            assert not await parts.view.fresh()
            reading = asyncio.create_task(parts.feed.run())
            await until(parts.feed._loaded.is_set)
            assert await parts.view.fresh()
            (newest,) = await parts.client.events(1)
            assert parts.view.shown.moment.id == newest.id
            assert parts.view.shown.told[0].event == "pool_created"
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_store_that_is_away_lets_the_pools_clock_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`now` is now, `read_at` when it was read; a snapshot ends with the right to have it."""
    monkeypatch.setattr(view, "REST", 0.1)
    monkeypatch.setattr(streams, "LOOK_S", 0.1)
    with running() as server:
        async with at_work(server) as parts:
            (before,) = await parts.told(1)
            assert before["now"] == pytest.approx(before["read_at"], abs=0.5)
            server.kill()
            read = time.monotonic()
            await asyncio.sleep(0.3)
            waited_s = time.monotonic() - read
            (after,) = await parts.told(1)
            passed_s = time.monotonic() - read
            assert after["read_at"] == before["read_at"]
            assert waited_s <= after["now"] - after["read_at"] < passed_s + 1
            assert list(after["rows"]["devices"]) == ["gpu-a", "gpu-b"]
            broker: Any = parts
            waiting = asyncio.create_task(streams._snapshot(broker, WHO, None, whole=True))
            await asyncio.sleep(0.1)
            parts.admitted = False
            parts.view.shown.wake()
            assert await asyncio.wait_for(waiting, 10) is None

"""`gpu-broker events`: what happened, what happens, and nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from typing import Any

from agent_sdk import LeaseClient, Store
from agent_sdk.state.events import NAMES, PAGE
from agent_sdk.testing import TestBroker, running_broker
from broker.cli.commands.events import LOST, catch_up
from broker.cli.follow import Follower, last_of
from tests.api.brokers import GRANTING, PROGRAM, Broker, environment, eventually
from tests.program import called
from tests.servers import running
from tests.unit.brokers import broker_of_the_file

pool = broker_of_the_file()
"""Two devices of 24576 MiB on one host."""


def call(url: str, *args: str, code: int = 0) -> str:
    done = called("events", *args, REDIS_URL=url)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def pair(pool: TestBroker, agent: str = "analyst") -> str:
    lease = pool.client.acquire(agent, memory_mb=10)
    pool.client.release(lease)
    return lease.token


class Followed:
    """`gpu-broker events -f`, and what it has printed."""

    def __init__(self, url: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [PROGRAM, "events", "-f", *args], env=environment(REDIS_URL=url),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self.said: list[str] = []
        for stream, into in ((self.process.stdout, self.lines), (self.process.stderr, self.said)):
            threading.Thread(target=self._read, args=(stream, into), daemon=True).start()

    @staticmethod
    def _read(stream: Any, into: list[str]) -> None:
        with stream:
            into.extend(line.rstrip("\n") for line in stream)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(5)


def test_last_events_as_lines_objects_and_ids(pool: TestBroker) -> None:
    """Time, event, who, where; -o json an object a line under the schema; name: ids."""
    token = pair(pool)
    text = call(pool.url, "-n", "2")
    granted, released = text.splitlines()
    assert granted.split()[1:] == [
        "granted", "analyst", f"{pool.host}:{_index(pool)}", "10", "MiB", token[:8],
    ]  # fmt: skip
    assert "released" in released
    objects = [json.loads(line) for line in call(pool.url, "-n", "2", "-o", "json").splitlines()]
    assert [(x["schema"], x["event"], x["token"]) for x in objects] == [
        (1, "granted", token), (1, "released", token),
    ]  # fmt: skip
    assert objects[0]["devices"][0]["host"] == pool.host
    assert call(pool.url, "-n", "2", "-o", "name").split() == [x["id"] for x in objects]


def _index(pool: TestBroker) -> int:
    newest = pool.client.events(1)[0]
    return next(d.index for d in pool.client.devices() if d.uuid == newest.devices[0][0])


def test_since_and_filters(pool: TestBroker) -> None:
    """All after an id; by type, agent and host."""
    since = pool.client.events(1)[-1].id
    for agent in ("analyst", "scout", "scout"):
        pair(pool, agent)
    names = [json.loads(x) for x in call(pool.url, "--since", since, "-o", "json").splitlines()]
    assert [x["event"] for x in names] == ["granted", "released"] * 3
    only = call(pool.url, "--since", since, "--agent", "scout", "--type", "granted", "-o", "name")
    assert len(only.split()) == 2
    assert call(pool.url, "--since", since, "--host", "elsewhere", "-o", "name") == ""
    assert len(call(pool.url, "--since", since, "--host", pool.host, "-o", "name").split()) == 6


def test_last_of_a_type_is_found_however_far_back(pool: TestBroker) -> None:
    """--count counts what is shown."""
    pair(pool)
    (created,) = call(pool.url, "-n", "1", "--type", "pool_created").splitlines()
    assert created.split()[1:] == ["pool_created", pool.host]
    assert len(call(pool.url, "-n", "1", "--agent", "analyst", "-o", "name").split()) == 1
    assert call(pool.url, "-n", "0", "--agent", "analyst") == ""


def test_acts_of_operators_say_who_and_why(pool: TestBroker) -> None:
    """Beside whose lease it was."""
    lease = pool.client.acquire("analyst", memory_mb=10)
    pool.client.revoke(lease.token, force=True, by="ann", why="runs wild")
    (line,) = call(pool.url, "-n", "1", "--type", "revoke").splitlines()
    assert line.endswith(f"{lease.token[:8]} by ann runs wild")
    assert line.split()[2] == "analyst"


def test_wrong_calls_say_what_is_right(pool: TestBroker) -> None:
    """A type that is none, an id that is none, both ways to begin."""
    assert "granted" in call(pool.url, "--type", "grant", code=2)
    for since in ("yesterday", f"{2**64}-0", f"1-{2**64}"):
        assert "1795607407688-0" in call(pool.url, "--since", since, code=2)
    assert "not both" in call(pool.url, "--since", "1-0", "-n", "3", code=2)


def test_events_that_were_trimmed_are_told() -> None:
    """On stderr; what there is comes, all of it."""
    with running_broker() as own, LeaseClient(Store(own.url)) as client:
        pipe = client.redis.pipeline(transaction=False)
        for _ in range(PAGE + 2):
            pipe.xadd(client.keys.events, {"event": "waiting", "token": "t", "agent": "a"})
        pipe.xtrim(client.keys.events, maxlen=PAGE + 1, approximate=False)
        pipe.execute()
        done = called("events", "--since", "1-0", "-o", "name", REDIS_URL=own.url)
        assert done.returncode == 0
        assert done.stderr.strip() == LOST
        assert len(done.stdout.split()) == PAGE + 1


def test_time_that_no_calendar_has_hides_no_event() -> None:
    """A hand wrote it to the stream; all later ids are beyond it."""
    with running_broker() as own, LeaseClient(Store(own.url)) as client:
        client.redis.xadd(client.keys.events, {"event": "waiting"}, id="999999999999999999-1")
        pair(own)
        lines = call(own.url, "-n", "3").splitlines()
        assert [line.split()[:2] for line in lines] == [
            ["-", "waiting"], ["-", "granted"], ["-", "released"]
        ]  # fmt: skip


def test_catching_up_ends_though_the_pool_goes_on(pool: TestBroker) -> None:
    """At what was the end when it began; what came meanwhile is for -f, and none is lost."""
    since = pool.client.events(1)[-1].id
    pair(pool)
    shown: list[str] = []

    def show(found: Any) -> None:
        shown.extend(event.id for event in found)
        assert len(shown) < 10, "no end"
        pair(pool)

    with Follower(pool.client, since) as follower:
        catch_up(follower, last_of(pool.client.events(1)), show)
        assert len(shown) == 2
        shown.extend(event.id for event in follower.wait(0).events)
    assert shown == [event.id for event in pool.client.events(4)]


def test_new_stream_is_followed_from_its_beginning() -> None:
    """A store that lost its data says so, and nothing of what came since is missed."""
    with running_broker() as own, LeaseClient(Store(own.url)) as client:
        pair(own)
        with Follower(client, last_of(client.events(1))) as follower:
            client.redis.delete(client.keys.events)
            lease = client.acquire("analyst", memory_mb=1, host="any")
            assert follower.wait(0).gap
            assert [e.token for e in follower.wait(0).events] == [lease.token]
            client.redis.delete(client.keys.events)
            assert follower.wait(0).gap
            assert not follower.wait(0).gap
            client.release(lease)
            assert [e.event for e in follower.wait(0).events] == ["released"]


def test_following_survives_the_store_and_ends_by_ctrl_c() -> None:
    """It says that the store is away and back; nothing is missed for it."""
    with (
        running("redis", "--appendonly", "yes", "--appendfsync", "always") as server,
        Broker(**GRANTING, REDIS_URL=server.url) as broker,
    ):
        broker.wait()
        followed = Followed(server.url, "-n", "1", "-o", "json")
        try:
            eventually(lambda: followed.lines, 10)
            broker.release(broker.granted(min_memory_mb=1)["token"])
            eventually(lambda: len(followed.lines) >= 3, 10)
            server.kill()
            eventually(lambda: any("the store is away" in x for x in followed.said), 10)
            server.start()
            eventually(lambda: any("the store is back" in x for x in followed.said), 10)
            broker.wait()
            eventually(lambda: broker.http.get("/ready").status_code == 200, 30)
            broker.release(broker.granted(min_memory_mb=1)["token"])
            found = [json.loads(line)["event"] for line in list(followed.lines)]
            eventually(
                lambda: (
                    [json.loads(x)["event"] for x in list(followed.lines)].count("released") == 2
                ),
                10,
            )
            ids = [json.loads(line)["id"] for line in followed.lines]
            assert ids == sorted(set(ids)), found
            assert followed.end() == 0
        finally:
            followed.process.kill()
            followed.process.wait()


def test_names_are_those_of_the_readme_and_of_the_scripts() -> None:
    """The closed list in the SDK is the page's; tests/lua hold that to the scripts."""
    from pathlib import Path  # noqa: PLC0415 - only here

    text = (Path(__file__).parents[2] / "docs" / "reference" / "events.md").read_text()
    section = text.partition("| Event | Its other fields | Says |")[2].partition("\n\n")[0]
    named = {
        word.strip(" `")
        for line in section.splitlines()[2:]
        for word in line.split("|")[1].split(",")
    }
    assert named == set(NAMES)

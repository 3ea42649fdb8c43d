"""GET /live of a large pool: pages of its lists, and the figures of all of it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import LeaseClient
from agent_sdk.keys import Keys
from agent_sdk.protocol.report import About
from agent_sdk.store.store import Store
from tests.api.brokers import GRANTING, Broker, eventually
from tests.audit import audit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

HOSTS, EACH, LEASES, MOST, MEGABYTE = 750, 8, 150, 50, 1_000_000
"""More GPUs than a page is told whole."""

DEVICES = HOSTS * EACH + 4

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def large(server: Server) -> Iterator[tuple[Broker, list[str]]]:
    """A broker of a large pool, and its leases' tokens: every tenth is of another agent."""
    with ExitStack() as stack:
        keys = Keys("live-large")
        settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": keys.pool_name,
                               "GPU_BROKER_DEVICES": "sim:4x20000"}  # fmt: skip
        broker = stack.enter_context(Broker(**settings)).wait()
        client = stack.enter_context(
            LeaseClient(Store(server.url), pool=keys.pool_name, hostname="h1")
        )
        for number in range(HOSTS):
            report(client, f"g{number:03}")
        eventually(lambda: len(client.host_list()) == HOSTS + 1, 30)
        tokens = [
            client.acquire(
                "rare" if n % 10 == 9 else "ann", memory_mb=8, host="h1", ttl_s=3600
            ).token
            for n in range(LEASES)
        ]
        yield broker, tokens
        for token in tokens:
            client.release(token)
        with server.connect() as redis:
            audit(redis, keys)


def report(client: LeaseClient, host: str) -> None:
    """Report a host's GPUs once, for a day."""
    about = About(deadline_ms=DAY_MS, sampled_ms=0, epoch="", safe_mode=False, version="0.1.0")
    fields = {"name": "L4", "model": "L4", "total_mb": 8, "system_mb": 0, "used_mb": 0,
              "state": "ok", "reason": ""}  # fmt: skip
    devices = tuple(
        (f"GPU-{host}-{index}", (("index", index), *fields.items())) for index in range(EACH)
    )
    client.report(host, devices, **about)


def reset(broker: Broker, **asked: Any) -> tuple[dict[str, Any], int]:
    """Return the first message with rows, and its length."""
    with broker.http.stream("GET", "/live", params=asked) as answer:
        lines = answer.iter_lines()
        for line in lines:
            if line == "event: reset":
                break
        data = next(line for line in lines if line.startswith("data: "))
        return json.loads(data.removeprefix("data: ")), len(data)


def test_page_is_told_what_it_shows(large: tuple[Broker, list[str]]) -> None:
    """Each list has so many rows, oldest first; the figures are of the whole pool."""
    broker, tokens = large
    said, size = reset(broker, most=MOST)
    assert size < MEGABYTE
    shown = [lease["token"] for lease in said["rows"]["leases"].values()]
    assert shown == tokens[:MOST]
    figures = said["rows"]["pool"]["pool"]["large"]
    assert figures["matches"] == {"devices": DEVICES, "leases": LEASES, "queue": 0}

    def summed() -> bool:
        again, _ = reset(broker, most=MOST)
        told = again["rows"]["pool"]["pool"]["large"]
        return (told["gpus"], told["leased_mb"]) == (DEVICES, 8 * LEASES)

    eventually(summed, 40, 1)
    second, _ = reset(broker, most=MOST, leases=LEASES - 20)
    assert [x["token"] for x in second["rows"]["leases"].values()] == tokens[-20:]


def test_broker_looks_for_the_words_of_the_filter(large: tuple[Broker, list[str]]) -> None:
    """Every word is in a row's text; a token's end, which a viewer may not see, finds nothing."""
    broker, tokens = large
    said, _ = reset(broker, most=MOST, q="RARE h1")
    assert [x["token"] for x in said["rows"]["leases"].values()] == tokens[9::10][:MOST]
    assert said["rows"]["pool"]["pool"]["large"]["matches"]["leases"] == LEASES // 10
    one, _ = reset(broker, most=MOST, q=tokens[70][:8])
    assert tokens[70] in [x["token"] for x in one["rows"]["leases"].values()]
    none, _ = reset(broker, most=MOST, q=tokens[70][9:])
    assert none["rows"]["leases"] == {}


def test_without_a_number_of_rows_all_are_told(large: tuple[Broker, list[str]]) -> None:
    """A follower that asks for no part gets every row, as before."""
    broker, tokens = large
    said, _ = reset(broker)
    assert len(said["rows"]["leases"]) == len(tokens)
    assert "large" not in said["rows"]["pool"]["pool"]

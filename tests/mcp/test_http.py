"""MCP over HTTP: roles and keys, leases without a session, many replicas."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from mcp import MCPError
from mcp_types import INTERNAL_ERROR, ElicitResult

from broker.mcp.sessions import MOST
from tests.api.brokers import GRANTING, Broker, eventually
from tests.api.keys import new_key
from tests.mcp.clients import (
    MODES,
    client_process,
    over_http,
    pool_of,
    refused,
    said,
    until,
    until_printed,
    until_seen,
)
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx2

    from agent_sdk import LeaseClient
    from tests.servers import Server

IDLE_S = "3"
"""idle_release_s of the second replica."""


@dataclass
class Mcp:
    """Two replicas of one pool with keys.

    Attributes:
        hasty: the second one, which gives up after `IDLE_S`.
        keys: principal -> key.
    """

    broker: Broker
    hasty: Broker
    keys: dict[str, str]
    client: LeaseClient
    settings: dict[str, str]


@pytest.fixture(scope="module")
def replicas(own: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mcp]:
    file: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys = {
        "viewer": new_key(file, "viewer", "viewer"),
        "agent": new_key(file, "agent", "agent"),
        "other": new_key(file, "other", "agent"),
        "bound": new_key(file, "bound", "agent", "--agents", "bound-*"),
        "operator": new_key(file, "operator", "operator"),
    }
    settings = GRANTING | {"REDIS_URL": own.url, "GPU_BROKER_KEYS_FILE": str(file)}
    second = settings | {"GPU_BROKER_DEVICES": "none", "GPU_BROKER_HOSTNAME": "h2",
                         "GPU_BROKER_MCP_IDLE_RELEASE_S": IDLE_S}  # fmt: skip
    with Broker(**settings) as broker, Broker(**second) as hasty, pool_of(own.url) as client:
        yield Mcp(broker.wait(), hasty.wait(), keys, client, settings)


@pytest.fixture
def mcp(replicas: Mcp) -> Iterator[Mcp]:
    """The same; afterwards nothing is held."""
    yield replicas
    for found in (*replicas.client.leases(), *replicas.client.queue()):
        replicas.client.release(found.token)


TOKEN = {"token": "0" * 32}

CELLS: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    # tool: arguments, the code for viewer, agent, operator; empty: it is answered
    "gpu_status": ({}, ("", "", "")),
    "gpu_explain": ({"memory_mb": 1}, ("", "", "")),
    "gpu_acquire": ({"memory_mb": 1, "wait_s": 0}, ("forbidden", "", "")),
    "gpu_extend": (TOKEN | {"hold_s": 1}, ("forbidden", "unknown_token", "unknown_token")),
    "gpu_release": (TOKEN, ("forbidden", "unknown_token", "unknown_token")),
    "gpu_leases": ({}, ("forbidden", "", "")),
    "gpu_usage": ({}, ("forbidden", "", "")),
}


@pytest.mark.parametrize("mode", MODES)
async def test_roles_may_what_the_table_says(mcp: Mcp, mode: str) -> None:
    """Each tool, each role; and a lease as a resource is no viewer's either."""
    for number, role in enumerate(("viewer", "agent", "operator")):
        async with over_http(mcp.broker.port, mcp.keys[role], mode) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == CELLS.keys()
            for tool, (arguments, codes) in CELLS.items():
                result = await client.call_tool(tool, arguments)
                assert result.structured_content is not None
                assert result.structured_content.get("code", "") == codes[number] or not (
                    result.is_error or codes[number]
                ), (role, tool)
            await client.read_resource("gpu://pool")
            with pytest.raises(MCPError):
                await client.read_resource("gpu://lease/" + "0" * 32)


def test_request_without_a_key_gets_no_further(mcp: Mcp) -> None:
    """The same answer as at every other path."""
    for headers in ({}, {"Authorization": "Bearer gbk_" + "x" * 43}):
        for method in ("POST", "GET", "DELETE"):
            assert mcp.broker.http.request(method, "/mcp", headers=headers).status_code == 401


async def test_lease_belongs_to_its_key(mcp: Mcp) -> None:
    """To another agent's key it is unknown; an operator's may end it."""
    port, keys = mcp.broker.port, mcp.keys
    async with (
        over_http(port, keys["agent"]) as agent,
        over_http(port, keys["other"]) as other,
        over_http(port, keys["operator"]) as operator,
    ):
        token = (await said(agent, "gpu_acquire", memory_mb=600))["ticket"]
        (lease,) = mcp.client.leases()
        assert (lease.token, lease.owner, lease.agent) == (token, "agent", "agent")
        calls = {"gpu_extend": {"token": token, "hold_s": 60}, "gpu_release": {"token": token},
                 "gpu_acquire": {"ticket": token}, "gpu_explain": {"ticket": token}}  # fmt: skip
        for tool, arguments in calls.items():
            assert (await refused(other, tool, **arguments))["code"] == "unknown_token"
        assert (await said(other, "gpu_leases"))["leases"] == []
        (row,) = (await said(other, "gpu_usage", everyone=True))["leases"]
        assert token not in row["token"]
        assert [x["token"] for x in (await said(agent, "gpu_leases"))["leases"]] == [token]
        assert (await said(operator, "gpu_release", token=token))["released"] is True
        for client in (agent, operator):  # as after an answer that was lost
            assert (await said(client, "gpu_release", token=token))["released"] is False
        assert (await refused(operator, "gpu_extend", token=token, hold_s=60))["code"] == "released"
        assert (await refused(other, "gpu_release", token=token))["code"] == "unknown_token"
        own = (await said(agent, "gpu_acquire", memory_mb=600))["ticket"]
        assert (await said(agent, "gpu_release", token=own))["released"] is True
        assert (await said(agent, "gpu_release", token=own))["released"] is False
        assert (await said(agent, "gpu_status"))["notices"] == [], "it did that itself"
        assert (await refused(other, "gpu_release", token=own))["code"] == "unknown_token"
    async with over_http(port, keys["bound"]) as bound:
        assert (await refused(bound, "gpu_acquire", memory_mb=1))["code"] == "forbidden"
        await said(bound, "gpu_acquire", memory_mb=1, agent="bound-1")


def _initialize(broker: Broker, key: str) -> str:
    """The id of a new session of the older protocol."""
    about = {"protocolVersion": "2025-11-25", "capabilities": {},
             "clientInfo": {"name": "t", "version": "0"}}  # fmt: skip
    ask = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
    answer = _post(broker, ask, Authorization=f"Bearer {key}")
    assert answer.status_code == 200, answer.text
    return str(answer.headers["mcp-session-id"])


def _post(broker: Broker, ask: object, **headers: str) -> httpx2.Response:
    accept = {"Accept": "application/json, text/event-stream"}
    return broker.http.post("/mcp", json=ask, headers=accept | headers)


def _ping(broker: Broker, key: str, session: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}", "Mcp-Session-Id": session}
    return _post(broker, {"jsonrpc": "2.0", "id": 2, "method": "ping"}, **headers)


def test_session_of_the_older_protocol_is_its_keys(mcp: Mcp) -> None:
    """Another valid key can neither use nor end it, and it goes on."""
    session = _initialize(mcp.broker, mcp.keys["agent"])
    ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}

    def asked(who: str) -> int:
        key = f"Bearer {mcp.keys[who]}"
        return _post(mcp.broker, ping, Authorization=key, **{"Mcp-Session-Id": session}).status_code

    def ended(who: str) -> int:
        headers = {"Authorization": f"Bearer {mcp.keys[who]}", "Mcp-Session-Id": session}
        return mcp.broker.http.delete("/mcp", headers=headers).status_code

    assert [asked("agent"), asked("other"), ended("other"), asked("operator")] == [
        200,
        404,
        404,
        404,
    ]
    assert [asked("agent"), ended("agent"), asked("agent")] == [200, 200, 404]
    assert session not in mcp.broker.said()


def test_one_key_takes_no_session_of_another(mcp: Mcp) -> None:
    """Its own longest unused one ends for a new one: most clients never end any."""
    other = _initialize(mcp.broker, mcp.keys["other"])
    first, second = (_initialize(mcp.broker, mcp.keys["agent"]) for _ in range(2))
    for _ in range(MOST - 1):
        assert _ping(mcp.broker, mcp.keys["agent"], first).status_code == 200
        last = _initialize(mcp.broker, mcp.keys["agent"])
    answers = [_ping(mcp.broker, mcp.keys["agent"], each) for each in (first, second, last)]
    assert [answer.status_code for answer in answers] == [200, 404, 200]
    assert _ping(mcp.broker, mcp.keys["other"], other).status_code == 200


@pytest.mark.parametrize("mode", MODES)
async def test_agent_leases_without_a_session(mcp: Mcp, mode: str) -> None:
    """A lease and a wait outlive the client that made them; the ticket finds them again."""
    key = mcp.keys["agent"]
    async with over_http(mcp.broker.port, key, mode) as client:
        token = (await said(client, "gpu_acquire", memory_mb=900))["ticket"]
        wait = await said(client, "gpu_acquire", memory_mb=900, wait_s=0.1)
        assert (wait["state"], wait["place"]) == ("waiting", 0)
    async with over_http(mcp.broker.port, key, mode) as client:
        listed = (await said(client, "gpu_leases"))["leases"]
        assert [(x["token"], x["state"]) for x in listed] == [
            (token, "active"), (wait["ticket"], "waiting"),
        ]  # fmt: skip
        assert (await said(client, "gpu_acquire", ticket=token))["lease"]["memory_mb"] == 900
        await said(client, "gpu_release", token=token)
        await until_seen(mcp.client.leases)
        got = await said(client, "gpu_acquire", ticket=wait["ticket"])
        assert got["lease"]["token"] == wait["ticket"]
        assert (await said(client, "gpu_release", token=wait["ticket"]))["released"] is True


@pytest.mark.parametrize("mode", MODES)
async def test_person_is_asked_over_http_too(mcp: Mcp, mode: str) -> None:
    """The request goes on after a yes: here to the pool, which has no two GPUs."""

    async def ask(_: object, __: object) -> ElicitResult:
        return ElicitResult(action="accept", content={"confirm": True})

    key = mcp.keys["agent"]
    async with over_http(mcp.broker.port, key, mode, elicitation_callback=ask) as client:
        assert (await refused(client, "gpu_acquire", memory_mb=1, gpus=2))["code"] == "never_fits"
    async with over_http(mcp.broker.port, key, mode) as client:
        plain = await refused(client, "gpu_acquire", memory_mb=1, gpus=2)
        assert plain["code"] == "confirmation_needed"


def test_any_replica_takes_the_word_of_a_person(mcp: Mcp) -> None:
    """The answer to one's question may reach another."""
    about = {"protocolVersion": "2026-07-28", "clientInfo": {"name": "t", "version": "0"},
             "clientCapabilities": {"elicitation": {"form": {}}}}  # fmt: skip
    ask = {"name": "gpu_acquire", "arguments": {"memory_mb": 1, "gpus": 2, "host": "h1"},
           "_meta": {f"io.modelcontextprotocol/{k}": v for k, v in about.items()}}  # fmt: skip
    headers = {"Authorization": f"Bearer {mcp.keys['agent']}", "Mcp-Method": "tools/call",
               "MCP-Protocol-Version": "2026-07-28", "Mcp-Name": "gpu_acquire"}  # fmt: skip

    def asked(broker: Broker, **more: Any) -> dict[str, Any]:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": ask | more}
        return dict(_post(broker, call, **headers).json()["result"])

    question = asked(mcp.broker)
    (name,) = question["inputRequests"]
    word = {name: {"action": "accept", "content": {"confirm": True}}}
    told = asked(mcp.hasty, inputResponses=word, requestState=question["requestState"])
    assert told["structuredContent"]["code"] == "never_fits"  # it went on, and there is one GPU


async def test_any_replica_goes_on_with_a_ticket(mcp: Mcp) -> None:
    """With the same request, at the same place."""
    key = mcp.keys["agent"]
    held = mcp.client.acquire("other", memory_mb=900)
    async with over_http(mcp.broker.port, key) as one, over_http(mcp.hasty.port, key) as two:
        ask = {"memory_mb": 800, "priority": 3, "exclusive": True}
        ticket = (await said(one, "gpu_acquire", **ask, wait_s=0.1))["ticket"]
        there = await said(two, "gpu_acquire", ticket=ticket, wait_s=0.1)
        assert (there["state"], there["ticket"], there["place"]) == ("waiting", ticket, 0)
        mcp.client.release(held)
        got = await said(two, "gpu_acquire", ticket=ticket)
        assert got["lease"]["token"] == ticket
        again = await said(one, "gpu_acquire", ticket=ticket)
        assert again["lease"]["fence"] == got["lease"]["fence"]
        longer = await said(two, "gpu_acquire", ticket=ticket, hold_s=900)
        assert 800 < longer["lease"]["ends_in_s"] <= 900


async def test_lease_lasts_while_its_agent_shows_life(mcp: Mcp) -> None:
    """Silence ends it after `idle_release_s`, which each result tells; `hold_s` keeps it longer."""
    async with over_http(mcp.hasty.port, mcp.keys["agent"]) as client:
        ask = {"memory_mb": 100, "host": "any"}
        silent = (await said(client, "gpu_acquire", **ask))["lease"]
        named = (await said(client, "gpu_acquire", **ask))["lease"]
        held = (await said(client, "gpu_acquire", **ask, hold_s=600))["lease"]
        ours = {each["token"] for each in (silent, named, held)}
        assert f"at least {IDLE_S} s" in silent["ends"]
        assert held["ends_in_s"] > 500

        async def silent_is_over() -> bool:
            again = await said(client, "gpu_acquire", ticket=named["token"])
            assert again["lease"]["ends_in_s"] > float(IDLE_S) - 1
            return silent["token"] not in {lease.token for lease in mcp.client.leases()}

        await until(silent_is_over, 30)
        assert ours & {lease.token for lease in mcp.client.leases()} == {
            named["token"],
            held["token"],
        }
        lost = (await said(client, "gpu_status"))["notices"]  # and of what other tests had
        mine = [(x["token"], x["kind"]) for x in lost if x["token"] in ours]
        assert mine == [(silent["token"], "expired")]


async def test_lease_that_was_granted_between_two_calls_lasts_from_the_second(mcp: Mcp) -> None:
    """Its silence begins with the call that fetches it, and not with the grant."""
    held = mcp.client.acquire("other", memory_mb=900)
    async with over_http(mcp.hasty.port, mcp.keys["agent"]) as client:
        ask = {"memory_mb": 900, "host": "any"}
        ticket = (await said(client, "gpu_acquire", **ask, wait_s=0.1))["ticket"]
        mcp.client.release(held)
        await until_seen(mcp.client.leases)
        await asyncio.sleep(float(IDLE_S) - 1)
        got = (await said(client, "gpu_acquire", ticket=ticket))["lease"]
        assert got["ends_in_s"] > float(IDLE_S) - 1
        (lease,) = mcp.client.leases()
        assert lease.expires_at_ms is not None
        assert lease.expires_at_ms - mcp.client.pool().now_ms > 1000 * (float(IDLE_S) - 1)
        await said(client, "gpu_release", token=ticket)


async def test_store_that_is_away_makes_no_resource_unknown(tmp_path: Path) -> None:
    """Its reason is told, and no trace of it is in the log; a lease is not said to be none."""
    with running() as store, Broker(**GRANTING, REDIS_URL=store.url) as broker:
        async with over_http(broker.wait().port) as client:
            token = (await said(client, "gpu_acquire", memory_mb=100))["ticket"]
            store.stop()
            for uri in ("gpu://pool", f"gpu://lease/{token}"):
                with pytest.raises(MCPError, match="Redis cannot be reached") as told:
                    await client.read_resource(uri)
                assert told.value.error.code == INTERNAL_ERROR
        assert "Traceback" not in broker.said()


async def test_killed_broker_loses_no_lease_and_no_place(mcp: Mcp) -> None:
    """Another one goes on with both: nothing of them was in the process alone."""
    with Broker(
        **mcp.settings,
    ) as first:
        first.wait()
        async with over_http(first.port, mcp.keys["agent"]) as client:
            token = (await said(client, "gpu_acquire", memory_mb=900))["ticket"]
            ticket = (await said(client, "gpu_acquire", memory_mb=900, wait_s=0.1))["ticket"]
        first.kill()
    async with over_http(mcp.broker.port, mcp.keys["agent"]) as client:
        wait = await said(client, "gpu_acquire", ticket=ticket, wait_s=0.1)
        assert wait["state"] == "waiting"
        assert (await said(client, "gpu_release", token=token))["released"] is True
        assert (await said(client, "gpu_acquire", ticket=ticket))["state"] == "active"


def test_killed_client_leaves_nothing_but_what_it_was_told_of(mcp: Mcp) -> None:
    """A call in flight ends with it; its leases end by silence."""
    held = mcp.client.acquire("other", memory_mb=50)
    env = mcp.settings
    clients = client_process(
        str(mcp.hasty.port), mcp.keys["agent"], "holding", "in_a_call", env=env
    )
    try:
        for _ in range(4):
            until_printed(clients)
        eventually(mcp.client.queue, 10)
    finally:
        clients.kill()
        clients.communicate()
    eventually(lambda: not mcp.client.queue(), 10)
    eventually(lambda: [lease.agent for lease in mcp.client.leases()] == ["other"], 20)
    mcp.client.release(held)


async def test_broker_without_keys_answers_its_machine_alone(own: Server) -> None:
    """No foreign name and no foreign page gets in; any worker goes on with any call."""
    settings = GRANTING | {"REDIS_URL": own.url, "GPU_BROKER_POOL": "keyless"}
    with Broker("--workers", "2", **settings) as broker:
        hosts = {"evil.example": 403, "localhost": 400, f"127.0.0.1:{broker.wait().port}": 400}
        for host, status in hosts.items():  # 400: passed on, and no message of the protocol
            assert broker.http.post("/mcp", json={}, headers={"Host": host}).status_code == status
        foreign = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
        ping = '{"jsonrpc":"2.0","id":1,"method":"ping"}'
        assert broker.http.post("/mcp", content=ping, headers=foreign).status_code == 400
        async with over_http(broker.port, mode="legacy") as client:
            token = (await said(client, "gpu_acquire", memory_mb=100))["ticket"]
            again = {"name": "gpu_acquire", "arguments": {"ticket": token}}
            call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": again}
            alone = {"MCP-Protocol-Version": "2025-11-25", "Connection": "close"}
            for _ in range(6):  # each may reach another worker
                answer = _post(broker, call, **alone)
                assert (answer.status_code, token in answer.text) == (200, True)
            await said(client, "gpu_release", token=token)
            with pool_of(own.url, "keyless") as pool:
                pool.set_policy(safe_mode=True)
            assert (await said(client, "gpu_status"))["safe_mode"] is True
            assert (await refused(client, "gpu_acquire", memory_mb=1))["code"] == "safe_mode"


def test_any_name_is_right_behind_keys(mcp: Mcp) -> None:
    """A proxy passes its own name on, with a port or without, and a page's origin."""
    ping = {"jsonrpc": "2.0", "id": 2, "method": "server/discover", "params": {}}
    for host in ("gpu.example.org", "gpu.example.org:8443", "127.0.0.1"):
        headers = {"Host": host, "Origin": "https://gpu.example.org",
                   "Authorization": f"Bearer {mcp.keys['agent']}"}  # fmt: skip
        assert _post(mcp.broker, ping, **headers).status_code in {200, 400}


def test_request_has_its_line_in_the_log(mcp: Mcp) -> None:
    """With the principal, the tool, and no more of a token than tells it from others."""
    line = next(
        x for x in mcp.broker.said().splitlines() if "tool=gpu_acquire" in x and "token=" in x
    )
    assert " mcp " in line
    assert "by=agent" in line
    assert "status=200" in line
    assert not any(len(word.rpartition("=")[2]) == 32 for word in line.split())


def test_stop_answers_calls_and_ends_streams(own: Server, mcp: Mcp) -> None:
    """SIGTERM: a call that waits has its ticket, a stream has its end, and no error is logged."""
    settings = mcp.settings | {"GPU_BROKER_HOSTNAME": "h4", "GPU_BROKER_DEVICES": "none"}
    held = mcp.client.acquire("other", memory_mb=900)
    about = {"name": "gpu_acquire", "arguments": {"memory_mb": 900, "wait_s": 15, "host": "any"}}
    ask = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": about}
    with Broker(**settings) as broker, ThreadPoolExecutor() as threads:
        broker.wait()
        session = _initialize(broker, mcp.keys["agent"])
        headers = {"Authorization": f"Bearer {mcp.keys['agent']}", "Mcp-Session-Id": session}
        listens = threading.Event()

        def listen() -> list[bytes]:
            named = headers | {"Accept": "text/event-stream"}
            with broker.http.stream("GET", "/mcp", headers=named, timeout=30) as answer:
                assert answer.status_code == 200
                listens.set()
                return list(answer.iter_raw())

        stream = threads.submit(listen)
        call = threads.submit(lambda: _post(broker, ask, **headers))
        assert listens.wait(20)
        eventually(mcp.client.queue, 20)
        broker.process.terminate()
        assert '"state\\": \\"waiting' in call.result(10).text
        stream.result(10)
        assert broker.process.wait(10) == 0
        assert "error" not in broker.said()
    mcp.client.release(held)

"""Tools of a session: what an agent gets from them."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mcp import MCPError
from mcp_types import ElicitRequestParams, ElicitResult

from broker.mcp import leases, server
from broker.mcp.tools import ROLES
from broker.mcp_terms import CALL_S, MOST_WAIT_S, Terms
from tests.mcp.clients import MODES, in_process, refused, said, until, until_seen

if TYPE_CHECKING:
    from agent_sdk.testing import TestBroker


@pytest.mark.parametrize("mode", MODES)
async def test_agent_leases_and_gives_back(gpus: TestBroker, mode: str) -> None:
    """The lease is real, is told with its environment, and ends with the session at the latest."""
    async with in_process(gpus, mode=mode) as client:
        assert (await said(client, "gpu_status"))["free_gpus"] == 2
        assert "gpu_run" not in {tool.name for tool in (await client.list_tools()).tools}
        got = await said(client, "gpu_acquire", memory_mb=600)
        (lease,) = gpus.client.leases()
        assert got["lease"]["token"] == lease.token
        assert got["lease"]["fence"] == lease.fence
        assert got["lease"]["env"]["GPU_LEASE_TOKEN"] == lease.token
        assert got["lease"]["gpus"][0]["host"] == gpus.host
        assert (await said(client, "gpu_usage"))["memory_mb"] == 600
        assert (await said(client, "gpu_release", token=lease.token))["released"] is True
        assert gpus.client.leases() == ()
        assert (await said(client, "gpu_release", token=lease.token))["released"] is False
        await said(client, "gpu_acquire", memory_mb=600)
        await said(client, "gpu_acquire", memory_mb=600)


@pytest.mark.parametrize("mode", MODES)
async def test_place_is_kept_between_the_calls(gpus: TestBroker, mode: str) -> None:
    """The server takes the offer while the agent thinks; the ticket then has the lease."""
    held = [gpus.client.acquire("other", memory_mb=1000) for _ in range(2)]
    async with in_process(gpus, mode=mode) as client:
        first = await said(client, "gpu_acquire", memory_mb=900, wait_s=1)
        assert (first["state"], first["place"]) == ("waiting", 0)
        second = await said(client, "gpu_acquire", ticket=first["ticket"], wait_s=0)
        assert (second["state"], second["ticket"]) == ("waiting", first["ticket"])
        assert (await said(client, "gpu_explain", ticket=first["ticket"]))["code"] == "next"
        listed = (await said(client, "gpu_leases"))["leases"]
        assert [(row["token"], row["state"]) for row in listed] == [(first["ticket"], "waiting")]
        for lease in held:
            gpus.client.release(lease)
        await until_seen(gpus.client.leases)
        got = await said(client, "gpu_acquire", ticket=first["ticket"])
        assert got["lease"]["token"] == first["ticket"]
        again = await said(client, "gpu_acquire", ticket=first["ticket"])
        assert again["lease"] == got["lease"]


async def test_lease_that_was_not_fetched_lasts(gpus: TestBroker) -> None:
    """An agent that thinks for longer than the ttl finds its lease, or the reason of its end."""
    held = [gpus.client.acquire("other", memory_mb=1000) for _ in range(2)]
    async with in_process(gpus, terms=Terms(ttl_s=2)) as client:
        ask = {"memory_mb": 900, "wait_s": 0.1}
        waits = [(await said(client, "gpu_acquire", **ask))["ticket"] for _ in range(2)]
        for lease in held:
            gpus.client.release(lease)
        await until_seen(lambda: len(gpus.client.leases()) == 2)
        await asyncio.sleep(3)
        gpus.client.reap()
        assert {lease.token for lease in gpus.client.leases()} == set(waits)
        gpus.client.revoke(waits[1], force=True)
        got = await said(client, "gpu_acquire", ticket=waits[0])
        assert (got["state"], got["lease"]["token"]) == ("active", waits[0])

        async def ended() -> bool:
            result = await client.call_tool("gpu_acquire", {"ticket": waits[1]})
            assert result.structured_content is not None
            return result.structured_content.get("code") == "revoked"

        await until(ended)


async def test_lease_that_was_not_fetched_can_be_given_back(gpus: TestBroker) -> None:
    """By its ticket; nothing renews it any more."""
    held = [gpus.client.acquire("other", memory_mb=1000) for _ in range(2)]
    async with in_process(gpus, terms=Terms(ttl_s=2)) as client:
        ticket = (await said(client, "gpu_acquire", memory_mb=900, wait_s=0.1))["ticket"]
        for lease in held:
            gpus.client.release(lease)
        await until_seen(gpus.client.leases)
        assert (await said(client, "gpu_release", token=ticket))["released"] is True
        assert gpus.client.leases() == ()
        assert (await refused(client, "gpu_acquire", ticket=ticket))["code"] == "unknown_token"


async def test_no_call_lasts(gpus: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it asks to wait; one that is cut off leaves no place: its ticket is lost."""
    assert MOST_WAIT_S < CALL_S < 20
    held = [gpus.client.acquire("other", memory_mb=1000) for _ in range(2)]
    async with in_process(gpus) as client:
        monkeypatch.setattr(leases, "MOST_WAIT_S", 0.2)
        waits = await said(client, "gpu_acquire", memory_mb=900, wait_s=600)
        assert waits["state"] == "waiting"
        monkeypatch.undo()
        monkeypatch.setattr(server, "CALL_S", 0.2)
        cut = await refused(client, "gpu_acquire", memory_mb=900, wait_s=600)
        assert cut["code"] == "outcome_unknown"
        await until_seen(lambda: [x.token for x in gpus.client.queue()] == [waits["ticket"]])
    for lease in held:
        gpus.client.release(lease)


@pytest.mark.parametrize("mode", MODES)
async def test_release_answers_a_call_that_waits(gpus: TestBroker, mode: str) -> None:
    """Two calls at once of one ticket: the server lives on, with the leases that it has."""
    held = gpus.client.acquire("other", memory_mb=1000)
    async with in_process(gpus, mode=mode) as client:
        kept = (await said(client, "gpu_acquire", memory_mb=900))["ticket"]
        ticket = (await said(client, "gpu_acquire", memory_mb=900, wait_s=0.1))["ticket"]
        waits = asyncio.ensure_future(refused(client, "gpu_acquire", ticket=ticket, wait_s=15))
        await asyncio.sleep(1)
        assert (await said(client, "gpu_release", token=ticket))["released"] is True
        assert (await asyncio.wait_for(waits, 30))["code"] == "cancelled"
        assert [row["token"] for row in (await said(client, "gpu_leases"))["leases"]] == [kept]
    gpus.client.release(held)


async def test_call_that_waits_is_no_silence(gpus: TestBroker) -> None:
    """Also where it waits for longer than `idle_release_s`."""
    held = [gpus.client.acquire("other", memory_mb=1000) for _ in range(2)]
    async with in_process(gpus, terms=Terms(idle_release_s=1)) as client:
        waits = await said(client, "gpu_acquire", memory_mb=900, wait_s=2.5)
        assert (waits["state"], waits["place"]) == ("waiting", 0)
        await until_seen(lambda: not gpus.client.queue())
    for lease in held:
        gpus.client.release(lease)


async def test_null_is_what_was_not_said(gpus: TestBroker) -> None:
    """Clients of a strict schema name every argument; a null of no known name is misspelt."""
    async with in_process(gpus) as client:
        names = {each.name: each.input_schema for each in (await client.list_tools()).tools}
        nulls: dict[str, Any] = dict.fromkeys(names["gpu_acquire"]["properties"])
        got = await said(client, "gpu_acquire", **nulls | {"memory_mb": 100})
        assert got["lease"]["memory_mb"] == 100
        assert (await said(client, "gpu_usage", everyone=None, since=None))["leases"]
        wrong = await refused(client, "gpu_acquire", memory_mb=100, devices=None)
        assert wrong["code"] == "bad_request"
        missing = await refused(client, "gpu_extend", token=got["ticket"], hold_s=None)
        assert "hold_s" in missing["says"]


async def test_refusals_have_code_and_next_step(gpus: TestBroker) -> None:
    """For a program as for a model; what is misspelt is told, not dropped."""
    async with in_process(gpus) as client:
        codes = {
            "never_fits": {"memory_mb": 5000},
            "host_unknown": {"memory_mb": 1, "host": "nowhere"},
            "bad_request": {"memory_mb": 1, "devices": 2},
            "unknown_token": {"ticket": "0" * 32},
            "confirmation_needed": {"memory_mb": 1, "gpus": 2},
        }
        for code, arguments in codes.items():
            refusal = await refused(client, "gpu_acquire", **arguments)
            assert refusal["code"] == code
            assert refusal["next"]
        assert "ticket" in (await refused(client, "gpu_acquire"))["says"]
        assert "gpu_lease" in (await refused(client, "gpu_lease"))["says"]
        assert (await refused(client, "gpu_release", token="no"))["code"] == "unknown_token"
        gpus.client.acquire("other", memory_mb=1000, token="t" * 16)
        gpus.client.acquire("other", memory_mb=1000, token="u" * 16)
        full = await refused(client, "gpu_acquire", memory_mb=1, wait_s=0)
        assert (full["code"], full["retryable"]) == ("no_capacity", True)
        strange = await refused(client, "gpu_release", token="t" * 16)
        assert strange["code"] == "unknown_token"
        for token in ("t" * 16, "u" * 16):
            gpus.client.release(token)


@pytest.mark.parametrize(
    "wrong", [{"command": ["true\0"]}, {"command": ["\ud800"]}, {"cwd": "\0"}, {"cwd": "/missing"}]
)
async def test_command_that_cannot_be_started_is_refused(
    gpus: TestBroker, wrong: dict[str, Any]
) -> None:
    """Also one with letters that no program can be given."""
    async with in_process(gpus, terms=Terms(may_run=True)) as client:
        ask = {"command": ["true"], "memory_mb": 1} | wrong
        assert (await refused(client, "gpu_run", **ask))["code"] == "not_started"


async def test_news_come_with_the_next_result(gpus: TestBroker) -> None:
    """A revoked lease is told with any result until the agent lets go of it."""
    async with in_process(gpus, terms=Terms(ttl_s=4)) as client:
        token = (await said(client, "gpu_acquire", memory_mb=600))["ticket"]
        gpus.client.revoke(token, force=True, why="for the test")

        async def told() -> list[dict[str, Any]]:
            return list((await said(client, "gpu_status"))["notices"])

        await until(told)
        news = await told()
        assert [(each["token"], each["kind"]) for each in news] == [(token, "revoked")]
        lost = await refused(client, "gpu_extend", token=token, hold_s=60)
        assert (lost["code"], lost["notices"]) == ("revoked", news)
        assert (await said(client, "gpu_release", token=token))["released"] is False
        assert await told() == []


async def test_client_that_listens_is_told_of_news_at_once(gpus: TestBroker) -> None:
    """The loss of a lease is an update of its resource, which then is none."""
    async with in_process(gpus, terms=Terms(ttl_s=4)) as client:
        token = (await said(client, "gpu_acquire", memory_mb=600))["ticket"]
        uri = f"gpu://lease/{token}"
        async with client.listen(resource_subscriptions=[uri]) as news, asyncio.timeout(20):
            gpus.client.revoke(token, force=True, why="for the test")
            assert (await anext(aiter(news))).uri == uri  # type: ignore[union-attr] # the kind that is expected
        with pytest.raises(MCPError, match="revoked"):
            await client.read_resource(uri)


PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "mcp.md").read_text()


def test_page_names_every_tool() -> None:
    """Each tool has its row on the page, and no other has."""
    rows = re.findall(r"^\| `(gpu_\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(ROLES)


def test_page_has_configurations_that_can_be_copied() -> None:
    """The files of hosts are JSON and TOML, and start the command with its store."""
    (as_json,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (as_toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    servers = json.loads(as_json)["mcpServers"], tomllib.loads(as_toml)["mcp_servers"]
    for found in servers:
        assert (found["gpu"]["command"], found["gpu"]["args"]) == ("gpu-broker", ["mcp"])
        assert found["gpu"]["env"].keys() == {"REDIS_URL"}


async def test_lease_ends_after_the_time_it_was_asked_for(gpus: TestBroker) -> None:
    """`hold_s` ends it, and gpu_extend says until when instead, where that is later."""
    async with in_process(gpus) as client:
        await said(client, "gpu_acquire", memory_mb=600, hold_s=1)
        kept = (await said(client, "gpu_acquire", memory_mb=600, hold_s=1))["ticket"]
        extended = await said(client, "gpu_extend", token=kept, hold_s=600)
        assert 500 < extended["lease"]["ends_in_s"] <= 600
        again = await said(client, "gpu_acquire", ticket=kept, hold_s=900)
        assert 800 < again["lease"]["ends_in_s"] <= 900
        await until_seen(lambda: len(gpus.client.leases()) == 1)
        assert [lease.token for lease in gpus.client.leases()] == [kept]


async def test_lease_is_never_extended_to_an_earlier_end(gpus: TestBroker) -> None:
    """One that ends with the session, and one that was asked for longer, are kept as long."""
    async with in_process(gpus) as client:
        endless = (await said(client, "gpu_acquire", memory_mb=600))["ticket"]
        long = (await said(client, "gpu_acquire", memory_mb=600, hold_s=600))["ticket"]
        for token, ends_in_s in ((endless, None), (long, 600)):
            for tool, name in (("gpu_extend", "token"), ("gpu_acquire", "ticket")):
                kept = await said(client, tool, **{name: token}, hold_s=1)
                assert kept["lease"]["ends_in_s"] == (ends_in_s and pytest.approx(600, abs=60))
        await asyncio.sleep(1.5)
        assert {lease.token for lease in gpus.client.leases()} == {endless, long}


async def test_forgotten_wait_is_given_up(gpus: TestBroker) -> None:
    """No call asked about it for `idle_release_s`."""
    held = [gpus.client.acquire("other", memory_mb=1000) for _ in range(2)]
    async with in_process(gpus, terms=Terms(idle_release_s=1)) as client:
        await said(client, "gpu_acquire", memory_mb=900, wait_s=0.1)
        assert gpus.client.queue()
        await until_seen(lambda: not gpus.client.queue())
    for lease in held:
        gpus.client.release(lease)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("action", "word"), [("accept", True), ("accept", False), ("decline", None)]
)
async def test_person_decides_about_a_large_request(
    gpus: TestBroker, mode: str, action: Any, word: bool | None
) -> None:
    """The question names the size."""
    asked = []

    async def ask(_: object, params: ElicitRequestParams) -> ElicitResult:
        asked.append(params.message)
        content = None if word is None else {"confirm": word}
        return ElicitResult(action=action, content=content)

    async with in_process(gpus, mode=mode, elicitation_callback=ask) as client:
        result = await client.call_tool("gpu_acquire", {"memory_mb": 10, "gpus": 2})
        assert result.structured_content is not None
        if word:
            assert len(result.structured_content["lease"]["gpus"]) == 2
        else:
            assert result.structured_content["code"] == "declined"
    assert asked == ["2 GPUs are more than the 1 that an agent takes alone. Let it take them?"]


async def test_resources_show_pool_and_lease(gpus: TestBroker) -> None:
    """JSON of both; a lease by its token."""
    async with in_process(gpus) as client:
        token = (await said(client, "gpu_acquire", memory_mb=600))["ticket"]
        for uri, name, value in (
            ("gpu://pool", "free_gpus", 1),
            (f"gpu://lease/{token}", "memory_mb", 600),
        ):
            (content,) = (await client.read_resource(uri)).contents
            assert json.loads(content.text)[name] == value  # type: ignore[union-attr] # the kind that is expected

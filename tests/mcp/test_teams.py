"""Teams over MCP: for which team an agent leases, and what it hears of its lease."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import StillWaiting
from agent_sdk.protocol.messages import new_token
from broker.mcp_terms import Terms
from tests.mcp.clients import in_process, refused, said, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mcp import Client

    from agent_sdk.testing import TestBroker


@pytest.fixture
def lab(gpus: TestBroker) -> Iterator[TestBroker]:
    """One of two GPUs is held for good, and leases are taken back after a second."""
    gpus.client.set_policy(reclaim_after_s=1, preempt_grace_s=60)
    other = gpus.client.acquire("other", memory_mb=1000)
    yield gpus
    gpus.client.release(other)
    gpus.client.set_teams({})


def poll(pool: TestBroker, token: str) -> None:
    """Ask as a waiter of higher priority does, once."""
    ask: dict[str, Any] = {"memory_mb": 900, "priority": 5, "token": token}
    with pytest.raises(StillWaiting):
        pool.client.acquire("urgent", wait_s=0.01, keep_place=True, **ask)


async def kinds(client: Client) -> dict[str, str]:
    """Return the notices of the next result, by their kind."""
    return {x["kind"]: x["says"] for x in (await said(client, "gpu_status"))["notices"]}


async def test_agent_hears_that_its_lease_is_taken_back(lab: TestBroker) -> None:
    """In each result, until it gives the lease back or the notice is withdrawn."""
    async with in_process(lab, terms=Terms(ttl_s=2)) as client:
        await said(client, "gpu_acquire", memory_mb=900, preemptible=True)
        token = new_token()

        async def noticed() -> bool:
            await asyncio.to_thread(poll, lab, token)
            return "preempt" in await kinds(client)

        await until(noticed, 30)
        assert "gpu_release it" in (await kinds(client))["preempt"]
        lab.client.release(token)

        async def withdrawn() -> bool:
            return "preempt" not in await kinds(client)

        await until(withdrawn, 30)


async def test_agent_that_yields_hears_which_agent_wants_how_much(lab: TestBroker) -> None:
    """Another that did not say so is not asked."""
    lab.client.set_policy(reclaim_after_s=0)
    async with in_process(lab, terms=Terms(ttl_s=2)) as client:
        held = await said(client, "gpu_acquire", memory_mb=900, yields=True)
        token = new_token()
        poll(lab, token)
        assert lab.client.request_yield(held["ticket"], token)

        async def wanted() -> bool:
            return "wanted" in await kinds(client)

        await until(wanted, 30)
        assert (await kinds(client))["wanted"].startswith("urgent wants 900 MiB")
        lab.client.release(token)


async def test_agent_leases_for_its_team_within_its_limits(lab: TestBroker) -> None:
    """The lease counts for the team; a limit of the team is a refusal with its name."""
    lab.client.set_teams({"vision": {"nominal_mb": 1000, "max_priority": 3}})
    async with in_process(lab) as client:
        ask = {"memory_mb": 100, "team": "vision"}
        held = await said(client, "gpu_acquire", **ask)
        found: Any = lab.client.lookup(held["ticket"])
        assert found.team == "vision"
        no = await refused(client, "gpu_acquire", **ask, priority=4)
        assert no["code"] == "team_limit"
        assert (await refused(client, "gpu_acquire", memory_mb=1, team="no-such"))["code"] == (
            "team_unknown"
        )
        outlook = await said(client, "gpu_explain", memory_mb=1, team="no-such")
        assert outlook["code"] == "team_unknown"


async def test_outlook_is_that_of_the_lease_that_would_be_asked_for(lab: TestBroker) -> None:
    """The server's own ttl is above what the team may ask for: explain says so, as acquire does."""
    lab.client.set_teams({"brief": {"nominal_mb": 1000, "max_ttl_s": 10}})
    async with in_process(lab, terms=Terms(ttl_s=20)) as client:
        ask = {"memory_mb": 100, "team": "brief"}
        no = await refused(client, "gpu_acquire", **ask)
        outlook = await said(client, "gpu_explain", **ask)
        assert (outlook["code"], outlook["summary"]) == (no["code"], no["says"])
        assert outlook["fits_now"] == []

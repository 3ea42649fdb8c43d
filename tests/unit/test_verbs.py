"""The verbs stand once: both clients have them, with signatures and types of their own."""

from __future__ import annotations

import inspect
import subprocess
import sys
from difflib import SequenceMatcher
from inspect import getattr_static
from pathlib import Path

import pytest

import agent_sdk
from agent_sdk import AsyncLeaseClient, LeaseClient
from agent_sdk.store.store import Store
from agent_sdk.verbs.requests import Verbs
from agent_sdk.verbs.steps import Verb

SDK = Path(agent_sdk.__file__).parent

VERBS = [name for name in dir(Verbs) if isinstance(getattr_static(Verbs, name), Verb)]

USER = """
from typing import assert_type
from agent_sdk import AsyncLease, AsyncLeaseClient, Lease, LeaseClient
from agent_sdk.protocol.messages import Renewal
from agent_sdk.state.snapshot import LeaseStatus, PoolStatus

def blocking(client: LeaseClient, lease: Lease) -> None:
    assert_type(client.pool(), PoolStatus)
    assert_type(client.leases(), tuple[LeaseStatus, ...])
    assert_type(client.renew(lease, 5.0, fence=None), Renewal)
    assert_type(client.acquire("a", memory_mb=1), Lease)
    assert_type(client.set_policy(idle_after_s=60, by="ann"), int)
    assert_type(client.release(lease), bool)

async def waiting(client: AsyncLeaseClient, lease: AsyncLease) -> None:
    assert_type(await client.pool(), PoolStatus)
    assert_type(await client.leases(), tuple[LeaseStatus, ...])
    assert_type(await client.renew(lease, 5.0, fence=None), Renewal)
    assert_type(await client.acquire("a", memory_mb=1), AsyncLease)
    assert_type(await client.set_policy(idle_after_s=60, by="ann"), int)
    assert_type(await client.release(lease), bool)
"""

WRONG = """
from agent_sdk import AsyncLeaseClient, LeaseClient

async def wrong(blocking: LeaseClient, waiting: AsyncLeaseClient) -> None:
    blocking.pool(1)
    blocking.renew(ttl=1)
    await blocking.pool()
    waiting.pool().now_ms
    await waiting.set_policy(idle_after_s="x")
    await waiting.events(count="many")
"""


def checked(code: str) -> list[str]:
    """Return what mypy, at its strictest, says of a user's file."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=SDK.parent,
    )
    *said, _ = done.stdout.splitlines()
    assert not done.stderr
    return said


def test_types_of_both_clients_are_known_to_a_checker() -> None:
    """A checker knows the result of a verb, awaited or not."""
    assert checked(USER) == []


def test_misuse_of_both_clients_is_found_by_a_checker() -> None:
    """One error for each line that is wrong."""
    lines = {said.split(":")[1] for said in checked(WRONG) if "error" in said}
    assert lines == {str(number) for number in range(5, 11)}


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("kind", [LeaseClient, AsyncLeaseClient])
def test_verb_shows_its_signature_and_its_help(
    kind: type[LeaseClient | AsyncLeaseClient], name: str
) -> None:
    """Names at a prompt, of the class or of a client."""
    of_class = inspect.signature(getattr(kind, name))
    assert next(iter(of_class.parameters)) == "self"
    client = kind(Store("redis://localhost:1/0"))
    of_client = inspect.signature(getattr(client, name))
    assert list(of_client.parameters) == list(of_class.parameters)[1:]
    assert inspect.getdoc(getattr(client, name)) == inspect.getdoc(getattr(kind, name))
    assert inspect.getdoc(getattr(kind, name))


def test_clients_have_the_same_methods() -> None:
    """Whatever one can, the other can."""

    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(LeaseClient) - public(AsyncLeaseClient) == set()
    assert public(AsyncLeaseClient) - public(LeaseClient) == set()


def test_clients_are_little_alike() -> None:
    """All but the waiting stands once: few lines are left that say the same twice."""
    texts = [(SDK / name).read_text() for name in ("client.py", "aio.py")]
    one, other = ([line.replace("await ", "").replace("async ", "").replace("Async", "").strip()
                   for line in text.splitlines() if line.strip()] for text in texts)  # fmt: skip
    alike = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    assert sum(block.size for block in alike) < 150

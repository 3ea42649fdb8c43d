"""Webhooks of the environment's pool: their registry for the commands, and findings of `doctor`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from agent_sdk.errors import LeaseError
from agent_sdk.keys import Keys
from agent_sdk.settings import read_settings
from agent_sdk.store.store import Store
from broker.cli.finding import Diagnosis, Severity
from broker.hooks.hook import DISABLED, FAILING
from broker.hooks.operators import UNSERVED
from broker.hooks.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.hooks.registry import HooksSeen

ANSWER_S: Final = 5.0
"""Seconds for each answer of the store."""


@asynccontextmanager
async def registry() -> AsyncIterator[Registry]:
    """Connect to the environment's pool for a block."""
    settings = read_settings()
    settings.check_state_dir()
    keys = Keys(settings.pool)
    redis = Store(settings.store_url, ANSWER_S, key=keys.base).connect_async()
    try:
        yield Registry(redis, keys)
    finally:
        await redis.aclose()


def hook_state() -> tuple[str, list[Diagnosis]]:
    """Return a summary of the hooks, with findings about those that do not get their events."""
    try:
        seen = asyncio.run(_seen())
    except LeaseError as error:
        return f"unknown: {error}", []
    if not seen.hooks:
        return "none", []
    findings = []
    if not seen.served:
        problem, _, remedy = UNSERVED.partition(": ")
        findings.append(Diagnosis(problem, remedy))
    for hook in seen.hooks:
        if hook.state == DISABLED:
            findings.append(
                Diagnosis(f"hook {hook.name} is disabled: {hook.disabled}",
                          f"mend the receiver, then gpu-broker hooks enable {hook.name}")
            )  # fmt: skip
        elif hook.state == FAILING:
            findings.append(
                Diagnosis(f"hook {hook.name} fails: {hook.error}",
                          f"mend the receiver; gpu-broker hooks show {hook.name}")
            )  # fmt: skip
        if hook.missed:
            findings.append(
                Diagnosis(f"hook {hook.name} missed {hook.missed} events: they fell out of the "
                          "stream", "look at the pool itself: gpu-broker status", Severity.NOTE)
            )  # fmt: skip
    states = [hook.state for hook in seen.hooks]
    counted = ", ".join(f"{states.count(each)} {each}" for each in sorted(set(states)))
    return f"{len(seen.hooks)} ({counted})", findings


async def _seen() -> HooksSeen:
    async with registry() as found:
        return await found.seen()

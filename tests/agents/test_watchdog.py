"""The agents' own GPU watchdog: off as soon as there is an orchestrator."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from scripts.agents.watchdog import autostart
from tests.agents.processes import NOBODY, Agent
from tests.api.brokers import eventually

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURED = {"GPU_ORCHESTRATOR_URL": NOBODY}


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({}, "on"),
        ({"GPU_ORCHESTRATOR_URL": ""}, "on"),
        ({"GPU_WATCHDOG": "on"}, "on"),
        ({"GPU_WATCHDOG": "OFF"}, "off"),
        (CONFIGURED, "off"),
        (CONFIGURED | {"GPU_WATCHDOG": "on"}, "off"),
    ],
)
def test_watchdog_is_on_only_without_an_orchestrator(settings: dict[str, str], state: str) -> None:
    """An orchestrator that is configured counts also while it is down."""
    watchdog = autostart(settings)
    assert watchdog.state == state
    watchdog.stop()
    eventually(lambda: watchdog.state == "off", 2)


def test_every_agent_says_how_its_watchdog_is() -> None:
    """All start it by the same rule, and /health says which."""
    names = ("scout", "analyst", "critic")
    with ExitStack() as stack:
        alone = [stack.enter_context(Agent(name)) for name in names]
        watched = [stack.enter_context(Agent(name, **CONFIGURED)) for name in names]
        for group, state in ((alone, "on"), (watched, "off")):
            for name, agent in zip(names, group, strict=True):
                health = agent.get("/health")
                told = (health["status"], health["agent"], health["gpu_watchdog"], health["gpu"])
                assert told == ("ok", name, state, False)
                assert agent.get("/ready") == {"ready": True}
        assert [agent.stop() for agent in alone + watched] == [0] * 6


@pytest.mark.parametrize(("configured", "polled"), [(False, True), (True, False)])
def test_watchdog_polls_the_driver_only_when_on(
    tmp_path: Path, configured: bool, polled: bool
) -> None:
    """With an orchestrator an agent that needs no GPU forks no nvidia-smi at all."""
    asked, program = tmp_path / "asked", tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho 950, 1000\necho once >> {asked}\n")
    program.chmod(0o755)
    told = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | (CONFIGURED if configured else {})
    with Agent("critic", **told) as agent:
        agent.get("/ready")
        if polled:
            eventually(asked.exists, 5)
        else:
            time.sleep(0.5)
        assert asked.exists() is polled

"""A newcomer's questions: why not a GPU, who drained one, how SAFE_MODE is left, which sizes."""

from __future__ import annotations

import getpass
import json
import logging
import os
from typing import TYPE_CHECKING

import pytest

from agent_sdk import GPUOrchestratorClient, SafeMode
from agent_sdk.testing import TestBroker, running_broker
from tests.api.brokers import GRANTING, Broker
from tests.program import called
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

ME = f"{getpass.getuser()}@{os.uname().nodename}"


@pytest.fixture
def pool() -> Iterator[TestBroker]:
    """Fifteen devices of 1000 MiB on one host."""
    with running_broker(devices=15, memory_mb=1000) as broker:
        yield broker


def said(pool: TestBroker, *words: str, code: int = 0) -> str:
    """Return the output of a command on this pool."""
    done = called(*words, REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_explain_says_each_reason_once(pool: TestBroker) -> None:
    """With the GPUs that it holds for; JSON has a reason for each of them."""
    pool.client.drain("device", "SIM-test-host-3")
    ask = ("explain", "--agent", "a", "--memory", "2000MiB")
    text = said(pool, *ask)
    assert text.count("it could never hold that much") == 1
    assert text.count("no registered device could ever hold this request") == 1
    row = "test-host:0 test-host:1 test-host:2 test-host:3 and 11 more"
    assert row in text
    assert len(json.loads(said(pool, *ask, "-o", "json"))["devices"]) == 15
    some_drained = said(pool, "explain", "--agent", "a", "--memory", "100MiB")
    assert "test-host:3  " in some_drained
    assert "test-host:0 test-host:1 test-host:2 test-host:4 and 10 more" in some_drained


def test_acts_of_a_shell_are_in_the_name_of_the_person(pool: TestBroker) -> None:
    """In the events, and below the picture with the reason."""
    said(pool, "drain", "test-host:0", "--reason", "new driver")
    said(pool, "drain", "test-host:1", "--reason", "new driver")
    assert f"test-host:0 test-host:1 drained by {ME}: new driver" in said(pool, "status")
    said(pool, "policy", "set", "default_memory_mb=1GiB")
    said(pool, "revoke", "--agent", "a", "--reason", "x")
    acts = [e for e in pool.client.events(50) if e.event in {"drained", "policy"}]
    assert [e.fields["by"] for e in acts] == [ME] * 3
    said(pool, "undrain", "test-host:0")
    text = said(pool, "status")
    assert f"test-host:1 drained by {ME}: new driver" in text
    assert "test-host:0 test-host:1" not in text


@pytest.mark.parametrize(("value", "mb"), [("16GiB", 16384), ("8GB", 8192), ("8g", 8192)])
def test_policy_takes_sizes(pool: TestBroker, value: str, mb: int) -> None:
    """Each field of MiB takes them; a bare number is MiB, as ever."""
    said(pool, "policy", "set", f"max_memory_per_agent_mb={value}", "overuse_slack_mb=512")
    set_to = pool.client.pool()
    assert (set_to.max_memory_per_agent_mb, set_to.overuse_slack_mb) == (mb, 512)
    wrong = said(pool, "policy", "set", "default_memory_mb=8 bananas", code=2)
    assert "the value is a size: 8GiB" in wrong


def test_refusal_under_safe_mode_names_the_command_that_leaves_it(pool: TestBroker) -> None:
    """For every caller; the command does what it says."""
    pool.client.set_policy(safe_mode=True)
    command = "gpu-broker policy set safe_mode=false"
    with pytest.raises(SafeMode, match=command):
        pool.client.acquire("a", memory_mb=100)
    assert command in said(pool, "explain", "--agent", "a")
    said(pool, *command.split()[1:])
    pool.client.release(pool.client.acquire("a", memory_mb=100))


def test_http_client_logs_once_why_it_falls_back(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each reason; again after a GPU was had."""
    log = "agent_sdk.orchestrator.client"
    with caplog.at_level(logging.WARNING, log):
        with GPUOrchestratorClient(f"http://127.0.0.1:{free_port()}", down_s=0) as away:
            for _ in range(3):
                assert not away.cpu_fallback_decision()["use_gpu"]
                assert away.lease("a", 100).on_cpu
        (once,) = caplog.messages
        assert once.startswith(f"{away.base_url}: no GPU, the CPU is used instead: no answer")
        caplog.clear()
        settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": "falls-back"}
        with (
            Broker(**settings) as broker,
            GPUOrchestratorClient(f"http://127.0.0.1:{broker.wait().port}") as client,
        ):
            for mb in (5000, 5000, 100, 5000):
                client.release(client.lease("a", mb))
        assert len(caplog.messages) == 2
        assert all("could ever hold this request" in text for text in caplog.messages)

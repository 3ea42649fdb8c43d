"""Preemption with real processes: each is killed, or its store fails over, at each step of it.

A team's own quota is lent out and comes back. Whatever dies in between, the memory is granted to
one at a time, the head gets it by the promised time, and no notice outlives its waiter.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import GRANTING, Broker, eventually
from tests.faults.clock import Clock
from tests.faults.preempting import CLAIM_S, GRACE_S, RECLAIM_S, STEPS, TTL_S, Lab, line
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

WINDOW_S = 30
"""Seconds that holders have to renew after the clock has leapt."""


@pytest.fixture
def lab(server: Server, pool_name: str) -> Iterator[Lab]:
    """It is consistent at the end."""
    lab = Lab(server.url, server, pool_name)
    with lab.client:
        yield lab
        lab.check()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dies", ["victim", "asker", "broker"])
def test_whichever_is_killed_the_memory_goes_to_one_that_lives(
    lab: Lab, dies: str, step: str
) -> None:
    """SIGKILL at each step; with a broker that is another process."""
    with ExitStack() as stack:
        broker = None
        if dies == "broker":
            here = {"REDIS_URL": lab.url, "GPU_BROKER_POOL": lab.name,
                    "GPU_BROKER_DEVICES": "none", "GPU_BROKER_HOSTNAME": "h2"}  # fmt: skip
            broker = stack.enter_context(Broker(**GRANTING | here))
            broker.wait()
        victim = stack.enter_context(lab.agent("victim", "b"))
        assert line(victim) == "held"
        asker = stack.enter_context(lab.agent("asker", "a", wait_s=60))
        lab.until_step(step)
        if broker:
            broker.kill()
        else:
            dead = victim if dies == "victim" else asker
            dead.send_signal(signal.SIGKILL)
            dead.wait()
        if dies != "asker":
            began = time.monotonic()
            assert line(asker) == "held"
            assert time.monotonic() - began <= 3 * (RECLAIM_S + GRACE_S + TTL_S + CLAIM_S)
            assert lab.of("asker")
            assert not lab.of("victim")
            return
        # What it asked for goes on: to the victim, if it still has it, or to whatever asks next.
        next_one = stack.enter_context(lab.agent("next", "b", wait_s=60))
        if step != "over":
            eventually(lambda: not lab.noticed(), CLAIM_S + 3 + GRACE_S)
        if lab.of("victim"):
            victim.kill()
        assert line(next_one) == "held"


@pytest.mark.slow
@pytest.mark.parametrize("shift_s", [-3600, 30])
def test_clock_that_steps_between_notice_and_end_grants_to_one_at_a_time(
    tmp_path: Path, pool_name: str, shift_s: int
) -> None:
    """The victim ends by the pool's clock, which stands still or leaps; never beside the asker."""
    clock = Clock.make(tmp_path / "clock")
    with running(env=clock.env) as server:
        lab = Lab(server.url, server, pool_name)
        with lab.client, lab.agent("victim", "b") as victim:
            assert line(victim) == "held"
            with lab.agent("asker", "a", wait_s=120) as asker:
                lab.until_step("noticed")
                began = time.monotonic()
                clock.shift(shift_s)
                assert line(asker) == "held"
                assert time.monotonic() - began <= GRACE_S + TTL_S + WINDOW_S + CLAIM_S
                assert line(victim) == "lost"
                assert not lab.of("victim")
                ends = [lab.events(event, "victim") for event in ("preempted", "expired")]
                assert sum(map(len, ends)) == 1, ends
            lab.check()


def test_store_that_is_killed_between_notice_and_end_goes_on_with_it(pool_name: str) -> None:
    """A notice is a fact of the store: it is there after a restart, and the asker is served."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running("redis", *options) as server:
        lab = Lab(server.url, server, pool_name)
        with lab.client, lab.agent("victim", "b") as victim:
            assert line(victim) == "held"
            with lab.agent("asker", "a", wait_s=120) as asker:
                lab.until_step("noticed")
                server.kill()
                server.start()
                assert line(asker) == "held"
                assert not lab.of("victim")
                assert "preempted" in lab.events()
            lab.check()

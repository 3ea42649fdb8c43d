"""Hypothesis drives real pools beside their models; what breaks is shrunk to a short story."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.model.walks.scenery import AGENTS, ORDINARY

if TYPE_CHECKING:
    from tests.model.run import World

EXAMPLES, STEPS = 40, 50

POOLS, NUMBERS, HOSTS = st.integers(0, 1), st.integers(0, 7), st.sampled_from(("h0", "h1"))
CALL = st.fixed_dictionaries({"number": NUMBERS, "later": st.sampled_from((False,) * 7 + (True,))})
ASKS = st.fixed_dictionaries({
    "agent": st.sampled_from(AGENTS), "memory_mb": st.sampled_from((0, 300, 600, 1000, 1500)),
    "devices": st.sampled_from((1, 1, 1, 2)), "exclusive": st.sampled_from((0, 0, 0, 1)),
    "ttl_ms": st.sampled_from((1000, 10_000, 30_000)), "priority": st.sampled_from((0, 0, 5)),
    "host": st.sampled_from(("*", "*", "h0")),
    "on_unavailable": st.sampled_from(("refuse", "refuse", "cpu")),
})  # fmt: skip
DEVICE = st.fixed_dictionaries({
    "total_mb": st.sampled_from((1000, 2000)), "used_mb": st.sampled_from((0, 0, 700)),
    "state": st.sampled_from(("ok", "ok", "ok", "lost")), "simulated": st.sampled_from((0, 1)),
})  # fmt: skip
POLICIES = st.sampled_from((
    {"safe_mode": 1}, {"safe_mode": 0}, {"allow_fractional_shares": 0}, {"max_leases_per_agent": 2},
    {"max_memory_per_agent_mb": 1500}, {"expiry_grace_s": 0}, ORDINARY, ORDINARY, ORDINARY,
))  # fmt: skip


class Machine(RuleBasedStateMachine):
    """Two pools, their clients, hosts and operators."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.lives = world, world.begin()
        self.steps: list[list[Any]] = []
        self.asks: dict[tuple[int, int], dict[str, Any]] = {}

    def do(self, pool: int, what: str, args: dict[str, Any]) -> None:
        self.steps.append([pool, what, args])
        self.world.do(self.lives, self.steps[-1], self.steps, audit=len(self.steps) % 10 == 0)

    @initialize()
    def begin(self) -> None:
        for pool in (0, 1):
            for host in ("h0", "h1"):
                self.do(pool, "report", {"host": host, "devices": {f"g{pool}-{host}": {}}})

    @rule(pool=POOLS, call=CALL, ask=ASKS, wait_ms=st.sampled_from((0, 60_000)), lost=st.booleans())
    def acquire(
        self, pool: int, call: dict[str, Any], ask: dict[str, Any], wait_ms: int, lost: bool
    ) -> None:
        said = self.asks.setdefault((pool, call["number"]), ask)
        self.do(pool, "acquire", call | {"ask": said, "wait_ms": wait_ms, "lost": lost})

    @rule(pool=POOLS, call=CALL, fence=st.sampled_from(("own", "own", "none", "wrong")))
    def renew(self, pool: int, call: dict[str, Any], fence: str) -> None:
        self.do(pool, "renew", call | {"fence": fence})

    @rule(pool=POOLS, call=CALL, owner=st.sampled_from(("", "", "o1")))
    def recover(self, pool: int, call: dict[str, Any], owner: str) -> None:
        self.do(pool, "recover", call | {"owner": owner})

    @rule(pool=POOLS, call=CALL, plant=st.integers(0, 1))
    def release(self, pool: int, call: dict[str, Any], plant: int) -> None:
        self.do(pool, "release", call | {"plant": plant})

    @rule(pool=POOLS, call=CALL, force=st.integers(0, 1))
    def revoke(self, pool: int, call: dict[str, Any], force: int) -> None:
        self.do(pool, "revoke", call | {"force": force})

    @rule(pool=POOLS, number=st.integers(0, 3), again=st.booleans())
    def deliver(self, pool: int, number: int, again: bool) -> None:
        self.do(pool, "deliver", {"number": number, "again": again})

    @rule(pool=POOLS, ms=st.sampled_from((-5000, 1, 500, 3000, 9999, 31_000)))
    def time(self, pool: int, ms: int) -> None:
        self.do(pool, "time", {"us": ms * 1000})

    @rule(pool=POOLS, host=HOSTS, device=DEVICE, sampled=st.sampled_from((-1, -1, -3, 0)))
    def report(self, pool: int, host: str, device: dict[str, Any], sampled: int) -> None:
        devices = {f"g{pool}-{host}": device}
        self.do(pool, "report", {"host": host, "devices": devices, "sampled": sampled})

    @rule(
        pool=POOLS, host=HOSTS, what=st.sampled_from(("host", "device")), drained=st.integers(0, 1)
    )
    def drain(self, pool: int, host: str, what: str, drained: int) -> None:
        name = host if what == "host" else f"g{pool}-{host}"
        self.do(pool, "drain", {"what": what, "name": name, "drained": drained})

    @rule(pool=POOLS, host=HOSTS, for_ms=st.sampled_from((0, 60_000)))
    def release_driver(self, pool: int, host: str, for_ms: int) -> None:
        self.do(pool, "release_driver", {"host": host, "for_ms": for_ms})

    @rule(pool=POOLS, fields=POLICIES)
    def policy(self, pool: int, fields: dict[str, int]) -> None:
        self.do(pool, "policy", {"fields": fields})

    @rule(pool=POOLS, what=st.sampled_from(("replicate", "replicate", "failover", "forget")))
    def lose(self, pool: int, what: str) -> None:
        self.do(pool, what, {})


@pytest.mark.slow
def test_pools_do_what_the_model_does(world: World) -> None:
    """S1 to S7, S10, S11, L1, L3: two thousand steps of two pools, whatever their order."""
    run_state_machine_as_test(
        lambda: Machine(world),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True,
            database=None, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip

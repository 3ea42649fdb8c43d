"""Every attack by its name: what is done, and what runs it.

An attack in a world is a fleet at work with histories, which `tests/hosts/checker.py` reads; any
other is a file of the suite, there in its short form and here in its long one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

FUZZ = {"GPU_BROKER_FUZZ": "200"}

CROWD = {"GPU_BROKER_CROWD": "100000", "GPU_BROKER_CLIENTS": "1000"}

ARRIVALS = "faults/test_crowds.py::test_clients_that_arrive_at_once_are_all_served"

EXPIRIES = "faults/test_crowds.py::test_leases_that_end_at_once_hold_nobody_up"


@dataclass(frozen=True, slots=True)
class Attack:
    """One of them.

    Attributes:
        world: it is run by `python -m tests.hosts` under its own name.
        tests: else what pytest is given.
        env: the long form's.
    """

    does: str
    world: bool = False
    tests: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def _world(does: str) -> Attack:
    return Attack(does, world=True)


def _test(does: str, *tests: str, **env: str) -> Attack:
    return Attack(does, tests=tuple(f"tests/{name}" for name in tests), env=env)


ATTACKS = {
    # Whoever is killed or does not run.
    "killed": _world("SIGKILL of a host with its reporter and its agents"),
    "waiter-killed": _test(
        "SIGKILL of a holder, of the first in the queue", "faults/test_waiter_killed.py"
    ),
    "preempted": _test(
        "SIGKILL of victim, head, broker, store, primary and steps of the clock in a preemption",
        "faults/test_preempted.py",
        "faults/test_preempted_failover.py",
    ),
    "agents-die": _test(
        "SIGKILL of MCP clients and servers: waiting, holding, with a command under way",
        "mcp/test_stdio.py::test_killed_process_leaves_nothing",
        "mcp/test_http.py::test_killed_client_leaves_nothing_but_what_it_was_told_of",
        "mcp/test_http.py::test_killed_broker_loses_no_lease_and_no_place",
    ),
    "interrupted": _test(
        "Ctrl-C and cancelled tasks at every instruction of a lease's life",
        "faults/test_interrupted.py",
        GPU_BROKER_SOAK="1",
    ),
    "forked": _test("children that leave their parent's block", "unit/test_fork.py"),
    "brokers-killed": _world("SIGKILL of one replica after another, under load over HTTP"),
    "broker-killed": _test(
        "SIGKILL of the one broker: SDK leases go on", "faults/test_broker_killed.py"
    ),
    "crashed-everysec": _world("SIGKILL of Redis, appendfsync everysec"),
    "crashed-always": _world("SIGKILL of Redis, appendfsync always: what was answered is there"),
    "memory-lost": _test(
        "SIGKILL of a Redis that had not written the last grants", "faults/test_data_loss.py"
    ),
    "stopped": _world("SIGSTOP of an agent for two of its leases' times"),
    "paused": _world("SIGSTOP of agents for 0.5 to 1.3 times what their leases last"),
    "hung": _world("SIGSTOP of Redis for 0.5 to 1.3 times what leases last"),
    "redis-away": _test(
        "Redis killed, hung, started again: what is answered meanwhile", "faults/test_redis_away.py"
    ),
    # The network.
    "partition": _world("a host is cut off, for a moment and for longer than its leases"),
    "weather": _world("packets late by 40 to 80 ms, then lost: 5 %, then 30 %"),
    "replies": _test("one reply in twenty lost, a reply late", "faults/test_lost_replies.py"),
    # Time.
    "stepped": _world("Redis's clock: seconds and an hour back, and an hour forward"),
    "steps": _test("Redis's clock, a client at a time", "faults/test_clock_steps.py"),
    "skewed": _world("clocks of agents: hours and days off, and stepping"),
    # The store.
    "full": _world("Redis at maxmemory, for GPU_BROKER_FULL_S=6 seconds"),
    "meddled": _world("SCRIPT FLUSH, FUNCTION FLUSH, CLIENT KILL, CLIENT PAUSE, an endless script"),
    "flushed": _world("FLUSHALL"),
    "storm": _test(
        "200 waiters while scripts are flushed and connections killed", "faults/test_waiters.py"
    ),
    "failover": _world("the primary dies, Sentinels name a replica"),
    "stale": _world("a replica that lacks the last grants is promoted"),
    "cluster": _world("a node of a Cluster dies and comes back"),
    # Crowds.
    "race": _test("20 threads and 20 processes for one GPU", "faults/test_lease_race.py"),
    "arrivals": _test("1,000 clients at once", ARRIVALS, **CROWD),
    "expiries": _test("100,000 leases end at once", EXPIRIES, **CROWD),
    # What is sent.
    "torn": _test(
        "HTTP requests that break off, in crumbs, of no clear length", "api/test_torn.py"
    ),
    "slow": _test(
        "slow requests, a header of a megabyte, who does not read", "api/test_slow_clients.py"
    ),
    "nonsense": _test(
        "a store that answers nonsense, byte for byte", "redis/test_malformed.py", **FUZZ
    ),
    "replies-fuzzed": _test(
        "nested replies of any type to every verb and reading",
        "unit/test_protocol_fuzz.py",
        "unit/test_readings_fuzz.py",
        **FUZZ,
    ),
    "arguments": _test(
        "every script with spoilt arguments: no partial write", "lua/test_arguments_fuzz.py", **FUZZ
    ),
    "key-files": _test(
        "ten writers of one key file, and files that cannot be trusted", "unit/test_key_file.py"
    ),
    "receivers": _test(
        "receivers of webhooks that hang, fail, break off, and senders that die",
        "hooks/test_delivery.py",
        "hooks/test_takeover.py",
        "hooks/test_web.py",
    ),
    "secrets": _test(
        "keys, passwords and tokens in logs, answers, ps, MONITOR, tracebacks",
        "api/test_secrets.py",
        "api/test_logs.py",
    ),
}
"""By name, in the order in which they run."""

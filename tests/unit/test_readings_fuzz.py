"""Whatever a store answers to a reading, it returns what it reads or raises a LeaseError."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_sdk import attach
from agent_sdk.errors import LeaseError
from agent_sdk.keys import Keys
from agent_sdk.protocol.messages import Answer, Call
from agent_sdk.state import events, explain, pool_state, queue, snapshot
from agent_sdk.state.holders import read_holders
from agent_sdk.usage import advice, history, reading, totals
from tests.unit.calls import FRAME, REQUEST
from tests.unit.replies import NESTED, QUIET

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from hypothesis.strategies import DataObject, SearchStrategy

KEYS = Keys("default")
TOKEN = REQUEST.token


def _standings() -> Generator[Any, Answer, Any]:
    return pool_state.standings((yield from pool_state.read(KEYS)))


def _tail() -> Generator[Any, Answer, Any]:
    tail = events.Tail(KEYS, "5-0")
    return tail.take((yield tail.ask(0)).raw)


READINGS: dict[str, Callable[[], Generator[Any, Answer, Any]]] = {
    "pool": lambda: snapshot.pool(KEYS),
    "devices": lambda: snapshot.devices(KEYS),
    "leases": lambda: snapshot.leases(KEYS),
    "hosts": lambda: snapshot.hosts(KEYS),
    "waiters": lambda: queue.waiters(KEYS),
    "lookup": lambda: queue.lookup(KEYS, TOKEN),
    "adopt": lambda: attach.adopt(KEYS, TOKEN),
    "explain": lambda: explain.explain(KEYS, TOKEN),
    "explain_request": lambda: explain.explain_request(KEYS, REQUEST),
    "standings": _standings,
    "holders": lambda: read_holders(KEYS, "h1", 1000, (TOKEN,)),
    "events": lambda: events.newest(KEYS, 5),
    "tail": _tail,
    "usage_totals": lambda: totals.read(KEYS, ("default",)),
    "usage": lambda: reading.read(KEYS, ("day", "team", "agent"), 0, None),
    "usage_of_hosts": lambda: reading.read(KEYS, ("host", "model"), "20d", None),
    "history": lambda: history.read(KEYS, limit=3, since="1d"),
    "advice": lambda: advice.read(KEYS, "1d"),
    "history_after": lambda: history.read(KEYS, after="5-0", agent="ann"),
}

RECORD = {
    "state": st.sampled_from(("active", "waiting", "offered", "cooling")),
    "request": st.just("900|1|0|30000|0|5|*|*|spread|refuse"),
    "devices": st.sampled_from(("", "gpu-1=900", "gpu-1=", "=", "gpu-1=900,gpu-2=5")),
    "queue_id": st.just("*/*/m10"), "agent": st.just("ann"), "outcome": st.just("expired"),
}  # fmt: skip
NUMBERS = (
    "fence", "granted_at_ms", "expires_at_ms", "ttl_ms", "memory_mb", "rank", "enqueued_ms",
    "wait_until_ms", "total_mb", "system_mb", "leased_mb", "withheld_mb", "unleased_mb", "leases",
    "used_mb", "index", "schema", "epoch", "offset_ms", "last_ms", "closed_until_ms", "waiting",
    "max_memory_per_agent_mb", "max_leases_per_agent", "default_memory_mb", "sampled_ms",
    "safe_mode", "allow_fractional_shares", "drained", "reported_ms", "deadline_ms",
    "processes", "ann", "ended_at_ms", "waited_ms", "gpus", "mb", "known_ms", "peak_mb",
    "usage_days",
)  # fmt: skip
WORDS = ("client", "pid", "owner", "host", "name", "model", "reserved_for", "exclusive", "reason")

COUNTS = st.integers(0, 10**13).map(str) | st.sampled_from(("0", "1", "-1", "", "x", "9" * 5000))

HASHES = st.fixed_dictionaries(
    {},
    optional=RECORD
    | dict.fromkeys(NUMBERS, COUNTS)
    | {word: st.sampled_from(("h1", "", "gpu-1", TOKEN)) for word in WORDS},
)
"""A record, a device, a host and the pool at once, of which much may be wrong or missing."""

LISTS = st.lists(st.sampled_from((TOKEN, "gpu-1", "gpu-2", "h1", "host:h1", "*")), max_size=4)

EVENTS = st.lists(st.tuples(st.sampled_from(("5-0", "7-1", "x")), HASHES), max_size=3)

LINES = st.lists(
    st.builds(
        lambda of: " ".join(f"{name}={value}" for name, value in of.items()) + " on h1|m1", HASHES
    )
    | st.sampled_from(("", "on |", f"token={TOKEN} agent=a gpus=1 granted_at_ms=5 ended_at_ms=4")),
    max_size=3,
)
"""Lines of leases that have ended, and of sums."""

DAYS_SUMS = st.dictionaries(
    st.sampled_from(("lab ann m1", "h1|m1", "lab", "||", "  ")),
    st.sampled_from(("gpu_ms=5 leases=1", "gpu_ms=" + "9" * 400, "hours=1,x,3", "leases=-1 =", "")),
    max_size=3,
)

IN_TRANSACTION = DAYS_SUMS | st.lists(COUNTS, max_size=4) | st.just(Exception())
"""Answers within a transaction, to any command of it: the server's error is one, too."""

LIKELY: dict[str, SearchStrategy[Any]] = {
    "HGETALL": HASHES, "SMEMBERS": LISTS.map(set), "ZRANGE": LISTS, "TIME": st.just(["1795", "7"]),
    "SCARD": st.integers(0, 9), "ZRANK": st.none() | st.integers(0, 9), "GET": st.just("expired"),
    "PTTL": st.integers(-2, 900_000), "HGET": st.just("1"), "XREVRANGE": EVENTS, "XRANGE": EVENTS,
    "HMGET": st.lists(st.none() | st.sampled_from(("1", "h1", "")), min_size=2, max_size=3),
    "LRANGE": LINES, "MULTI": st.just("OK"),
    "XREAD": st.builds(lambda found: {"key": [found]}, EVENTS),
}  # fmt: skip
"""By command, what a Redis would answer, as far as its type goes."""


def likely(command: str, together: list[str]) -> SearchStrategy[Any]:
    """Answers to a command, sent together with others."""
    if command != "EXEC":
        return LIKELY[command]
    return st.tuples(*(LIKELY[each] | IN_TRANSACTION for each in together[1:-1])).map(list)


@pytest.mark.parametrize("reading", READINGS)
@QUIET
@given(data=st.data())
def test_any_answer_to_a_reading_is_a_result_or_a_lease_error(
    reading: str, data: DataObject
) -> None:
    """Answers of the right type and full of nonsense, or of any type at all, raise nothing else."""
    steps = READINGS[reading]()
    with suppress(StopIteration, LeaseError):
        asked = next(steps)
        while True:
            if isinstance(asked, Call):  # to adopt is to renew first
                raw: Any = ["RENEWED", *FRAME, 5000, 4000, ""]
            else:
                names = [str(command[0]) for command in asked.commands]
                raw = [data.draw(NESTED | likely(name, names)) for name in names]
            asked = steps.send(Answer(raw, 100.0))

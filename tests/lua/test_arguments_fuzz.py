"""Every verb with arguments that nobody thought of: a refusal leaves no write behind."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest
import redis

from agent_sdk.scripts.source import VERBS
from tests.audit import audit
from tests.lua.arguments import BAD_BYTES, DEFAULTS, NOT_NUMBERS
from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = int(os.environ.get("GPU_BROKER_FUZZ", "80"))
"""Calls of each verb and kind of server."""

AUDIT_EVERY = 50

NAMES = ("held", "waits", "cpu", "gone", "nobody", "two")

DEVICES = ("gpu-a", "gpu-b", "gpu-c", "gpu-new")

HOSTILE: tuple[Any, ...] = (
    *NOT_NUMBERS, *BAD_BYTES, "", "0", "1", "2", "16", "64", "65", "255", "256", "1000",
    "9999999999999", "9007199254740993", "h1", "h2", "*", "m1", "spread", "pack", "cpu", "refuse",
    "device", "host", "safe_mode", "state", "ok", "lost", "quarantined", "total_mb", "tell", "xids",
    "79:hold", "processes", "[]", "[[[", "a" * 300, "a" * 20_000, b"\xff\xfe", b"\0" * 40,
    "gpu-a=1", "gpu-a=900,gpu-a=900", "gpu-a=0", "gpu-zz=5", "|||||||||", "-nan", "1:1",
    *DEVICES, *map(token, NAMES),
)  # fmt: skip

TELLS = (
    ("total_mb", ("0", "1", "500", "4000", "9999999999999")), ("used_mb", ("0", "900", "99999")),
    ("system_mb", ("0", "10", "9999999999999")), ("state", ("ok", "lost", "quarantined", "zz")),
    ("reported_unleased_mb", ("0", "5000")), ("unattributed_mb", ("0", "77")),
    ("cooling_used_mb", ("0", "900")),
    ("quarantine", ("", "XID 79")), ("idle", (token("held"), "x,,y")), ("model", ("m1", "m2")),
    ("overuse", ("", token("held"))), ("xids", ("79:hold", "79", ":", "")),
    ("tell", (f"{token('held')}=idle+overuse", "=", f"{token('held')}=")), ("index", ("", "3")),
    ("simulated", ("0", "1")), ("parent", ("gpu-a", "")), ("ended", ("", "1|TERM")),
)  # fmt: skip
"""Fields that a reporter knows, with values that have their form and values that have not."""

REMEMBERS = {"release": {"UNKNOWN"}, "renew": {"UNKNOWN", "AGAIN"}}
"""Answers that are written down: a token is refused from now on, a pool is closed for a while."""

CLOCK = {"last_ms", "looked_ms", "sequence"}


def report_args(rng: random.Random) -> list[Any]:
    flat: list[Any] = []
    for _ in range(rng.randint(0, 3)):
        pairs = [
            (name, rng.choice(values)) for name, values in rng.sample(TELLS, rng.randint(0, 6))
        ]
        lies = rng.choice((0, 0, 0, 1, -1))
        flat += [rng.choice(DEVICES), len(pairs) + lies, *(x for pair in pairs for x in pair)]
    return [rng.choice(("h1", "h2")), 86_400_000, 0, "", 0, "test", *flat]


def claim_args(rng: random.Random) -> list[Any]:
    """A renewal that presents a lease which the pool does not know."""
    devices = rng.choice(("gpu-a=100", "gpu-a=100,gpu-b=100", "gpu-zz=1", "", "gpu-a=99999", "=,="))
    numbers = [rng.choice(("0", "1", "900", "30000", "9" * 13, "9" * 14, "9" * 99)) for _ in "123"]
    asked = f"900|{numbers[0]}|1|{numbers[1]}|{numbers[2]}|0|*|m1|spread|refuse"
    if rng.random() < 0.5:
        asked = "900|1|0|30000|0|0|*|*|spread|refuse"
    fence = rng.choice(("1", "1700000000000000", "1700000000000000", "9" * 16))
    epoch = rng.choice(("1", "9" * 16, "1700000000000000"))
    ttl_ms = rng.choice(("", "0", "5000"))
    return [token(rng.choice(NAMES)), fence, ttl_ms, "", epoch, "agent", devices, asked, "client",
            "1:1"]  # fmt: skip


def renew_args(rng: random.Random) -> list[Any]:
    return claim_args(rng) if rng.random() < 0.5 else [token(rng.choice(NAMES)), "", ""]


def renew_many_args(rng: random.Random) -> list[Any]:
    asked = ((token(rng.choice(NAMES)), "", rng.choice(("", "0", "5000"))) for _ in range(3))
    return ["", *(part for each in asked for part in each)]


ARGS: dict[str, Callable[[random.Random], list[Any]]] = {
    "acquire": lambda rng: [
        *(DEFAULTS | {"token": token(rng.choice(NAMES))}).values(),
        *rng.choice(((), (0, "note", "", "a", 1, 1, token("gone")), (0, "", "", "z", "", "", ""))),
    ],
    "renew": renew_args,
    "renew_many": renew_many_args,
    "release": lambda rng: [token(rng.choice(NAMES)), rng.choice((0, 1))],
    "reap": lambda _: [],
    "report": report_args,
    "revoke": lambda rng: [token(rng.choice(NAMES)), rng.choice((0, 1)), "op", "why"],
    "drain": lambda rng: [rng.choice(("device", "host")), rng.choice((*DEVICES, "h1")),
                          rng.choice((0, 1)), "op", "why"],
    "forget": lambda rng: [rng.choice(("device", "host")), rng.choice((*DEVICES, "h1")), "op", ""],
    "set_teams": lambda rng: ["op", rng.choice(("", "1", "2")), *rng.choice((
        (), ("a", "weight=2 nominal_mb=900"), ("a", "weight=x"), ("a", "weight=1", "a", "weight=2"),
        ("a",), ("a b", "weight=1"), ("a", "colour=1"), ("a", "max_priority=10"), ("a", "=1"),
    ))],
    "ask": lambda rng: [token(rng.choice(NAMES)), token(rng.choice(NAMES)), rng.choice(("", "op"))],
    "extend": lambda rng: [token(rng.choice(NAMES)), rng.choice((0, 1, 60_000)),
                           rng.choice(("", "op")), rng.choice(("", "op"))],
    "release_driver": lambda rng: [rng.choice(("h1", "h2")), rng.choice((0, 60_000)), "op", ""],
    "set_policy": lambda rng: ["op", *rng.choice((
        ["safe_mode", 0], ["safe_mode", 1], ["xid_actions", "79=hold,"], ["expiry_grace_s", 1],
        ["safe_mode", 0, "kill_on_oom"], ["idle_action", "enforce", "idle_action", "shout"],
    ))],
}  # fmt: skip
"""Per verb, arguments after the protocol number that are nearly right."""


def spoil(rng: random.Random, args: list[Any]) -> list[Any]:
    """None, one or several of them replaced, left out, doubled, or all in another order."""
    args = list(args)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
        at = rng.randrange(len(args) + 1)
        how = rng.random()
        if how < 0.6 and args:
            args[min(at, len(args) - 1)] = rng.choice(HOSTILE)
        elif how < 0.75:
            args = args[:at]
        elif how < 0.9:
            args.insert(at, rng.choice(HOSTILE))
        else:
            rng.shuffle(args)
    return args


def at_work(pool: Pool) -> None:
    """Everything that a pool can have: leases of every kind, a waiter, what is over, two hosts."""
    pool.report((device("gpu-a", 4000), device("gpu-b", index=1)), deadline_ms=86_400_000)
    pool.report((device("gpu-c", simulated=0),), host="h2", deadline_ms=86_400_000)
    granted(pool.acquire(token("held"), memory_mb=900, host="h1", ttl_ms=0))
    granted(pool.acquire(token("cpu"), memory_mb=3999, on_unavailable="cpu", ttl_ms=0))
    granted(pool.acquire(token("gone")))
    pool.release(token("gone"))
    granted(pool.acquire(token("cold"), memory_mb=1000, host="h2", ttl_ms=6000))
    pool.acquire(token("waits"), "ann", memory_mb=1000, host="h2", wait_ms=600_000)
    pool.policy(lost_us=2_000_000_000_000_000)  # so that claims of forgotten leases are judged


def less(memory: dict[str, Any], pool: Pool, *, counted: bool) -> dict[str, Any]:
    """The key space without what time it was, and without the counters of decisions."""
    base = pool.keys.base
    kept = {k: v for k, v in memory.items() if not (counted and k == f"{base}:stats")}
    kept[f"{base}:pool"] = {k: v for k, v in kept[f"{base}:pool"].items() if k not in CLOCK}
    return kept


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_verb_that_errs_or_refuses_has_changed_nothing(
    pool: Pool, verb: str, record_property: Callable[[str, object], None]
) -> None:
    """S9: Lua does not roll back, so every check of every argument comes before the first write."""
    seed = random.SystemRandom().randrange(2**32)
    rng, pool.checked = random.Random(seed), False
    at_work(pool)
    tags: dict[str, int] = {}
    for number in range(CASES):
        args = [rng.choice((1, 1, 1, 1, 1, 1, 1, "1", 2, "")), *spoil(rng, ARGS[verb](rng))]
        before = pool.stored()
        about = f"seed {seed}, call {number}: {verb} {args}"
        try:
            tag, *said = said_of(pool, verb, args)
        except redis.ResponseError as error:
            raise AssertionError(f"{about}: {error}") from error
        tags[tag] = tags.get(tag, 0) + 1
        undone = tag in {"REFUSED", "CONFLICT", "UNKNOWN", "AGAIN"} - REMEMBERS.get(verb, set())
        if undone:
            counted = tag == "REFUSED" and said[0] != "bad_request"
            after = less(pool.stored(), pool, counted=counted)
            was = less(before, pool, counted=counted)
            was = {k: v for k, v in was.items() if k in after or ":lease:" not in k}  # native TTL
            assert was == after, f"{about} {tag} {said}"
        if number % AUDIT_EVERY == 0:
            audit(pool.redis, pool.keys)
    for tag, count in tags.items():
        record_property(tag, count)


def said_of(pool: Pool, verb: str, args: list[Any]) -> list[Any]:
    """The answer without its frame."""
    reply = pool.run(verb, *args)
    return [reply[0], *reply[5:]]

"""The verbs as functions: the same answers and the same pool as by EVALSHA, on one pool with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.protocol.lease import release, renew_call
from agent_sdk.protocol.messages import Call
from agent_sdk.scripts import library as functions
from agent_sdk.scripts.source import CALLED, VERBS, scripts
from tests.audit import audit
from tests.pools import device, token

if TYPE_CHECKING:
    from tests.pools import Pool
    from tests.servers import Server


def by_function(pool: Pool, verb: str, *args: Any) -> Any:
    return pool.redis.fcall(f"gpu_{verb}", 1, pool.keys.base, 1, *args)


def by_script(pool: Pool, verb: str, *args: Any) -> Any:
    script = scripts()[verb]
    pool.redis.script_load(script.source)
    return pool.redis.evalsha(script.sha, 1, pool.keys.base, 1, *args)


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A server of the file's own: a library that goes closes every pool that it served."""
    return own


@pytest.fixture(autouse=True)
def library(pool: Pool) -> None:
    functions.load(pool.redis)


def acquire_args(name: str, **more: Any) -> tuple[Any, ...]:
    """Return the arguments that the SDK sends after the protocol."""
    from agent_sdk.request import Caller  # noqa: PLC0415 - one test's own

    ask = {"memory_mb": 400, "token": token(name), "host": "h1", "ttl_s": 30} | more
    return tuple(Caller("h1").request(f"agent-{name}", **ask))


def shape(answer: Any) -> Any:
    """An answer without what differs between any two runs: times and fences."""
    if isinstance(answer, list):
        return [shape(part) for part in answer]
    digits = isinstance(answer, int) or (isinstance(answer, str) and answer.isdigit())
    return "#" if digits and int(answer) > 2_000 else answer


def story(pool: Pool, run: Any) -> list[Any]:
    """Grants, a wait with a hand-off, renewals, a drain, a policy, a revoke; what each answered."""
    pool.report((device("gpu-a"), device("gpu-b", index=1)), deadline_ms=60_000)
    steps: list[tuple[str, tuple[Any, ...]]] = [
        ("acquire", acquire_args("a")),
        ("acquire", acquire_args("a")),
        ("acquire", acquire_args("b", memory_mb=900)),
        ("acquire", acquire_args("c", memory_mb=900, wait_s=30)),
        ("renew", (token("a"), "", "")),
        ("renew", (token("nobody"), "", "")),
        ("acquire", acquire_args("bad", memory_mb=0)),
        ("drain", ("device", "gpu-a", 1, "me", "why")),
        ("release", (token("b"), 1)),
        ("acquire", acquire_args("c", memory_mb=900, wait_s=30)),
        ("drain", ("device", "gpu-a", 0, "me", "why")),
        ("set_policy", ("me", "default_memory_mb", 300)),
        ("revoke", (token("a"), 1, "me", "why")),
        ("renew", (token("a"), "", "")),
        ("release", (token("c"), 1)),
        ("release", (token("c"), 1)),
        ("forget", ("device", "gpu-b", "me", "why")),
        ("release_driver", ("h1", 60_000, "me", "why")),
        ("reap", ()),
    ]
    return [shape(run(pool, verb, *args)) for verb, args in steps]


def state(pool: Pool) -> dict[str, Any]:
    """The key space without times, the name of the pool, and the life of the library."""

    def of(key: str) -> Any:
        kind = pool.redis.type(key)
        if kind == "hash":
            row = pool.redis.hgetall(key).items()
            return {f: shape(v) for f, v in row if not f.startswith("served")}
        if kind == "zset":
            return sorted(pool.redis.zrange(key, 0, -1))
        return kind

    base = f"{pool.keys.base}:"
    names = [key.removeprefix(base) for key in pool.redis.scan_iter(f"{base}*")]
    return {
        re.sub("(?<=^inbox:).*", "", name): of(base + name)
        for name in names
        if not name.startswith("test_")
    }


def test_story_is_the_same_by_either_way(pool: Pool) -> None:
    """Answers and key space."""
    answers = [story(pool, by_script)]
    states = [state(pool)]
    for key in pool.redis.scan_iter(f"{pool.keys.base}:*"):
        pool.redis.delete(key)
        pool.by_hand()
    answers.append(story(pool, by_function))
    states.append(state(pool))
    for left, right in zip(*answers, strict=True):
        assert left == right
    assert states[0] == states[1]
    assert answers[0][0][0] == "GRANTED"
    assert [answer[0] for answer in answers[0]].count("REFUSED") <= 1


def test_both_ways_work_on_one_pool(pool: Pool) -> None:
    """A lease of one is renewed and ended by the other, and the books agree."""
    pool.report((device("gpu-a"),), deadline_ms=60_000)
    assert by_script(pool, "acquire", *acquire_args("a"))[0] == "GRANTED"
    assert by_function(pool, "renew", token("a"), "", "")[0] == "RENEWED"
    assert by_function(pool, "acquire", *acquire_args("b"))[0] == "GRANTED"
    assert by_script(pool, "release", token("b"), 1)[0] == "RELEASED"
    assert by_function(pool, "release", token("a"), 1)[0] == "RELEASED"
    audit(pool.redis, pool.keys)


def test_nothing_is_carried_from_one_call_to_the_next(pool: Pool) -> None:
    """A library lives as long as the server: what a call made for itself must not."""
    pool.report((device("gpu-a"),), deadline_ms=60_000)
    other = f"{pool.keys.base[:-1]}-other}}"
    for n in range(300):
        assert by_function(pool, "acquire", *acquire_args(f"n{n}"))[0] == "GRANTED"
        refused = pool.redis.fcall("gpu_acquire", 1, other, 1, *acquire_args("x"))
        assert refused[5] == "not_ready"
        assert by_function(pool, "acquire", token("bad"), "no such agent !")[0] == "REFUSED"
        assert by_function(pool, "release", token(f"n{n}"), 1)[0] == "RELEASED"
    before = pool.redis.info("memory")["used_memory_vm_functions"]
    for n in range(2000):
        by_function(pool, "acquire", *acquire_args(f"m{n}"))
        by_function(pool, "release", token(f"m{n}"), 1)
    after = pool.redis.info("memory")["used_memory_vm_functions"]
    assert after - before < 2_000_000


def test_every_verb_has_its_function_with_its_flags(pool: Pool) -> None:
    """A function that must go on when the store is full carries allow-oom, as its script does."""
    names, version = functions.loaded(pool.redis)
    assert names == sorted([f"gpu_{verb}" for verb in CALLED] + ["gpu_version"])
    assert version == functions.library().version
    (library,) = pool.redis.function_list(library="gpu_broker")
    fields = functions._fields(library)
    flags = {functions._fields(f)["name"]: set(functions._fields(f)["flags"])
             for f in fields["functions"]}  # fmt: skip
    assert flags.pop("gpu_version") == {"no-writes"}
    for verb in VERBS:
        wanted = (
            {"allow-oom"} if "allow-oom" in scripts()[verb].source.partition("\n")[0] else set()
        )
        assert flags[f"gpu_{verb}"] == wanted


def test_calls_of_the_sdk_are_what_a_function_takes() -> None:
    """The same arguments, so that what is written down for one holds for the other."""
    call = renew_call("t" * 16, 7, 1000)
    assert call == Call("renew", (1, "t" * 16, 7, 1000), "t" * 16)
    assert next(release("t" * 16)).args == (1, "t" * 16, 1)


def test_flush_of_functions_does_not_touch_the_sdk(pool: Pool) -> None:
    """It can do without; deleting them is reported."""
    pool.report((device("gpu-a"),), deadline_ms=60_000)
    pool.redis.function_flush()
    assert functions.loaded(pool.redis) == ([], None)
    assert functions.delete(pool.redis) == []
    assert by_script(pool, "acquire", *acquire_args("a"))[0] == "GRANTED"
    functions.load(pool.redis)
    own, others = functions.own_library().name, functions.libraries(pool.redis)
    assert functions.delete(pool.redis) == sorted({"gpu_broker", own, *others})

"""The verbs' scripts: assembly, names, loading and runs; any Lua 5.1 reads them."""

from __future__ import annotations

from hashlib import sha1
from typing import TYPE_CHECKING, Any

import pytest
import redis
from fakeredis import FakeRedis, FakeServer
from lupa import lua51

from agent_sdk import AsyncLeaseClient, LeaseClient, Store
from agent_sdk.errors import BrokerUnavailable
from agent_sdk.scripts import source as module
from agent_sdk.scripts.source import (
    AT_ONCE,
    CALLED,
    CORE,
    GOES_ON,
    POLL,
    REST,
    VERBS,
    assemble,
    lua_folder,
    scripts,
)
from tests.audit import audit
from tests.pools import SKEWED_TIME, Pool, device, granted, said, token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server


@pytest.mark.parametrize("verb", VERBS)
def test_assemble_joins_the_library_in_order_and_the_verb(verb: str) -> None:
    """A script is each file once: what its verb needs at once, what it may need, and the verb."""
    source = assemble(verb, shebang=False).source
    first, _, rest = assemble(verb).source.partition("\n")
    assert rest == source
    assert first == ("#!lua flags=allow-oom" if verb in GOES_ON else "#!lua")
    head, _, later = source.partition("setmetatable(broker, {")
    now = [*CORE, *(name for name in REST if name in AT_ONCE.get(verb, ()))]
    for name in (*CORE, *REST):
        text = (lua_folder() / "lib" / f"{name}.lua").read_text()
        assert (text in head, text in later) == (name in now, name not in now), name
    own = (lua_folder() / f"{verb}.lua").read_text()
    assert source.endswith(f"start()\nreturn guarded(function()\n{own}\nend)")


@pytest.mark.parametrize("verb", VERBS)
def test_assemble_names_the_script_by_its_sha(own: Server, verb: str) -> None:
    """The SHA is Redis's own: EVALSHA finds what SCRIPT LOAD loaded."""
    script = assemble(verb)
    assert script.verb == verb
    assert script.sha == sha1(script.source.encode(), usedforsecurity=False).hexdigest()
    with own.connect() as client:
        assert client.script_load(script.source) == script.sha


def test_assemble_lets_memory_be_given_back_when_the_store_is_full() -> None:
    """Renew, release and reap go on at maxmemory; what takes more memory does not."""
    assert {"renew", "release", "reap", "report"} <= GOES_ON <= set(CALLED)
    assert "acquire" not in GOES_ON


def test_assemble_takes_another_library_file_instead() -> None:
    """A test may bring its own time; the rest stays as it is."""
    source = assemble("reap", instead={"time": SKEWED_TIME}).source
    assert SKEWED_TIME in source
    assert (lua_folder() / "lib" / "time.lua").read_text() not in source
    assert source.count("function time_us") == 1


def test_assemble_of_no_verb_is_an_error() -> None:
    """A verb is one of VERBS: there is no other file to find."""
    with pytest.raises(FileNotFoundError):
        assemble("grab")


def test_scripts_are_all_there_and_read_once() -> None:
    """Every verb has a script of its own; they are read once per process."""
    assert list(scripts()) == list(CALLED)
    assert len({script.sha for script in scripts().values()}) == len(CALLED)
    assert scripts() is scripts()


def test_lua_folder_is_the_packaged_one_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a wheel the scripts lie in the package; in a checkout, beside it."""
    (tmp_path / "agent_sdk").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "agent_sdk" / "scripts" / "source.py"))
    assert lua_folder() == tmp_path / "lua"
    (tmp_path / "agent_sdk" / "lua").mkdir()
    assert lua_folder() == tmp_path / "agent_sdk" / "lua"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("instead", [{}, {"time": SKEWED_TIME}], ids=["shipped", "skewed"])
def test_script_of_every_verb_compiles(verb: str, instead: dict[str, str]) -> None:
    """Lua 5.1 takes each whole script: not too many locals, no syntax of a later Lua."""
    lua51.LuaRuntime().compile(assemble(verb, shebang=False, instead=instead).source)


@pytest.mark.parametrize("name", CORE + REST)
def test_library_file_holds_no_global_and_asks_no_time_of_its_own(name: str) -> None:
    """Functions are local or of `broker`; only time.lua asks what time it is, once."""
    text = (lua_folder() / "lib" / f"{name}.lua").read_text()
    defined = [line for line in text.splitlines() if line.startswith("function ")]
    ours = ("broker", "queue", "offers", "whole", "reservations", "in_use", "preemption",
            "victims", "quotas", "sums")  # fmt: skip
    assert all(
        line.startswith(tuple(f"function {table}." for table in ours)) for line in defined
    ), defined
    assert text.count("redis.call('TIME')") == (name == "time")


@pytest.fixture
def fresh(own: Server) -> Iterator[redis.Redis]:
    """The server with no script and no function loaded; its keys are others' and stay."""
    with own.connect() as client:
        client.script_flush()
        client.function_flush()
        yield client


def test_client_on_a_server_that_knows_no_script_loads_it(own: Server, fresh: redis.Redis) -> None:
    """NOSCRIPT is answered by loading the one script, once, unseen by the caller."""
    pool = Pool(fresh)
    pool.report((device("gpu-a", 1000),))
    fresh.script_flush()
    store = Store(own.socket_url)
    with LeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        lease = client.acquire("agent", memory_mb=900)
        shas = [scripts()[verb].sha for verb in ("acquire", "release")]
        assert fresh.script_exists(*shas) == [True, False]
        client.renew(lease)
        fresh.script_flush()
        assert client.release(lease)
        assert fresh.script_exists(*shas) == [False, True]
    audit(fresh, pool.keys)


async def test_async_client_on_a_server_that_knows_no_script_loads_it(
    own: Server, fresh: redis.Redis
) -> None:
    """The same for asyncio."""
    pool = Pool(fresh)
    pool.report((device("gpu-a", 1000),))
    fresh.script_flush()
    store = Store(own.socket_url)
    async with AsyncLeaseClient(store, pool=pool.keys.pool_name, hostname="h1") as client:
        lease = await client.acquire("agent", memory_mb=900)
        fresh.script_flush()
        await client.renew(lease)
        assert await client.release(lease)
    audit(fresh, pool.keys)


@pytest.fixture
def full(own: Server) -> Iterator[Pool]:
    """A pool with a lease on a server that is at maxmemory."""
    with own.connect() as client:
        pool = Pool(client)
        pool.report((device("gpu-a", 1000),))
        granted(pool.acquire(token("a")))
        client.config_set("maxmemory", "1mb")
        yield pool
        client.config_set("maxmemory", "0")
        audit(client, pool.keys)


def test_acquire_on_a_full_store_is_refused_whole(own: Server, full: Pool) -> None:
    """S9: the script does not start, and nothing has changed; callers are told store_full."""
    before = full.stored()
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        full.acquire(memory_mb=1)
    assert full.stored() == before
    store = Store(own.socket_url)
    with (
        LeaseClient(store, pool=full.keys.pool_name, hostname="h1") as client,
        pytest.raises(BrokerUnavailable) as caught,
    ):
        client.acquire("agent", memory_mb=1)
    assert caught.value.code == "store_full"


def test_renew_release_and_reap_on_a_full_store_go_on(full: Pool) -> None:
    """Holders keep what they hold, and giving back is how a store gets room again."""
    assert full.renew(token("a"))[0] == "RENEWED"
    assert full.release(token("a"))[0] == "RELEASED"
    assert full.reap()[0] == "REAPED"


def test_report_on_a_full_store_goes_on(full: Pool) -> None:
    """Else each host would be away within its deadline, and its devices lent to no client."""
    assert full.report((device("gpu-a", 1000),))[0] == "REPORTED"


def test_waiters_on_a_full_store_keep_their_places_and_take_what_is_theirs(
    own: Server, full: Pool
) -> None:
    """By the verb poll, in their order; of a token that is not known it begins nothing."""
    names, asks = (token("w"), token("v")), {"memory_mb": 900, "wait_ms": 60_000}
    full.redis.config_set("maxmemory", "0")
    for place, name in enumerate(names):
        assert full.acquire(name, **asks)[5] == place
    full.redis.config_set("maxmemory", "1mb")
    for _ in range(3):
        full.redis.config_set("maxmemory", "0")
        full.skew(9000)
        full.redis.config_set("maxmemory", "1mb")
        full.report((device("gpu-a", 1000),))
        full.renew(token("a"))
        for place, name in enumerate(names):
            assert poll(full, name, **asks)[5] == place
    full.release(token("a"))
    assert poll(full, names[0], **asks)[0] == "GRANTED"
    assert poll(full, token("n"), **asks)[5:] == ["store_full", ""]


def poll(pool: Pool, name: str, **ask: Any) -> list[Any]:
    """Send what the SDK asks instead when the store is full."""
    plain = pool.command
    pool.command = lambda verb: plain(POLL if verb == "acquire" else verb)  # type: ignore[method-assign] # for one call
    try:
        return pool.acquire(name, **ask)
    finally:
        del pool.command  # type: ignore[method-assign] # the class has it


@pytest.fixture
def fake() -> Iterator[Pool]:
    """A pool on fakeredis, on a server of its own: one leaked global spoils all that follows."""
    with FakeRedis(server=FakeServer(), decode_responses=True) as client:
        yield Pool(client, shebang=False)


def reported(pool: Pool) -> list[Any]:
    """The first report."""
    return pool.report((device("gpu-a", 1000), device("gpu-b", 1000)))


def test_report_on_fakeredis_is_taken(fake: Pool) -> None:
    """Smoke: a pool is made, with its devices."""
    assert said(reported(fake)) == ["REPORTED"]
    assert fake.free() == {"gpu-a": 1000, "gpu-b": 1000}


def test_acquire_on_fakeredis_is_granted(fake: Pool) -> None:
    """Smoke: a share is granted, and its lease key lives."""
    reported(fake)
    got = granted(fake.acquire(token("a"), memory_mb=900))
    [(uuid, _)] = got.devices
    assert fake.redis.get(fake.keys.lease(uuid, token("a"))) == str(got.fence)
    audit(fake.redis, fake.keys)


def test_renew_on_fakeredis_extends(fake: Pool) -> None:
    """Smoke: a renewal is taken."""
    reported(fake)
    fence = str(granted(fake.acquire(token("a"))).fence)
    assert said(fake.renew(token("a"), fence, 60000))[0] == "RENEWED"
    audit(fake.redis, fake.keys)


def test_release_on_fakeredis_gives_back(fake: Pool) -> None:
    """Smoke: what was held is free."""
    reported(fake)
    fake.acquire(token("a"), exclusive=1)
    assert said(fake.release(token("a"))) == ["RELEASED"]
    assert fake.free() == {"gpu-a": 1000, "gpu-b": 1000}
    audit(fake.redis, fake.keys)


def test_revoke_on_fakeredis_ends_the_lease(fake: Pool) -> None:
    """Smoke: the holder's next renewal is its last."""
    reported(fake)
    fake.acquire(token("a"))
    assert said(fake.revoke(token("a")))[0] == "REVOKED"
    assert said(fake.renew(token("a"))) == ["LOST", "revoked"]
    audit(fake.redis, fake.keys)


def test_drain_on_fakeredis_takes_a_device_out(fake: Pool) -> None:
    """Smoke: a drained device takes no new lease."""
    reported(fake)
    assert said(fake.drain("gpu-a")) == ["DRAINED", 1]
    assert fake.free() == {"gpu-b": 1000}
    audit(fake.redis, fake.keys)


def test_set_policy_on_fakeredis_is_obeyed(fake: Pool) -> None:
    """Smoke: the next request meets the new policy."""
    reported(fake)
    assert said(fake.set_policy(safe_mode=1)) == ["POLICY", 2]
    assert said(fake.acquire()) == ["REFUSED", "safe_mode", ""]


def test_reap_on_fakeredis_takes_back_what_is_over(fake: Pool) -> None:
    """Smoke: an expired lease is given back."""
    reported(fake)
    fake.acquire(token("a"), ttl_ms=1000)
    fake.skew(1001)  # longer silence closes a pool whose server does not tell who it is
    assert said(fake.reap()) == ["REAPED"]
    assert fake.free() == {"gpu-a": 1000, "gpu-b": 1000}
    audit(fake.redis, fake.keys)

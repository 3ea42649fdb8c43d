"""Failed calls to the store: repeated, or raised as the error that is true then."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import redis
from redis.exceptions import ConnectionError as Unconnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as TimedOut

from agent_sdk import BrokerUnavailable, LeaseError, Store
from agent_sdk.store.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, RetryPolicy
from tests.faults.proxy import Proxy
from tests.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import Server

NOT_NOW = [
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN The cluster is down",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Errors writing to the AOF file: No space left on device",
]
"""Answers that mean: not executed, perhaps soon."""

DENIED = [
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM this user has no permissions to run the 'evalsha' command",
]

FULL = "OOM command not allowed when used memory > 'maxmemory'."

WORDS = [line.partition(" ")[0] for line in NOT_NOW]

TOKEN = "token-of-a-lease-"


def error_of(server: Server, line: str, *, piped: bool = False) -> RedisError:
    """Return redis-py's exception for a server's error line, alone or in a pipeline."""
    ask = ("EVAL", "return redis.error_reply(ARGV[1])", 0, line)
    with server.connect() as client:
        pipe = client.pipeline(transaction=False)
        pipe.execute_command(*ask)
        call = pipe.execute if piped else partial(client.execute_command, *ask)
        with pytest.raises(RedisError) as told:
            call()
    return told.value


def end(error: RedisError, *before: RedisError) -> LeaseError:
    """The error that is true when the deadline is reached after these failures."""
    patience = RetryPolicy(60)
    for each in before:
        patience.pause_after(each, TOKEN)
    patience._deadline = 0
    with pytest.raises(LeaseError) as told:
        patience.pause_after(error, TOKEN)
    assert told.value.token == TOKEN
    assert told.value.__cause__ is error
    return told.value


def at_once(error: RedisError, *before: RedisError) -> LeaseError:
    """The error that a call ends with although there is time left."""
    patience = RetryPolicy(60)
    for each in before:
        patience.pause_after(each, TOKEN)
    with pytest.raises(LeaseError) as told:
        patience.pause_after(error, TOKEN)
    assert told.value.token == TOKEN
    assert told.value.__cause__ is error
    return told.value


def refused() -> RedisError:
    """Return redis-py's exception for a port where nothing listens."""
    with Store(f"redis://127.0.0.1:{free_port()}").connect() as client:
        return _error(client)


def lost(server: Server) -> RedisError:
    """Return redis-py's exception for a connection that closes after the call was sent."""
    with Proxy(server.port, lambda chunk: b"lost" not in chunk) as proxy:
        return _error_at(proxy.url)


def silent(server: Server) -> RedisError:
    """Return redis-py's exception for an answer that does not come."""
    release = threading.Event()
    with Proxy(server.port, lambda chunk: b"lost" not in chunk or release.wait(5)) as proxy:
        error = _error_at(proxy.url)
        release.set()
        return error


def _error_at(url: str) -> RedisError:
    with Store(url, 0.3).connect() as client:
        return _error(client)


def _error(client: redis.Redis) -> RedisError:
    with pytest.raises(RedisError) as told:
        client.echo("lost")
    return told.value


# What each failure is


@pytest.mark.parametrize("line", NOT_NOW, ids=WORDS)
def test_answer_that_may_pass_is_repeated_then_store_unavailable(server: Server, line: str) -> None:
    """The server answers, but not this: nothing was done, and it was tried to the end."""
    error = error_of(server, line)
    told = end(error, error, error)
    assert (type(told), told.code, told.retryable) == (BrokerUnavailable, "store_unavailable", True)
    assert "Redis answers, but not this" in str(told)


@pytest.mark.parametrize("line", NOT_NOW, ids=WORDS)
def test_answer_that_may_pass_is_repeated_in_a_pipeline_too(server: Server, line: str) -> None:
    """Reading goes through pipelines, where redis-py writes words of its own before the error."""
    error = error_of(server, line, piped=True)
    assert end(error, error).code == "store_unavailable"


@pytest.mark.parametrize("line", DENIED, ids=["NOAUTH", "WRONGPASS", "NOPERM"])
@pytest.mark.parametrize("piped", [False, True], ids=["alone", "piped"])
def test_denial_ends_the_call_at_once(server: Server, line: str, piped: bool) -> None:
    """Rights do not come by asking again; what the server said is told."""
    error = error_of(server, line, piped=piped)
    told = at_once(error)
    assert (told.code, told.retryable) == ("denied", False)
    assert str(error) in str(told)


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "piped"])
def test_full_store_ends_the_call_at_once(server: Server, piped: bool) -> None:
    """Memory does not come back within a call's time."""
    assert at_once(error_of(server, FULL, piped=piped)).code == "store_full"


def test_answer_not_understood_ends_the_call_at_once_as_a_mismatch(server: Server) -> None:
    """An error that no script of this version answers: another version, or no Redis."""
    assert at_once(error_of(server, "ERR unknown command 'EVALSHA'")).code == "protocol_mismatch"


def test_error_of_the_client_ends_the_call_at_once() -> None:
    """A call that redis-py itself refuses to send was not done, and no CPU is fallen back to."""
    assert at_once(redis.exceptions.DataError("Invalid input")).code == "bad_request"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ERR unknown command 'EVALSHA'", "lacks a command that leases need"),
        ("ERR Could not find scripting engine 'lua'", "no Lua engine"),
        ("ERR DB index is out of range", "no database of the number"),
        ("ERR SELECT is not allowed in cluster mode", "name none in the store's URL"),
    ],
)
def test_server_that_does_not_suit_is_said_in_words(server: Server, line: str, says: str) -> None:
    """Not that versions differ: what the server lacks."""
    told = at_once(error_of(server, line))
    assert told.code == "protocol_mismatch"
    assert says in str(told)
    assert "do not match" not in str(told)


def test_connect_that_fails_is_store_unavailable(tmp_path: Path) -> None:
    """There is no listener, no socket, or no answer to the connect: nothing was sent."""
    with Store(f"unix://{tmp_path}/redis.sock").connect() as client:
        absent = _error(client)
    for error in (refused(), absent, TimedOut("Timeout connecting to server")):
        assert end(error, error).code == "store_unavailable", error


def test_reply_that_is_lost_is_outcome_unknown(server: Server) -> None:
    """Closed after it was sent, or no answer in time: it may have been done."""
    for error in (lost(server), silent(server)):
        told = end(error)
        assert (told.code, told.retryable) == ("outcome_unknown", True), error


def test_reply_lost_once_is_outcome_unknown_to_the_end(server: Server) -> None:
    """Whatever comes after it: the first try may have been executed."""
    busy = error_of(server, NOT_NOW[1])
    for after in (refused(), busy):
        assert end(after, lost(server)).code == "outcome_unknown", after
        assert end(after, silent(server), after).code == "outcome_unknown", after


def test_reply_not_lost_is_store_unavailable_to_the_end(server: Server) -> None:
    """Refused connections and busy servers, in any order, have done nothing."""
    busy = error_of(server, NOT_NOW[5])
    assert end(busy, refused(), busy, refused()).code == "store_unavailable"
    assert end(refused(), busy, refused()).code == "store_unavailable"


@pytest.mark.parametrize("line", [FULL, *DENIED], ids=["OOM", "NOAUTH", "WRONGPASS", "NOPERM"])
def test_call_ended_after_a_lost_reply_is_outcome_unknown(server: Server, line: str) -> None:
    """store_full and denied say that nothing was done: not of a call that may have been."""
    assert at_once(error_of(server, line), lost(server)).code == "outcome_unknown"


# Pauses


def test_pauses_double_from_the_first_to_the_longest() -> None:
    """20 ms, then twice as long each time up to half a second; half of it is chance."""
    error, patience, full = Unconnected("connecting"), RetryPolicy(60), FIRST_PAUSE_S
    for _ in range(10):
        assert full / 2 <= patience.pause_after(error) <= full
        full = min(2 * full, LONGEST_PAUSE_S)
    assert full == LONGEST_PAUSE_S


def test_pauses_of_many_callers_differ() -> None:
    """Callers that failed together do not come back together."""
    error = Unconnected("connecting")
    pauses = [RetryPolicy(60).pause_after(error) for _ in range(100)]
    assert len({round(pause, 4) for pause in pauses}) > 20
    assert max(pauses) - min(pauses) > FIRST_PAUSE_S / 4


@pytest.mark.parametrize("deadline_s", [0.0, 0.05, 0.3])
def test_pauses_end_at_the_deadline(deadline_s: float) -> None:
    """No pause reaches over the deadline: who waits is told in time."""
    began, patience, ends = time.monotonic(), RetryPolicy(deadline_s), []

    def wait() -> None:
        while True:
            pause = patience.pause_after(Unconnected("connecting"))
            ends.append(time.monotonic() + pause)
            time.sleep(pause)

    with pytest.raises(BrokerUnavailable):
        wait()
    assert all(each <= began + deadline_s + 0.01 for each in ends)
    assert len(ends) >= (2 if deadline_s >= 0.3 else 0)
    assert time.monotonic() - began <= 2 * deadline_s + 0.1

"""`gpu-broker functions`: load, list, print and delete the library."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent_sdk.scripts import library as functions
from tests.program import called
from tests.servers import free_port

if TYPE_CHECKING:
    import subprocess

    from tests.servers import Server


def call(url: str, *args: str) -> subprocess.CompletedProcess[str]:
    return called("functions", *args, REDIS_URL=url)


def test_library_is_loaded_listed_and_deleted(own: Server) -> None:
    """Loading again is no error; what is there is told, and whose it is."""
    with own.connect() as redis:
        redis.function_flush()
    assert "the server has none" in call(own.url, "list").stdout
    assert "for the SDK of this version: not there" in call(own.url, "list").stdout
    for _ in range(2):
        done = call(own.url, "load")
        assert done.returncode == 0
        assert "gpu_release" in done.stdout
        assert "redis-cli FCALL gpu_reap 1 'gpu:{default}' 1" in done.stdout
    found = json.loads(call(own.url, "list", "-o", "json").stdout)
    library = functions.library()
    assert (found["current"], found["version"]) == (True, library.version)
    with own.connect() as redis:
        older = library.source.replace(library.version, "0" * 40)
        redis.function_load(older, replace=True)
    assert "another version's" in call(own.url, "list").stdout
    gone = call(own.url, "delete").stdout
    assert gone == f"gone: gpu_broker, {functions.own_library().name}\n"
    assert call(own.url, "delete").stdout == "the server had none\n"


def test_source_is_what_a_server_takes(own: Server) -> None:
    """Printed for redis-cli -x FUNCTION LOAD."""
    printed = call(own.url, "source").stdout
    with own.connect() as redis:
        redis.function_flush()
        assert redis.function_load(printed) == "gpu_broker"
        assert functions.loaded(redis)[1] == functions.library().version


def test_server_that_will_not_is_said_so(own: Server) -> None:
    """No server 69; not allowed 77."""
    assert call(f"redis://127.0.0.1:{free_port()}", "load").returncode == 69
    with own.connect() as redis:
        redis.execute_command("ACL", "SETUSER", "little", "on", ">x", "~*", "+@all", "-function")
    done = call(own.url.replace("redis://", "redis://little:x@"), "load")
    assert done.returncode == 77
    assert "denies" in done.stderr

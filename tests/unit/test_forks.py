"""A broker that is forked does what one does that is started."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.api.brokers import GRANTING, PROGRAM, SIM, Broker, eventually
from tests.forks import Forked

if TYPE_CHECKING:
    from tests.servers import Server

WAYS = {"forked": None, "started": (PROGRAM,)}

OF_ONE_START = re.compile(r"localhost:\d+|replica=\w+|\d{4}-\d\d-\d\dT\S+|pool fork-\w+")

OF_THE_FIRST = "functions: loaded"
"""The first broker on a server says so."""


def files(pid: int) -> list[str]:
    """List what a process has open, but sockets to other processes, which come and go."""
    local = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    names = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
    kinds = [(re.sub(r"\d+|tmp/#\S+", "", name), re.findall(r"\d+", name)) for name in names]
    return sorted(kind for kind, of in kinds if kind != "socket:[]" or of[0] in local)


def facts(broker: Broker) -> dict[str, Any]:
    """Facts that a process has from its start."""
    proc = Path("/proc") / str(broker.process.pid)
    signals = re.findall(r"^Sig(?:Blk|Ign|Cgt):.*", (proc / "status").read_text(), re.MULTILINE)
    return {
        "files": files(broker.process.pid),
        "group": os.getpgid(broker.process.pid) == broker.process.pid,
        "folder": (proc / "cwd").readlink(),
        "signals": signals,
        "health": sorted(broker.http.get("/health").json()),
        "hosts": [host["host"] for host in broker.http.get("/hosts").json()["hosts"]],
    }


def served(server: Server, way: str) -> dict[str, Any]:
    """The facts of one that serves, and of its end."""
    pool = f"fork-{uuid4().hex[:8]}"
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool}
    with Broker(program=WAYS[way], **settings) as broker:
        assert isinstance(broker.wait().process, Forked) == (way == "forked")
        eventually(lambda: "see it" in broker.said(), 20)
        found, code = facts(broker), broker.stop()
        lines = [x for x in broker.said().splitlines() if OF_THE_FIRST not in x]
        return found | {"code": code, "said": sorted(OF_ONE_START.sub("", x) for x in lines)}


def test_forked_one_has_the_same_files_and_says_the_same(server: Server) -> None:
    """Its streams, sockets, signals and words, to its end by SIGTERM, with code 0."""
    with Broker(**SIM, REDIS_URL=server.url):  # the template has a child that runs
        forked, started = (served(server, way) for way in WAYS)
    assert forked == started
    assert (forked["code"], forked["hosts"]) == (0, ["h1"])


@pytest.mark.parametrize("way", WAYS)
def test_wrong_start_ends_with_its_code(way: str) -> None:
    """2, after one sentence; the wait for it says so, also when it is asked again."""
    with Broker(program=WAYS[way], **SIM | {"GPU_BROKER_DEVICES": "sim:none"}) as broker:
        assert [broker.process.wait(20), broker.process.poll()] == [2, 2]
        assert broker.said().startswith("gpu-broker serve: ")
        broker.kill()  # what has ended is signalled no more


@pytest.mark.parametrize("way", WAYS)
def test_killed_one_is_gone(server: Server, way: str) -> None:
    """The code is the signal's, as of any child."""
    settings = GRANTING | {"REDIS_URL": server.url, "GPU_BROKER_POOL": f"fork-{uuid4().hex[:8]}"}
    with Broker(program=WAYS[way], **settings) as broker:
        assert broker.wait().process.poll() is None
        broker.process.send_signal(signal.SIGKILL)
        assert broker.process.wait(10) == -signal.SIGKILL
        assert not (Path("/proc") / str(broker.process.pid)).exists()

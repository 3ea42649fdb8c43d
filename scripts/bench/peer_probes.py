"""Abilities of each peer beside locking: asked of it, where asking can tell.

An answer is a yes or a no and how it was found: `probed`, or `by its interface`: a call that takes
no quantity accounts for none.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from peer_servers import (
    NotMeasured,
    Process,
    etcd_server,
    lock_folder,
    make_pools,
    peers_python,
    redis_server,
)
from rival import ETCD, FILES, LOCK, ONE, OURS, POTTERY, REDIS_LOCK, RESLOCK

from agent_sdk import LeaseClient, Refused, Store
from agent_sdk.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED = (OURS, LOCK, REDIS_LOCK, POTTERY, ETCD, FILES, RESLOCK)

NAME = "shared-probe"
TTL_S, WAITERS, GAP_S, TRIES, BARGES = 2.0, 5, 0.25, 3, 10
SYNCED_S = 1.3
"""Seconds that `appendfsync everysec` needs."""

QUESTIONS = (
    "two share a GPU as long as their memory fits",
    "several GPUs at once, all or none",
    "a fence that grows with each grant",
    "in the order in which they came",
    "no request passes one of the same size that waits",
    "a live holder is told of its loss by itself",
    "still held after a server restart with its log",
    "no other gets it after a restart without",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An ability of a peer, and how that is known."""

    yes: bool
    how: str


Answers = dict[str, Answer]


def answers(kind: str) -> Answers:
    """Return every question's answer of one kind, on servers of its own."""
    found = dict(zip(QUESTIONS[:2], of_quantity(kind), strict=True))
    with ExitStack() as stack:
        server = server_of(kind, stack, logged=True)
        where = server if isinstance(server, str) else server.url
        one = stack.enter_context(Process(kind, where))
        other = stack.enter_context(Process(kind, where))
        found[QUESTIONS[2]] = fenced(one)
        found[QUESTIONS[3]] = ordered(one, other)
        found[QUESTIONS[4]] = passed(one, other)
        found[QUESTIONS[5]] = told(kind, where, one)
        if isinstance(server, str):
            keeper = "the kernel" if kind == FILES else "a file"
            nothing = Answer(yes=True, how=f"there is no server: {keeper} holds it, of one host")
            return found | dict.fromkeys(QUESTIONS[6:], nothing)
        found[QUESTIONS[6]] = kept(server, one, other)
    found[QUESTIONS[7]] = kept_without(kind)
    return found


def server_of(kind: str, stack: ExitStack, *, logged: bool) -> Any:
    """Return a server for that kind, with or without a log of its own; or a folder."""
    if kind in {FILES, RESLOCK}:
        return stack.enter_context(lock_folder())
    if kind == ETCD:
        return stack.enter_context(etcd_server())
    server = stack.enter_context(redis_server("--appendonly", "yes" if logged else "no"))
    if kind == OURS:
        make_pools(server.url)
    return server


def of_quantity(kind: str) -> Iterator[Answer]:
    """Shares of a GPU, and several GPUs."""
    if kind == RESLOCK:
        yield Answer(yes=True, how="by its interface: a call takes an amount of each resource")
        yield Answer(yes=True, how="by its interface: a call takes several, all or none")
        return
    if kind != OURS:
        yield Answer(yes=False, how="by its interface: a name, no quantity")
        yield Answer(yes=False, how="by its interface: one name in one call")
        return
    with redis_server() as server:
        make_pools(server.url)
        with LeaseClient(Store(server.url, 30.0), pool=ONE) as client:
            ask: dict[str, Any] = {"ttl_s": 60, "host": "any"}
            client.acquire("a", memory_mb=10_000, **ask)
            client.acquire("b", memory_mb=10_000, **ask)
            yield Answer(yes=refused(client, memory_mb=10_000, **ask), how="probed")
        with LeaseClient(Store(server.url, 30.0), pool="many") as client:
            got = client.acquire("c", memory_mb=8, devices=8, **ask)
            several = len(got.devices) == 8 and refused(client, memory_mb=8, devices=9, **ask)  # noqa: PLR2004 - of the host's 8
            yield Answer(yes=several, how="probed")


def refused(client: LeaseClient, **ask: Any) -> bool:
    """Return whether it is not to be had."""
    try:
        client.acquire("d", **ask)
    except Refused:
        return True
    return False


def fenced(one: Process) -> Answer:
    """Three grants, each with a larger number than the one before?"""
    fences = []
    for _ in range(3):
        fences.append(one.ask("acquire", name=NAME, wait_s=5)["fence"])
        one.ask("release", name=NAME)
    if None in fences:
        return Answer(yes=False, how="by its interface: a grant carries no number")
    return Answer(yes=fences == sorted(set(fences)), how="probed")


def ordered(one: Process, other: Process) -> Answer:
    """Five begin to wait a while apart: do they get it in that order, at least once in three?"""
    found = []
    for _ in range(TRIES):
        one.ask("acquire", name=NAME, wait_s=5)
        other.tell("queue", name=NAME, clients=WAITERS, gap_s=GAP_S)
        time.sleep(WAITERS * GAP_S + 0.3)
        one.ask("release", name=NAME)
        order = other.answer()
        found.append(", ".join(str(number + 1) for number in order))
        if order == list(range(WAITERS)):
            break
    return Answer(yes=order == list(range(WAITERS)), how=f"probed: {'; '.join(found)}")


def passed(one: Process, other: Process) -> Answer:
    """While another waits, release and try again at once: who has it?"""
    times = 0
    for _ in range(BARGES):
        one.ask("acquire", name=NAME, wait_s=10)
        other.tell("acquire", name=NAME, wait_s=10)
        time.sleep(0.25)
        times += one.ask("barge", name=NAME)
        other.answer()
        other.ask("release", name=NAME)
    return Answer(yes=not times, how=f"probed: passed {times} of {BARGES} times")


def told(kind: str, where: str, one: Process) -> Answer:
    """Take it away from a live holder behind its back: what does it hear?"""
    one.ask("acquire", name=NAME, wait_s=5, ttl_s=TTL_S)
    if kind == FILES:
        said = "by its interface: what could take it away is deleting the file, and says nothing"
        one.ask("release", name=NAME)
        return Answer(yes=False, how=said)
    take_away(kind, where)
    heard = one.ask("told", name=NAME, within_s=2 * TTL_S)
    if heard:
        return Answer(yes=True, how=f"probed: {heard}")
    error = one.ask("release", name=NAME)
    return Answer(yes=False, how=f"probed: at release, {error or 'not even then'}")


def take_away(kind: str, where: str) -> None:
    """Take the lock away, as an operator would."""
    if kind == OURS:
        with LeaseClient(Store(where, 30.0), pool=ONE) as client:
            for lease in client.leases():
                client.revoke(lease.token, force=True)
    elif kind == RESLOCK:
        command = [Path(peers_python()).parent / "reslock", "release", "--label", NAME]
        subprocess.run([*command, "--state", Path(where) / "state.json"], check=True)
    elif kind == ETCD:
        for lease in etcd(where, "/v3/lease/leases", {})["leases"]:
            etcd(where, "/v3/lease/revoke", {"ID": lease["ID"]})
    else:
        with redis.Redis.from_url(where) as client_of_all:
            client_of_all.flushdb()


def etcd(where: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return one call of its gateway."""
    with urllib.request.urlopen(where + path, json.dumps(body).encode(), timeout=5) as said:  # noqa: S310 - ours
        found: dict[str, Any] = json.load(said)
        return found


def kept(server: Any, one: Process, other: Process) -> Answer:
    """Kill the server, start it with its log: does anybody else get it?"""
    one.ask("acquire", name=NAME, wait_s=5)
    time.sleep(SYNCED_S)
    server.kill()
    server.start()
    return Answer(yes=not got_it(other, 1), how="probed")


def got_it(other: Process, wait_s: float) -> bool:
    """Return whether it gets it in that time; it reconnects, and asks again when refused."""
    until = time.monotonic() + wait_s
    while True:
        try:
            return bool(other.ask("acquire", name=NAME, wait_s=wait_s)["got"])
        except NotMeasured:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)


def kept_without(kind: str) -> Answer:
    """Return the server comes back empty while the holder lives: does anybody else get it too?"""
    if kind == ETCD:
        return Answer(yes=True, how="by its interface: it does not run without its log")
    with ExitStack() as stack:
        server = server_of(kind, stack, logged=False)
        one = stack.enter_context(Process(kind, server.url))
        other = stack.enter_context(Process(kind, server.url))
        epochs = {}
        if kind == OURS:
            with Store(server.url, 30.0).connect() as found:
                client: Any = found
                epochs = {ONE: client.hget(Keys(ONE).pool, "epoch")}
        one.ask("acquire", name=NAME, wait_s=5)
        server.kill()
        server.start()
        if kind == OURS:
            make_pools(server.url, epochs)
        got = got_it(other, 3)
        heard = one.ask("told", name=NAME, within_s=0) if kind == OURS else ""
    return Answer(yes=not got and not heard, how="probed, for 3 s")

"""A process with clients of one kind, which does what a line of JSON on its stdin says.

`python rival_worker.py KIND WHERE`: a job in, what came of it out. `MARK` is a file of 8 bytes that
all processes of a hand-off map: how often the resource was acquired. Who releases it stands aside
until that has grown, so that nobody hands it to himself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import mmap
import multiprocessing
import os
import random
import struct
import sys
import threading
import time
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from rival import blocking
from rivals import CLIENTS_ARE, MADE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from rival import Rival

Body = "Callable[[int], Coroutine[Any, Any, Any]]"

LONG_S, STEP_S, START_S, UNCONTENDED_S = 600.0, 0.001, 0.1, 10.0
HOLD_S, HELD_S = 0.01, (0.1, 0.25)
"""In the order probe; in a hand-off, at random, so that no one's polls fall in step with it."""


class Worker:
    """Clients of one kind."""

    def __init__(self, kind: str, where: str) -> None:
        self.made, self.where, self.clients_are = MADE[kind], where, CLIENTS_ARE[kind]
        self.loop = asyncio.new_event_loop() if self.clients_are == "tasks" else None
        self.mine: dict[str, Rival] = {}
        self.kept: dict[str, Rival] = {}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run one coroutine to its end."""
        return self.loop.run_until_complete(work) if self.loop else blocking(work)

    def client(self, name: str, ttl_s: float = LONG_S) -> Rival:
        """Return a client of its own for that name."""
        return self.made(self.where, name, ttl_s)

    def known(self, name: str) -> Rival:
        """Return the same client for the same name."""
        if name not in self.kept:
            self.kept[name] = self.client(name)
        return self.kept[name]

    def all(self, body: Body, clients: int) -> list[Any]:
        """Return the result of each of so many clients."""
        if self.loop:

            async def together() -> list[Any]:
                return await asyncio.gather(*(body(number) for number in range(clients)))

            return self.loop.run_until_complete(together())
        if self.clients_are == "processes":
            return in_processes(body, clients)
        found: list[Any] = [None] * clients

        def one(number: int) -> None:
            found[number] = blocking(body(number))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def pairs(self, clients: int, seconds: float) -> dict[str, float]:
        """Acquire and release, each client its own resource, for so long."""
        for number in range(clients):
            self.known(f"own-{number}")
        self.all(lambda number: self.pair_times(number, time.monotonic()), clients)  # connects
        begin = time.monotonic() + (START_S if clients > 1 else 0)
        times = self.all(lambda number: self.pair_times(number, begin + seconds, begin), clients)
        took_s = time.monotonic() - begin
        us = sorted(x for each in times for x in each)
        return {"pairs_per_s": len(us) / took_s, "p50_us": us[len(us) // 2],
                "p99_us": quantiles(us, n=100)[-1] if len(us) > 1 else us[0]}  # fmt: skip

    async def pair_times(self, number: int, until: float, begin: float = 0.0) -> list[float]:
        """µs of each pair; at least one."""
        client, found = self.known(f"own-{number}"), []
        await client.pause(max(0.0, begin - time.monotonic()))
        while True:
            began = time.perf_counter()
            if await client.acquire(UNCONTENDED_S):
                await client.release()
                found.append((time.perf_counter() - began) * 1e6)
            if time.monotonic() >= until:
                return found

    def chain(self, clients: int, until: float, mark: str) -> list[tuple[int, int]]:
        """Hand one resource round; (acquired, release called) in ns of the machine's clock."""
        with Path(mark).open("r+b") as file:
            shared = mmap.mmap(file.fileno(), 8)
        found = self.all(partial(self.links, until, shared), clients)
        return [tuple(link) for each in found for link in each]

    async def links(self, until: float, shared: mmap.mmap, number: int) -> list[tuple[int, int]]:
        """Return one client's part of the chain."""
        del number
        client, found = self.client("shared-chain"), []
        while (left := until - time.monotonic()) > 0:
            if not await client.acquire(max(left, STEP_S)):
                break
            acquired = time.monotonic_ns()
            count = struct.unpack("Q", shared[:8])[0] + 1
            shared[:8] = struct.pack("Q", count)
            await client.pause(random.uniform(*HELD_S))
            released = time.monotonic_ns()
            await client.release()
            found.append((acquired, released))
            while struct.unpack("Q", shared[:8])[0] == count and time.monotonic() < until:
                await client.pause(STEP_S)
        return found

    def acquire(self, name: str, wait_s: float, ttl_s: float = LONG_S) -> dict[str, Any]:
        """Acquire, and stay the holder."""
        client = self.mine[name] = self.client(name, ttl_s)
        got = self.run(client.acquire(wait_s))
        return {"got": got, "at_ns": time.monotonic_ns(), "fence": client.fence}

    def release(self, name: str) -> str:
        """Give it back; what the library says against it, or nothing."""
        return said_by(lambda: self.run(self.mine[name].release()))

    def told(self, name: str, within_s: float) -> str:
        """Return the notice that the holder gets of its loss by itself."""
        return self.mine[name].told(within_s)

    def queue(self, name: str, clients: int, gap_s: float) -> list[int]:
        """Start that many waiters, one after another; return the order in which they got it."""
        order: list[int] = []

        async def one(number: int) -> list[int]:
            client = self.client(name)
            await client.pause(number * gap_s)
            if await client.acquire(20):
                order.append(number)
                await client.pause(HOLD_S)
                await client.release()
            return [number]

        if self.clients_are == "processes":
            return in_processes(one, clients, ordered=True)
        self.all(one, clients)
        return order

    def barge(self, name: str) -> bool:
        """Release, and try at once: did the releaser pass those who wait?"""
        client = self.mine[name]

        async def again() -> bool:
            await client.release()
            return await client.acquire(0)

        passed = self.run(again())
        if passed:
            self.run(client.release())
        return bool(passed)


def in_processes(body: Body, clients: int, *, ordered: bool = False) -> list[Any]:
    """Run each client in a process; `ordered`: results in the order of their ends."""
    fork = multiprocessing.get_context("fork")
    done = fork.SimpleQueue()
    processes = [
        fork.Process(target=lambda n=number: done.put((n, blocking(body(n)))))
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    found = [done.get() for _ in processes]
    for process in processes:
        process.join()
    if ordered:
        return [number for number, _ in found]
    return [result for _, result in sorted(found)]


def said_by(work: Callable[[], object]) -> str:
    """Return the error that it raised, by name, or nothing."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever a library raises is its word
        return type(error).__name__
    return ""


def main() -> int:
    """Do one job after another until stdin ends."""
    logging.disable(logging.CRITICAL)  # pottery logs each lock that it did not get
    kind, where = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(kind, where)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"result": getattr(worker, job["job"])(**job["with"])}
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

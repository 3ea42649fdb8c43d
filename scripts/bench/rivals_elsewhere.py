"""Locks in etcd and in files of one host."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import threading
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

from rival import WHOLE_MB, Blocking


class Etcd(Blocking):
    """etcd's lock service by its JSON gateway; one session, which is a lease kept alive."""

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        self.host, _, self.port = where.removeprefix("http://").partition(":")
        self.wire = http.client.HTTPConnection(self.host, int(self.port), timeout=60)
        self.name, self.ttl_s = b64encode(name.encode()).decode(), max(2, int(ttl_s))
        self.lease = self.post("/v3/lease/grant", {"TTL": self.ttl_s})["ID"]
        self.key, self.over = "", threading.Event()
        threading.Thread(target=self.live, daemon=True).start()

    def live(self) -> None:
        """Keep the session alive on a connection of its own."""
        wire = http.client.HTTPConnection(self.host, int(self.port), timeout=60)
        while True:
            time.sleep(self.ttl_s / 3)
            body = json.dumps({"ID": self.lease})
            wire.request("POST", "/v3/lease/keepalive", body)
            if "TTL" not in json.loads(wire.getresponse().read())["result"]:
                self.over.set()
                return

    def told(self, within_s: float) -> str:
        """By the next keep-alive of the session."""
        return "the session's keep-alive says it" if self.over.wait(within_s) else ""

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 60) -> dict[str, Any]:
        """Return one call of the gateway."""
        if self.wire.sock:
            self.wire.sock.settimeout(timeout_s)
        self.wire.timeout = timeout_s
        self.wire.request("POST", path, json.dumps(body))
        reply = self.wire.getresponse()
        said: dict[str, Any] = json.loads(reply.read())
        if reply.status != http.HTTPStatus.OK:
            raise RuntimeError(f"etcd: {said}")
        return said

    async def acquire(self, wait_s: float) -> bool:
        """Give up: close the connection, and the server takes the waiter out of its queue."""
        try:
            said = self.post(
                "/v3/lock/lock", {"name": self.name, "lease": self.lease}, wait_s or 0.1
            )
        except TimeoutError:
            self.wire.close()
            return False
        self.key, self.fence = said["key"], int(said["header"]["revision"])
        return True

    async def release(self) -> None:
        """Give it back."""
        self.post("/v3/lock/unlock", {"key": self.key})


class Files(Blocking):
    """The home-made choice: a file lock for each GPU, tried where a table says it is free."""

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        from filelock import FileLock, Timeout  # noqa: PLC0415 - only in the process that measures it

        del ttl_s
        self.timeout = Timeout
        gpus = Path(where) / ("one.csv" if name.startswith("shared") else "many.csv")
        self.table, self.make = gpus, FileLock
        self.held: Any = None

    def free(self) -> list[str]:
        """GPUs with enough memory, as `nvidia-smi --query-gpu=index,memory.free` prints them."""
        rows = [line.split(", ") for line in self.table.read_text().splitlines()]
        found = [index for index, free in rows if int(free) >= WHOLE_MB]
        random.shuffle(found)
        return found

    async def acquire(self, wait_s: float) -> bool:
        """Lock the first free one; else try again in 50 ms, as filelock itself does."""
        until = time.monotonic() + wait_s
        while True:
            for index in self.free():
                lock = self.make(f"{self.table}.{index}.lock")
                try:
                    lock.acquire(timeout=0)
                except self.timeout:
                    continue
                self.held = lock
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)  # noqa: ASYNC251 - there is no loop

    async def release(self) -> None:
        """Give it back."""
        self.held.release()


class Reslock(Blocking):
    """reslock: amounts of what is counted in one JSON file of the host.

    A plain counter: its leases of GPUs want a driver to ask, which takes them longer.
    """

    def __init__(self, where: str, name: str, ttl_s: float) -> None:
        from reslock import ResourcePool  # noqa: PLC0415 - only in the process that measures it

        del ttl_s
        self.name, self.ask = name, {f"{name.replace('-', '_')}_mb": WHOLE_MB}
        self.pool = ResourcePool(Path(where) / "state.json")
        self.pool.set_resources(self.ask)
        self.held: Any = None
        self.loop: asyncio.Runner | None = None

    async def acquire(self, wait_s: float) -> bool:
        """With the library's own way to wait; its blocking one has no limit."""
        if not wait_s:
            self.held = self.pool.try_acquire(label=self.name, **self.ask)
            return self.held is not None
        self.loop = self.loop or asyncio.Runner()
        wait = asyncio.wait_for(self.pool.acquire_async(label=self.name, **self.ask), wait_s)
        try:
            self.held = self.loop.run(wait)
        except TimeoutError:
            return False
        return True

    async def release(self) -> None:
        """Give it back."""
        self.held.release()

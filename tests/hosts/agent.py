"""An agent as a process: leases, works, releases, and writes down what it believes.

Straight to Redis, where REDIS_URL says; with --replicas over HTTP, trying one address after another
as a client of several replicas does. SIGTERM ends it in good order.
"""

from __future__ import annotations

import argparse
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from agent_sdk import LeaseClient
from agent_sdk.clock import local_now
from agent_sdk.errors import LeaseError, error_for
from agent_sdk.http_request import Unanswered, Web
from agent_sdk.leases.lease import HeldLease
from agent_sdk.protocol.messages import new_token
from agent_sdk.renewal.http_transport import OK, code_of, granted
from agent_sdk.settings import own_hostname
from tests.hosts.history import Diary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_sdk.http_request import Reply

LOOK_S = 0.03
"""Between two looks at a lease that is held."""

STARVED_S = 0.4
"""A nap of LOOK_S that lasts so long: this machine did not let the process run."""

WAITS = 202
"""The status of a request that has its place in the queue."""

UNAVAILABLE = 503
"""The status of a replica that could not do it now, and did nothing."""

TRIES_S = 5.0
"""For how long a request over HTTP is repeated: as long as the SDK repeats a call."""

ANSWER_S = 3.0
"""For how long one replica is waited for; longer than it holds a request of ours."""


class Request(TypedDict):
    """A request for devices."""

    memory_mb: int
    devices: int
    exclusive: bool
    host: str


class Way(Protocol):
    """One way to the broker."""

    def acquire(self, request: Request) -> HeldLease: ...

    def release(self, lease: HeldLease) -> None: ...


class Sdk:
    """Straight to Redis; leases are renewed by the SDK's keeper."""

    def __init__(self, name: str, ttl_s: float, wait_s: float) -> None:
        self._client = LeaseClient.from_env(client_name=name)
        self._name, self._ttl_s, self._wait_s = name, ttl_s, wait_s

    def acquire(self, request: Request) -> HeldLease:
        lease = self._client.acquire(self._name, ttl_s=self._ttl_s, wait_s=self._wait_s, **request)
        self._client.keep(lease)
        return lease

    def release(self, lease: HeldLease) -> None:
        self._client.release(lease)  # type: ignore[arg-type] # what acquire gave is a Lease


class Replicas:
    """Over HTTP: a request goes to one replica after another until one answers it."""

    def __init__(self, name: str, ttl_s: float, urls: Sequence[str]) -> None:
        self._name, self._ttl_s = name, ttl_s
        self._webs = [Web(url) for url in urls]
        self._unsure = False

    def acquire(self, request: Request) -> HeldLease:
        body: dict[str, Any] = {
            **request, "agent": self._name, "ttl_s": self._ttl_s, "token": new_token(),
            "on_unavailable": "refuse", "wait_s": 1,
        }  # fmt: skip
        body["min_memory_mb"] = body.pop("memory_mb")
        sent_at, reply = local_now(), self._ask("/lease", body)
        if reply.status == WAITS:  # without a wait it is decided
            sent_at, reply = local_now(), self._ask("/lease", body | {"wait_s": 0})
        if reply.status != OK or not reply.body["granted"]:
            raise error_for(code_of(reply))
        return HeldLease(granted(reply.body, self._name, self._ttl_s, sent_at))

    def release(self, lease: HeldLease) -> None:
        lease.end()
        reply = self._ask("/release", {"token": lease.token, "refuse_late": True})
        done = self._unsure and code_of(reply) == "unknown_token"  # by a try that nobody answered
        if reply.status != OK and not done:
            raise error_for(code_of(reply))

    def _ask(self, path: str, body: dict[str, Any]) -> Reply:
        """The first answer; it is unsure whether an earlier try was carried out."""
        until, said, self._unsure = local_now() + TRIES_S, None, False
        while local_now() < until:
            for web in random.sample(self._webs, len(self._webs)):
                try:
                    said = web.ask("POST", path, body, until=local_now() + ANSWER_S)
                except Unanswered:
                    self._unsure = True
                    continue
                if said.status != UNAVAILABLE:
                    return said
            time.sleep(LOOK_S)
        raise error_for("store_unavailable" if said is None else code_of(said))


class Worker:
    """One after another: asks, works under the lease, gives it back.

    Args:
        diary: of the process.
        way: how it reaches the broker.
        requests: makes up what to ask for.
        hold_s: how long it works, on average.
    """

    def __init__(
        self, diary: Diary, way: Way, requests: Callable[[], Request], hold_s: float
    ) -> None:
        self._diary, self._way, self._requests, self._hold_s = diary, way, requests, hold_s

    def run(self, over: threading.Event) -> None:
        """Run until it is over, then release all that is held."""
        while not over.is_set():
            request, began = self._requests(), local_now()
            try:
                lease = self._way.acquire(request)
            except LeaseError as error:
                self._diary.called("acquire", began, error.code)
                over.wait(random.uniform(0.05, 0.3))
                continue
            exclusive = request["exclusive"] or request["devices"] > 1
            self._diary.granted(lease, began, exclusive=exclusive, asked=request["host"])
            self._diary.called("acquire", began, "ok")
            self._work(lease, random.expovariate(1 / self._hold_s), over)
            self._release(lease)

    def _work(self, lease: HeldLease, seconds: float, over: threading.Event) -> None:
        done_at, known = local_now() + seconds, lease.trusted_until
        while local_now() < done_at and not lease.lost and not over.wait(LOOK_S):
            if lease.trusted_until > known:
                known = lease.trusted_until
                self._diary.renewed(lease)

    def _release(self, lease: HeldLease) -> None:
        self._diary.ended(lease, lease.lost_reason)
        began = local_now()
        try:
            self._way.release(lease)
        except LeaseError as error:
            self._diary.called("release", began, error.code)
        else:
            self._diary.called("release", began, "ok")


class Probe:
    """Asks the same small thing all the time: how long nobody answered shows in its history."""

    def __init__(self, diary: Diary, name: str) -> None:
        self._diary = diary
        self._client = LeaseClient.from_env(client_name=name, deadline_s=0.25)

    def run(self, over: threading.Event) -> None:
        """Run until it is over, twenty times a second."""
        while not over.wait(0.05):
            began = local_now()
            try:
                self._client.reap()
            except LeaseError as error:
                self._diary.called("reap", began, error.code)
            else:
                self._diary.called("reap", began, "ok")


def requests_of(host: str, most_mb: int) -> Callable[[], Request]:
    """Return the requests of a host's agents: most share a local device, some take all or any."""

    def request() -> Request:
        kind = random.choices(("share", "alone", "two", "any"), (6, 2, 1, 1))[0]
        return {
            "memory_mb": random.randint(most_mb // 8, most_mb // 2),
            "devices": 2 if kind == "two" else 1,
            "exclusive": kind == "alone",
            "host": "any" if kind == "any" else host,
        }

    return request


def watch(diary: Diary, signals: list[int]) -> None:
    """Write down, until a signal, when this process was not let run, whatever the cause."""
    slept_at = local_now()
    while not signals:
        time.sleep(LOOK_S)
        woke_at = local_now()
        if woke_at - slept_at > STARVED_S:
            diary.starved(slept_at)
        slept_at = local_now()


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--ttl", type=float, default=2.0)
    parser.add_argument("--wait", type=float, default=2.0)
    parser.add_argument("--hold", type=float, default=1.0)
    parser.add_argument("--most", type=int, default=24576, help="MiB of the host's devices")
    parser.add_argument("--replicas", help="URLs, by commas: over HTTP")
    parser.add_argument("--probe", action="store_true")
    asked = parser.parse_args()
    host, over = own_hostname(), threading.Event()
    diary = Diary(asked.history, who=asked.name, host=host)
    todo: list[Worker | Probe]
    if asked.probe:
        todo = [Probe(diary, asked.name)]
    else:
        way: Way = (
            Replicas(asked.name, asked.ttl, asked.replicas.split(","))
            if asked.replicas
            else Sdk(asked.name, asked.ttl, asked.wait)
        )
        requests = requests_of(host, asked.most)
        todo = [Worker(diary, way, requests, asked.hold) for _ in range(asked.workers)]
    # Not `over` itself: its lock may be held by the very thread that the signal interrupts.
    signals: list[int] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: signals.append(number))
    with ThreadPoolExecutor(len(todo)) as threads:
        running = [threads.submit(one.run, over) for one in todo]
        watch(diary, signals)
        over.set()
    for one in running:
        one.result()


if __name__ == "__main__":
    main()

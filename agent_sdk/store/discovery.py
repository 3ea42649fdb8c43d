"""Discovery of the pool's primary, anew for each connection, where its address may change.

Sentinel and Cluster need the same of a client, since all of a pool is in one slot: the address of
the one server that takes its writes now. redis-py's own clients for them ask and follow inside a
call, with up to ten tries or sixteen redirections and sleeps, past the caller's deadline. Here a
connection asks once before it connects, within its own timeout. An answer that the primary is
elsewhere closes it once its answers are in, and `retry` decides about the next try.

An ASK is not followed. It says that the slot's keys are on their way to another node, and a script
must see all of a pool or nothing. On the node that they leave, `KEYS[1]`, which is the name of no
key, has every script answered ASK from the first moment on; on the other one, ASKING would let it
run among those that have arrived. So it is tried again until MOVED tells that all have.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 - redis-py's name for it
    NoPermissionError,
    RedisError,
)

from agent_sdk.store.connect_errors import mark_unsent, why_hopeless

if TYPE_CHECKING:
    from collections.abc import Generator

    from agent_sdk.store.url import Address, StoreUrl

LEAST_S = 0.01
"""Least seconds of a connect."""


class Primary(ABC):
    """Search for the primary among the nodes that know it, in order; safe for threads.

    Args:
        nodes: the nodes that are asked.
        asking: options of the connections to them.
    """

    ask: tuple[str, ...]
    """Command that asks a node."""

    greets: ClassVar[bool]
    """True if the found server must itself say that it is a primary."""

    def __init__(self, nodes: tuple[Address, ...], asking: dict[str, Any]) -> None:
        self._nodes = nodes
        self.asking = asking

    def find(self, within_s: float) -> Generator[tuple[Address, float], Any, Address]:
        """Yield a node to ask with the seconds to wait; it is sent the answer, or the error.

        Each node gets at most half of the time left, and one that fails is asked last from then on.

        Raises:
            RedisError: no node knows; the denial, if one denied the question.
        """
        until = time.monotonic() + within_s
        failures, hopeless = [], []
        for node in self._nodes:
            answer = yield node, max(LEAST_S, (until - time.monotonic()) / 2)
            if not isinstance(answer, RedisError):
                found = self._read(answer, node)
                if found:
                    return found
                answer = ConnectionError(f"{node[0]}:{node[1]} knows none")
            elif isinstance(answer, (AuthenticationError, NoPermissionError)):
                raise answer
            failures.append(str(answer))
            hopeless.append(why_hopeless(answer))
            self._ask_last(node)
        error = ConnectionError(f"Error connecting to {self}: {'; '.join(failures)}")
        mark_unsent(error, hopeless[0] if all(hopeless) else "")
        raise error

    def doubt(self) -> None:
        """Ask another node first: the server that the last one named is no primary now."""
        self._ask_last(self._nodes[0])

    def check(self, hello: Any) -> None:
        """Check the role in the server's greeting.

        Raises:
            ConnectionError: it is a replica.
        """
        said = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2], strict=True))
        if said["role"] != "master":
            raise ConnectionError(f"Error connecting to {self}: it is at a replica as yet")

    def _ask_last(self, node: Address) -> None:
        self._nodes = (*(other for other in self._nodes if other != node), node)

    @abstractmethod
    def _read(self, answer: Any, asked: Address) -> Address | None:
        """Return the primary's address by an answer; None: the answer has none."""


class SentinelPrimary(Primary):
    """Primary of a service that Sentinels watch."""

    greets = True

    def __init__(self, where: StoreUrl) -> None:
        super().__init__(where.nodes, where.asking)
        self.ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", where.service)

    def _read(self, answer: Any, asked: Address) -> Address | None:
        del asked
        return (answer[0], int(answer[1])) if answer else None

    def __str__(self) -> str:
        return f"the primary of {self.ask[-1]!r} that its Sentinels name"


class ClusterPrimary(Primary):
    """Node of a Cluster that has a key's slot."""

    greets = False  # a replica answers MOVED by itself
    ask = ("CLUSTER", "SLOTS")

    def __init__(self, where: StoreUrl, key: str) -> None:
        super().__init__(where.nodes, where.asking)
        self._seeds = where.nodes
        self._slot = key_slot(key.encode())

    def _read(self, answer: Any, asked: Address) -> Address | None:
        found, known = None, [asked]
        for first, last, *servers in answer:
            # A node that does not know its own address gives none; "?" is an undisclosed one.
            there = [(host or asked[0], port) for host, port, *_ in servers if host != "?"]
            known += there
            if first <= self._slot <= last and there:
                found = there[0]
        self._nodes = tuple(dict.fromkeys((*known, *self._seeds)))
        return found

    def __str__(self) -> str:
        return f"the Cluster's node that has slot {self._slot}"

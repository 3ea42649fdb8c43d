"""Lease as its holder sees it.

`lost` is computed from the clock at each reading: it is right even if no thread of this process has
run since a SIGSTOP. It is not safe to assume that a lease is held until it is released.

A lease belongs to the process that took it or adopted it. In a forked child, or unpickled in
another process, it is a view: it can be looked at, and is neither renewed nor released there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_sdk import evidence
from agent_sdk.clock import local_now, sent_at
from agent_sdk.engines.containers import container_label, runtime_args
from agent_sdk.engines.environment import environment, settings_of
from agent_sdk.errors import LeaseError, LeaseLost, UnknownToken, error_for
from agent_sdk.fork import identity, renew_in_child
from agent_sdk.lazy import LazyModule
from agent_sdk.leases.block import BlockHoldings, BlockToken
from agent_sdk.renewal.callbacks import callbacks, run
from agent_sdk.state.finding_kinds import NOTICES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from agent_sdk.engines.containers import Runtime
    from agent_sdk.engines.visible import Visible
    from agent_sdk.protocol.messages import Device, Grant, RecoveryClaim, Renewal
else:
    asyncio = LazyModule("asyncio")


log = logging.getLogger(__name__)

VIEW = (
    "another process holds this lease: it can only be looked at here; "
    "client.adopt(lease.token) takes it over"
)


PREEMPT_SLACK_S = 1.0
"""Seconds by which two tellings of one time of a preemption may differ: answers take their time."""


class _Lock:
    """Lock that a forked child has for itself."""

    def __init__(self) -> None:
        renew_in_child(self)

    def reset(self) -> None:
        """Make a lock that no thread holds. A signal handler may run while its thread holds it."""
        self.lock = threading.RLock()


class HeldLease:
    """Common part of `Lease` and `AsyncLease`.

    Attributes:
        token: the lease's name.
        agent: the agent that holds it.
        fence: grows with every grant; 0 for a local lease.
        ttl_ms: the time that each renewal asks for; 0 = no expiry.
        reason: the reason for a CPU lease, or None.
        expires_at_ms: the end on Redis's clock, as last told.
        remaining_ms: its rest at the grant or the last renewal.
        jeopardy: renewing fails at the moment; the lease is not lost yet.
        notices: its host's present findings about it, as last told: words of `NOTICES`.
        preempt_at: the time at which it is taken back, by `time.time()`, for a request with a right
            to its memory: save what must last, and release it before; None: it is not to be.
        wanted: the agent that asks for it, and the MiB that it wants (`yields=True`); None: no
            agent does. To go on costs nothing.
    """

    _lock = _Lock()
    """Lock of all leases; held no longer than it takes to set a field."""

    def __init__(self, grant: Grant, *, local: bool = False, client: Any = None) -> None:
        self.token = grant.token
        self.agent = grant.agent
        self.fence = grant.fence
        self.ttl_ms = grant.ttl_ms
        self.reason = grant.reason
        self.expires_at_ms = grant.expires_at_ms
        self.remaining_ms = grant.remaining_ms
        self.jeopardy = False
        self.notices: tuple[str, ...] = ()
        self.preempt_at: float | None = None
        self.wanted: tuple[str, int] | None = None
        self.local = local
        self._client = client
        self._held: weakref.ref[BlockHoldings[Any, Any]] | None = None
        self._holdings: BlockHoldings[Any, Any] | None = None
        self._holder = identity()
        self._grant = grant
        self._trusted_until = grant.trusted_until
        self._lost_code: str | None = None
        self._ended = False
        self._watchers: list[Callable[[], object]] = []
        self._callbacks: list[Callable[[], object]] = []
        self._on_notice: list[Callable[[], object]] = []

    @property
    def is_view(self) -> bool:
        """True where another process holds it: this one neither renews nor releases it."""
        return self._holder != identity()

    def require_own(self) -> None:
        """Raise BadRequest if another process holds it."""
        if self.is_view:
            raise error_for("bad_request", VIEW, token=self.token)

    def _own_client(self) -> Any:
        """Return the client that it was acquired with.

        Raises:
            BadRequest: it travelled here: another process holds it.
            LeaseLost: it is over, and refers to no client any more.
        """
        if self._client is None:
            if self._ended or self._lost_code:
                raise error_for(self._lost_code or "released", token=self.token)
            raise error_for("bad_request", VIEW, token=self.token)
        return self._client

    @property
    def held(self) -> BlockHoldings[Any, Any]:
        """Holdings of its block; see `block`."""
        held = None if self._held is None else self._held()
        if held is None:
            client: Any = self._client
            held = BlockHoldings(client, client and client.keeper)
            self._held = weakref.ref(held)
        return held

    def _begin(self) -> BlockHoldings[Any, Any]:
        """Begin its block; return its holdings. Without a `with` statement the lease keeps them."""
        self._own_client()
        held = self.held
        if not held.guarded:
            self._holdings = held
        held.enter(BlockToken(self.token))
        return held

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices of the lease; empty for a CPU lease."""
        return self._grant.devices

    @property
    def granted_at_ms(self) -> int:
        """Time of the grant, ms on Redis's clock; the fence is the same in µs.

        It is later than the truth only where that clock had stepped back.
        """
        return self.fence // 1000

    @property
    def on_cpu(self) -> bool:
        """True when it holds no GPU."""
        return not self.devices

    @property
    def memory_mb(self) -> int:
        """MiB held on all devices together."""
        return sum(device.memory_mb for device in self.devices)

    @property
    def claim(self) -> RecoveryClaim | None:
        """Claim for a pool that has forgotten it; None once it is lost or over."""
        return self._grant.claim if self.trusted_s > 0 else None

    @property
    def trusted_until(self) -> float:
        """End of trust in it, on `clock.local_now`'s clock."""
        return self._trusted_until

    @property
    def told_at(self) -> float:
        """Time at which the pool was last asked about it, on `clock.local_now`'s clock."""
        return sent_at(self._trusted_until, self.remaining_ms)

    @property
    def trusted_s(self) -> float:
        """Seconds for which this process may still believe that it holds the lease; 0 when lost."""
        if self._lost_code is not None or self._ended:
            return 0.0
        return max(0.0, self._trusted_until - local_now())

    @property
    def lost(self) -> bool:
        """True when it ended otherwise than by our release: stop using the GPU."""
        return self._lost_code is not None or (not self._ended and self.trusted_s == 0.0)

    @property
    def lost_reason(self) -> str | None:
        """Reason of the loss, a word of `errors.CODES`; None while it is not lost."""
        if not self.lost:
            return None
        if self._lost_code is not None:
            return self._lost_code
        if self.preempt_at is not None and time.time() > self.preempt_at - PREEMPT_SLACK_S:
            return "preempted"
        return "unreachable" if self.jeopardy else "expired"

    @property
    def released(self) -> bool:
        """True once it was given back here: neither held nor lost."""
        return self._ended

    def raise_if_lost(self) -> None:
        """Raise LeaseLost if it is lost."""
        if reason := self.lost_reason:
            raise error_for(reason, VIEW if self.is_view else None, token=self.token)

    def env(self, for_: str | None = None, *, visible: Visible | None = None) -> dict[str, str]:
        """Return the environment for a process that uses the lease.

        Args:
            for_: an engine: its variables too, and its option in GPU_LEASE_ENGINE_ARGS.
            visible: the form of CUDA_VISIBLE_DEVICES; default UUIDs, or numbers for an engine
                that reads numbers, where they are certain.

        Raises:
            BadRequest: the engine is unknown, or numbers are asked for and not certain.
        """
        return environment(
            {
                "GPU_LEASE_TOKEN": self.token,
                "GPU_LEASE_FENCE": str(self.fence),
                "GPU_LEASE_MEMORY_MB": str(self.memory_mb),
            },
            self.devices,
            for_,
            visible,
        )

    def engine_args(self, engine: str) -> list[str]:
        """Return the option that keeps an engine inside the lease; empty: it has none.

        Raises:
            BadRequest: the engine is unknown.
        """
        return list(settings_of(engine, self.devices).flag)

    def args(self, runtime: Runtime) -> list[str]:
        """Return a container runtime's options: the lease's GPUs, variables and label.

        Put them before the image, or before a sandbox's command, and start the program with
        `lease.env()` in its environment: variables are handed on by name, so that the token stands
        in no command line. The container does not end with the lease; `gpu-broker run --in` does
        that.

        Args:
            runtime: docker, podman, apptainer or bwrap.

        Raises:
            BadRequest: there is no such runtime.
        """
        return runtime_args(runtime, container_label(self.token), self.env(), self.devices)

    def accept(self, renewal: Renewal) -> None:
        """Accept a renewal's result; a late or reordered answer never shortens the lease.

        A result after the end of trust changes nothing: a reader may have seen the loss.
        """
        if reason := self.lost_reason:
            self.lose(reason if reason == "preempted" else "expired")
            return
        self.expires_at_ms = max(self.expires_at_ms, renewal.expires_at_ms)
        self.remaining_ms = renewal.remaining_ms
        self._trusted_until = max(self._trusted_until, renewal.trusted_until)
        self.jeopardy = False
        moved = _moved(self.preempt_at, renewal.preempt_at)
        if moved or (renewal.notices, renewal.wanted) != (self.notices, self.wanted):
            self._take_notice(renewal, preempted_anew=moved)

    def _take_notice(self, renewal: Renewal, *, preempted_anew: bool) -> None:
        before, self.notices = self.notices, renewal.notices
        self.wanted = renewal.wanted
        if preempted_anew:
            self.preempt_at = renewal.preempt_at
            self._log_preemption()
        for word in renewal.notices:
            if word not in before:
                log.warning("lease %s is %s: %s", self.token[:8], word, NOTICES.get(word, word))
        for callback in list(self._on_notice):
            self._tell("on_notice", callback)

    def _when_noticed(self, callback: Callable[[], object]) -> None:
        self._on_notice.append(callback)
        if self.notices or self.wanted or self.preempt_at is not None:
            self._tell("on_notice", callback)

    def _log_preemption(self) -> None:
        if self.preempt_at is None:
            log.info("lease %s is not taken back after all", self.token[:8])
            return
        log.warning(
            "lease %s is taken back in %.0f s: save what must last, and release it before",
            self.token[:8],
            self.preempt_at - time.time(),
        )

    def _tell(self, name: str, callback: Callable[[], object]) -> None:
        callbacks.submit(self, name, callback)

    def end(self) -> None:
        """End the lease after its release: neither held nor lost."""
        self._ended = True
        self._let_go()
        self._wake()

    def _let_go(self) -> None:
        """Refer to the client no more: a dropped one ends with the last lease that it keeps."""
        self._client = None
        evidence.over(self.token)

    def lose(self, reason: str) -> None:
        """Mark it lost, and tell the waiters, once."""
        with self._lock.lock:
            if self._lost_code is not None or self._ended:
                return
            self._lost_code = reason
            to_tell, self._callbacks = self._callbacks, []
        if reason != "unreachable":  # it may still be there, to be given back
            self._let_go()
        self._wake()
        for callback in to_tell:
            self._tell("on_lost", callback)

    def lose_if_over(self, error: LeaseError) -> None:
        """Accept a failed renewal's error: the lease is over, or merely unanswered."""
        if isinstance(error, LeaseLost):
            self.lose(error.code)
        elif isinstance(error, UnknownToken):  # its tombstone is gone: it ended long ago
            self.lose("expired")
        else:
            self.jeopardy = True

    @contextmanager
    def _watching(self, wake: Callable[[], object]) -> Iterator[None]:
        """Call `wake` at its end, while the block runs."""
        self._watchers.append(wake)
        try:
            yield
        finally:
            self._watchers.remove(wake)

    def _wake(self) -> None:
        for wake in list(self._watchers):
            run(self, "wait_lost", wake)

    def _when_lost(self, callback: Callable[[], object]) -> None:
        if reason := self.lost_reason:  # by the clock alone, where no thread has looked
            self.lose(reason)
        with self._lock.lock:
            if self._lost_code is None:
                self._callbacks.append(callback)
                return
        callback()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state that travels: no callbacks, and a deadline for this machine alone."""
        unheard: dict[str, Any] = {"_watchers": [], "_callbacks": [], "_on_notice": []}
        unheard |= dict.fromkeys(("_client", "_held", "_holdings"))
        return self.__dict__ | unheard | {"_boot": boot()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state that travelled: from another machine, with another clock, it is lost."""
        booted = state.pop("_boot")
        self.__dict__.update(state)
        if self.is_view and booted != boot():
            self._trusted_until = 0.0

    def __repr__(self) -> str:
        """Return the lease's name, place and state."""
        where = ", ".join(f"{d.host}:{d.index}" for d in self.devices) or "cpu"
        state = "lost" if self.lost else "ended" if self._ended else f"{self.trusted_s:.1f} s"
        return f"<{type(self).__name__} {self.token[:8]} {self.agent} {where} {state}>"


def _moved(before: float | None, now: float | None) -> bool:
    """Tell whether a time of a preemption is news."""
    if before is None or now is None:
        return before is not now
    return abs(now - before) > PREEMPT_SLACK_S


def boot() -> str:
    """Return the id of this boot: no other boot or machine shares its `local_now`."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # equal to no other
        return os.urandom(16).hex()

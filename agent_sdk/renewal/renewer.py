"""Renewal: one daemon thread keeps all of a client's leases alive, on a transport of its own.

A thread in both worlds: an event loop that a CUDA call blocks must not lose a GPU. Every lease is
renewed at a third of its ttl, with jitter, many at once. A network error is not a loss: it
is retried until trust runs out, and then the lease is lost here before the broker can grant it
anew. When the store answers again, all leases are renewed at once.

Callers take no lock: they work in single steps of dicts and of a queue. So a signal that interrupts
a caller anywhere, or a handler that calls the same renewer, leaves it whole.

The thread outlives a client that was closed, or that nothing refers to any more, only for as long
as there is something to renew or to give back. A lease under `keep` needs neither: the
process may use its GPU by the environment alone.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import threading
import time
import weakref
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from agent_sdk.clock import local_now
from agent_sdk.errors import BrokerUnavailable, LeaseError, error_for
from agent_sdk.fork import renew_in_child
from agent_sdk.protocol.messages import ended
from agent_sdk.renewal.abandoned import BATCH, RETRY_S, Abandoned
from agent_sdk.renewal.at_exit import CLOSE_S, owing
from agent_sdk.renewal.kept import RenewalSchedule
from agent_sdk.renewal.reminders import Reminders
from agent_sdk.threads import begin, daemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_sdk.leases.lease import HeldLease
    from agent_sdk.protocol.messages import Renewal
    from agent_sdk.renewal.redis_transport import RenewalTransport

log = logging.getLogger(__name__)

ANSWER_S = 0.05
"""Seconds for the answer to a release that was sent and not waited for, before it is repeated."""

LOOK_S = 3.0
"""Most seconds between two checks that the store is still the one that knows our leases."""


class Renewer:
    """Renewer of leases until they are discarded; it also gives abandoned ones back.

    Args:
        make_link: makes the renewer's own transport to the broker, for each process anew.
        collect: reads the answers to releases that were not waited for, where nothing else has:
            those that come within so many seconds, since renewals wait meanwhile.
    """

    def __init__(
        self,
        make_link: Callable[[], RenewalTransport],
        collect: Callable[[float], object] | None = None,
    ) -> None:
        self._make_link = make_link
        self._collect = collect
        renew_in_child(self)

    def reset(self) -> None:
        """Start over: a forked child renews nothing of its parent's."""
        self._bell: SimpleQueue[None] = SimpleQueue()  # rung after each change
        self._link = self._make_link()
        self._kept: dict[HeldLease, RenewalSchedule] = {}
        self._abandoned = Abandoned()
        self._reminders = Reminders()
        self._thread: threading.Thread | None = None
        self._wakes_at = math.inf  # no later than that; infinite while it looks at what to do
        self._waits = True  # for more, when there is nothing to do
        self._last_try = False
        owing.discard(self)
        self._memory: object = None
        self._noticed_ms = 0
        self._look_at = 0.0  # with the first lease, to learn its granting pool

    def end_with(self, client: object) -> None:
        """Let the thread end when this client is collected and nothing is left to do."""
        weakref.finalize(client, self._stop_waiting).atexit = False

    def add(self, lease: HeldLease) -> None:
        """Renew the lease from now on; one without expiry too, to learn of its revocation.

        Raises:
            LeaseLost: it was released.
            BadRequest: another process holds it.
            RuntimeError: no thread can be had.
        """
        lease.require_own()
        if lease.local:
            return
        if lease.released:
            raise error_for("released", token=lease.token)
        kept = RenewalSchedule(lease)
        kept.begin()
        self._kept[lease] = kept
        self._reminders.forget(lease)
        try:
            self._start()
        except RuntimeError:
            self.discard(lease)
            raise

    def remind(self, lease: HeldLease) -> None:
        """Log a reminder before the lease's end unless it is renewed; without a thread log none."""
        if self._reminders.add(lease) < self._wakes_at:
            with suppress(RuntimeError):
                self._start()

    def discard(self, lease: HeldLease) -> None:
        """Stop renewing a lease."""
        self._kept.pop(lease, None)

    def abandon(self, token: str) -> None:
        """Give a token's possible lease back, as soon as the store answers.

        Without a thread it is tried now, and again once there is one, or at the exit.
        """
        self.drop(token)
        if sys.is_finalizing():
            return
        try:
            self._start()
        except RuntimeError as error:
            log.warning("a lease is given back without a thread: %s", error)
            self._release([token])

    def drop(self, token: str) -> None:
        """Do the same within a garbage collector's limits: start no thread."""
        owing.add(self)
        self._abandoned.add(token)
        for lease in list(self._kept):
            if lease.token == token:
                self.discard(lease)
        self._bell.put(None)

    def expect(self, token: str) -> None:
        """Give a token's lease back unless `answered` or `settle` is called for it soon."""
        owing.add(self)
        if self._abandoned.add(token, ANSWER_S) < self._wakes_at:
            with suppress(RuntimeError):  # no thread: with the next, or at the exit
                self._start()

    def answered(self, token: str, reply: object) -> None:
        """Take note of the reply to a release that was not waited for; repeat it if it failed."""
        if ended(reply):
            self.settle(token)
        else:
            log.warning("the release of lease %s failed, and is repeated: %s", token[:8], reply)
            self.hurry(token)

    def hurry(self, token: str) -> None:
        """Give a token's lease back now: its release was not sent, or failed."""
        self._abandoned.hurry(token)
        self._bell.put(None)

    def settle(self, token: str) -> None:
        """Forget a token: nothing of it is left to give back."""
        self._abandoned.settle(token)
        self._look_what_is_owed()

    def _look_what_is_owed(self) -> None:
        """Owe nothing at the exit when nothing is left to give back."""
        if not self._abandoned:
            owing.discard(self)
            if self._abandoned:  # another thread has just added some
                owing.add(self)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Stop the thread; leases still held run on to their end, abandoned ones are tried once.

        Leases that are added later are renewed all the same.
        """
        self.stop()
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._try_last()
            self._link.close()
        elif thread is not threading.current_thread():
            thread.join(timeout_s)

    def stop(self) -> None:
        """Ask the thread for the same, and do not wait."""
        self._kept.clear()
        self._reminders.clear()
        self._last_try = bool(self._abandoned)
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        self._waits = False
        self._bell.put(None)

    def _start(self) -> None:
        """Start a thread; of two that start at once, the first to be replaced ends."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._thread = thread = daemon(self._run, "gpu-lease-keeper")
            begin(thread)
        self._bell.put(None)

    def _run(self) -> None:
        self._link = link = self._make_link()
        while True:
            try:
                if not self._step():
                    break
            except Exception:
                log.exception("renewing failed; it goes on")
                time.sleep(RETRY_S)
        link.close()

    def _step(self) -> bool:
        """Do the next work when it is due; return False when this thread ends or was replaced."""
        if self._thread is not threading.current_thread():
            return False
        self._try_last()
        now = local_now()
        self._wakes_at = math.inf
        self._reminders.tell(now)
        first = self._first_at()
        if first is None and not self._waits:
            return self._goes_on()
        if first is None or first > now:
            self._wakes_at = math.inf if first is None else first
            self._wait(None if first is None else first - now)
            return True
        due = [kept for kept in list(self._kept.values()) if kept.due_at <= now]
        if self._collect is not None and self._abandoned.due(now):
            self._collect(ANSWER_S)
        self._work(due, self._abandoned.due(now))
        if self._kept and self._look_at <= now:
            self._look()
        return True

    def _goes_on(self) -> bool:
        """End the thread, unless a caller that still saw it has just added work."""
        me, self._thread = self._thread, None
        self._wakes_at = math.inf
        if self._first_at() is not None and self._thread is None:
            self._thread = me
        return self._thread is me

    def _try_last(self) -> None:
        """Try once, after a close, to give abandoned leases back, and leave it at that."""
        if self._last_try:
            self._last_try = False
            tokens = list(self._abandoned)
            left = tokens[:]
            while left and (tried := self._release(left[:BATCH])):
                del left[:tried]
            for token in tokens:
                self.settle(token)

    def _wait(self, seconds: float | None) -> None:
        """Wait for the bell, at most so long; earlier rings that were not seen count."""
        try:
            self._bell.get(timeout=seconds)
            while True:
                self._bell.get_nowait()
        except Empty:
            pass

    def _first_at(self) -> float | None:
        """Return the time of the next work; None: there is none."""
        times: list[float | None] = [kept.due_at for kept in list(self._kept.values())]
        if times:
            times.append(self._look_at)
        times += [self._abandoned.first_at(), self._reminders.first_at()]
        return min((at for at in times if at is not None), default=None)

    def _look(self) -> None:
        """Renew now if the pool lost data: it grants nothing before holders have renewed.

        Renew too if a lease was told to end for a waiter: a notice may be shorter than the time to
        the next renewal, which tells it.
        """
        self._look_at = local_now() + LOOK_S
        fence = max((kept.lease.fence for kept in list(self._kept.values())), default=0)
        try:
            memory = self._link.memory(fence)
        except BrokerUnavailable:
            self._postpone()
            return
        lost = memory.behind or self._memory not in (None, memory.name)
        if lost or (self._memory is not None and memory.noticed_ms != self._noticed_ms):
            now = local_now()
            for kept in list(self._kept.values()):
                kept.next_at = now + random.uniform(0, RETRY_S)
        self._memory, self._noticed_ms = memory.name, memory.noticed_ms

    def _work(self, due: list[RenewalSchedule], abandoned: list[str]) -> None:
        for kept in due:
            if reason := kept.lease.lost_reason:
                self.discard(kept.lease)
                kept.lease.lose(reason)
        batch = [kept for kept in due if not kept.lease.lost][:BATCH]
        try:
            # One by one, as the answers come: a lease that is not reached is due again at once.
            if batch:
                renewals = self._link.renew([kept.lease for kept in batch])
                for kept, got in zip(batch, renewals, strict=False):
                    self._take(kept, got)
        except BrokerUnavailable:
            self._postpone()
        else:
            self._release(abandoned)

    def _release(self, tokens: list[str]) -> int:
        """Give tokens back, the first of them at least; return how many; 0: there is no answer."""
        if not tokens:
            return 0
        tried = 0
        try:
            for token, final in zip(tokens, self._link.release(tokens), strict=False):
                self._abandoned.tried(token, final=final)
                tried += 1
        except BrokerUnavailable:
            self._postpone()
            tried = 0
        self._look_what_is_owed()
        return tried

    def _take(self, kept: RenewalSchedule, got: Renewal | LeaseError) -> None:
        if isinstance(got, LeaseError):
            kept.lease.lose_if_over(got)
            if kept.lease.lost or kept.lease.released:
                self.discard(kept.lease)
            kept.failed()
        else:
            kept.lease.accept(got)
            kept.renewed()

    def _postpone(self) -> None:
        """Mark all leases while the store does not answer, and ask for all of them again soon."""
        now = local_now()
        for kept in list(self._kept.values()):
            kept.lease.jeopardy = True
            kept.failed()
        self._abandoned.postpone(now)

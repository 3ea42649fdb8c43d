"""Common base of `LeaseClient` and `AsyncLeaseClient`: all but the waiting."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from agent_sdk.fork import OfOneProcess
from agent_sdk.keys import DEFAULT_TEAM, Keys
from agent_sdk.protocol.lease import release_call
from agent_sdk.protocol.messages import Giving
from agent_sdk.protocol.validation import check_name
from agent_sdk.renewal.redis_transport import RedisTransport
from agent_sdk.renewal.renewer import Renewer
from agent_sdk.request import Acquisition, Caller
from agent_sdk.scripts.dispatch import Dispatch
from agent_sdk.settings import read_settings
from agent_sdk.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from agent_sdk.leases.lease import HeldLease
    from agent_sdk.protocol.messages import Pause, Renewal
    from agent_sdk.request import LeaseOptions

R = TypeVar("R")
T = TypeVar("T", bound="HeldLease")


class PoolClient(OfOneProcess, ABC, Generic[R]):
    """Client of a pool, for one process.

    Args:
        store: the store of the pool.
        pool: the pool's name.
        client_name: shown beside this process's leases.
        hostname: this machine's name among the hosts; default from the environment.
        deadline_s: seconds for which one call is tried before it raises.
        for_others: it acquires leases for other processes, as a broker does: then no process is
            registered with its leases.
        team: the team of requests that name none; default from the environment, and with
            `for_others` the default team.
        wait_release: releases, and the ends of blocks, wait for the store's answer.

    Attributes:
        redis: the connection, for reading.
        keys: the names of the pool's keys.
        by: the name under which operators' acts are recorded.
        wording: the form of calls to this server.
        away_s: seconds for which a waiter lets the store be away, beside `deadline_s`; default its
            whole wait.
        reminds: log a reminder before a lease ends that nothing renews; not with `for_others`.
        wait_release: as above; `release(lease, wait=...)` goes before it.

    Raises:
        ValueError: the store's URL or the pool's name is invalid.
    """

    def __init__(
        self,
        store: Store,
        *,
        pool: str = "default",
        client_name: str | None = None,
        hostname: str | None = None,
        deadline_s: float = 5.0,
        for_others: bool = False,
        team: str | None = None,
        wait_release: bool = True,
    ) -> None:
        self.keys = Keys(pool)
        self.store = store = replace(store, key=self.keys.base)
        self.deadline_s = deadline_s
        self.by = client_name or "sdk"
        self.away_s = math.inf
        self.reminds = not for_others
        self.wait_release = wait_release
        self._reached = False
        self.redis: R = self._connect(store)
        settings = read_settings()
        own_team = DEFAULT_TEAM if for_others else settings.team
        self._caller = Caller(
            hostname or settings.hostname, client_name, for_others, team or own_team
        )
        self.wording = Dispatch(self.keys.base)
        keys = self.keys  # without this client itself: the thread must not keep it alive
        self._keeper = Renewer(lambda: RedisTransport(store.connect, keys), self._collector())
        self._keeper.end_with(self)

    @property
    def keeper(self) -> Renewer:
        """Renewer of the leases that are kept."""
        return self._keeper

    def abandon(self, token: str) -> None:
        """Give a token's lease back in the background: its holder never learned of it.

        It is tried until the store answers, for 15 minutes at most.
        """
        self._keeper.abandon(check_name(token, "token"))

    @abstractmethod
    def _connect(self, store: Store) -> R:
        """Return the connection for calls, which connects at the first of them."""

    def _collector(self) -> Callable[[float], object] | None:
        """Return what reads answers that were not waited for, those that come within some seconds.

        None: it is done as they come.
        """
        return None

    def _deadline_after(self, pause: Pause, began: float) -> float:
        """Return the deadline of the call after a pause, on `time.monotonic`'s clock.

        began: the time at which the pause began; its seconds are no more left of the wait.
        """
        now = time.monotonic()
        left_s = max(0.0, pause.left_s - (now - began))
        return now + min(left_s, self.away_s) + self.deadline_s

    def wait_for(self, agent: str, ask: LeaseOptions) -> Acquisition:
        """Prepare an acquire: checked and with its token, but nothing is sent yet."""
        return Acquisition(self._caller.request(agent, **ask), ask)

    def _reminded(self, lease: T) -> T:
        """Return a lease that was granted by itself, with a reminder to come."""
        if self.reminds:
            self._keeper.remind(lease)
        return lease

    def _told(self, lease: T, renewal: Renewal) -> T:
        """Return a lease that was taken over, with the notices that its renewal brought."""
        lease.accept(renewal)
        return lease

    def _giving(self, lease: HeldLease | str, wait: Acquisition) -> None:
        """End a lease here, and have it given back with the first call of an acquire."""
        if isinstance(lease, str):
            token = check_name(lease, "token")
        else:
            lease.require_own()
            token = "" if lease.local else lease.token
        if token:
            wait.giving = Giving(release_call(token, owner=wait.request.owner))
        if not isinstance(lease, str):
            self._keeper.discard(lease)
            lease.end()

    def _after_exchange(self, got: T, wait: Acquisition) -> T:
        """Return the next lease; the old one goes, if no answer says that it was given back."""
        self._give_old(wait)
        return got

    def _give_old(self, wait: Acquisition) -> None:
        """Have the old lease given back in the background, if no answer says that it was.

        Not with an owner: by its token alone any principal's would be given back.
        """
        giving = wait.giving
        if giving is None or giving.done or wait.request.owner:
            return
        if giving.call.token:
            self._keeper.abandon(giving.call.token)

    @classmethod
    def from_url(cls, url: str, *, pool: str = "default", client_name: str | None = None) -> Self:
        """Return a client of the store at a URL; see `Store`."""
        return cls(Store(url), pool=pool, client_name=client_name)

    @classmethod
    def from_env(cls, *, client_name: str | None = None, deadline_s: float = 5.0) -> Self:
        """Return a client of the store that the environment names, by default the embedded one.

        Raises:
            ValueError: a setting is wrong, or the embedded store's folder is another user's.
        """
        settings = read_settings()
        settings.check_state_dir()
        return cls(
            Store(settings.store_url),
            pool=settings.pool,
            client_name=client_name,
            hostname=settings.hostname,
            deadline_s=deadline_s,
            team=settings.team,
        )

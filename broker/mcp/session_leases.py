"""Leases of an MCP server over stdio: they are renewed while it lives, and end with it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from agent_sdk.aio import AsyncLeaseClient
from agent_sdk.errors import error_for
from agent_sdk.settings import read_settings
from agent_sdk.store.store import Store
from broker.identity import user_at_host
from broker.mcp.leases import Leases, loss_of, notices_of, possible, team_notices
from broker.mcp.models import Held

if TYPE_CHECKING:
    from agent_sdk import AsyncLease
    from agent_sdk.request import LeaseOptions
    from broker.api_keys import Principal
    from broker.mcp.models import Notice
    from broker.mcp.waits import PendingLease
    from broker.mcp_terms import Terms

DEADLINE_S: Final = 2.5
"""Seconds for which one request to the store is tried: a call of a tool makes several."""


class SessionLeases(Leases):
    """Leases of one process's agents, straight from the store.

    Args:
        agent: the agent's name for a request that names none; empty: user@host.

    Raises:
        ValueError: a setting is wrong.
    """

    host = None

    def __init__(self, terms: Terms, agent: str = "") -> None:
        super().__init__(terms)
        self.ttl_s = terms.ttl_s
        settings = read_settings()
        settings.check_state_dir()
        self._client = AsyncLeaseClient(
            Store(settings.store_url),
            pool=settings.pool,
            client_name="gpu-broker-mcp",
            hostname=settings.hostname,
            deadline_s=DEADLINE_S,
        )
        self._agent = agent
        self._held: dict[str, AsyncLease] = {}
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._releases: set[asyncio.Task[bool]] = set()

    @property
    def client(self) -> AsyncLeaseClient:
        """Client of the pool."""
        return self._client

    def agent_of(self, who: Principal) -> str:
        """Return the name of the settings, else the user's."""
        del who
        return self._agent or user_at_host()

    def safe_mode(self, *, pool_safe_mode: bool) -> bool:
        """Return the pool's SAFE_MODE."""
        return pool_safe_mode

    def note(self, **facts: str) -> None:
        """Write no line: stderr is the host's."""

    def require_open(self) -> None:
        """Leave SAFE_MODE to the pool."""

    async def begun(self, who: Principal, token: str) -> None:
        """Do nothing: this process holds all that is listed."""

    async def taken(self, who: Principal, lease: AsyncLease, hold_s: float | None) -> None:
        """Hold a lease, which is renewed since its grant."""
        del who
        self._held[lease.token] = lease
        lease.on_lost(self._told)
        lease.on_notice(self._told)
        self._end_after(lease.token, hold_s)

    async def find(self, who: Principal, token: str) -> AsyncLease:
        """Return a lease that this process renews."""
        lease = self._held.get(possible(token))
        if lease is None:
            wait = self.waits.get(token)
            raise error_for("waiting" if wait and wait.owner == who.name else "unknown_token")
        lease.raise_if_lost()
        return lease

    async def require_own(self, who: Principal, token: str) -> None:
        """Raise UnknownToken unless this process holds it or waits for it."""
        del who
        if possible(token) not in self._held and self.waits.get(token) is None:
            raise error_for("unknown_token")

    async def extend(self, who: Principal, token: str, hold_s: float) -> AsyncLease:
        """Give it back so many seconds from now, or later if it would last longer."""
        lease = await self.find(who, token)
        timer = self._ends.get(token)
        if timer is not None and timer.when() < asyncio.get_running_loop().time() + hold_s:
            self._end_after(token, hold_s)
        return lease

    async def release(self, who: Principal, token: str) -> bool:
        """Give a lease or a place back."""
        del who
        lease, wait = self._held.pop(possible(token), None), self.waits.get(token)
        self._end_after(token, None)
        if lease is not None:
            return not lease.lost and await self._client.release(lease)
        if wait is None:
            if isinstance(await self._client.lookup(token), str):
                return False  # by an earlier call, whose answer may be lost
            raise error_for("unknown_token")
        self.waits.drop(wait)
        return await self._client.release(wait.lease or token)

    async def listed(self, who: Principal) -> list[Held]:
        """Return what this process holds and waits for."""
        rows = [
            Held(
                token=lease.token,
                agent=lease.agent,
                state="active",
                gpus=[f"{device.host}:{device.index}" for device in lease.devices],
                memory_mb=lease.memory_mb,
                ends_in_s=self.ends(lease)[0],
            )
            for lease in self._held.values()
            if not lease.lost
        ]
        for wait in self.waits.of(who.name):
            place = await self.place(wait.token)
            rows.append(
                Held(token=wait.token, agent=wait.agent, state="waiting",
                     memory_mb=wait.memory_mb, place=place)
            )  # fmt: skip
        return rows

    async def notices(self, who: Principal) -> list[Notice]:
        """Return the findings and losses of what is held; a loss is told until it is released."""
        del who
        found: list[Notice] = []
        for token, lease in self._held.items():
            if code := lease.lost_reason:
                found.append(loss_of(token, code))
                continue
            found += await self.news(lease)
            found += notices_of(token, lease.notices)
        return found

    async def news(self, lease: AsyncLease) -> list[Notice]:
        """Return what the last renewal told of it."""
        at = lease.preempt_at
        return team_notices(lease.token, None if at is None else at - time.time(), lease.wanted)

    def ends(self, lease: AsyncLease) -> tuple[float | None, str]:
        """Return when it is given back."""
        timer = self._ends.get(lease.token)
        if timer is None:
            return None, "it ends with this session, or by gpu_release"
        left_s = round(max(0.0, timer.when() - asyncio.get_running_loop().time()), 1)
        return left_s, "it is given back after that time; gpu_extend asks for more"

    async def rejoin(
        self, who: Principal, token: str, hold_s: float | None
    ) -> PendingLease | AsyncLease:
        """Return a lease that was granted before: no other process keeps a wait of ours."""
        del hold_s
        return await self.find(who, token)

    async def end(self) -> None:
        """Give everything back, at once, and disconnect."""
        tokens = [*self.waits.end(), *self._held]
        for timer in self._ends.values():
            timer.cancel()
        what = [self._held.get(token, token) for token in tokens]
        releases = (self._client.release(each) for each in what)
        await asyncio.gather(*releases, *self._releases, return_exceptions=True)
        await self._client.close()

    async def _told(self, lease: AsyncLease) -> None:
        await self.changed(lease.token)

    def _give_up(self, wait: PendingLease) -> None:
        self._client.abandon(wait.token)

    async def _granted(self, agent: str, options: LeaseOptions) -> AsyncLease:
        """Return the lease of a request, renewed: its agent may be long in asking for it."""
        lease = await self._client.acquire(agent, **options)
        self._client.keep(lease)
        return lease

    def _end_after(self, token: str, hold_s: float | None) -> None:
        """Give a lease back so many seconds from now; None: not before the end of the session."""
        timer = self._ends.pop(token, None)
        if timer is not None:
            timer.cancel()
        if hold_s is not None:
            loop = asyncio.get_running_loop()
            self._ends[token] = loop.call_later(hold_s, self._time_is_over, token)

    def _time_is_over(self, token: str) -> None:
        self._ends.pop(token, None)
        lease = self._held.pop(token, None)
        if lease is not None:
            task = asyncio.ensure_future(self._client.release(lease))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

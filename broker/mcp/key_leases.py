"""Leases of an MCP server over HTTP: they belong to a key, and the store alone keeps them.

The protocol has no session, and the next call may reach another replica. So a lease's own ttl is
the silence that its agent may keep: each call that names it renews it, and no process does.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeAlias

from agent_sdk.errors import CODES, LeaseLost, error_for
from agent_sdk.protocol.messages import ANY
from agent_sdk.state.queue import WaiterStatus
from agent_sdk.state.snapshot import LeaseStatus
from agent_sdk.store.retry import in_words
from broker.api_keys import owner_of, owns
from broker.logs import note
from broker.mcp.key_index import KeyIndex
from broker.mcp.leases import QUEUE_S, Leases, loss_of, notices_of, possible, team_notices
from broker.mcp.models import Held

if TYPE_CHECKING:
    from agent_sdk import AsyncLease
    from agent_sdk.aio import AsyncLeaseClient
    from agent_sdk.request import LeaseOptions
    from broker.api_keys import Principal
    from broker.mcp.models import Notice
    from broker.mcp.waits import PendingLease
    from broker.mcp_terms import Terms
    from broker.replica import Broker

ARGUMENTS: Final = 10
"""Arguments of `acquire` in a record's `request`."""

Tokens: TypeAlias = "OrderedDict[str, OrderedDict[str, None]]"
"""Last tokens of each key."""

WATCHED: Final = 64
"""Most leases of a key, and most keys, whose news this process looks for.

As many that were given back are remembered: the answer may be lost, and the call repeated.
"""


class KeyLeases(Leases):
    """Leases of the keys of one replica."""

    def __init__(self, terms: Terms, broker: Broker) -> None:
        super().__init__(terms)
        self._broker = broker
        self.ttl_s = terms.idle_release_s
        self.waits.stopped = broker.stopping.wait
        self._index = KeyIndex(broker.client)
        self._watched: Tokens = OrderedDict()
        self._given_back: Tokens = OrderedDict()

    @property
    def client(self) -> AsyncLeaseClient:
        """Client of the pool."""
        return self._broker.client

    @property
    def host(self) -> str:
        """This replica's host if it reports devices, else any."""
        return self._broker.local_host

    def agent_of(self, who: Principal) -> str:
        """Return the name of the key."""
        return who.name or "mcp"

    def safe_mode(self, *, pool_safe_mode: bool) -> bool:
        """Return the SAFE_MODE in effect at this replica."""
        return self._broker.safe_mode_of(pool_safe_mode)

    def note(self, **facts: str) -> None:
        """Add facts to the line of the request."""
        note(**facts)

    def require_open(self) -> None:
        """Raise SafeMode if this broker's environment sets it."""
        if self._broker.settings.safe_mode:
            raise error_for("safe_mode")

    async def begun(self, who: Principal, token: str) -> None:
        """List it from now on: its answer may be lost."""
        await self._index.add(who.name, token)

    async def taken(self, who: Principal, lease: AsyncLease, hold_s: float | None) -> None:
        """Make it last for the time that was asked for."""
        self._watch(who, lease.token)
        await self._index.add(who.name, lease.token)
        note(token=lease.token, agent=lease.agent, fence=lease.fence)
        if hold_s is not None and hold_s > self.ttl_s:
            lease.accept(await self.client.renew(lease.token, hold_s, owner=owner_of(who)))

    async def find(self, who: Principal, token: str) -> AsyncLease:
        """Return a lease of the key, renewed."""
        found = await self.require_own(who, token)
        self._watch(who, token)
        if found.owner == who.name and not found.pid:  # no program's, and no other key's
            await self._index.add(who.name, token)
        return await self.client.adopt(token)

    async def extend(self, who: Principal, token: str, hold_s: float) -> AsyncLease:
        """Make it last so long from now, or longer."""
        lease = await self.find(who, token)
        if hold_s > self.ttl_s:
            lease.accept(await self.client.renew(token, hold_s, owner=owner_of(who)))
        return lease

    async def release(self, who: Principal, token: str) -> bool:
        """Give a lease or a place back."""
        try:
            await self.require_own(who, token)
        except LeaseLost:
            return False
        wait = self.waits.get(token)
        if wait is not None:
            self.waits.drop(wait)
        self._watched.get(who.name, OrderedDict()).pop(token, None)
        _put(self._given_back, who, token)
        released = await self.client.release(token, owner=owner_of(who))
        await self._index.drop(who.name, [token])
        return released

    async def listed(self, who: Principal) -> list[Held]:
        """Return what the key has over MCP; without keys, what all have without one."""
        tokens = await self._index.tokens(who.name)
        mine, pool = await asyncio.gather(self.client.leases_of(list(tokens)), self.client.pool())
        alive = {x.token for x in mine}
        rest = [token for token in tokens if token not in alive]
        others = dict(zip(rest, await asyncio.gather(*map(self.client.lookup, rest)), strict=True))
        granted_since = [t for t, found in others.items() if isinstance(found, LeaseStatus)]
        mine += await self.client.leases_of(granted_since)
        queue = [x for x in others.values() if isinstance(x, WaiterStatus)]
        await self._index.drop(
            who.name,
            (
                token
                for token, found in others.items()
                if isinstance(found, str) or (found is None and not tokens[token])
            ),
        )
        held = await self.client.devices_of({uuid for x in mine for uuid, _ in x.devices})
        places = {device.uuid: f"{device.host}:{device.index}" for device in held}
        rows = [
            Held(
                token=x.token,
                agent=x.agent,
                state="active",
                gpus=[places.get(uuid, uuid) for uuid, _ in x.devices],
                memory_mb=x.memory_mb,
                ends_in_s=x.expires_at_ms and (x.expires_at_ms - pool.now_ms) / 1000,
            )
            for x in mine
        ]
        return rows + [
            Held(token=x.token, agent=x.agent, state="waiting", memory_mb=x.memory_mb,
                 place=x.place)
            for x in queue
        ]  # fmt: skip

    async def notices(self, who: Principal) -> list[Notice]:
        """Return the news of those leases that this process has served lately."""
        tokens = list(self._watched.get(who.name, ()))
        if not tokens:
            return []
        alive = {x.token: x for x in await self.client.leases_of(tokens)}
        found = await self._news_of(list(alive.values()))
        for token in tokens:
            if token in alive:
                found += notices_of(token, alive[token].notices)
                continue
            over = await self.client.lookup(token)
            if isinstance(over, str) and over in CODES and over != "released":
                found.append(loss_of(token, over))
            elif not isinstance(over, LeaseStatus):
                self._watched.get(who.name, OrderedDict()).pop(token, None)
        return found

    async def news(self, lease: AsyncLease) -> list[Notice]:
        """Return what the pool has of it now: no process renews it."""
        found = await self.client.lookup(lease.token)
        return await self._news_of([found]) if isinstance(found, LeaseStatus) else []

    async def _news_of(self, leases: list[LeaseStatus]) -> list[Notice]:
        told = [x for x in leases if x.preempt_at_ms is not None or x.wanted is not None]
        now_ms = (await self.client.pool()).now_ms if told else 0
        return [
            notice
            for x in told
            for notice in team_notices(
                x.token,
                None if x.preempt_at_ms is None else (x.preempt_at_ms - now_ms) / 1000,
                x.wanted,
            )
        ]

    def ends(self, lease: AsyncLease) -> tuple[float | None, str]:
        """Return the rest of its ttl."""
        return round(lease.remaining_ms / 1000, 1), (
            "it ends after that time; each call that names it makes the rest at least "
            f"{self.ttl_s:g} s (idle_release_s)"
        )

    async def rejoin(
        self, who: Principal, token: str, hold_s: float | None
    ) -> PendingLease | AsyncLease:
        """Return the lease, or wait for it here: another replica, or this one before, did."""
        found = await self.require_own(who, token)
        if isinstance(found, LeaseStatus):
            return await self.find(who, token)
        kept = self.waits.get(token)
        if kept is not None:  # an operator asks about another's
            return kept
        with in_words():
            asked = await self.client.redis.hget(self.client.keys.record(token), "request")
        options = _options(str(asked or ""))
        if options is None:  # granted, or over, since the look
            return await self.find(who, token)
        again: LeaseOptions = {
            **options,
            "token": token,
            "owner": found.owner,
            "wait_s": QUEUE_S,
            "team": found.team,
            "preemptible": found.preemptible,
            "yields": found.yields,
        }
        return self.waits.begin(
            token,
            self.client.acquire(found.agent, **again),
            agent=found.agent,
            owner=who.name,
            memory_mb=found.memory_mb,
            hold_s=hold_s,
        )

    def _give_up(self, wait: PendingLease) -> None:
        """Let the place lapse: another replica may keep it for an agent that asks there."""
        if not wait.told:
            self.client.abandon(wait.token)

    async def require_own(self, who: Principal, token: str) -> LeaseStatus | WaiterStatus:
        """Return a lease or a wait of the caller."""
        found = await self.client.lookup(possible(token))
        watched = self._watched.get(who.name, OrderedDict())
        known = token in watched or token in self._given_back.get(who.name, ())
        if isinstance(found, str) and (known or who.is_at_least("operator")):
            watched.pop(token, None)
            raise error_for(found, token=token)
        if found is None or isinstance(found, str) or not owns(who, found):
            raise error_for("unknown_token")
        return found

    def _watch(self, who: Principal, token: str) -> None:
        """Look for the news of a lease from now on; without keys its agent cannot be told apart."""
        _put(self._watched, who, token)


def _put(of: Tokens, who: Principal, token: str) -> None:
    """Add a token to the last ones of a key."""
    if not who.name:
        return
    tokens = of.setdefault(who.name, OrderedDict())
    tokens[token] = None
    of.move_to_end(who.name)
    for crowd in (tokens, of):
        if len(crowd) > WATCHED:
            crowd.popitem(last=False)


def _options(request: str) -> LeaseOptions | None:
    """Return the options of a request as its record has them: arguments 4 to 13 of `acquire`."""
    words = request.split("|")
    if len(words) != ARGUMENTS:
        return None
    memory_mb, devices, exclusive, ttl_ms, _, priority, host, model, _, _ = words
    return {
        "memory_mb": int(memory_mb),
        "devices": int(devices),
        "exclusive": exclusive == "1",
        "ttl_s": int(ttl_ms) / 1000,
        "priority": int(priority),
        "host": "any" if host == ANY else host,
        "model": None if model == ANY else model,
    }

"""Leases of the agents behind an MCP server: what both transports share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_sdk.errors import LeaseError, error_for
from agent_sdk.keys import TOKEN
from agent_sdk.protocol.messages import new_token
from agent_sdk.state.finding_kinds import NOTICES
from broker.mcp.models import Notice
from broker.mcp.waits import PendingLease, PendingLeases
from broker.mcp_terms import MOST_WAIT_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent_sdk import AsyncLease
    from agent_sdk.aio import AsyncLeaseClient
    from agent_sdk.request import LeaseOptions
    from broker.api_keys import Principal
    from broker.mcp.models import Held
    from broker.mcp_terms import Terms

QUEUE_S: Final = 604_800.0
"""Seconds for which a place in the queue is asked for: the server gives it up itself."""


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """Request of an agent.

    Attributes:
        wait_s: seconds that this call waits; 0: now or not at all.
        hold_s: seconds for which the lease is wanted; None: not said.
    """

    agent: str
    options: LeaseOptions
    wait_s: float
    hold_s: float | None


class Leases(ABC):
    """Leases and waits of all agents of one server.

    Attributes:
        changed: called with the token of a lease that has news, where this process renews it.
    """

    ttl_s: float

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.waits = PendingLeases(terms.idle_release_s, self._give_up)
        self.changed: Callable[[str], Awaitable[None]] = _ignored

    @property
    @abstractmethod
    def client(self) -> AsyncLeaseClient:
        """Client of the pool."""

    @abstractmethod
    def agent_of(self, who: Principal) -> str:
        """Return the agent's name for a request that names none."""

    @property
    @abstractmethod
    def host(self) -> str | None:
        """Host of a request that names none; None: this machine."""

    @abstractmethod
    def safe_mode(self, *, pool_safe_mode: bool) -> bool:
        """Return the SAFE_MODE in effect."""

    @abstractmethod
    async def begun(self, who: Principal, token: str) -> None:
        """Take note of a token that is about to be asked for."""

    @abstractmethod
    async def taken(self, who: Principal, lease: AsyncLease, hold_s: float | None) -> None:
        """Keep a lease that was granted just now."""

    @abstractmethod
    async def find(self, who: Principal, token: str) -> AsyncLease:
        """Return a lease of the caller; the call counts as a sign of life.

        Raises:
            LeaseLost: it is over.
            StillWaiting: it is a wait.
            UnknownToken: there is none, or it is another's.
        """

    @abstractmethod
    async def extend(self, who: Principal, token: str, hold_s: float) -> AsyncLease:
        """Keep a lease for at least so many seconds from now.

        Raises: see `find`.
        """

    @abstractmethod
    async def release(self, who: Principal, token: str) -> bool:
        """Give a lease or a place in the queue back; return False if it was over before.

        Raises:
            UnknownToken: there is none, or it is another's.
        """

    @abstractmethod
    async def listed(self, who: Principal) -> list[Held]:
        """Return the caller's leases and waits."""

    @abstractmethod
    async def notices(self, who: Principal) -> list[Notice]:
        """Return the news of the caller's leases."""

    @abstractmethod
    async def news(self, lease: AsyncLease) -> list[Notice]:
        """Return the news of one lease between teams: that it is to be preempted, or wanted."""

    @abstractmethod
    def ends(self, lease: AsyncLease) -> tuple[float | None, str]:
        """Return the seconds until a lease ends by itself, and a sentence about its end."""

    @abstractmethod
    async def rejoin(
        self, who: Principal, token: str, hold_s: float | None
    ) -> PendingLease | AsyncLease:
        """Return the wait or the lease of a ticket that another process keeps, or kept.

        Raises: see `find`, but StillWaiting.
        """

    @abstractmethod
    def _give_up(self, wait: PendingLease) -> None:
        """Have the pool forget a wait whose agent is silent."""

    @abstractmethod
    async def require_own(self, who: Principal, token: str) -> object:
        """Raise UnknownToken unless it is a lease or a wait of the caller."""

    @abstractmethod
    def note(self, **facts: str) -> None:
        """Add facts about a call to the log's line of it, where there is one."""

    @abstractmethod
    def require_open(self) -> None:
        """Raise SafeMode where this server's own setting forbids leases."""

    async def acquire(self, who: Principal, ask: AgentRequest) -> AsyncLease | PendingLease:
        """Get a lease, or a wait that goes on.

        Raises:
            Refused, LeaseLost, BrokerUnavailable: see `LeaseClient.acquire`.
        """
        token = new_token()
        options: LeaseOptions = ask.options | {
            "token": token,
            "owner": who.name,
            **({"team": who.team} if who.team else {}),
            "ttl_s": self.ttl_s,
            "wait_s": QUEUE_S if ask.wait_s else 0.0,
        }
        await self.begun(who, token)
        wait = self.waits.begin(
            token,
            self._granted(ask.agent, options),
            agent=ask.agent,
            owner=who.name,
            memory_mb=ask.options.get("memory_mb", 0),
            hold_s=ask.hold_s,
        )
        # decided in one request without a wait, for which the client has its own limit
        return await self._heard(who, wait, ask.wait_s or MOST_WAIT_S)

    async def ask_again(
        self, who: Principal, token: str, wait_s: float, hold_s: float | None
    ) -> AsyncLease | PendingLease:
        """Get the lease of a ticket, or the wait that goes on.

        Raises: see `acquire` and `find`.
        """
        wait = self.waits.get(possible(token))
        if wait is None or wait.owner != who.name:
            found = await self.rejoin(who, token, hold_s)
            if not isinstance(found, PendingLease):
                return found if hold_s is None else await self.extend(who, token, hold_s)
            wait = found
        wait.told = True
        wait.hold_s = wait.hold_s if hold_s is None else hold_s
        before = wait.task.done()
        got = await self._heard(who, wait, wait_s)
        return await self.find(who, token) if before else got

    async def _granted(self, agent: str, options: LeaseOptions) -> AsyncLease:
        """Return the lease of a request, once it is granted."""
        return await self.client.acquire(agent, **options)

    async def _heard(
        self, who: Principal, wait: PendingLease, wait_s: float
    ) -> AsyncLease | PendingLease:
        lease = await self.waits.result(wait, min(wait_s, MOST_WAIT_S))
        if lease is None:
            return wait
        await self.taken(who, lease, wait.hold_s)
        return lease

    async def place(self, token: str) -> int | None:
        """Return the waiters ahead; None: not known now."""
        try:
            found = await self.client.lookup(token)
        except LeaseError:
            return None
        return getattr(found, "place", None)


async def _ignored(token: str) -> None:
    """Ignore news: no server has asked for it."""


def possible(token: str) -> str:
    """Return the token; raise for one that no lease can have, as for an unknown one."""
    if not TOKEN.fullmatch(token):
        raise error_for("unknown_token")
    return token


def notices_of(token: str, words: tuple[str, ...]) -> list[Notice]:
    """Return the notices of a lease by their words."""
    return [Notice(token=token, kind=word, says=NOTICES.get(word, word)) for word in words]


def team_notices(
    token: str, preempt_in_s: float | None, wanted: tuple[str, int] | None
) -> list[Notice]:
    """Return the notices of a lease that is to be preempted, or that a waiter wants."""
    found = []
    if preempt_in_s is not None:
        found.append(
            Notice(
                token=token,
                kind="preempt",
                says=f"it is taken back in {max(0.0, preempt_in_s):.0f} s for a request with a "
                "right to its memory: save what must last, end its programs, gpu_release it, and "
                "ask for another with gpu_acquire",
            )
        )
    if wanted is not None:
        agent, memory_mb = wanted
        says = f"{agent} wants {memory_mb} MiB: gpu_release it if you can go on later, or go on now"
        found.append(Notice(token=token, kind="wanted", says=says))
    return found


def loss_of(token: str, code: str) -> Notice:
    """Return the notice of a lost lease."""
    return Notice(token=token, kind=code, says=str(error_for(code)))

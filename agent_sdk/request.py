"""Options of a request, and the identity of its caller."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from agent_sdk import evidence
from agent_sdk.clock import local_now
from agent_sdk.errors import (
    AgentCapExceeded,
    BrokerUnavailable,
    LeaseError,
    LeaseLost,
    NeverFits,
    NoCapacity,
    OutcomeUnknown,
    StillWaiting,
    error_for,
    in_time,
)
from agent_sdk.fork import identity
from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.protocol.lease import acquire, left_ms
from agent_sdk.protocol.messages import ANY, Grant, Request, new_token
from agent_sdk.protocol.sizes import meant_gib
from agent_sdk.protocol.validation import (
    LONGEST_S,
    check_choice,
    check_flag,
    check_line,
    check_model,
    check_name,
    check_range,
    check_size,
    milliseconds,
    plain,
    ttl_milliseconds,
)
from agent_sdk.settings import lease_token

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeGuard, Unpack

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Giving

log = logging.getLogger(__name__)

MOST_MB = 10**13 - 1
MOST_DEVICES, MOST_PRIORITY = 64, 9

TTL_S = 30.0
"""Default ttl of a lease, in seconds: renewed every 10 s; a silent death costs 30 s."""


class LeaseOptions(TypedDict, total=False):
    """The options of `acquire` and `lease`.

    Attributes:
        memory_mb: MiB on each device; 0 (default) = the policy's `default_memory_mb`.
        memory: the same as text, such as "8GiB", in place of `memory_mb`.
        devices: 1 (default); several = whole idle devices of one host and model, all or nothing.
        exclusive: alone on the device; memory_mb is then the least that it must have.
        ttl_s: seconds without renewal after which it ends, 1 s to 7 days, default 30; 0 = no
            expiry.
        max_hold_s: renewals never go past it; 0 (default) = no limit.
        priority: 0 (default) to 9, 9 first.
        host: None (default) = this machine, since only local GPUs can be used; "any", or a name.
        model: None (default) = any, or the exact name, as `gpu-broker status` shows it.
        placement: "spread" (default, most free first) or "pack" (best fit).
        on_unavailable: "raise" (default), or "cpu": fall back to a CPU lease.
        token: the lease's name; None = a new one. Repeating a call with its token is always safe.
        wait_s: seconds to wait in the queue; 0 (default) = decide now.
        keep_place: when wait_s is over decide nothing, stay in the queue, and raise StillWaiting;
            ask again with the error's token within 10 s.
        owner: the authenticated principal that asks; the broker's HTTP service sets it.
        note: a line for people, shown beside the lease; it is not kept where the store loses data.
        uses: `uuid=mb`: the process that the lease is for uses so much memory of that device
            already, without a lease; it gets no other device. See `gpu-broker adopt`.
        team: for whose quota it counts; default the client's team, from GPU_BROKER_TEAM.
        preemptible: True: it may be ended for a request of any team with a right to its memory, at
            any time and with notice.
        yields: True: its holder is told when a waiter wants what it has; see `Lease.wanted`.
        after: token of a lease that was preempted, whose job this one goes on with: it is protected
            for longer.
    """

    memory_mb: int
    memory: str
    devices: int
    exclusive: bool
    ttl_s: float
    max_hold_s: float
    priority: int
    host: str | None
    model: str | None
    placement: Literal["spread", "pack"]
    on_unavailable: Literal["raise", "cpu"]
    token: str | None
    wait_s: float
    keep_place: bool
    owner: str
    note: str
    uses: str
    team: str | None
    preemptible: bool
    yields: bool
    after: str | None


OPTIONS = frozenset(LeaseOptions.__annotations__)


PLAIN = {str, int, float, bool, type(None)}
"""Types of options that never change: what was checked once is right the next time."""

MOST_CHECKED = 256
"""Most options that are kept with their checked form."""


def process_id() -> str:
    """Return this process as `pid:start time`: a pid alone may be reused tomorrow."""
    pid = os.getpid()
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return str(pid)
    return f"{pid}:{stat.rpartition(')')[2].split()[19]}"


class _Process(NamedTuple):
    """Identity of a caller in one process.

    Attributes:
        client: its id.
        pid: as `process_id` has it; empty: it is not registered with leases.
        checked: options that were checked, with the rest of their request.
    """

    client: str
    pid: str
    checked: dict[tuple[Any, ...], tuple[Any, ...]]


@dataclass(slots=True)
class Caller:
    """Caller: one process, with an id that no other process shares.

    Its threads share one id: hints for its waiters come by it.

    Attributes:
        hostname: the host with the local devices.
        name: the process's own name, shown beside its leases.
        for_others: it asks for leases that others use: its own process is not registered with them.
        team: the team of requests that name none.
    """

    hostname: str
    name: str | None = None
    for_others: bool = False
    team: str = DEFAULT_TEAM
    _processes: dict[str, _Process] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", self.name):
            raise error_for("bad_request", "client_name must be 1-40 of A-Z a-z 0-9 . _ -")

    @property
    def client(self) -> str:
        """Id of this process."""
        return self._process().client

    def _process(self) -> _Process:
        """Return this process's identity: a forked child is another caller.

        Of threads that come first at once, all get the identity that was put there first.
        """
        me = identity()
        return self._processes.get(me) or self._processes.setdefault(me, self._identify())

    def _identify(self) -> _Process:
        client = "-".join(filter(None, (self.name, os.urandom(6).hex())))
        return _Process(client, "" if self.for_others else process_id(), {})

    def request(self, agent: str, **ask: Unpack[LeaseOptions]) -> Request:
        """Return the request that the options describe.

        Raises:
            BadRequest: an option has an invalid form.
        """
        me = self._process()
        token = ask.pop("token", None)
        token = new_token() if token is None else check_name(token, "token")
        values = ask.values()
        key = (agent, *ask.items(), type(agent), *map(type, values))
        try:
            rest = me.checked.get(key)
        except TypeError:  # a value that is no key is none of the plain types
            rest = None
        if rest is None:
            rest = self._check(me, agent, ask)
            if {type(agent), *map(type, values)} <= PLAIN:
                if len(me.checked) >= MOST_CHECKED:
                    me.checked.clear()
                me.checked[key] = rest
        if me.pid:
            evidence.show(token)
        return Request(token, *rest)

    def _check(self, me: _Process, agent: str, ask: LeaseOptions) -> tuple[Any, ...]:
        """Return the request's fields behind the token."""
        host, model = ask.get("host"), ask.get("model")
        if host is None:
            host = self.hostname
        if not ask.keys() <= OPTIONS:
            unknown = ", ".join(sorted(ask.keys() - OPTIONS))
            raise TypeError(f"unknown options: {unknown}; there are {', '.join(sorted(OPTIONS))}")
        unavailable = check_choice(
            ask.get("on_unavailable", "raise"), "on_unavailable", "raise", "cpu"
        )
        request = Request(
            token="",
            agent=check_name(agent, "agent"),
            memory_mb=self._memory_mb(ask),
            devices=check_range(ask.get("devices", 1), "devices", 1, MOST_DEVICES),
            exclusive=int(check_flag(ask.get("exclusive", False), "exclusive")),
            ttl_ms=ttl_milliseconds(ask.get("ttl_s", TTL_S), "ttl_s"),
            max_hold_ms=milliseconds(ask.get("max_hold_s", 0), "max_hold_s"),
            priority=check_range(ask.get("priority", 0), "priority", 0, MOST_PRIORITY),
            host=ANY if host == "any" else check_name(host, "host"),
            model=ANY if model is None else check_model(model),
            placement=check_choice(ask.get("placement", "spread"), "placement", "spread", "pack"),
            on_unavailable="refuse" if unavailable == "raise" else unavailable,
            client=me.client,
            pid=me.pid,
            owner=plain(ask.get("owner", "")),
            wait_ms=milliseconds(ask.get("wait_s", 0), "wait_s", LONGEST_S),
            note=check_line(ask.get("note", ""), "note"),
            uses=plain(ask.get("uses", "")),
            team=self._team(ask),
            preemptible=int(check_flag(ask.get("preemptible", False), "preemptible")) or "",
            yields=int(check_flag(ask.get("yields", False), "yields")) or "",
            after="" if (after := ask.get("after")) is None else check_name(after, "after"),
        )
        return request[1:]

    def _team(self, ask: LeaseOptions) -> str:
        """Return the team of a request; empty for the default one, which no call names."""
        named = ask.get("team")
        team = check_name(self.team if named is None else named, "team")
        return "" if team == DEFAULT_TEAM else team

    def _memory_mb(self, ask: LeaseOptions) -> int:
        """Return the MiB on each device, by either option; log too small a size for any GPU."""
        if "memory" not in ask:
            memory_mb = check_range(ask.get("memory_mb", 0), "memory_mb", 0, MOST_MB)
            if not self.for_others and (doubt := meant_gib(memory_mb, "memory='{}GiB'")):
                _say_once(f"memory_mb={memory_mb}: {doubt}")
            return memory_mb
        if ask.get("memory_mb"):
            raise error_for("bad_request", "name memory or memory_mb, and not both")
        return check_size(ask["memory"], "memory")


@cache
def _say_once(text: str) -> None:
    log.warning(text)


class Acquisition:
    """Acquire from its first call to its end, over any number of calls and tokens.

    Attributes:
        request: its present request.
        until: the end of the wait, on `clock.local_now`'s clock.
        giving: the lease that is given back with the first call.
    """

    def __init__(self, request: Request, ask: LeaseOptions) -> None:
        self.request = request
        self.until = local_now() + request.wait_ms / 1000
        self.giving: Giving | None = None
        self._waits = request.wait_ms > 0
        self._keep_place = bool(ask.get("keep_place", False))
        self._named = ask.get("token") is not None
        self._process = identity()

    @property
    def token(self) -> str:
        """Name of the lease: another one when it enqueues anew."""
        return self.request.token

    def steps(self, keys: Keys) -> Generator[Any, Answer, Grant]:
        """Run the calls and the waits of the acquire; see `protocol.lease.acquire`."""
        if self._waits or self._keep_place:
            wait_ms = left_ms(self.until, keep_place=self._keep_place)
            self.request = self.request._replace(wait_ms=wait_ms)
        try:
            giving = None if self.giving is None or self.giving.done else self.giving
            grant = yield from acquire(
                self.request, self.until, keep_place=self._keep_place, giving=giving
            )
        except NeverFits as error:
            if error.code != "never_fits":
                raise
        except (NoCapacity, AgentCapExceeded) as error:
            if not self._waits or local_now() < self.until:
                raise
            raise in_time(error) from None
        else:
            if self.request.pid:
                evidence.hold(grant.token)
            return grant
        from agent_sdk.state.capacity import never_fits  # noqa: PLC0415 - rarely needed

        raise (yield from never_fits(keys, self.request))

    def leaves_something(self, error: BaseException) -> bool:
        """Return whether a lease or a place in the queue may be left without an owner.

        A caller repeats or releases a token of its own, and a parent that forked in the middle
        keeps its token. An error that is not the broker's, such as a time limit of the caller's,
        may have come at any moment.
        """
        if self._named or self._process != identity() or isinstance(error, StillWaiting):
            return False
        if isinstance(error, BrokerUnavailable):
            return self.request.wait_ms > 0
        return isinstance(error, OutcomeUnknown) or not isinstance(error, LeaseError)

    def again(self, error: BaseException) -> bool:
        """Return whether to enqueue anew: the place timed out while the store was away."""
        lost = isinstance(error, LeaseLost) and error.code == "timed_out"
        if not lost or self._named or local_now() >= self.until:
            return False
        self.request = self.request._replace(token=new_token())
        if self.request.pid:
            evidence.show(self.request.token)
        return True

    def local_grant(self, error: LeaseError) -> Grant:
        """Return the CPU lease that the caller gives itself."""
        return local_grant(self.request.agent, self.request.token, error)

    def falls_back(self, error: BaseException) -> TypeGuard[LeaseError]:
        """Return whether the caller gives itself a CPU lease."""
        away = isinstance(error, (BrokerUnavailable, OutcomeUnknown)) and error.code != "closed"
        return away and self.request.on_unavailable == "cpu"


def own_token(token: str | None) -> str:
    """Return the token, or that of the lease under which this process was started.

    Raises:
        UnknownToken: there is neither.
    """
    found = lease_token() if token is None else token
    if found is None:
        raise error_for("unknown_token", "no token was named, and GPU_LEASE_TOKEN is not set")
    return check_name(found, "token")


def local_grant(agent: str, token: str, error: LeaseError) -> Grant:
    """Return the CPU lease for a caller that cannot ask the broker; its fence is 0."""
    return Grant(
        token=token,
        agent=agent,
        fence=0,
        expires_at_ms=0,
        remaining_ms=0,
        ttl_ms=0,
        reason=error.code,
        devices=(),
        trusted_until=float("inf"),
    )

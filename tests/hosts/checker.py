"""Reads what agents believed and what the pool says, and tells what must never be.

Pure: two implementations would have to be wrong alike, for nothing here asks the product about
right or wrong. `test_checker.py` shows that each kind of violation is found.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent_sdk.state.events import Event
    from tests.hosts.history import History, Window

LATE_S = 2.0
"""Longest delay of the end of a lease, or of a host's placement: twice what is promised."""

RETURN_S = 2.0
"""Longest time for agents to reach the store again after a fault: twice what is promised."""

CLOSED_S, LONG_S, PAUSE_S = 10.0, 10.0, 30.0
"""Seconds that a pool hears holders first: after a failover, after an outage; the pause."""

READ_MS = 20
"""Error of comparing two clocks of one machine by reading one after the other."""

BEGINS = frozenset({"granted", "recovered"})

ENDS = frozenset({"released", "expired", "revoked"})


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the system, on `clocks.local_now`'s clock.

    Attributes:
        cut: hosts, or single processes, that could not reach the store or did not run.
        silent: hosts whose reporter could not report.
        failover: the store's last writes may be lost.
    """

    what: str
    since: float
    until: float
    cut: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    failover: bool = False


@dataclass(frozen=True, slots=True)
class PoolSaid:
    """The pool's own account when all is over.

    Attributes:
        events: the whole stream.
        capacities: device id -> MiB.
        hosts: device id -> host.
        left: tokens that still have a record or a lease key.
        ahead_ms: the pool's clock minus `clocks.local_now`'s, in ms.
        deadline_s: how long a host may be silent before it takes no new leases.
        seen: id of an event -> when a reader of the stream had it, where the pool's clock stepped
            and so tells nothing; on `clocks.local_now`'s clock.
    """

    events: tuple[Event, ...]
    capacities: dict[str, int]
    hosts: dict[str, str]
    left: tuple[str, ...]
    ahead_ms: float
    deadline_s: float
    seen: Mapping[str, float] = field(default_factory=dict)

    def at(self, event: Event) -> float:
        """Return the moment of an event, on `clocks.local_now`'s clock."""
        seen = self.seen.get(event.id)
        return (event.at_ms - self.ahead_ms) / 1000 if seen is None else seen


@dataclass(slots=True)
class _Ledger:
    """The pool as a replay of its stream makes it."""

    capacities: dict[str, int]
    held: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def grant(self, event: Event) -> Iterator[str]:
        token = event.fields["token"]
        for uuid, mb in event.devices:
            self.held[uuid][token] = mb or 0
            if sum(self.held[uuid].values()) > self.capacities[uuid]:
                yield f"over capacity: {uuid} by {event.id}, the grant of {token}"

    def end(self, event: Event) -> None:
        for uuid, _ in event.devices:
            self.held[uuid].pop(event.fields["token"], None)


def violations(history: History, pool: PoolSaid, faults: Sequence[Fault] = ()) -> list[str]:
    """Everything that should not have been, in words; nothing: all is well."""
    stopped = [Fault("starved", s.since, s.until, frozenset({s.who})) for s in history.starved]
    return [
        *_together(history.windows, pool, faults),
        *_fences(history.windows, pool),
        *_stream(pool, faults),
        *_ends(history.windows, pool, faults),
        *_losses(history.windows, pool, [*faults, *stopped]),
        *_abroad(history.windows, pool),
        *_silence(pool, faults),
        *(f"lives for ever: {token}" for token in pool.left),
    ]


def _together(windows: list[Window], pool: PoolSaid, faults: Sequence[Fault]) -> Iterator[str]:
    """At no moment do holders believe in more of a device than there is."""
    on: dict[str, list[Window]] = defaultdict(list)
    # An answer that its holder read when the trust had run out was never believed.
    believed = [window for window in windows if window.believed_until > window.since]
    for window in sorted(believed, key=lambda w: w.since):
        for uuid in window.devices:
            held = [w for w in on[uuid] if w.believed_until > window.since]
            on[uuid] = [*held, window]
            alone = len(on[uuid]) == 1 or not any(w.exclusive for w in on[uuid])
            used_mb = sum(w.devices[uuid] for w in on[uuid])
            if alone and used_mb <= pool.capacities[uuid]:
                continue
            if not all(_superseded(w, window, faults) for w in held):
                who = ", ".join(f"{w.who}:{w.token}:{w.fence}" for w in on[uuid])
                yield f"together: {used_mb} MiB of {uuid} at {window.since:.3f}: {who}"


def _superseded(older: Window, newer: Window, faults: Sequence[Fault]) -> bool:
    """Return whether a failover lost the older grant and its holder's next call was told so."""
    lost = any(f.failover and older.since < f.until and newer.since > f.since for f in faults)
    told = older.lost is not None and older.renewed_at <= newer.since
    return lost and told and older.fence < newer.fence


def _fences(windows: list[Window], pool: PoolSaid) -> Iterator[str]:
    """Check that a later request has the larger fence, whichever store granted."""
    answered = sorted(windows, key=lambda w: w.since)
    highest, n = 0, 0
    for window in sorted(windows, key=lambda w: w.asked_at):
        while n < len(answered) and answered[n].since < window.asked_at:
            highest = max(highest, answered[n].fence)
            n += 1
        if window.fence <= highest:
            yield f"fence back: {window.token} has {window.fence}, {highest} was granted before"
    granted = [event for event in pool.events if event.event == "granted"]
    for before, after in pairwise(granted):
        if int(after.fields["fence"]) <= int(before.fields["fence"]):
            yield f"fence back: {after.id} after {before.id}"


def _stream(pool: PoolSaid, faults: Sequence[Fault]) -> Iterator[str]:
    """Its own account: within capacity, one grant and one end per token, nothing on a host away."""
    ledger, granted, ended, away = _Ledger(pool.capacities), set(), set(), set()
    forgets = any(fault.failover for fault in faults)
    for event in pool.events:
        token = event.token or ""
        match event.event:
            case "granted" | "recovered" as how:
                if token in granted:
                    yield f"granted twice: {token}"
                granted.add(token)
                yield from ledger.grant(event)
                if how == "granted" and {pool.hosts[uuid] for uuid, _ in event.devices} & away:
                    yield f"away: {token} was granted on a host that did not report"
            case "host_away":
                away.add(event.fields["host"])
            case "host_up":
                away.discard(event.fields["host"])
            case how if how in ENDS and "fence" in event.fields:
                if token in ended or not (token in granted or forgets):
                    yield f"ended without a grant: {token}"
                ended.add(token)
                ledger.end(event)


def _ends(windows: list[Window], pool: PoolSaid, faults: Sequence[Fault]) -> Iterator[str]:
    """The pool knows each lease, ends none that is believed in, and ends each in time."""
    grants = {e.token: e for e in pool.events if e.event in BEGINS}
    ends = {e.token: e for e in pool.events if e.event in ENDS}
    for window in windows:
        grant, end = grants.get(window.token), ends.get(window.token)
        excused = any(f.failover and window.since < f.until for f in faults)
        if grant is None or end is None:
            if not excused:
                yield f"no trace: {window.token} has no {'end' if grant else 'grant'}"
            continue
        if int(grant.fields["fence"]) != window.fence or dict(grant.devices) != window.devices:
            yield f"another lease: {window.token} is not what its holder believes"
        if pool.at(end) < window.believed_until - READ_MS / 1000 and not excused:
            yield f"too early: {window.token} {end.event} while {window.who} believed in it"
        heard = (_reaps_at(fault) for fault in faults if fault.failover)
        late_s = pool.at(end) - max([window.until, *heard])
        # The answer to one more renewal may have been lost; the last may have been read too late.
        gave_s = max(0.0, window.until - window.renewed_at)
        if end.event == "expired" and late_s > gave_s * 1.02 + LATE_S:
            yield f"too late: {window.token} expired {late_s:.1f} s after trust"


def forgotten(windows: list[Window], pool: PoolSaid) -> set[str]:
    """The tokens that were granted, and the pool knows nothing of that, though it may have
    recovered some of them.
    """
    return {w.token for w in windows} - {e.token for e in pool.events if e.event == "granted"}


def _reaps_at(failover: Fault) -> float:
    """Return the end of the time in which holders are heard and no lease is taken back."""
    long = failover.until - failover.since > LONG_S
    return failover.until + (PAUSE_S if long else CLOSED_S)


def _losses(windows: list[Window], pool: PoolSaid, faults: Sequence[Fault]) -> Iterator[str]:
    """Nobody lost a lease that it could go on renewing.

    But for one whose grant a failover forgot, and whose room another has; or had, as the new
    primary knows it, until trust ran out.
    """
    unknown = forgotten(windows, pool) if any(fault.failover for fault in faults) else set()
    for window in windows:
        taken = window.token in unknown and (
            window.lost == "superseded"
            or (window.lost == "unreachable" and any(_heard(fault, window) for fault in faults))
        )
        if window.lost is None or taken or any(_ran_out(fault, window) for fault in faults):
            continue
        yield f"lost: {window.token} of {window.who} ({window.lost}), which it was renewing"


def _heard(fault: Fault, window: Window) -> bool:
    """Return whether trust ran out while holders were heard and no lease was taken back."""
    return fault.failover and fault.since <= window.until <= _reaps_at(fault)


def _ran_out(fault: Fault, window: Window) -> bool:
    """Return whether trust ran out while the holder was cut off, or just after."""
    cut = bool({window.host, window.who} & fault.cut)
    return cut and fault.since <= window.until <= fault.until + RETURN_S


def _abroad(windows: list[Window], pool: PoolSaid) -> Iterator[str]:
    """A lease is on one host: that of its holder unless it asked for another."""
    for window in windows:
        where = {pool.hosts[uuid] for uuid in window.devices}
        if len(where) != 1 or (window.asked != "any" and where != {window.asked}):
            yield f"abroad: {window.token} asked for {window.asked} and is on {sorted(where)}"


def _silence(pool: PoolSaid, faults: Sequence[Fault]) -> Iterator[str]:
    """A host that cannot report takes no new leases from its deadline on, until it is back."""
    for fault in faults:
        gone_at = fault.since + pool.deadline_s + LATE_S
        for host in fault.silent:
            for event in pool.events:
                there = any(pool.hosts[uuid] == host for uuid, _ in event.devices)
                if event.event == "granted" and there and gone_at < pool.at(event) < fault.until:
                    yield f"silent: {event.token} was granted on {host} during {fault.what}"
